"""The state of the daemon at one moment, for health checks and metrics.

Pure data. `probe` gathers it; `health` and `metrics` read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lipsyncd.jobs.job import JobState
from lipsyncd.jobs.steps import StepFacts


@dataclass(frozen=True)
class WorkerFacts:
    """The worker of one device.

    loads        how many render children it has started
    unwatched_s  since it last checked the render under way; 0 without one
    busy         it renders
    """

    device: str
    up: bool
    loads: int = 0
    unwatched_s: float = 0.0
    busy: bool = False


@dataclass(frozen=True)
class InboxFacts:
    """The state of all inboxes.

    paused       why no file is accepted; "" if files are
    degraded     why folders are polled although they should send events; "" if they do
    stuck_files  files that cannot be read or accepted, or not be removed after they were
    overflows    how often events were lost
    restarts     how often a reader of events was replaced
    """

    paused: str = ""
    degraded: str = ""
    stuck_files: int = 0
    overflows: int = 0
    restarts: int = 0


@dataclass(frozen=True)
class Facts:
    """The state of the daemon.

    tick_age_s           since the last round of the main loop
    scan_age_s           since the last scan of the inbox; scans are due every `scan_due_s`
    draining             the daemon is stopping; running jobs may finish
    faults               result of the last probe: name of the check -> why it fails, "" if it passes
    probe_age_s          since the start of the last complete probe; probes are due every `probe_due_s`
    probing              the check that a probe under way is at
    jobs                 number of jobs in each state
    oldest_queued_s      age of the job that waits longest
    outbox_free_bytes    None while the outbox is not mounted
    spool_free_bytes     None before the first probe
    vram                 bytes of GPU memory by kind: used, total; empty without a GPU
    jailed               False: this kernel has no Landlock
    inbox                the state of all inboxes
    steps                what each part is doing, the oldest first
    """

    version: str
    tick_age_s: float = 0.0
    scan_age_s: float = 0.0
    scan_due_s: float = 10.0
    draining: bool = False
    faults: Mapping[str, str] = field(default_factory=dict)
    probe_age_s: float = 0.0
    probe_due_s: float = 10.0
    probing: str = ""
    workers: tuple[WorkerFacts, ...] = ()
    jobs: Mapping[JobState, int] = field(default_factory=dict)
    oldest_queued_s: float | None = None
    outbox_free_bytes: int | None = None
    spool_free_bytes: int | None = None
    vram: Mapping[str, int] = field(default_factory=dict)
    jailed: bool = True
    inbox: InboxFacts = InboxFacts()
    steps: tuple[StepFacts, ...] = ()
