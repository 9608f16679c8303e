"""What the daemon reports in `status.json`, once a second while it renders, for readers of the ledger.

The ledger records stages only; the fraction of each render is reported here, and why nothing is taken in or rendered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from lipsyncd.jobs.job import Job, JobState
from lipsyncd.storage.files import read_json

STATUS_FILE = "status.json"  # in `state`


class _Report(NamedTuple):
    """What the file had when it was read."""

    read_as: tuple[int, ...]
    jobs: Mapping[str, Any]
    paused: str


_NOTHING = _Report((), {}, "")


class LiveProgress:
    """Reads `status.json` in the folder `state`, and again when it has changed. Safe in several threads."""

    def __init__(self, state: Path) -> None:
        self._file = state / STATUS_FILE
        self._known = _NOTHING

    @property
    def paused(self) -> str:
        """Why the daemon takes and renders nothing at present; "" when it does, or reports nothing."""
        return self._read().paused

    def of(self, job_id: str) -> tuple[str, float] | None:
        """Stage and fraction of that job's render; None when the daemon reports none."""
        found = self._read().jobs.get(job_id)
        return None if found is None else (str(found["stage"]), float(found["fraction"]))

    def _read(self) -> _Report:
        try:
            status = self._file.stat()
        except OSError:
            return _NOTHING
        known = self._known
        read_as = (status.st_ino, status.st_size, status.st_mtime_ns)  # one tick of the clock may see two writes
        if read_as != known.read_as:
            found = read_json(self._file) or {}
            known = _Report(read_as, found.get("progress", {}), str(found.get("paused", "")))
            self._known = known  # at once: another thread may read an older file or a newer one meanwhile
        return known

    def onto(self, job: Job) -> Job:
        """The job with its live stage and fraction while it renders."""
        found = self.of(job.id) if job.state is JobState.RUNNING else None
        return job if found is None else replace(job, stage=found[0], fraction=found[1])
