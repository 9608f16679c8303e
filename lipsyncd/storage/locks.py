"""One daemon for each state folder and each inbox: locks that the kernel releases when their holder ends.

`state/lock` is a local file, so flock(2) serves. An inbox may be a share that several machines see: there it is a range
lock of fcntl(2), which NFS and CIFS servers know. A share without locks is served with a warning.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import stat
import time
from collections.abc import Iterable
from pathlib import Path

from lipsyncd.errors import AnotherDaemonRuns
from lipsyncd.storage.files import read_json
from lipsyncd.storage.open_folder import OpenFolder
from lipsyncd.storage.private_folder import HIDDEN, LOCK
from lipsyncd.storage.shared_folders import SharedFolder

log = logging.getLogger(__name__)

_PATIENCE_S, _PATIENCE_WITH_LOOKS_S = 0.3, 10.0
_LOCK_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_NO_LOCK_FILE = (errno.ELOOP, errno.ENXIO, errno.EISDIR)  # a link, a FIFO, a folder
_NOT_NOW = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # says nothing of the share


class InstanceLock:
    """`state/lock`, held from `acquire` until `release` or the end of the process. Children do not inherit it."""

    def __init__(self, state: Path) -> None:
        self._path = state / "lock"
        self._descriptor: int | None = None

    def acquire(self, *, command: str) -> None:
        """Take the lock in the name of a command. Raises `AnotherDaemonRuns`, which names the holder."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o660)
        if not _take(descriptor):
            os.close(descriptor)
            raise already_held(self._path.parent)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "who": command}).encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None


class FolderLock:
    """The lock of one inbox, held from the first `hold` that succeeds until the end of the process.

    Such a lock is lost as soon as this process closes any descriptor of its file, so no other code opens it.
    """

    def __init__(self, folder: SharedFolder) -> None:
        self._folder = folder
        self._descriptor: int | None = None
        self._complained = False

    def hold(self) -> str:
        """Take the lock or keep it; why that is impossible, else "". A share without locks gives "".

        Raises `FolderNotOurs` or OSError when our own folder in the inbox cannot be had.
        """
        with self._folder.opened() as root:
            if root is None:
                return self._folder.absence
            with self._folder.private(root) as private:
                return "" if self._is_ours(private) else self._take(private)

    def _take(self, private: OpenFolder) -> str:
        self.release()
        try:
            descriptor = os.open(LOCK, _LOCK_FLAGS | os.O_CREAT, 0o600, dir_fd=private.fileno())
        except PermissionError:
            return self._served_by("the daemon of another user")
        except OSError as error:
            if error.errno in _NO_LOCK_FILE:
                return f"{private.shown(LOCK)} is no regular file; remove it"
            if error.errno in _NOT_NOW:
                raise
            self._complain(private, error)
            return ""
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            return f"{private.shown(LOCK)} is no regular file; remove it"
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            other = _recorded_holder(descriptor)
            os.close(descriptor)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return self._served_by(other or "another daemon")
            self._complain(private, error)
            return ""
        ours = json.dumps({"pid": os.getpid(), "host": os.uname().nodename}).encode()
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, ours, 0)
        self._descriptor = descriptor
        return ""

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _is_ours(self, private: OpenFolder) -> bool:
        """Held, and the file that we hold is still the one that others would try."""
        if self._descriptor is None:
            return False
        there = private.status(LOCK)
        return there is not None and os.path.samestat(os.fstat(self._descriptor), there)

    def _served_by(self, other: str) -> str:
        return f"{self._folder.where} is served by {other}"

    def _complain(self, private: OpenFolder, error: OSError) -> None:
        if not self._complained:
            log.warning(
                "lock: cannot lock %s (%s): make sure that no other daemon serves it", private.where, error.strerror
            )
        self._complained = True


def refuse_a_second(state: Path, inboxes: Iterable[SharedFolder]) -> None:
    """Raise `AnotherDaemonRuns` when a daemon that starts now would not get its locks.

    Holds nothing afterwards, so the daemon still has to take the locks. But a second daemon is refused at once, before
    everything that a daemon imports.
    """
    with contextlib.suppress(FileNotFoundError, PermissionError):  # no lock yet, or the start gives a better message
        descriptor = os.open(state / "lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            if not _take(descriptor, fcntl.LOCK_SH):
                raise already_held(state)
        finally:
            os.close(descriptor)
    for folder in inboxes:
        if other := _holder_in_a_share(folder):
            raise already_served(f"the inbox {folder.where} is served by {other}")


def already_held(state: Path) -> AnotherDaemonRuns:
    """The lock of a state folder is another process's."""
    return AnotherDaemonRuns(f"{state / 'lock'} is held by {holder(state) or 'another process'}")


def already_served(fault: str) -> AnotherDaemonRuns:
    """An inbox is another daemon's: the sentence of `FolderLock.hold`."""
    return AnotherDaemonRuns(fault, remedy="stop that one, or give each its own inbox")


def _holder_in_a_share(folder: SharedFolder) -> str:
    """The holder of that inbox's lock; "" when it is free, or when that cannot be found out."""
    try:
        with folder.open_unproved() as root, root.passage(HIDDEN) as hidden:
            own_root = root.stat().st_uid == os.geteuid()  # then another's lock file is one that we replace
            try:
                descriptor = os.open(LOCK, _LOCK_FLAGS & ~os.O_ACCMODE | os.O_RDONLY, dir_fd=hidden.fileno())
            except PermissionError:
                return "" if own_root else "the daemon of another user"
    except OSError:
        return ""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        taken = error.errno in (errno.EACCES, errno.EAGAIN)
        return (_recorded_holder(descriptor) or "another daemon") if taken else ""
    finally:
        os.close(descriptor)
    return ""


def _recorded_holder(descriptor: int) -> str:
    """The daemon that has recorded itself in a lock file, for people."""
    try:
        found = json.loads(os.pread(descriptor, 1000, 0))
        return f"the daemon with pid {found['pid']} on {found['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _take(descriptor: int, how: int = fcntl.LOCK_EX) -> bool:
    """Try for a moment, and for longer while no process has the lock for itself.

    `is_held` in another process shares the lock while it looks, which on a busy machine may last.
    """
    begun_s = time.monotonic()
    while not _try(descriptor, how):
        is_shared = _try(descriptor, fcntl.LOCK_SH)
        if is_shared:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        if time.monotonic() - begun_s > (_PATIENCE_WITH_LOOKS_S if is_shared else _PATIENCE_S):
            return False
        time.sleep(0.005)
    return True


def _try(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def holder(state: Path) -> str:
    """The holder, such as "lipsyncd run, pid 4711"; "" when none is recorded."""
    found = read_json(state / "lock") or {}
    return f"{found['who']}, pid {found['pid']}" if {"pid", "who"} <= found.keys() else ""


def holder_pid(state: Path) -> int | None:
    """The process that has recorded itself in the lock; it lives as long as the lock is held."""
    pid = (read_json(state / "lock") or {}).get("pid")
    return pid if isinstance(pid, int) and pid > 1 else None
