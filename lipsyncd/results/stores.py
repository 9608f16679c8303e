"""The ledger, spool and folders of one daemon's jobs, in one object for every part that works on jobs."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import cached_property

from lipsyncd.jobs.blocked import Obstacles
from lipsyncd.jobs.job import now_ms
from lipsyncd.jobs.running import RunningJobs
from lipsyncd.jobs.steps import Steps
from lipsyncd.ledger.ledger import Ledger
from lipsyncd.ledger.withdrawn import Withdrawn
from lipsyncd.results.outbox import Outbox
from lipsyncd.results.thumbnails import Thumbnails
from lipsyncd.settings import CurrentSettings
from lipsyncd.storage.folders import Folders
from lipsyncd.storage.spool import Spool

LONGEST_LOOK_S = 60.0  # the ledger is read at least this often


@dataclass
class Stores:
    """The records and folders of jobs, and what threads share about them in memory.

    obstacles  what blocked jobs wait for
    running    the renders in progress
    steps      what each part is doing, for health checks
    waiting    set by `wake`: one event for each thread that works on jobs
    """

    settings: CurrentSettings
    folders: Folders
    spool: Spool
    ledger: Ledger
    outbox: Outbox
    obstacles: Obstacles = field(default_factory=Obstacles)
    running: RunningJobs = field(default_factory=RunningJobs)
    steps: Steps = field(default_factory=Steps)
    waiting: list[threading.Event] = field(default_factory=list)

    @cached_property
    def withdrawn(self) -> Withdrawn:
        """Jobs that were taken back before they had a row."""
        return Withdrawn(self.folders.state)

    @cached_property
    def thumbnails(self) -> Thumbnails:
        """Small pictures of the jobs, for people to look at."""
        return Thumbnails(self.folders.state)

    def wake(self, besides: threading.Event | None = None) -> None:
        """Let every thread that works on jobs read the ledger now: a job may be due."""
        for event in self.waiting:
            if event is not besides:
                event.set()

    def seconds_until_due(self) -> float:
        """Seconds until the next waiting job is due, by the ledger; at most `LONGEST_LOOK_S`."""
        due_ms = self.ledger.next_due_ms()
        return LONGEST_LOOK_S if due_ms is None else min(max(due_ms - now_ms(), 0) / 1000, LONGEST_LOOK_S)


def stores_of(settings: CurrentSettings, folders: Folders, ledger: Ledger) -> Stores:
    output = settings.now.output
    outbox = Outbox(folders.shared["outbox"], mode=output.mode_bits, group=output.group)
    return Stores(settings, folders, Spool(folders.spool), ledger, outbox)
