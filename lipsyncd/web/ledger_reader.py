"""Reads the ledger for the web server: the same read-only `sqlite3` as `ledger.view`, made for many requests.

`LedgerReader` keeps one open connection for each thread, since opening the file costs more than a query, and has the
queries that only the server needs. No connection outlives the daemon, and nothing replaces the file while it runs.

`BatchThread` runs short calls in one thread, many at a time. To hand one call to a thread and its result back costs
several times what a row of the ledger costs. So the calls that come while the thread is busy go over to it together.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from lipsyncd.errors import LedgerError
from lipsyncd.jobs.job import JOB_COLUMNS, JOB_FLAGS, Job, JobState
from lipsyncd.jobs.waits import UnfinishedJob, waits_for
from lipsyncd.ledger.view import LedgerView
from lipsyncd.web.views.pages import ANY, Filters, read_page
from lipsyncd.web.views.queue import Rendered

A = TypeVar("A")
R = TypeVar("R")

_COLUMNS = ", ".join(JOB_COLUMNS)
_RECENT_JOBS = 20
_STATE = JOB_COLUMNS.index("state")
_FLAGS = [JOB_COLUMNS.index(name) for name in JOB_FLAGS]


_EVENTS_OF_A_JOB = 10  # more than most have
_TIMED_JOBS = 500
_CHANGED_QUERY = f"""
SELECT {_COLUMNS} FROM job INDEXED BY job_ready WHERE state='queued'
UNION ALL SELECT {_COLUMNS} FROM job INDEXED BY job_attention
  WHERE state IN ('running','publishing') AND state NOT IN('queued','done')
UNION ALL SELECT {_COLUMNS} FROM job
  WHERE id IN (SELECT job_id FROM job_event WHERE id > ?) AND state IN ('done','failed','cancelled')
