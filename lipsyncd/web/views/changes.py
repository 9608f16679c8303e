"""What has changed about the jobs since the last look, as Server-Sent Events. Used by one thread at a time.

A look after a commit is one query: all jobs that have not ended, and those that events of the ledger name since. A
waiting job is sent again when its place in the queue has changed by a twentieth; of the first twenty, each change is.
A look at the progress of renders reads no row: the jobs that run are known, and their progress is in `status.json`.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lipsyncd.jobs.job import Job, JobState
from lipsyncd.web.ledger_reader import LedgerReader
from lipsyncd.web.views.bodies import JobBodies
from lipsyncd.web.views.queue import Queue

MOST_MISSED = 200  # ended jobs, and deleted ones, that a reader which comes back gets
_MOST_DELETED = 10_000  # between two looks
_EXACT_PLACES, _PART_OF_PLACE = 20, 20
_SHOWN = (
    "id", "name", "state", "stage", "fraction", "waits_for", "cancel_requested", "error", "priority", "position",
    "eta_s", "result_url", "thumbnail_url", "change",
)  # fmt: skip


@dataclass(frozen=True)
class Message:
    """One job as it is, encoded as an event."""

    job_id: str
    tenant: str | None
    ended: bool
    data: bytes


@dataclass(frozen=True)
class _Sent:
    """What the readers know of a job that has not ended."""

    job: Job
    facts: tuple[Any, ...]
    position: int | None
    message: Message


class Changes:
    """The jobs of one ledger, as the readers of its streams know them. Any thread may call `deleted`."""

    def __init__(self, view: LedgerReader, bodies: JobBodies) -> None:
        self._view = view
        self._bodies = bodies
        self._sent: dict[str, _Sent] = {}
        self._newest = 0  # the number of the newest event that was read
        self._paused = ""
        self._several = False  # slots, at some time
        self._deleted: deque[Message] = deque(maxlen=_MOST_DELETED)  # since the last look
        self._lately_deleted: deque[Message] = deque(maxlen=MOST_MISSED)

    def deleted(self, jobs: Sequence[tuple[str, str | None]]) -> None:
        """These jobs were deleted: the id of each, and its tenant."""
        for job_id, tenant in jobs:
            text = json.dumps({"id": job_id, "state": "deleted"})
            message = Message(job_id, tenant, True, f"event: deleted\ndata: {text}\n\n".encode())
            self._deleted.append(message)
            self._lately_deleted.append(message)

    def begin(self) -> None:
        """Forget what was sent: there is no reader. Then read the jobs as they are."""
        self._sent, self._newest = {}, self._view.newest_event()
        self.read()

    def read(self) -> list[Message]:
        """What has changed since the last look."""
        deleted = [self._deleted.popleft() for _ in range(len(self._deleted))]  # before the rows are read
        jobs, self._newest = self._view.changed_since(self._newest)
        queue, self._paused = self._bodies.queue(jobs), self._view.paused
        before, self._sent = self._sent, {}
        changed: list[Message] = []
        for job in jobs:
            sent = self._updated(before.pop(job.id, None), job, queue, changed)
            if not job.state.ended:
                self._sent[job.id] = sent
        gone = {message.job_id for message in deleted}
        # Deleting the newest events gives their numbers away again, so the number alone does not tell each end.
        found = map(self._view.exact, before.keys() - gone)
        changed += [self.message_of(job, queue) for job in found if job is not None]
        return [message for message in deleted if message.job_id not in self._sent] + changed

    def read_progress(self) -> list[Message]:
        """What has changed since the last look, when no row has."""
        if self._deleted or self._view.paused != self._paused:  # then waiting jobs have changed, too
            return self.read()
        jobs = [self._view.live(sent.job) for sent in self._sent.values() if sent.job.state is JobState.RUNNING]
        queue, changed = self._bodies.queue(jobs), list[Message]()
        for job in jobs:
            self._sent[job.id] = self._updated(self._sent[job.id], job, queue, changed)
        return changed

    def _updated(self, known: _Sent | None, job: Job, queue: Queue, changed: list[Message]) -> _Sent:
        """What the readers know of a job from now on; adds to `changed` what they do not know yet."""
        facts = (
            job.state, job.stage, round(job.fraction, 3), job.reason_code, job.reason, job.attempt, job.priority,
            job.cancel_requested, job.duplicate_of, job.name, self._paused,
        )  # fmt: skip
        position = queue.position(job)
        if known is not None and facts == known.facts and not _has_moved(known.position, position):
            return known
        message = self.message_of(job, queue)
        changed.append(message)
        return _Sent(job, facts, position, message)

    def open_jobs(self) -> list[Message]:
        """The last message of each job that has not ended."""
        return [sent.message for sent in self._sent.values()]

    def missed_since(self, number: int, tenant: str | None) -> list[Message]:
        """The jobs that have ended after an event with that number, and those deleted lately; `MOST_MISSED` of each."""
        deleted = [one for one in list(self._lately_deleted) if tenant is None or one.tenant == tenant]
        return deleted + [self.message_of(job) for job in self._view.ended_since(number, tenant, MOST_MISSED)]

    def message_of(self, job: Job, queue: Queue | None = None) -> Message:
        body = self._bodies.of(job, queue)
        text = json.dumps({name: body[name] for name in _SHOWN if name in body})
        return Message(job.id, job.tenant, job.state.ended, f"data: {text}\n\n".encode())

    def slots(self) -> bytes:
        """How many jobs can be rendered at a time and how many are, as an event; empty if there never were several."""
        slots = self._bodies.slots()
        self._several |= slots.every > 1
        text = json.dumps({"slots": slots.every, "busy": slots.busy})
        return f"event: slots\ndata: {text}\n\n".encode() if self._several else b""

    def end_of_batch(self) -> bytes:
        """The number up to which a reader knows everything. It stands behind all events of a look."""
        return f"id: {self._newest}\n\n".encode()


def _has_moved(before: int | None, now: int | None) -> bool:
    if before is None or now is None:
        return before != now
    return before != now and (now <= _EXACT_PLACES or abs(before - now) * _PART_OF_PLACE >= now)
