"""Copies of the ledger: whole, proved, and turned over.

    state/backups/ledger-20261122T033000.118Z.db      one for each night, and one for each `lipsyncd backup`
    state/backups/ledger-v2-20261122T033000.118Z.db   the ledger as it was before a migration; never removed by us

SQLite itself writes the copy out of one read transaction, so a daemon may work on meanwhile, and what it has committed
before the copy began is in it. A copy has its name only when it was checked and fsynced.

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
    """Copy the ledger into `folder`, which is made when it is missing; gives the copy.

    version  put into the name of a copy that precedes a migration: the schema that the ledger had

    Raises `BackupFailed`; then there is no copy, and no piece of one.
    """
    if not ledger.exists():
        raise BackupFailed(f"there is no ledger {ledger}", remedy="`lipsyncd config` says where paths.state is")
    label = "" if version is None else f"v{version}-"
    try:
        _make(folder, ledger)
        target = folder / f"ledger-{label}{_stamp()}.db"
        hidden = folder / f".{target.name}.part"
        with _writing(folder):
            try:
                _write(ledger, hidden)
                fsync_file(hidden)
                rename_no_replace(hidden, target)
            except BaseException:
                hidden.unlink(missing_ok=True)
                raise
        fsync_folder(folder)
    except (OSError, sqlite3.Error) as error:
        raise BackupFailed(f"cannot copy {ledger} into {folder}: {error}") from error
    return target


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Hold the folder while a copy is written there, so that `sweep` leaves it alone.

    A share may refuse such a lock. Copies are sent there by hand, and nobody sweeps it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> list[Path]:
    """Remove what a crash has left of a copy, unless somebody is writing one just now; gives what was removed.

    Raises nothing: what is wrong with the folder is told by whoever makes the next copy.
    """
    torn: list[Path] = []
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for path in sorted(folder.glob(_UNFINISHED)):
                path.unlink()
                torn.append(path)
        finally:
            os.close(descriptor)
    return torn


def _make(folder: Path, ledger: Path) -> None:
    """Make the folder, for the ledger's owner: root may be the first to ask for a copy."""
    if not folder.exists():
        folder.mkdir(mode=_MODE, parents=True, exist_ok=True)
        _give(folder, ledger)


def _give(path: Path, ledger: Path) -> None:
    if os.geteuid() == 0:
        owner = ledger.stat()
        os.chown(path, owner.st_uid, owner.st_gid)


def _write(ledger: Path, copy: Path) -> None:
    """The copy itself, with the ledger's own permissions from its first byte on."""
    os.close(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    _give(copy, ledger)
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


def turn_over(folder: Path, *, keep: int) -> list[Path]:
    """Remove all but the newest `keep` copies, and what a crash has left of one; gives the copies removed.

    Copies from the future were made before the clock was put right, so they go first: else a week of them would be
    taken for the newest for years, and what was copied today would be removed at once.
    Copies from before a migration, and whatever else lies there, are left alone.
    """
    in_turn = sorted(made(folder), key=_from_a_wrong_clock, reverse=True)
    doomed = in_turn[: -keep or None]
    for copy in doomed:
        copy.unlink(missing_ok=True)
    sweep(folder)
    return doomed


def made(folder: Path) -> list[Path]:
    """The copies of nights and commands that lie there, oldest first; their names sort by time."""
    try:
        return sorted(path for path in folder.iterdir() if _COPY.fullmatch(path.name))
    except FileNotFoundError:
        return []


def _from_a_wrong_clock(copy: Path) -> bool:
    return copy.name > f"ledger-{_stamp()}.db"


def _stamp() -> str:
    now = datetime.now(UTC)
    return f"{now:%Y%m%dT%H%M%S}.{now.microsecond // 1000:03d}Z"
