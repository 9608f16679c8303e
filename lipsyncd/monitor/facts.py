"""How the daemon stands at one moment: what health checks and metrics are made of.

Pure data. `vitals` gathers it; `health` and `metrics` only read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lipsyncd.jobs.job import JobState


@dataclass(frozen=True)
class Worker:
    """The worker of one device.

    loads        how many render children it has started
    unwatched_s  since it last looked after the render under way; 0 without one
    """

    device: str
    up: bool
    loads: int = 0
    unwatched_s: float = 0.0


@dataclass(frozen=True)
class Inflow:
    """How well drops come in.

    paused     why nothing is taken although it lies there
    degraded   why changes are not heard although they should be, and folders are polled
    blocked    files that cannot be taken, or not be removed after they were
    overflows  how often events were lost
    restarts   how often a reader of events was replaced
    """

    paused: str = ""
    degraded: str = ""
    blocked: int = 0
    overflows: int = 0
    restarts: int = 0


@dataclass(frozen=True)
class Facts:
    """One look at the daemon.

    tick_age_s           since the main loop last came round
    scan_age_s           since the inbox was last scanned; scans are due every `scan_due_s`
    draining             told to stop: running jobs may finish
    faults               what the last probe found: the check's name -> why it fails, an empty text when it passes
    probe_age_s          since the last probe began that has ended; probes are due every `probe_due_s`
    probing              what a probe under way is looking at just now
    jobs                 how many are in each state
    oldest_queued_s      age of the job that waits longest
    outbox_free_bytes    None while the outbox is not there
    spool_free_bytes     None until it was looked at
    vram                 bytes of GPU memory by kind: used, total; empty without a GPU
    jailed               False: this kernel has no Landlock
    inflow               how well drops come in
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
    workers: tuple[Worker, ...] = ()
    jobs: Mapping[JobState, int] = field(default_factory=dict)
    oldest_queued_s: float | None = None
    outbox_free_bytes: int | None = None
    spool_free_bytes: int | None = None
    vram: Mapping[str, int] = field(default_factory=dict)
    jailed: bool = True
    inflow: Inflow = Inflow()
