"""Jobs that ask for the same work as an earlier one, as rows of the ledger: who was first, and who waits for whom.

Part of the ledger: it uses the ledger's own connection and lock. Two jobs ask for the same work when their `idem_key`
is the same; jobs without a key are the only ones of their kind.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from sqlmodel import Session, col, or_, select, text, update

from lipsyncd.jobs.job import JOB_COLUMNS, Job, JobState, job_from_row
from lipsyncd.ledger.tables import NO_REASON, JobRow, event

_FIELDS = [getattr(JobRow, name) for name in JOB_COLUMNS]
_MOST_ENDED = 20  # the newest are tried first; older results are gone long before

# True for a job that waits for nobody: whoever it is linked to has ended.
FIRST_HAS_ENDED = text(
    "NOT EXISTS (SELECT 1 FROM job AS first WHERE first.id=job.duplicate_of"
    " AND first.state IN ('queued','running','publishing'))"
)


class Redrops:
    """`write` and `read` are the ledger's own transactions."""

    def __init__(
        self,
        write: Callable[[], AbstractContextManager[Session]],
        read: Callable[[], AbstractContextManager[Session]],
    ) -> None:
        self._write = write
        self._read = read

    def key(self, job: Job) -> str:
        """Equal for jobs that ask for the same work; "" for a job that is the only one of its kind."""
        with self._read() as session:
            return session.exec(select(JobRow.idem_key).where(JobRow.id == job.id)).one_or_none() or ""

    def done_like(self, job: Job, key: str) -> list[Job]:
        """Finished jobs of the same work, the newest first."""
        same = select(*_FIELDS).where(
            col(JobRow.idem_key) == key, col(JobRow.id) != job.id, col(JobRow.state) == JobState.DONE.value
        )
        with self._read() as session:
            found = session.execute(same.order_by(col(JobRow.seq).desc()).limit(_MOST_ENDED)).mappings()
            return [job_from_row(dict(row)) for row in found]

    def open_like(self, job: Job, key: str) -> Job | None:
        """The first job of the same work that is under way; None when this one is it.

        Of two that wait, the later waits for the earlier and never the other way round, so that no circle can come.
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
        """Note that a waiting job is served by another one; says whether it still waited.

        Whoever is waited for gets at least the priority of the one that waits.
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
        """The other job cannot serve this one: it does the work itself."""
        waits = col(JobRow.id) == job_id, col(JobRow.state) == JobState.QUEUED.value
        with self._write() as session:
            session.execute(update(JobRow).where(*waits).values(duplicate_of=None, stage="accepted"))
            session.add(event(job_id, JobState.QUEUED, "the first result is gone: rendered anew"))
