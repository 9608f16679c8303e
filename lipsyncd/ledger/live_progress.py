"""The progress of running renders, for readers of the ledger.

The ledger records stages only. The daemon writes the fraction of each render into `status.json` once a second.
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
        self._read_ns = 0
        self._jobs: Mapping[str, Any] = {}

    def of(self, job_id: str) -> tuple[str, float] | None:
        """Stage and fraction of that job's render; None when the daemon reports none."""
        try:
            changed_ns = self._file.stat().st_mtime_ns
        except OSError:
            return None
        if changed_ns != self._read_ns:
            self._jobs = (read_json(self._file) or {}).get("progress", {})
            self._read_ns = changed_ns
        found = self._jobs.get(job_id)
        return None if found is None else (str(found["stage"]), float(found["fraction"]))

    def onto(self, job: Job) -> Job:
        """The job with its live stage and fraction while it renders."""
        found = self.of(job.id) if job.state is JobState.RUNNING else None
        return job if found is None else replace(job, stage=found[0], fraction=found[1])
