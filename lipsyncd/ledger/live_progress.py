"""What the daemon reports in `status.json`, once a second while it renders, for readers of the ledger.

The ledger records stages only; the fraction of each render is reported here, and why nothing is taken in or rendered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lipsyncd.jobs.job import Job, JobState
from lipsyncd.storage.files import read_json

STATUS_FILE = "status.json"  # in `state`


class LiveProgress:
    """Reads `status.json` in the folder `state`, and again when it has changed."""

    def __init__(self, state: Path) -> None:
        self._file = state / STATUS_FILE
        self._read_as: tuple[int, ...] = ()
        self._jobs: Mapping[str, Any] = {}
        self._paused = ""

    @property
    def paused(self) -> str:
        """Why the daemon takes and renders nothing at present; "" when it does, or reports nothing."""
        self._read()
        return self._paused

    def of(self, job_id: str) -> tuple[str, float] | None:
        """Stage and fraction of that job's render; None when the daemon reports none."""
        self._read()
        found = self._jobs.get(job_id)
        return None if found is None else (str(found["stage"]), float(found["fraction"]))

    def _read(self) -> None:
        try:
            status = self._file.stat()
        except OSError:
            self._read_as, self._jobs, self._paused = (), {}, ""
            return
        read_as = (status.st_ino, status.st_size, status.st_mtime_ns)  # one tick of the clock may see two writes
        if read_as != self._read_as:
            reported = read_json(self._file) or {}
            self._jobs, self._paused = reported.get("progress", {}), str(reported.get("paused", ""))
            self._read_as = read_as

    def onto(self, job: Job) -> Job:
        """The job with its live stage and fraction while it renders."""
        found = self.of(job.id) if job.state is JobState.RUNNING else None
        return job if found is None else replace(job, stage=found[0], fraction=found[1])
