"""Jobs with the same work as an earlier one, as rows of the ledger: which was first, and which waits for which.

Part of the ledger: it uses the ledger's own connection and lock. Two jobs have the same work when their `idem_key` is
equal; a job without a key has no duplicates.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from sqlmodel import Session, col, or_, select, text, update

from lipsyncd.jobs.job import JOB_COLUMNS, Job, JobState, job_from_row
from lipsyncd.ledger.tables import NO_REASON, JobRow, event

_FIELDS = [getattr(JobRow, name) for name in JOB_COLUMNS]
_MOST_ENDED = 20  # the newest are tried first; the results of older ones were pruned long ago

# True for a job that waits for no other job: it is not linked, or the job that it is linked to has ended.
FIRST_HAS_ENDED = text(
    "NOT EXISTS (SELECT 1 FROM job AS first WHERE first.id=job.duplicate_of"
    " AND first.state IN ('queued','running','publishing'))"
)


class DuplicateRows:
    """`write` and `read` are the ledger's own transactions."""

    def __init__(
        self,
        write: Callable[[], AbstractContextManager[Session]],
        read: Callable[[], AbstractContextManager[Session]],
    ) -> None:
        self._write = write
        self._read = read

    def key(self, job: Job) -> str:
        """Equal for jobs with the same work; "" for a job that can have no duplicates."""
        with self._read() as session:
            return session.exec(select(JobRow.idem_key).where(JobRow.id == job.id)).one_or_none() or ""

    def finished(self, job: Job, key: str) -> list[Job]:
        """Finished jobs with the same work, newest first."""
        same = select(*_FIELDS).where(
            col(JobRow.idem_key) == key, col(JobRow.id) != job.id, col(JobRow.state) == JobState.DONE.value
        )
        with self._read() as session:
            found = session.execute(same.order_by(col(JobRow.seq).desc()).limit(_MOST_ENDED)).mappings()
            return [job_from_row(dict(row)) for row in found]

    def under_way(self, job: Job, key: str) -> Job | None:
        """The first job under way with the same work; None when this job is the first.

        Of two waiting jobs, the later waits for the earlier and never the reverse, so that no cycle is possible.
        """
        begun = col(JobRow.state).in_([JobState.RUNNING.value, JobState.PUBLISHING.value])
        before = (col(JobRow.state) == JobState.QUEUED.value) & (col(JobRow.seq) < job.seq)
        same = select(*_FIELDS).where(
            col(JobRow.idem_key) == key,
            col(JobRow.id) != job.id,
            col(JobRow.cancel_requested) == 0,
            or_(begun, before),
        )
        with self._read() as session:
            row = session.execute(same.order_by(col(JobRow.seq)).limit(1)).mappings().one_or_none()
            return None if row is None else job_from_row(dict(row))

    def link(self, job: Job, first: Job, *, note: str) -> bool:
        """Record that a waiting job gets the result of another one; True if it was still waiting.

        The other job is raised to the priority of the waiting one, if that is higher.
        """
        mine = col(JobRow.id) == job.id, col(JobRow.state) == JobState.QUEUED.value
        theirs = col(JobRow.id) == first.id, col(JobRow.priority) < job.priority
        with self._write() as session:
            linked = session.execute(update(JobRow).where(*mine).values(duplicate_of=first.id, stage="linked"))
            session.execute(
                update(JobRow).where(*theirs, col(JobRow.state) == JobState.QUEUED.value).values(priority=job.priority)
            )
            if not linked.rowcount:  # type: ignore[attr-defined]
                return False
            session.execute(update(JobRow).where(*mine).values(**NO_REASON))
            session.add(event(job.id, JobState.QUEUED, note))
            return True

    def unlink(self, job_id: str) -> None:
        """The other job has no result for this one, so this one is rendered too."""
        waits = col(JobRow.id) == job_id, col(JobRow.state) == JobState.QUEUED.value
        with self._write() as session:
            session.execute(update(JobRow).where(*waits).values(duplicate_of=None, stage="accepted"))
            session.add(event(job_id, JobState.QUEUED, "the first result is missing: rendered again"))
