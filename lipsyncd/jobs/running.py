"""Renders in progress: how far each one is, and requests to cancel them.

In memory, for the threads of one daemon. The ledger records the stage, and a request to cancel, so that it survives a
restart. The fraction is written to `status.json` only, so that progress costs no durable write.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class RunningJob:
    """One render in progress. `fraction` is the finished part of the stage, 0 to 1."""

    stage: str = "starting"
    fraction: float = 0.0
    cancelled: threading.Event = field(default_factory=threading.Event)


class RunningJobs:
    """At most one for each device. Safe in several threads.

    changed  called when a render has begun or ended
    """

    def __init__(self) -> None:
        self.changed: Callable[[], None] = lambda: None
        self._lock = threading.Lock()
        self._jobs: dict[str, RunningJob] = {}

    def begin(self, job_id: str) -> RunningJob:
        running = RunningJob()
        with self._lock:
            self._jobs[job_id] = running
        self.changed()
        return running

    def end(self, job_id: str) -> None:
        with self._lock:
            self._jobs.pop(job_id, None)
        self.changed()

    def cancel(self, job_id: str) -> None:
        """Request the render of that job to end; does nothing when there is none."""
        with self._lock:
            if (found := self._jobs.get(job_id)) is not None:
                found.cancelled.set()

    def progress(self) -> dict[str, dict[str, Any]]:
        """Stage and fraction of each render in progress, as JSON, by the job's id."""
        with self._lock:
            return {job_id: {"stage": one.stage, "fraction": one.fraction} for job_id, one in self._jobs.items()}
