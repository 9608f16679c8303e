"""What a client learns of a job, the same over HTTP and through a storage folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lipsyncd.errors import JobCancelled, LipsyncdError, from_reason
from lipsyncd.jobs.job import Job, JobState
from lipsyncd.jobs.manifest import Manifest


@dataclass(frozen=True)
class Event:
    """A moment of a job.

    state      queued, running, publishing, done, failed, cancelled
    stage      what it is doing in that state, such as "rendering"
    fraction   the part of its frames that is rendered, 0 to 1
    waits_for  the error that says what it waits for besides its turn, and what to do; None when for nothing
    position   its place in the queue; None where the server does not tell
    eta_s      seconds until its end; None where the server does not tell
    """

    state: JobState
    stage: str
    fraction: float
    waits_for: LipsyncdError | None = None
    position: int | None = None
    eta_s: float | None = None

    @classmethod
    def from_rest(cls, body: Mapping[str, Any]) -> Event:
        """Out of an event of `GET /jobs/ID/events`. Raises KeyError, TypeError or ValueError for another one."""
        state, waits_for = JobState(body["state"]), body["waits_for"]
        return cls(
            state,
            str(body["stage"]),
            float(body["fraction"]),
            None if waits_for is None else from_reason(waits_for),
            body["position"],
            body["eta_s"],
        )


@dataclass(frozen=True)
class JobFacts:
    """A job as it was when it was asked for.

    reason     code, message and remedy of a failed job, or of what an unfinished one waits for; else None
    duration_s of its sound; None until it is known, as `frames`
    result     where its video is; "" until there is one
    """

    id: str
    name: str
    state: JobState
    stage: str
    fraction: float
    renderer: str
    reason: Mapping[str, str] | None = None
    frames: int | None = None
    duration_s: float | None = None
    result: str = ""
    position: int | None = None
    eta_s: float | None = None

    @property
    def event(self) -> Event:
        """The same as an event, without what does not change."""
        waits_for = None if self.reason is None or self.state.ended else from_reason(self.reason)
        return Event(self.state, self.stage, self.fraction, waits_for, self.position, self.eta_s)

    @property
    def error(self) -> LipsyncdError | None:
        """Why the job has ended without a video; None while it may still get one."""
        if self.state is JobState.FAILED:
            return from_reason(self.reason or {})
        return JobCancelled(f"job {self.id} was cancelled") if self.state is JobState.CANCELLED else None

    @classmethod
    def from_rest(cls, body: Mapping[str, Any]) -> JobFacts:
        """Out of the answer of `GET /jobs/ID`. Raises KeyError, TypeError or ValueError for another one."""
        return cls(
            id=str(body["id"]),
            name=str(body["name"]),
            state=JobState(body["state"]),
            stage=str(body["stage"]),
            fraction=float(body["fraction"]),
            renderer=str(body["renderer"]),
            reason=body["error"] or body["waits_for"],
            frames=body["frames"],
            duration_s=body["duration"],
            result=body["result_url"] or "",
            position=body.get("position"),
            eta_s=body.get("eta_s"),
        )

    @classmethod
    def from_row(cls, job: Job, waits_for: Mapping[str, str] | None) -> JobFacts:
        """Out of a row of the ledger."""
        failed = {"code": job.reason_code or "internal-error", "message": job.reason or "", "remedy": job.remedy or ""}
        return cls(
            id=job.id,
            name=job.name,
            state=job.state,
            stage=job.stage,
            fraction=job.fraction,
            renderer=job.renderer,
            reason=failed if job.state is JobState.FAILED else waits_for,
            frames=job.frames,
            duration_s=None if job.duration_ms is None else job.duration_ms / 1000,
            result=job.place if job.state is JobState.DONE else "",
        )


class Way(Protocol):
    """How a client reaches a daemon. Every method raises errors of `lipsyncd.errors`."""

    def submit(self, manifest: Manifest, idempotency_key: str | None) -> str:
        """Make a job of a manifest whose `image` and `audio` may be paths of this machine; gives its id."""
        ...

    def look(self, job_id: str, wait_s: float = 0.0) -> JobFacts:
        """The job now, or, with `wait_s`, once it has ended or the time is over. Raises `UnknownJob`."""
        ...

    def follow(self, job_id: str) -> Iterator[Event] | None:
        """The job now and after each change, until its end or a lost connection; None where one has to ask."""
        ...

    def jobs(self, state: JobState | None, limit: int) -> list[JobFacts]:
        """The newest jobs."""
        ...

    def cancel(self, job_id: str) -> None:
        """Take a job back. Raises `IllegalTransition` when it is too late."""
        ...

    def fetch(self, facts: JobFacts, target: Path) -> None:
        """Write the video of a finished job into a new file. Raises `ResultGone`."""
        ...
