"""Reads the events of a job in order: which stage ended with each event, and how long the stage took.

The stages are those of `/metrics`: preparing until the inputs are decoded, waiting for a device, rendering, publishing.
Pure: takes events and returns entries.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from lipsyncd.jobs.job import JobEvent, JobState, utc_text

_PREPARED = "prepared"
_RESTARTS = ("retry", "options replaced by a manifest")
_ATTEMPT = re.compile(r"attempt (\d+) of \d+")
_REASON = re.compile(r"(?:waits: )?([a-z]+(?:-[a-z]+)+): ")


@dataclass(frozen=True)
class Entry:
    """One event, and the stage that it ended.

    attempt  number of the attempt at that time; 0 before the first
    stage    what the job did until this event; "" if unknown
    took_s   seconds since the job's previous event; None when that was not read
    """

    event: JobEvent
    attempt: int
    stage: str
    took_s: float | None

    @property
    def reason(self) -> str:
        """The error code in the event's note; "" when there is none."""
        found = _REASON.match(self.event.note)
        return found[1] if found else ""

    def to_json(self) -> dict[str, Any]:
        event = self.event
        return {
            "at": utc_text(event.at_ms),
            "job_id": event.job_id,
            "name": event.name,
            "state": event.state,
            "note": event.note,
            "reason": self.reason or None,
            "attempt": self.attempt,
            "stage": self.stage or None,
            "took_s": self.took_s,
        }


@dataclass
class _Progress:
    at_ms: int
    stage: str
    attempt: int = 0
    prepared: bool = False


class HistoryReader:
    """Reads the events of any number of jobs, in order for each job, and keeps the progress of each."""

    def __init__(self) -> None:
        self._jobs: dict[str, _Progress] = {}

    def read(self, event: JobEvent) -> Entry:
        """The entry of the next event."""
        before = self._jobs.get(event.job_id)
        now = _Progress(event.at_ms, "") if before is None else before
        took_s = None if before is None else max(0, event.at_ms - before.at_ms) / 1000
        stage = "" if before is None else before.stage
        self._note(now, event)
        if JobState(event.state).ended:
            self._jobs.pop(event.job_id, None)
        else:
            self._jobs[event.job_id] = now
        return Entry(event, now.attempt, stage, took_s)

    @staticmethod
    def _note(now: _Progress, event: JobEvent) -> None:
        now.at_ms = event.at_ms
        now.prepared = (now.prepared or event.note == _PREPARED) and event.note not in _RESTARTS
        if event.state == JobState.RUNNING:
            attempt = _ATTEMPT.match(event.note)
            now.attempt = int(attempt[1]) if attempt else now.attempt
            now.prepared = True
            now.stage = "rendering"
        elif event.state == JobState.PUBLISHING:
            now.stage = "publishing"
        else:
            now.stage = "waiting" if now.prepared else "preparing"
