"""Repair what a crash left: once, at start, with the lock held and before the first scan.

The spool shows how far each job came; the ledger is brought in line with it. Nothing here reads the inbox.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy.exc import DatabaseError

from lipsyncd.daemon import rebuild
from lipsyncd.errors import BackupFailed, Blocked, InputsLost, LedgerUnavailable, RenderCrashed, tree
from lipsyncd.jobs.job import SOURCES, Job, JobSpec, JobState
from lipsyncd.jobs.prepared import Output
from lipsyncd.ledger.ledger import Ledger
from lipsyncd.results import archive
from lipsyncd.results.finish import Finisher
from lipsyncd.results.stores import Stores
from lipsyncd.storage import control_files
from lipsyncd.storage.failpoints import reach
from lipsyncd.storage.files import read_json, sweep_torn, write_json
from lipsyncd.storage.spool import Spool

log = logging.getLogger(__name__)

_COMPANIONS = ("-wal", "-shm")
_JOURNAL_MODE_AT = 18  # in the file's header: 1 means rollback journal, 2 means WAL
_NO_WAL = b"\x01"
_RESUME_TRIES = 3
_LIVE = (JobState.QUEUED, JobState.RUNNING, JobState.PUBLISHING)


def open_ledger(path: Path) -> Ledger:
    """The ledger. A damaged one is put aside, and `recover` fills an empty one.

    When it is new or an older copy, it is marked, so that `recover` also reads how jobs ended.
    """
    try:
        _mark_if_incomplete(path)
        ledger = Ledger(path)
        ledger.check()
    except (DatabaseError, sqlite3.DatabaseError, BackupFailed) as error:
        if not _is_damage(error):
            raise
        _put_aside(path)
        log.error("ledger: %s was damaged (%s); jobs are restored from the files that they left", path, error.args[0])
        rebuild.set_due(path.parent)
        return Ledger(path)
    return ledger


def _mark_if_incomplete(path: Path) -> None:
    """Mark that endings are missing when the file is new, or a copy: only a ledger in use is in WAL mode.

    The header is read with no connection open, since closing the file would release SQLite's locks. A -wal beside a
    copy is another ledger's, and is put aside before SQLite finds the two together.
    """
    try:
        with path.open("rb") as file:
            mode = file.read(_JOURNAL_MODE_AT + 1)[_JOURNAL_MODE_AT:]
    except FileNotFoundError:
        mode = b""
    if mode in (b"", _NO_WAL):
        rebuild.set_due(path.parent)
    if mode == _NO_WAL:
        log.info("ledger: %s is an older copy; what came after it is read from the files that jobs left", path)
        _put_aside(path, suffixes=_COMPANIONS)


def _is_damage(error: Exception) -> bool:
    return any(word in str(error) for word in ("malformed", "not a database", "quick_check"))


def _put_aside(path: Path, *, suffixes: Sequence[str] = ("", *_COMPANIONS)) -> None:
    """Rename the ledger with its companions: a -wal of another database would damage the new one."""
    stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    for suffix in suffixes:
        old = path.with_name(path.name + suffix)
        if old.exists():
            old.rename(path.with_name(f"{path.name}.corrupt-{stamp}{suffix}"))


def recover(register: Callable[[JobSpec], object], stores: Stores, finisher: Finisher) -> None:
    """Bring ledger and outbox in line with the spool, and go on with what was under way.

    register  gives an accepted job its row
    """
    spool, ledger = stores.spool, stores.ledger
    torn = spool.sweep() + _sweep_replaced(stores) + _end_removals(stores)
    ids = spool.ids()
    _follow_moved_folders(stores)
    if rebuild.is_due(stores.folders.state):
        _restore_endings(stores, set(ids))
    for job_id in ids:
        spec = spool.spec(job_id)
        if spec is None:
            log.error("spool: %s has no readable job.json; it is left as it is", spool.folder(job_id))
        elif ledger.find(job_id) is None:
            # A staged video keeps its name: the row that was lost had it.
            register(replace(spec, out_name=spool.staged_name(job_id) or spec.out_name))
            reach("recover-registered")
    for job_id in ids:
        job = ledger.find(job_id)
        if job is not None:
            _try_to_resume(job, stores, finisher)
            reach("recover-resumed")
    known = set(ids)
    for job in ledger.in_state(*_LIVE):
        if job.id not in known:
            _lost(job, stores.ledger)
    with finisher.lock:
        finisher.republisher.resume()
    if stores.folders.available("outbox"):
        staged = {job_id for job_id in spool.ids() if spool.staged_name(job_id) is not None}
        torn += stores.outbox.sweep(staged | {job_id for job_id, _ in finisher.republisher.under_way()})
    ledger.release(*(kind.code for kind in tree(Blocked)))  # what blocked them may be gone
    log.info("recovery: %d jobs in the spool, %d unfinished files removed", len(ids), torn)


def _follow_moved_folders(stores: Stores) -> None:
    """Correct the rows of kept inputs when failed/ or the archive lies elsewhere since the last start."""
    folders = stores.folders
    record = folders.state / "places.json"
    before, now = read_json(record) or {}, {kind: folders.shared[kind].where for kind in ("failed", "archive")}
    for kind, place in now.items():
        old = before.get(kind)
        if isinstance(old, str) and old != place:
            moved = stores.ledger.upkeep.move_kept(old, place)
            log.info("%s was %s and is %s now: %d jobs have their inputs there", kind, old, place, moved)
    if before != now:
        write_json(record, now, mode=0o640)


def _restore_endings(stores: Stores, spooled: Set[str]) -> None:
    """Read how jobs ended from the files that they left, where the ledger does not know it or has it otherwise."""
    folders, ledger = stores.folders, stores.ledger
    known = {job.id: job.state for job in ledger.in_state(*JobState)}
    found = rebuild.read(folders)
    news = [ended for job_id, ended in found.items() if job_id not in spooled and known.get(job_id) != ended.state]
    max_attempts = stores.settings.now.render.max_attempts
    ledger.ended_jobs.record(news, max_attempts=max_attempts, note="its end was read from the files that it left")
    if news:
        log.info("endings: the ends of %d jobs were read from the files that they left", len(news))
    unread = rebuild.missing(folders)
    if unread:
        log.warning("endings: %s could not be read; the next start tries again", ", ".join(unread))
    else:
        rebuild.set_read(folders.state)


def _sweep_replaced(stores: Stores) -> int:
    """Remove unfinished replacements of files; in the control folder only of our answers: a client may be writing."""
    folders = stores.folders
    ours = sum(sweep_torn(folder) for folder in (folders.state, folders.results, folders.again))
    return ours + control_files.sweep_torn(folders.control)


def _end_removals(stores: Stores) -> int:
    """End the removals that a crash interrupted. What cannot be read now waits for the next start.

    Those in an inbox are ended by its first scan, just before it looks for files that were accepted.
    """
    ended = 0
    for kind in ("outbox", "failed", "archive"):
        shared = stores.folders.shared[kind]
        try:
            ended += shared.sweep_removals() if kind == "outbox" else archive.sweep(shared)
        except (Blocked, OSError) as error:
            log.warning("recovery: interrupted removals in %s stay: %s", shared.where, error)
    return ended


def _try_to_resume(job: Job, stores: Stores, finisher: Finisher) -> None:
    """`_resume`, such that no job keeps the daemon from starting. One that fails here stays as it is.

    An error of the disk may pass: then it is tried again at once, with the row as it is by then.
    """
    for left in reversed(range(_RESUME_TRIES)):
        try:
            _resume(stores.ledger.get(job.id), stores, finisher)
        except LedgerUnavailable:
            raise
        except Exception as error:
            if isinstance(error, OSError) and left:
                log.warning("recovery: job %s is tried again: %s", job.id, error)
                continue
            log.exception("recovery: job %s: unexpected failure; it stays as it is", job.id)
        return


def _resume(job: Job, stores: Stores, finisher: Finisher) -> None:
    """Move one job's row to where its spool folder says that it is."""
    spool, ledger = stores.spool, stores.ledger
    ending, output = spool.ending(job.id), _own_output(job, spool)
    if job.state.ended and ending is None and job.state is not JobState.DONE:
        finisher.requeue_ended(job)  # the inputs were back already when the retry was cut off
    elif job.state.ended:
        finisher.clear_away(job)
    elif ending is not None and job.state in SOURCES[JobState(ending["state"])]:
        cancelled = ending["state"] == JobState.CANCELLED
        finisher.clear_away(ledger.to_cancelled(job.id) if cancelled else ledger.to_failed(job.id, ending))
    elif job.cancel_requested and job.state in SOURCES[JobState.CANCELLED]:
        finisher.cancel(job.id)
    elif output is not None and job.state is not JobState.PUBLISHING:
        ledger.to_publishing(job.id, token=None, **output.facts)
    elif job.state is JobState.RUNNING:
        _interrupted(job, ledger, finisher)
    if job.prepared and spool.prepared(job.id) is None and spool.folder(job.id).is_dir():
        ledger.set_unprepared(job.id)


def _own_output(job: Job, spool: Spool) -> Output | None:
    """The job's finished video; None when it was copied from another job and the row no longer names that job.

    Then the job was given other options meanwhile.
    """
    output = spool.output(job.id)
    if output is None or output.duplicate_of in (None, job.duplicate_of) or spool.staged_name(job.id) is not None:
        return output
    spool.drop_output(job.id)
    return None


def _interrupted(job: Job, ledger: Ledger, finisher: Finisher) -> None:
    """A run that the daemon did not survive. The attempt counts, since the job may have ended the daemon."""
    if job.attempt >= job.max_attempts:
        message = f"the daemon ended {job.attempt} times while it rendered job {job.id}"
        finisher.fail(job.id, RenderCrashed(message))
    else:
        ledger.requeue(job.id, note="the daemon ended during this run", charge=True)


def _lost(job: Job, ledger: Ledger) -> None:
    error = InputsLost(f"the spool folder of job {job.id} is gone")
    log.error("job %s failed: %s", job.id, error)
    ledger.to_failed(job.id, error.reason())
