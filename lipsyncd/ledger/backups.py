"""Copies of the ledger: complete, checked and rotated.

    state/backups/ledger-20261122T033000.118Z.db      one each night, and one for each `lipsyncd backup`
    state/backups/ledger-v2-20261122T033000.118Z.db   the ledger before a migration; never removed by us

SQLite writes the copy from one read transaction. So a daemon may go on working, and the copy holds all that was
committed before it began. A copy gets its final name only after it was checked and fsynced.

Owns `state/backups`. Reads the ledger and never writes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from lipsyncd.errors import BackupFailed
from lipsyncd.storage.files import fsync_file, fsync_folder, rename_no_replace

FOLDER = "backups"
_MODE = 0o750
_COPY = re.compile(r"ledger-\d{8}T\d{6}\.\d{3}Z\.db")
_UNFINISHED = ".ledger-*.part"


def make(ledger: Path, folder: Path, *, version: int | None = None) -> Path:
    """Copy the ledger into `folder`, which is created if it is missing; gives the path of the copy.

    version  for a copy before a migration: the schema of the ledger, which becomes part of the name

    Raises `BackupFailed`, whose cause is a PermissionError where this user may not read the ledger or write the folder;
    then neither a copy nor a part of one is left.
    """
    label = "" if version is None else f"v{version}-"
    try:
        if not _is_there(ledger):
            raise BackupFailed(f"there is no ledger {ledger}", remedy="`lipsyncd config` shows paths.state")
        _make_folder(folder, ledger)
        target = folder / f"ledger-{label}{_stamp()}.db"
        hidden = folder / f".{target.name}.part"
        with _locked(folder):
            try:
                _write_copy(ledger, hidden)
                fsync_file(hidden)
                rename_no_replace(hidden, target)
            except BaseException:
                hidden.unlink(missing_ok=True)
                raise
        fsync_folder(folder)
    except (OSError, sqlite3.Error) as error:
        raise BackupFailed(f"cannot copy {ledger} into {folder}: {error}") from error
    return target


def _is_there(ledger: Path) -> bool:
    """Raises PermissionError where this user cannot know, or may not read it: SQLite's own words do not say which."""
    try:
        os.close(os.open(ledger, os.O_RDONLY | os.O_CLOEXEC))
    except FileNotFoundError:
        return False
    return True


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock the folder while a copy is written, so that `sweep` does not remove it.

    A network share may refuse the lock. Only `lipsyncd backup --to` writes there, and such a folder is never swept.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> list[Path]:
    """Remove unfinished copies that a crash has left, unless a copy is being written; gives the removed files.

    Raises nothing: if the folder has a fault, making the next copy reports it.
    """
    removed: list[Path] = []
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for path in sorted(folder.glob(_UNFINISHED)):
                path.unlink()
                removed.append(path)
        finally:
            os.close(descriptor)
    return removed


def _make_folder(folder: Path, ledger: Path) -> None:
    """Create the folder for the ledger's owner, also when root makes the first copy."""
    if not folder.exists():
        folder.mkdir(mode=_MODE, parents=True, exist_ok=True)
        _give_to_owner(folder, ledger)


def _give_to_owner(path: Path, ledger: Path) -> None:
    if os.geteuid() == 0:
        owner = ledger.stat()
        os.chown(path, owner.st_uid, owner.st_gid)


def _write_copy(ledger: Path, copy: Path) -> None:
    """Write the copy. It has the permissions of the ledger before its first byte is written."""
    os.close(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    _give_to_owner(copy, ledger)
    copy.chmod(ledger.stat().st_mode & 0o777)
    with closing(sqlite3.connect(f"{ledger.absolute().as_uri()}?mode=ro", uri=True, timeout=10.0)) as source:
        source.execute("VACUUM INTO ?", (str(copy),))
    check(copy)


def check(copy: Path) -> None:
    """Read every page and index of a copy. Raises sqlite3.DatabaseError when it is damaged."""
    with closing(sqlite3.connect(f"{copy.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as opened:
        [found] = opened.execute("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(f"{copy.name} is damaged: {found}")


def rotate(folder: Path, *, keep: int) -> list[Path]:
    """Remove all but the newest `keep` copies, and unfinished ones of a crash; gives the removed copies.

    Copies dated in the future were made before the clock was corrected. They are removed first: otherwise they would
    count as the newest for years, and today's copy would be removed at once. Copies made before a migration and other
    files are kept.
    """
    in_order_of_removal = sorted(copies(folder), key=_dated_in_future, reverse=True)
    removed = in_order_of_removal[: -keep or None]
    for copy in removed:
        copy.unlink(missing_ok=True)
    sweep(folder)
    return removed


def copies(folder: Path) -> list[Path]:
    """The nightly copies and those of `lipsyncd backup` in that folder, oldest first; their names sort by time."""
    try:
        return sorted(path for path in folder.iterdir() if _COPY.fullmatch(path.name))
    except FileNotFoundError:
        return []


def _dated_in_future(copy: Path) -> bool:
    return copy.name > f"ledger-{_stamp()}.db"


def _stamp() -> str:
    now = datetime.now(UTC)
    return f"{now:%Y%m%dT%H%M%S}.{now.microsecond // 1000:03d}Z"
