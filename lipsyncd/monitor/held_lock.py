"""Does a daemon run? Its lock tells, which `storage.locks` takes; this only looks, and loads nothing for it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path


def is_held(state: Path) -> bool:
    """Does a process hold the lock of that state folder?"""
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
