"""The ledger's view for a server: the same read-only `sqlite3`, with connections that stay open, and its own questions.

Opening the file costs more than the question does, and the server asks often. Each thread keeps one connection. Nothing
here outlives the daemon, and while it runs nobody replaces the file.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from lipsyncd.errors import LedgerError
from lipsyncd.jobs.job import JOB_COLUMNS, JOB_FLAGS, Job, JobState
from lipsyncd.ledger.view import LedgerView

_COLUMNS = ", ".join(JOB_COLUMNS)
_RECENT_JOBS = 20
_STATE = JOB_COLUMNS.index("state")
_FLAGS = [JOB_COLUMNS.index(name) for name in JOB_FLAGS]


class Standing(NamedTuple):
    """How a job stands, in the columns that clients poll for: a tenth of the time that its whole row takes."""

    state: JobState
    fraction: float
    created_ms: int
    started_ms: int | None = None
    finished_ms: int | None = None
    reason: str | None = None
    remedy: str | None = None


_STANDING = (
    "SELECT state, fraction, coalesce(json_extract(rest, '$.created_ms'), accepted_ms), started_ms, finished_ms, "
    "reason, remedy FROM job WHERE id=?"
)


class Reader(LedgerView):
    """The ledger at `path`, for several threads."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._local = threading.local()

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection | None]:
        try:
            yield self._connection()
        except sqlite3.Error as error:
            raise self._lost(error) from error

    def _connection(self) -> sqlite3.Connection:
        """The calling thread's own."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._connect()
            connection.row_factory = sqlite3.Row
            self._local.connection = connection
        return connection

    def _lost(self, error: sqlite3.Error) -> LedgerError:
        """What to raise; the next question of this thread opens the file anew."""
        self._local.connection = None
        return LedgerError(f"cannot read the ledger {self.path}: {error}")

    def exact(self, job_id: str) -> Job | None:
        """The job with exactly that id: one look into the primary key, however many jobs there are."""
        with self._open() as connection:
            if connection is None:
                return None
            row = _plain(connection).execute(f"SELECT {_COLUMNS} FROM job WHERE id=?", (job_id,)).fetchone()
            return None if row is None else _job(row)

    def standing(self, job_id: str) -> Standing | None:
        """The same for a few of its columns."""
        try:
            row = _plain(self._connection()).execute(_STANDING, (job_id,)).fetchone()
        except sqlite3.Error as error:
            raise self._lost(error) from error
        return None if row is None else Standing(JobState(row[0]), *row[1:])

    def page(self, before_seq: int | None, limit: int) -> list[Job]:
        """Jobs from the newest on, or from the one before `before_seq` on. New jobs never shift a page."""
        where, values = ("WHERE seq < ?", (before_seq, limit)) if before_seq is not None else ("", (limit,))
        with self._open() as connection:
            if connection is None:
                return []
            rows = _plain(connection).execute(f"SELECT {_COLUMNS} FROM job {where} ORDER BY seq DESC LIMIT ?", values)
            return [_job(row) for row in rows]

    def waiting_from_rest(self) -> int:
        """How many jobs that came over REST wait."""
        return int(self._one("SELECT count(*) FROM job WHERE rest IS NOT NULL AND state='queued'") or 0)

    def recent_job_s(self) -> float | None:
        """How long the last jobs took from their start to their end, on average; None before the first."""
        found = self._one(
            "SELECT avg(finished_ms - started_ms) / 1000.0 FROM (SELECT finished_ms, started_ms FROM job "
            f"WHERE state='done' AND started_ms IS NOT NULL ORDER BY seq DESC LIMIT {_RECENT_JOBS})"
        )
        return None if found is None else float(found)

    def _one(self, question: str) -> int | float | None:
        with self._open() as connection:
            found: int | float | None = None if connection is None else connection.execute(question).fetchone()[0]
            return found


def _plain(connection: sqlite3.Connection) -> sqlite3.Cursor:
    """A cursor whose rows are tuples: looking up 38 names in each row takes longer than the question does."""
    cursor = connection.cursor()
    cursor.row_factory = None
    return cursor


def _job(row: tuple[Any, ...]) -> Job:
    """A `Job` from the columns `JOB_COLUMNS`, in their order."""
    values = list(row)
    values[_STATE] = JobState(values[_STATE])
    for place in _FLAGS:
        values[place] = bool(values[place])
    return Job(*values)