"""


class JobStatus(NamedTuple):
    """The columns that clients poll for; reading them takes a tenth of the time of the whole row."""

    state: JobState
    fraction: float
    created_ms: int
    started_ms: int | None = None
    finished_ms: int | None = None
    reason: str | None = None
    remedy: str | None = None
    tenant: str | None = None
    reason_code: str | None = None
    attempt: int = 0
    max_attempts: int = 0
    duplicate_of: str | None = None


_STATUS_QUERY = (
    "SELECT state, fraction, coalesce(json_extract(rest, '$.created_ms'), accepted_ms), started_ms, finished_ms, "
    "reason, remedy, tenant, reason_code, attempt, max_attempts, duplicate_of FROM job WHERE id=?"
)


class LedgerReader(LedgerView):
    """The ledger at `path`, for several threads."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._local = threading.local()
        self._paused = ""

    def waits_for(self, job: UnfinishedJob) -> dict[str, str] | None:
        """Code, message and remedy of what a job waits for besides its turn; None when for nothing.

        Called in the thread of all requests, so it opens no file: why nothing is taken or rendered at present is known
        since the job was read. Nothing of the earlier job that this one repeats is shown: it may be another client's.
        """
        return waits_for(job, paused=self._paused)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection | None]:
        try:
            yield self._connection()
        except sqlite3.Error as error:
            raise self._unreadable(error) from error

    def _connection(self) -> sqlite3.Connection:
        """The calling thread's connection."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._connect()
            connection.row_factory = sqlite3.Row
            self._local.connection = connection
        return connection

    def _unreadable(self, error: sqlite3.Error) -> LedgerError:
        """What to raise; this thread's next query opens the file again."""
        self._local.connection = None
        return LedgerError(f"cannot read the ledger {self.path}: {error}")

    def exact(self, job_id: str) -> Job | None:
        """The job with exactly that id: one lookup in the primary key, however many jobs there are."""
        with self._open() as connection:
            if connection is None:
                return None
            row = _plain(connection).execute(f"SELECT {_COLUMNS} FROM job WHERE id=?", (job_id,)).fetchone()
        self._paused = self._progress.paused
        return None if row is None else self._progress.onto(_job(row))

    def status(self, job_id: str) -> JobStatus | None:
        """The same for a few of its columns."""
        try:
            row = _plain(self._connection()).execute(_STATUS_QUERY, (job_id,)).fetchone()
        except sqlite3.Error as error:
            raise self._unreadable(error) from error
        if row is None:
            return None
        status = JobStatus(JobState(row[0]), *row[1:])
        if status.state is JobState.QUEUED:
            self._paused = self._progress.paused
        live = self._progress.of(job_id) if status.state is JobState.RUNNING else None
        return status if live is None else status._replace(fraction=live[1])

    def page(
        self, before_seq: int | None, limit: int, *, tenant: str | None = None, filters: Filters = ANY
    ) -> tuple[list[Job], int | None]:
        """Jobs from the newest on, or from the one before `before_seq` on, and the `before_seq` of the next page.

        tenant  only the jobs of that one; None: all jobs
        """
        with self._open() as connection:
            if connection is None:
                return [], None
            rows, following = read_page(_plain(connection), filters, before_seq, limit, tenant)
            self._paused = self._progress.paused
            return [self._progress.onto(_job(row)) for row in rows], following

    @property
    def paused(self) -> str:
        """Why the daemon takes and renders nothing at present; "" when it does."""
        self._paused = self._progress.paused
        return self._paused

    def live(self, job: Job) -> Job:
        """The job with the stage and the fraction that its render has now."""
        return self._progress.onto(job)

    def newest_event(self) -> int:
        """The number of the newest event; 0 without any."""
        return int(self._one("SELECT max(id) FROM job_event") or 0)

    def changed_since(self, number: int) -> tuple[list[Job], int]:
        """All jobs that have not ended, and those with an event after that number; the number of the newest event.

        Both are of one moment.
        """
        with self._open() as connection:
            if connection is None:
                return [], 0
            cursor = _plain(connection)
            cursor.execute("BEGIN")
            try:
                rows = cursor.execute(_CHANGED_QUERY, (number,)).fetchall()
                [newest] = cursor.execute("SELECT max(id) FROM job_event").fetchone()
            finally:
                connection.rollback()
            self._paused = self._progress.paused
            return [self._progress.onto(_job(row)) for row in rows], int(newest or 0)

    def ended_since(self, number: int, tenant: str | None, most: int) -> list[Job]:
        """The jobs that have ended and have an event after that number, the newest `most`, oldest first."""
        mine = "" if tenant is None else "AND tenant = ? "
        query = (
            f"SELECT {_COLUMNS} FROM job WHERE state IN ('done','failed','cancelled') {mine}"
            "AND id IN (SELECT job_id FROM job_event WHERE id > ? ORDER BY id DESC LIMIT ?) ORDER BY seq DESC LIMIT ?"
        )
        values = (*(() if tenant is None else (tenant,)), number, _EVENTS_OF_A_JOB * most, most)
        with self._open() as connection:
            rows = [] if connection is None else _plain(connection).execute(query, values).fetchall()
            return [_job(row) for row in reversed(rows)]

    def rendered(self) -> list[Rendered]:
        """How long the newest jobs took that were rendered at the first attempt, newest first."""
        query = (
            "SELECT renderer, stitch, resolution, frames, finished_ms - started_ms FROM job "
            f"WHERE seq > (SELECT max(seq) FROM job) - {_TIMED_JOBS} AND state='done' AND attempt=1 AND frames > 0 "
            "AND duplicate_of IS NULL AND finished_ms > started_ms ORDER BY seq DESC"
        )
        with self._open() as connection:
            rows = [] if connection is None else _plain(connection).execute(query).fetchall()
            return [Rendered(*row) for row in rows]

    def waiting_from_rest(self, *, without: Collection[str] = ()) -> dict[str, int]:
        """How many jobs that came over REST wait, by tenant; "" for those without one.

        without  ids of jobs that do not count
        """
        query = (
            "SELECT coalesce(tenant, ''), count(*) FROM job WHERE rest IS NOT NULL AND state='queued' "
            "AND id NOT IN (SELECT value FROM json_each(?)) GROUP BY tenant"
        )
        with self._open() as connection:
            ids = json.dumps(list(without))
            return {} if connection is None else dict(_plain(connection).execute(query, (ids,)).fetchall())

    def recent_job_s(self) -> float | None:
        """How long the last jobs took from start to end, on average; None before the first."""
        found = self._one(
            "SELECT avg(finished_ms - started_ms) / 1000.0 FROM (SELECT finished_ms, started_ms FROM job "
            f"WHERE state='done' AND started_ms IS NOT NULL ORDER BY seq DESC LIMIT {_RECENT_JOBS})"
        )
        return None if found is None else float(found)

    def _one(self, query: str) -> int | float | None:
        with self._open() as connection:
            found: int | float | None = None if connection is None else connection.execute(query).fetchone()[0]
            return found


def _plain(connection: sqlite3.Connection) -> sqlite3.Cursor:
    """A cursor whose rows are tuples: looking up 38 names in each row takes longer than the query does."""
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


class BatchThread:
    """One thread that runs the calls of one event loop, in batches. After `close` the open calls get no result."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._calls: list[tuple[asyncio.Future[Any], Callable[[Any], Any], Any]] = []
        self._busy = False

    def run(self, function: Callable[[A], R], argument: A) -> asyncio.Future[R]:
        """What `function(argument)` returns or raises in the thread."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        self._calls.append((future, function, argument))
        if not self._busy:
            self._busy = True
            loop.call_soon(self._begin, loop)  # after all other calls of this round of the loop
        return future

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        calls, self._calls = self._calls, []
        self._thread.submit(self._run, loop, calls)

    def _run(self, loop: asyncio.AbstractEventLoop, calls: list[Any]) -> None:
        """In the thread. It settles no future, since only the loop may."""
        results: list[tuple[asyncio.Future[Any], Callable[[], None]]] = []
        for future, function, argument in calls:
            try:
                results.append((future, partial(future.set_result, function(argument))))
            except Exception as error:
                results.append((future, partial(future.set_exception, error)))
        loop.call_soon_threadsafe(self._end, loop, results)

    def _end(
        self, loop: asyncio.AbstractEventLoop, results: list[tuple[asyncio.Future[Any], Callable[[], None]]]
    ) -> None:
        for future, settle in results:
            if not future.done():  # its client may have hung up
                settle()
        self._busy = bool(self._calls)
        if self._busy:
            self._begin(loop)
