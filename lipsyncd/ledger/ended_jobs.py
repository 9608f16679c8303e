"""Rows of ended jobs that the ledger lacks, because it is new or was restored from an older copy.

Part of the ledger: it uses the ledger's own connection and lock. `daemon.rebuild` finds how the jobs ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from sqlmodel import Session, col, delete, func, insert, select, text, update

from lipsyncd.jobs.job import JobSpec, JobState
from lipsyncd.ledger.tables import JobEventRow, JobRow, JobSourceRow, new_row, source_rows

_BATCH_ROWS = 500


@dataclass(frozen=True)
class EndedJob:
    """A job that has ended, as read from its files. `columns` of its row in addition to those of the request."""

    spec: JobSpec
    state: JobState
    finished_ms: int
    idem_key: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)


class EndedJobs:
    """`write` is the ledger's own transaction."""

    def __init__(self, write: Callable[[], AbstractContextManager[Session]]) -> None:
        self._write = write

    def record(self, ended: Sequence[EndedJob], *, max_attempts: int, note: str) -> None:
        """Write these rows in the order in which the jobs ended. They replace older rows, whose events are kept.

        max_attempts  written for each job that did not need more attempts
        note          text of the event that is added to each job
        """
        ordered = sorted(ended, key=lambda job: (job.finished_ms, job.spec.id))
        for start in range(0, len(ordered), _BATCH_ROWS):
            self._record(ordered[start : start + _BATCH_ROWS], max_attempts, note)

    def _record(self, batch: Sequence[EndedJob], max_attempts: int, note: str) -> None:
        ids = [job.spec.id for job in batch]
        with self._write() as session:
            session.execute(text("PRAGMA defer_foreign_keys=ON"))  # a row is deleted and inserted again
            seqs = dict(session.execute(select(JobRow.id, JobRow.seq).where(col(JobRow.id).in_(ids))).all())
            query = select(JobEventRow.job_id, JobEventRow.at_ms, JobEventRow.state, JobEventRow.note)
            events = [
                dict(row)
                for row in session.execute(
                    query.where(col(JobEventRow.job_id).in_(ids)).order_by(col(JobEventRow.id))
                ).mappings()
            ]
            session.execute(delete(JobRow).where(col(JobRow.id).in_(ids)))
            seq = session.exec(select(func.max(JobRow.seq))).one() or 0
            for job in batch:
                if job.spec.id not in seqs:
                    seqs[job.spec.id] = seq = seq + 1
            session.execute(insert(JobRow), [{"seq": seqs[job.spec.id], **_row(job, max_attempts)} for job in batch])
            sources = [row for job in batch for row in source_rows(job.spec)]
            if sources:
                session.execute(insert(JobSourceRow), sources)
            events += [
                {"job_id": job.spec.id, "at_ms": job.finished_ms, "state": job.state.value, "note": note}
                for job in batch
            ]
            session.execute(insert(JobEventRow), events)
            for job in batch:
                _link(session, job)


def _row(job: EndedJob, max_attempts: int) -> dict[str, Any]:
    done = job.state is JobState.DONE
    return {
        **new_row(job.spec, job.spec.out_name, max(max_attempts, job.columns.get("attempt", 0)), job.idem_key),
        "state": job.state.value,
        "stage": job.state.value,
        "fraction": 1.0 if done else 0.0,
        "prepared": int(done),
        "inputs_released": 1,
        "finished_ms": job.finished_ms,
        **job.columns,
        "duplicate_of": None,
    }


def _link(session: Session, job: EndedJob) -> None:
    """Link this job to the one that it was a duplicate of, if the ledger has that one too."""
    first = job.columns.get("duplicate_of")
    if first is not None and session.exec(select(JobRow.id).where(JobRow.id == first)).first() is not None:
        session.execute(update(JobRow).where(col(JobRow.id) == job.spec.id).values(duplicate_of=first))
