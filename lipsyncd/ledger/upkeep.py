"""Keeps the ledger small and fast: deletes old rows in batches, updates the planner's statistics, and checkpoints.

Part of the ledger: it uses the ledger's own connection and lock. A checkpoint from another connection would be a
second writer, which SQLite before 3.51.3 does not always handle correctly.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from sqlmodel import Session, col, delete, func, update

from lipsyncd.jobs.job import now_ms
from lipsyncd.ledger.tables import JobRow, WebhookRow

BATCH_ROWS = 500
_ENDED = ("done", "failed", "cancelled")


class Upkeep:
    """Upkeep of one ledger.

    write    the ledger's own transaction
    plain    its connection outside a transaction
    deleted  called after rows of jobs were deleted, with the id of each and its tenant
    """

    def __init__(
        self,
        write: Callable[[], AbstractContextManager[Session]],
        plain: Callable[[], AbstractContextManager[sqlite3.Connection]],
        deleted: Callable[[Sequence[tuple[str, str | None]]], None],
    ) -> None:
        self._write = write
        self._plain = plain
        self._deleted = deleted

    def delete_ended(self, job_ids: Sequence[str]) -> int:
        """Delete these rows with their history, at most `BATCH_ROWS` of them, if their jobs are still ended.

        One transaction of some milliseconds. A caller with more rows calls again, so that other threads can write in
        between.
        """
        batch = job_ids[:BATCH_ROWS]
        with self._write() as session:
            session.execute(update(JobRow).where(col(JobRow.duplicate_of).in_(batch)).values(duplicate_of=None))
            doomed = delete(JobRow).where(col(JobRow.id).in_(batch), col(JobRow.state).in_(_ENDED))
            gone = session.execute(doomed.returning(col(JobRow.id), col(JobRow.tenant))).all()
        self._deleted([(job_id, tenant) for job_id, tenant in gone])
        return len(gone)

    def clear_kept(self, job_ids: Sequence[str]) -> None:
        """Record that the kept inputs of these ended jobs were pruned."""
        for start in range(0, len(job_ids), BATCH_ROWS):
            batch = job_ids[start : start + BATCH_ROWS]
            with self._write() as session:
                ended = col(JobRow.id).in_(batch), col(JobRow.state).in_(_ENDED)
                session.execute(update(JobRow).where(*ended).values(kept=None))

    def clamp_waits(self, *, jobs_ms: int, deliveries_ms: int) -> int:
        """Limit all waits to these, counted from now; gives the number of waits that were longer.

        Due times are recorded by the wall clock, so they lie far in the future after the clock was set back. Such a job
        becomes due at once, as if the clock had been set forward, and a delivery after the longest wait.
        """
        job = update(JobRow).where(col(JobRow.state).in_(("queued", "publishing")))
        late = job.where(col(JobRow.not_before_ms) > now_ms() + jobs_ms).values(not_before_ms=now_ms())
        waiting = update(WebhookRow).where(col(WebhookRow.state) == "waiting")
        far = waiting.where(col(WebhookRow.next_at_ms) > now_ms() + deliveries_ms)
        with self._write() as session:
            moved = session.execute(late).rowcount  # type: ignore[attr-defined]
            moved += session.execute(far.values(next_at_ms=now_ms() + deliveries_ms)).rowcount  # type: ignore[attr-defined]
            return int(moved)

    def move_kept(self, old: str, new: str) -> int:
        """Record that kept inputs were moved from the folder `old` to `new`; gives the number of their jobs."""
        below = func.substr(col(JobRow.kept), 1, len(old) + 1) == f"{old}/"
        here = new + func.substr(col(JobRow.kept), len(old) + 1)
        with self._write() as session:
            return int(session.execute(update(JobRow).where(below).values(kept=here)).rowcount)  # type: ignore[attr-defined]

    def optimize(self) -> None:
        """Let SQLite analyse the tables that have changed much. Takes milliseconds."""
        with self._plain() as connection:
            connection.execute("PRAGMA optimize")

    def checkpoint(self) -> None:
        """Write committed changes from the -wal file into the ledger, as far as the readers allow."""
        with self._plain() as connection:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
