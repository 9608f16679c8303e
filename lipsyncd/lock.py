"""One daemon for each state folder: a lock that the kernel lets go of when its holder ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from pathlib import Path

from lipsyncd.errors import AnotherDaemonRuns
from lipsyncd.files import read_json

_PATIENCE_S = 0.3


class InstanceLock:
    """`state/lock`, held from `acquire` until `release` or the end of the process. Children do not inherit it."""

    def __init__(self, state: Path) -> None:
        self._path = state / "lock"
        self._descriptor: int | None = None

    def acquire(self, *, who: str) -> None:
        """Take the lock. Raises `AnotherDaemonRuns`, which names the holder."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o660)
        if not _take(descriptor):
            os.close(descriptor)
            raise AnotherDaemonRuns(f"{self._path} is held by {holder(self._path.parent) or 'another process'}")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "who": who}).encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None


def _take(descriptor: int) -> bool:
    """Try for a moment: whoever only looks (`is_held`) has the lock too while he does."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        else:
            return True


def is_held(state: Path) -> bool:
    """Does somebody hold the lock of that state folder?"""
    try:
        descriptor = os.open(state / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    return False


def holder(state: Path) -> str:
    """Who holds it, such as "lipsyncd run, pid 4711"; "" when that is not written there."""
    found = read_json(state / "lock") or {}
    return f"{found['who']}, pid {found['pid']}" if {"pid", "who"} <= found.keys() else ""
