"""The ways in: each inbox folder with its watch, its lock and its desk, and the one thread that looks at all of them.

    watch    rings when something changes; the clock rings when nothing is heard
    lock     held while we serve the folder: two daemons on one share would both take every drop
    inbox    which files are finished and belong together
    intake   takes them into spool and ledger

A folder that cannot be served says why and is tried again at the next look. Low disk stops the taking, not the looking.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from lipsyncd.inbox.accept import Accepted, Intake
from lipsyncd.inbox.scan import Inbox, rules_of
from lipsyncd.inbox.watch import Overflows, Watch
from lipsyncd.jobs.job import JobSpec
from lipsyncd.ledger.ledger import Ledger
from lipsyncd.monitor.facts import InboxFacts
from lipsyncd.settings import CurrentSettings
from lipsyncd.storage.disk_space import shortage
from lipsyncd.storage.folders import HIDDEN, Folders
from lipsyncd.storage.locks import FolderLock, served
from lipsyncd.storage.spool import Spool

log = logging.getLogger(__name__)


@dataclass
class Door:
    """One inbox folder. `fault` says why it cannot be served just now."""

    kind: str
    inbox: Inbox
    intake: Intake
    watch: Watch
    lock: FolderLock
    fault: str = ""


class Arrivals:
    """Every door of one daemon. `run` is the scanning thread's work; the rest may be read from any thread.

    make_room  asked when the disk is low: frees some, and says whether that was enough
    ring       set to look at once
    paused     why nothing is taken although it lies there; "" when it is
    """

    def __init__(
        self, settings: CurrentSettings, folders: Folders, make_room: Callable[[], bool] = lambda: False
    ) -> None:
        self.settings = settings
        self.folders = folders
        self.make_room = make_room
        self.doors: list[Door] = []
        self.ring = threading.Event()
        self._overflows = Overflows(self.ring.set)
        self.paused = ""
        self._locks: dict[str, FolderLock] = {}
        self._scanned_s = time.monotonic()

    # -- start ---------------------------------------------------------------------------------------------------------

    def lock(self) -> None:
        """Take the locks of the folders that are there. Raises `AnotherDaemonRuns` when another daemon serves one."""
        for kind in self.folders.inboxes:
            path = self.folders.lock_file(kind)
            lock = FolderLock(path)
            if self.folders.available(kind) and (who := lock.hold()):
                raise served(path, who)
            self._locks[kind] = lock

    def open(self, spool: Spool, ledger: Ledger) -> None:
        """Put a desk behind each door; still nobody looks."""
        names = [queue.name for queue in self.settings.now.queues]
        for kind in self.folders.inboxes:
            folder = self.folders.shared[kind]
            inbox = Inbox(
                folder,
                rules_of(self.settings.now),
                network=False,
                queues=() if queue_of(kind) else names,
                opened=partial(self.folders.opened, kind),
            )
            intake = Intake(self.settings, inbox, spool, ledger, queue_of(kind))
            watch = Watch(folder, mode=self.settings.now.watch.mode, hidden=HIDDEN, bell=self.ring.set)
            self.doors.append(Door(kind, inbox, intake, watch, self._locks[kind]))

    def register(self, spec: JobSpec) -> Accepted | None:
        """Give a job that was accepted before a crash its row."""
        by_queue = {queue_of(door.kind): door for door in self.doors}
        return by_queue.get(spec.queue, self.doors[0]).intake.register(spec)

    # -- looking -------------------------------------------------------------------------------------------------------

    def run(
        self, stop: Callable[[], bool], guarded: Callable[[Callable[[], bool]], bool], told: threading.Event
    ) -> None:
        """Look until `stop`; `told` is set when jobs were accepted. `guarded` keeps what a scan may bring from us."""
        while not stop():
            self.ring.clear()
            self.paused = self._why_paused()
            for door in self.doors:
                if guarded(lambda door=door: self._look(door, stop)):  # type: ignore[misc]
                    told.set()
            self.ring.wait(self._pause_s())
        for door in self.doors:
            door.watch.stop()
        self._overflows.close()

    def _look(self, door: Door, stop: Callable[[], bool]) -> bool:
        """Serve one door; True when that made jobs."""
        self._judge(door)
        if door.fault:
            return False
        door.watch.check()
        door.inbox.settling.network = door.watch.network
        door.inbox.settling.rules = rules_of(self.settings.now)
        if self.paused:
            return False
        try:
            accepted = door.intake.scan(stop)
        except OSError as error:
            place = door.inbox.root if error.filename is None else os.fsdecode(error.filename)
            self._blame(door, f"{place} cannot be looked through: {error.strerror}")
            return False
        self._scanned_s = time.monotonic()
        if door.intake.cut_short:
            self.ring.set()
        return bool(accepted)

    def _judge(self, door: Door) -> None:
        if not self.folders.available(door.kind):
            self._blame(door, f"{door.inbox.root} is not mounted, or is another folder than before")
        elif who := door.lock.hold():
            self._blame(door, f"{door.inbox.root} is served by {who}")
        else:
            door.fault = ""

    def _blame(self, door: Door, why: str) -> None:
        if door.fault != why:
            log.warning("inbox: %s", why)
        door.fault = why

    def _why_paused(self) -> str:
        spool = self.folders.spool
        try:
            why = shortage(spool, self.settings.now.paths.min_free_mb)
        except OSError as error:
            return f"the free space of {spool} cannot be read: {error.strerror}"
        if why and self.make_room():
            why = ""
        if why and not self.paused:
            log.warning("nothing is taken in or rendered: %s", why)
        elif self.paused and not why:
            log.info("%s has room again", spool)
        return why

    def _pause_s(self) -> float:
        """Seconds until the next look, if nothing rings before."""
        asked = [door.inbox.settling.next_look_s for door in self.doors if not door.fault and not self.paused]
        soon = [seconds + 0.005 for seconds in asked if seconds is not None]
        return min([self.scan_due_s, *soon])

    # -- what others ask -----------------------------------------------------------------------------------------------

    @property
    def scan_age_s(self) -> float:
        return time.monotonic() - self._scanned_s

    @property
    def scan_due_s(self) -> float:
        """Seconds between two looks when nothing rings."""
        watch = self.settings.now.watch
        heard = all(door.watch.events and not door.fault for door in self.doors) and not self.paused
        return watch.rescan_s if heard else watch.poll_s

    @property
    def facts(self) -> InboxFacts:
        watches = [door.watch for door in self.doors]
        return InboxFacts(
            paused=self.paused,
            degraded="; ".join(watch.degraded for watch in watches if watch.degraded),
            stuck_files=len(self.blocked),
            overflows=self._overflows.count,
            restarts=sum(watch.restarts for watch in watches),
        )

    @property
    def blocked(self) -> dict[str, str]:
        """Files that lie in an inbox and cannot be taken, or not be removed after they were, and why."""
        return dict(_named(self.doors, lambda door: {**door.inbox.settling.unreadable, **door.intake.held}))

    def status(self) -> dict[str, Any]:
        """What `lipsyncd status` shows of the inboxes."""
        first = self.doors[0]
        waiting = [{**asdict(w), "name": name} for name, w in _named(self.doors, _waiting)]
        return {
            "inbox": str(first.inbox.root),
            "inbox_available": not first.fault,
            "inbox_fault": first.fault,
            "watch": "events" if first.watch.events else "polling",
            "degraded": self.facts.degraded,
            "paused": self.paused,
            "scan_age_s": round(self.scan_age_s, 1),
            "waiting": waiting,
            "blocked": self.blocked,
            "queues": [self._queue(door) for door in self.doors[1:]],
            "ignored": dict(_named(self.doors, lambda door: door.inbox.ignored)),
        }

    def _queue(self, door: Door) -> dict[str, Any]:
        name = queue_of(door.kind)
        watch = "events" if door.watch.events else "polling"
        return {"name": name, "priority": self.settings.now.queue(name).priority, "fault": door.fault, "watch": watch}


def queue_of(kind: str) -> str:
    """The queue whose folder that kind is; "" for the inbox itself."""
    return kind.partition("/")[2]


def _named(doors: Iterable[Door], ask: Callable[[Door], Mapping[str, Any]]) -> Iterable[tuple[str, Any]]:
    """What each door says of its files, under the names that people know them by."""
    for door in doors:
        prefix = queue_of(door.kind)
        for name, value in ask(door).items():
            yield (f"{prefix}/{name}" if prefix else name), value


def _waiting(door: Door) -> dict[str, Any]:
    return {w.name: w for w in door.inbox.waiting}
