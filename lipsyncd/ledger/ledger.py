"""The job ledger: one SQLite file, and the only code that writes to it.

Each move of a job is one guarded UPDATE and its event in one `BEGIN IMMEDIATE` transaction with `synchronous=FULL`: it
survives a power cut once committed, and if two threads try the same move, one wins. All threads share one connection
and a lock. The spool is the authority: this file can be rebuilt from it.

Only the holder of the instance lock may write. `ledger.view` reads without these imports.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Engine, RowMapping, func, text, update
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlmodel import Session, col, insert, select

from lipsyncd.errors import IllegalTransition, LedgerUnavailable, LipsyncdError, UnknownJob
from lipsyncd.jobs.job import JOB_COLUMNS, SOURCES, Job, JobSpec, JobState, job_from_row, now_ms
from lipsyncd.ledger.duplicates import FIRST_HAS_ENDED, DuplicateRows
from lipsyncd.ledger.ended_jobs import EndedJobs
from lipsyncd.ledger.engine import READ_ONLY, open_engine
from lipsyncd.ledger.schema import STEPS
from lipsyncd.ledger.tables import (
    CLAIM,
    FIND,
    NEXT,
    NO_REASON,
    JobEventRow,
    JobRow,
    JobSourceRow,
    event,
    event_row,
    name_columns,
    new_row,
    reason_columns,
    requested_columns,
    source_rows,
)
from lipsyncd.ledger.upkeep import Upkeep
from lipsyncd.ledger.webhook_rows import Deliveries, update_deliveries
from lipsyncd.storage.failpoints import reach

_T = TypeVar("_T")
_NAME_TRIES = 10_000
_MANY = 500  # ids in one statement
_FIELDS = [getattr(JobRow, name) for name in JOB_COLUMNS]


class AlreadyAccepted(Exception):
    """The same drop was accepted before and is still in the inbox. Not an error that a user sees."""


class Ledger:
    """Opens, migrates and writes the ledger at `path`. `steps` are the schema's versions.

    listeners   called after each committed move, with the new state or "prepared", and the job
    commit_listeners  called after each commit, whatever it has changed
    deletion_listeners  called after rows of jobs were deleted, with the id of each and its tenant
    deliveries  the webhooks of its jobs
    duplicates  jobs with the same work as an earlier one
    upkeep      removes old rows
    ended_jobs  adds rows for ended jobs that the ledger lacks

    Raises `LedgerTooNew` when a later version of the program has written it, DatabaseError when it is damaged.
    """

    def __init__(self, path: Path, *, steps: Sequence[str] = STEPS) -> None:
        self.path = path
        self.listeners: list[Callable[[str, Job], None]] = []
        self.commit_listeners: list[Callable[[], None]] = []
        self.deletion_listeners: list[Callable[[Sequence[tuple[str, str | None]]], None]] = []
        self.deliveries = Deliveries(self._write, self._read)
        self.upkeep = Upkeep(self._write, self._plain, self._notify_deleted)
        self.ended_jobs = EndedJobs(self._write)
        self._lock = threading.RLock()
        self._engine = open_engine(path, steps)
        self._reading = self._engine.execution_options(**{READ_ONLY: True})
        self.duplicates = DuplicateRows(self._write, self._read)

    def close(self) -> None:
        with self._lock:
            self._engine.dispose()

    @contextmanager
    def _write(self) -> Iterator[Session]:
        with self._session(self._engine) as session:
            yield session
            reach("ledger-before-commit")
            session.commit()
        for listener in self.commit_listeners:
            listener()

    @contextmanager
    def _read(self) -> Iterator[Session]:
        with self._session(self._reading) as session:
            yield session

    @contextmanager
    def _plain(self) -> Iterator[sqlite3.Connection]:
        """The driver's connection outside a transaction."""
        with self._lock, closing(self._engine.raw_connection()) as pooled:
            driver = pooled.driver_connection
            assert isinstance(driver, sqlite3.Connection)
            yield driver

    @contextmanager
    def _session(self, engine: Engine) -> Iterator[Session]:
        """A transaction of one thread. Raises `LedgerUnavailable` when the disk is full or the file is locked."""
        with self._lock, Session(engine, expire_on_commit=False) as session:
            try:
                yield session
            except OperationalError as error:
                raise LedgerUnavailable(f"{self.path}: {error.orig}") from error

    def check(self) -> None:
        """Raises `DatabaseError` when the file is damaged."""
        with self._lock, self._engine.connect() as connection:
            found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
        if found != "ok":
            raise sqlite3.DatabaseError(f"quick_check: {found}")

    def touch(self) -> None:
        """Commit a write that changes nothing, to check that the ledger can be written. Raises `DatabaseError`."""
        with self._lock, self._engine.connect() as connection:
            version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
            connection.exec_driver_sql(f"PRAGMA user_version={version}")
            connection.commit()

    # -- new rows ------------------------------------------------------------------------------------------------------

    def insert(self, spec: JobSpec, *, max_attempts: int, idem_key: str | None = None) -> Job | None:
        """Write the row of an accepted job; None when the id exists already (after a crash that followed the insert).

        If a live job has the wanted output name, the next free one is used ("name (2)"). Raises `AlreadyAccepted` when
        the same files were accepted under another id.
        """
        if self.find(spec.id) is not None:
            return None
        try:
            return _under_free_name(
                spec.out_name, lambda out_name: self._insert(spec, out_name, max_attempts, idem_key)
            )
        except IntegrityError as error:
            if "source_sig" in str(error.orig):
                raise AlreadyAccepted(f"the files of {spec.name} are accepted already") from error
            raise

    def insert_all(self, new: Sequence[tuple[JobSpec, str | None]], *, max_attempts: int) -> list[Job]:
        """Write the rows of accepted jobs, each with its `idem_key`, in one commit.

        Gives the jobs. If one of them conflicts with a live job, nothing is written and the list is empty;
        `insert` of each job then shows which.
        """
        if not new:
            return []
        rows = [new_row(spec, spec.out_name, max_attempts, idem_key) for spec, idem_key in new]
        try:
            return self._insert_rows([spec for spec, _ in new], rows)
        except IntegrityError:
            return []

    def _insert(self, spec: JobSpec, out_name: str, max_attempts: int, idem_key: str | None) -> Job:
        [job] = self._insert_rows([spec], [new_row(spec, out_name, max_attempts, idem_key)])
        return job

    def _insert_rows(self, specs: Sequence[JobSpec], rows: Sequence[dict[str, Any]]) -> list[Job]:
        sources = [row for spec in specs for row in source_rows(spec)]
        accepted = [event_row(spec.id, JobState.QUEUED, "accepted") for spec in specs]
        with self._write() as session:
            seq = (session.exec(select(func.max(JobRow.seq))).one() or 0) + 1
            numbered = [{"seq": number, **row} for number, row in enumerate(rows, start=seq)]
            session.execute(insert(JobRow), numbered)
            if sources:
                session.execute(insert(JobSourceRow), sources)
            session.execute(insert(JobEventRow), accepted)
            made = select(*_FIELDS).where(col(JobRow.seq) >= seq).order_by(col(JobRow.seq))
            jobs = [_job(row) for row in session.execute(made).mappings()]
        for job in jobs:
            self._notify("accepted", job)
        return jobs

    # -- moves ---------------------------------------------------------------------------------------------------------

    def _move(
        self,
        job_id: str,
        to: JobState,
        *,
        note: str,
        values: Mapping[str, Any],
        sources: Sequence[JobState] = (),
        only: Sequence[ColumnElement[bool]] = (),
    ) -> Job:
        """Move a job from `sources`, or from any state that allows it, if the conditions `only` hold."""
        leaves_device = {} if to is JobState.RUNNING else {"run_token": None, "device": None}
        change = (
            update(JobRow)
            .where(col(JobRow.id) == job_id, col(JobRow.state).in_(sources or SOURCES[to]), *only)
            .values(state=to.value, **leaves_device, **values)
            .returning(*_FIELDS)
        )
        with self._write() as session:
            row = session.execute(change).mappings().one_or_none()
            if row is None:
                raise self._illegal(session, job_id, to)
            session.add(event(job_id, to, note))
            job = _job(row)
            update_deliveries(session, job)
        self._notify(to.value, job)
        return job

    def _notify(self, step: str, job: Job) -> None:
        for listener in self.listeners:
            listener(step, job)

    @staticmethod
    def _illegal(session: Session, job_id: str, to: JobState) -> LipsyncdError:
        state = session.exec(select(JobRow.state).where(JobRow.id == job_id)).one_or_none()
        if state is None:
            return UnknownJob(f"no job {job_id}")
        return IllegalTransition(f"job {job_id} is {state} and cannot become {to.value}")

    def claim(self, device: str, token: str) -> Job | None:
        """Give a device the next prepared job. The attempt is counted before the render starts."""
        with self._write() as session:
            row = session.execute(CLAIM, {"device": device, "token": token, "now": now_ms()}).mappings().one_or_none()
            if row is None:
                return None
            job = _job(row)
            note = f"attempt {job.attempt} of {job.max_attempts} on {device}"
            session.add(event(job.id, JobState.RUNNING, note))
        self._notify("running", job)
        return job

    def to_publishing(
        self,
        job_id: str,
        *,
        token: str | None,
        sha256: str,
        size: int,
        frames: int,
        render_ms: int,
        linked_to: str | None = None,
    ) -> Job:
        """Record that the video is complete in the spool.

        token      the run that rendered it: refused for any other run, and after a cancel request
        linked_to  the other job that rendered it: refused if the row is no longer linked to that one
        """
        only: tuple[ColumnElement[bool], ...] = ()
        if token is not None:
            only = (col(JobRow.run_token) == token, col(JobRow.cancel_requested) == 0)
        elif linked_to is not None:
            only = (col(JobRow.duplicate_of) == linked_to,)
        values = {
            "out_sha256": sha256,
            "out_size": size,
            "frames": frames,
            "render_ms": render_ms,
            "stage": "publishing",
            "fraction": 1.0,
            "prepared": 1,
            **NO_REASON,
        }
        note = "rendered" if linked_to is None else f"linked to job {linked_to}"
        return self._move(job_id, JobState.PUBLISHING, note=note, only=only, values=values)

    def to_done(self, job_id: str, *, note: str) -> Job:
        values = {"stage": "done", "fraction": 1.0, "finished_ms": now_ms(), **NO_REASON}
        return self._move(job_id, JobState.DONE, note=note, values=values)

    def to_failed(self, job_id: str, error: Mapping[str, str]) -> Job:
        values = {"stage": "failed", "finished_ms": now_ms(), "staged": 0, **reason_columns(error)}
        return self._move(job_id, JobState.FAILED, note=f"{error['code']}: {error['message']}", values=values)

    def to_cancelled(self, job_id: str, *, sources: Sequence[JobState] = SOURCES[JobState.CANCELLED]) -> Job:
        values = {"stage": "cancelled", "finished_ms": now_ms(), "cancel_requested": 0, **NO_REASON}
        return self._move(job_id, JobState.CANCELLED, note="cancelled", sources=sources, values=values)

    def requeue(
        self, job_id: str, *, note: str, delay_ms: int = 0, charge: bool, error: Mapping[str, str] | None = None
    ) -> Job:
        """Return a running job to the queue. `charge=False` does not count the attempt: the job was not at fault."""
        attempt = col(JobRow.attempt) if charge else text("max(attempt - 1, 0)")
        values = {"attempt": attempt, "stage": "queued", "fraction": 0.0, "not_before_ms": now_ms() + delay_ms}
        reason = NO_REASON if error is None else reason_columns(error)
        return self._move(job_id, JobState.QUEUED, note=note, values={**values, **reason})

    def retry(self, job_id: str, wanted_name: str) -> Job:
        """Queue a failed or cancelled job again with all its attempts. Its inputs are back in the spool.

        Its output gets the wanted name, or the next free one if another live job has that name.
        """
        fresh = {"attempt": 0, "stage": "accepted", "fraction": 0.0, "prepared": 0, "not_before_ms": 0, "kept": None}
        none = {"out_sha256": None, "out_size": None, "started_ms": None, "finished_ms": None, "duplicate_of": None}
        values = {**fresh, **none, "cancel_requested": 0, **NO_REASON}

        def requeued(out_name: str) -> Job:
            new = {**values, **name_columns(out_name)}
            return self._move(job_id, JobState.QUEUED, note="retry", sources=_ENDED_EARLY, values=new)

        return _under_free_name(wanted_name, requeued)

    def delete(self, job_id: str) -> bool:
        """Delete an ended job with its history; True if there was one."""
        return self.upkeep.delete_ended([job_id]) > 0

    def _notify_deleted(self, jobs: Sequence[tuple[str, str | None]]) -> None:
        for listener in self.deletion_listeners:
            listener(jobs)

    # -- changes without a move ----------------------------------------------------------------------------------------

    def _set(self, job_id: str, states: Sequence[JobState] = (), *, note: str = "", **values: Any) -> Job | None:
        """Change columns of one job, if it is in one of `states` or none are given; gives the job if it was changed."""
        change = update(JobRow).where(col(JobRow.id) == job_id).values(**values)
        if states:
            change = change.where(col(JobRow.state).in_(states))
        with self._write() as session:
            row = session.execute(change.returning(*_FIELDS)).mappings().one_or_none()
            if row is not None and note:
                session.add(event(job_id, row["state"], note))
            return None if row is None else _job(row)

    def set_prepared(self, job_id: str, *, frames: int, duration_ms: int) -> bool:
        values = {"prepared": 1, "stage": "queued", "frames": frames, "duration_ms": duration_ms, "not_before_ms": 0}
        job = self._set(job_id, [JobState.QUEUED], note="prepared", **values, **NO_REASON)
        if job is not None:
            self._notify("prepared", job)
        return job is not None

    def set_unprepared(self, job_id: str) -> None:
        """Note that the prepared inputs are missing and have to be made again."""
        self._set(job_id, [JobState.QUEUED], prepared=0)

    def set_stage(self, job_id: str, stage: str) -> None:
        self._set(job_id, [JobState.QUEUED], stage=stage)

    def set_blocked(self, job_id: str, error: Mapping[str, str], *, delay_ms: int) -> bool:
        """Record why a job waits, and when it is tried again."""
        states = [JobState.QUEUED, JobState.PUBLISHING]
        known = self.find(job_id)
        note = "" if known and known.reason_code == error["code"] else f"waits: {error['code']}: {error['message']}"
        return (
            self._set(job_id, states, note=note, not_before_ms=now_ms() + delay_ms, **reason_columns(error)) is not None
        )

    def release(self, *codes: str) -> int:
        """Make the jobs that wait for one of these reasons due now; gives their number."""
        states = [JobState.QUEUED, JobState.PUBLISHING]
        waiting = update(JobRow).where(col(JobRow.state).in_(states), col(JobRow.reason_code).in_(codes))
        with self._write() as session:
            return int(session.execute(waiting.values(not_before_ms=0)).rowcount)  # type: ignore[attr-defined]

    def set_progress(self, job_id: str, token: str, stage: str, fraction: float) -> None:
        change = update(JobRow).where(col(JobRow.id) == job_id, col(JobRow.run_token) == token)
        with self._write() as session:
            session.execute(change.values(stage=stage, fraction=min(max(fraction, 0.0), 1.0)))

    def set_options(self, spec: JobSpec, *, idem_key: str | None = None) -> bool:
        """Replace the options of a waiting job, which is then prepared again; False if it no longer waits."""

        def renamed(out_name: str) -> Job | None:
            note = "options replaced by a manifest"
            values = {**requested_columns(spec), **name_columns(out_name), "prepared": 0, "duplicate_of": None}
            return self._set(spec.id, [JobState.QUEUED], note=note, idem_key=idem_key, **values)

        job = _under_free_name(spec.out_name, renamed)
        if job is not None:
            self._notify("queued", job)
        return job is not None

    def set_staged(self, job_id: str) -> bool:
        return self._set(job_id, [JobState.PUBLISHING], staged=1) is not None

    def set_priority(self, job_id: str, priority: int) -> bool:
        return self._set(job_id, [JobState.QUEUED], note=f"priority {priority}", priority=priority) is not None

    def request_cancel(self, job_id: str) -> bool:
        """Record a request to end the run in progress; False when the job is not running."""
        return self._set(job_id, [JobState.RUNNING], note="cancel requested", cancel_requested=1) is not None

    def set_released(self, job_ids: Sequence[str]) -> None:
        """Record that no file of these jobs is in the inbox any more."""
        with self._write() as session:
            for first in range(0, len(job_ids), _MANY):
                chosen = col(JobRow.id).in_(job_ids[first : first + _MANY])
                session.execute(update(JobRow).where(chosen).values(inputs_released=1))

    def set_kept(self, job_id: str, where: str) -> None:
        """Record where the inputs of an ended job are kept."""
        self._set(job_id, kept=where)

    def note(self, job_id: str, note: str) -> None:
        """Add a line to a job's history."""
        with self._write() as session:
            state = session.exec(select(JobRow.state).where(JobRow.id == job_id)).one_or_none()
            if state is not None:
                session.add(event(job_id, state, note))

    def rename_output(
        self, job_id: str, wanted: str, taken: str, is_free: Callable[[str], bool] = lambda name: True
    ) -> str:
        """Reserve the next free output name after `taken`, for a job that is being published.

        taken    the wanted name, or "wanted (N)" from an earlier try
        is_free  is that name free in the outbox? Names that are not are passed over without a word in the history
        """

        def reserved(out_name: str) -> str:
            self._set(job_id, note=f"published as {out_name}", **name_columns(out_name))
            return out_name

        tail = taken.removeprefix(wanted).removeprefix(" (").removesuffix(")")
        return _under_free_name(wanted, reserved, first=int(tail) + 1 if tail.isdecimal() else 2, is_free=is_free)

    # -- reading -------------------------------------------------------------------------------------------------------

    def find(self, job_id: str) -> Job | None:
        with self._read() as session:
            row = session.execute(FIND, {"job_id": job_id}).mappings().one_or_none()
            return None if row is None else _job(row)

    def next_job(self) -> Job | None:
        """The job that `claim` would give now."""
        with self._read() as session:
            row = session.execute(NEXT, {"now": now_ms()}).mappings().one_or_none()
            return None if row is None else _job(row)

    def _first(self, wanted: Any) -> Job | None:
        with self._read() as session:
            row = session.execute(wanted.limit(1)).mappings().one_or_none()
            return None if row is None else _job(row)

    def get(self, job_id: str) -> Job:
        """The job. Raises `UnknownJob`."""
        job = self.find(job_id)
        if job is None:
            raise UnknownJob(f"no job {job_id}")
        return job

    def in_state(self, *states: JobState) -> list[Job]:
        """Every job in one of these states, oldest first."""
        wanted = select(*_FIELDS).where(col(JobRow.state).in_(states)).order_by(col(JobRow.seq))
        with self._read() as session:
            return [_job(row) for row in session.execute(wanted).mappings()]

    def next_to_prepare(self, without: Collection[str] = ()) -> Job | None:
        """The first queued job that is due and not prepared, in the order of the queue, but for those `without`."""
        due = select(*_FIELDS).where(
            JobRow.state == "queued",
            JobRow.prepared == 0,
            col(JobRow.not_before_ms) <= now_ms(),
            col(JobRow.id).not_in(without),
            FIRST_HAS_ENDED,
        )
        return self._first(due.order_by(col(JobRow.priority).desc(), col(JobRow.seq)))

    def open_ids(self) -> set[str]:
        """The jobs that have not ended."""
        with self._read() as session:
            return set(session.exec(select(JobRow.id).where(col(JobRow.state).not_in(_ENDED))))

    def next_due_ms(self) -> int | None:
        """The earliest time at which a delayed job becomes due; None when no job is delayed."""
        waits = col(JobRow.state).in_(["queued", "publishing"]), col(JobRow.not_before_ms) > now_ms()
        with self._read() as session:
            return session.exec(select(func.min(JobRow.not_before_ms)).where(*waits)).one()

    def unreleased(self) -> list[str]:
        """The jobs whose files may still be in the inbox."""
        with self._read() as session:
            return list(session.exec(select(JobRow.id).where(JobRow.inputs_released == 0).order_by(col(JobRow.seq))))

    def source_hashes(self, job_id: str) -> dict[str, str]:
        """SHA-256 of each file of a job, by role."""
        wanted = select(JobSourceRow.role, JobSourceRow.sha256).where(JobSourceRow.job_id == job_id)
        with self._read() as session:
            return {role: sha256 for role, sha256 in session.execute(wanted)}  # noqa: C416 - dict() takes no rows

    def idem_key(self, job_id: str) -> str | None:
        """The key that was given to `insert` or `set_options` for that job."""
        with self._read() as session:
            return session.exec(select(JobRow.idem_key).where(JobRow.id == job_id)).one_or_none()

    def latest_with_source(self, name: bytes, *, queue: str = "") -> Job | None:
        """The newest job that took a file of that name from the inbox, or from that folder in it."""
        ids = select(JobSourceRow.job_id).where(JobSourceRow.name == name)
        theirs = select(*_FIELDS).where(col(JobRow.id).in_(ids), col(JobRow.queue) == queue)
        return self._first(theirs.order_by(col(JobRow.seq).desc()))

    def sources_since(self, since_ms: int, *, queue: str = "", most: int = 1000) -> list[bytes]:
        """Names of the files that jobs accepted since then took from the inbox, or from that folder in it."""
        theirs = col(JobRow.accepted_ms) >= since_ms, col(JobRow.queue) == queue
        names = select(JobSourceRow.name).join(JobRow, col(JobRow.id) == JobSourceRow.job_id).where(*theirs)
        with self._read() as session:
            return list(session.exec(names.order_by(col(JobRow.seq).desc()).limit(most)))


_ENDED_EARLY = (JobState.FAILED, JobState.CANCELLED)
_ENDED = (JobState.DONE, *_ENDED_EARLY)


def _job(row: RowMapping) -> Job:
    return job_from_row(dict(row))


def _under_free_name(
    wanted: str, work: Callable[[str], _T], *, first: int = 1, is_free: Callable[[str], bool] = lambda name: True
) -> _T:
    """The result of `work` for the first of "wanted", "wanted (2)", ... that is free and that no other live job has."""
    for number in range(first, first + _NAME_TRIES):
        name = wanted if number == 1 else f"{wanted} ({number})"
        if not is_free(name):
            continue
        try:
            return work(name)
        except IntegrityError as error:
            if "out_key" not in str(error.orig):
                raise
    raise LipsyncdError(f"no free output name like {wanted!r} in {_NAME_TRIES} tries")
