"""What an unfinished job waits for, besides its turn: for `status`, `submit --wait` and REST."""

from __future__ import annotations

from typing import Protocol

from lipsyncd.errors import DiskLow
from lipsyncd.jobs.job import JobState

SAME_WORK = "same-work"  # the code of a job that waits for an earlier one with the same work


class UnfinishedJob(Protocol):
    """The fields of a job that `waits_for` reads."""

    @property
    def state(self) -> JobState: ...
    @property
    def attempt(self) -> int: ...
    @property
    def max_attempts(self) -> int: ...
    @property
    def reason_code(self) -> str | None: ...
    @property
    def reason(self) -> str | None: ...
    @property
    def remedy(self) -> str | None: ...
    @property
    def duplicate_of(self) -> str | None: ...


def waits_for(job: UnfinishedJob, *, paused: str = "") -> dict[str, str] | None:
    """Code, message and remedy of what the job waits for; None when it works, has ended, or only waits for its turn.

    paused  why the daemon takes and renders nothing at present
    """
    if job.state not in (JobState.QUEUED, JobState.PUBLISHING):
        return None
    if job.reason_code is not None:
        message = job.reason or ""
        if job.state is JobState.QUEUED and job.attempt:
            message = (
                f"attempt {job.attempt} of {job.max_attempts} failed, and the next one starts by itself: {message}"
            )
        return {"code": job.reason_code, "message": message, "remedy": job.remedy or ""}
    if job.state is not JobState.QUEUED:
        return None
    if job.duplicate_of is not None:  # which may be another client's: its id is not shown
        message = "an earlier job makes the same video; this one gets it as soon as that is done"
        return {"code": SAME_WORK, "message": message, "remedy": ""}
    return {"code": DiskLow.code, "message": paused, "remedy": DiskLow.default_remedy} if paused else None
