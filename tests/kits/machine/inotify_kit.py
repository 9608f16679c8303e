"""Tests that need inotify skip while other programs hold all instances of this user (128 on most systems).

The marker `inotify` selects them; `tests/conftest.py` asks here. Instances of our own processes are never an excuse: if
they use up the limit, the test fails.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from tests.kits.installation import ROOT

MOST_OF_OURS = 32  # two test processes with a few daemons each hold fewer


def taken_by_others() -> str:
    """The reason to skip: no instance is left, and other programs hold them. Empty if a test may run, or must fail."""
    if not _is_used_up():
        return ""
    ours, others = _held()
    return (
        "" if ours > MOST_OF_OURS else f"no inotify instance is left: other programs hold {others}, these tests {ours}"
    )


def _is_used_up() -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_CLOEXEC)
    if descriptor >= 0:
        os.close(descriptor)
    return descriptor < 0 and ctypes.get_errno() == errno.EMFILE


def _held() -> tuple[int, int]:
    """Instances of our processes, and of the other processes of this user that we can see."""
    ours = others = 0
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                if process.stat().st_uid != os.geteuid():
                    continue
                count = sum(_leads_to(descriptor) == "anon_inode:inotify" for descriptor in (process / "fd").iterdir())
                is_ours = process.name == str(os.getpid()) or f"PYTHONPATH={ROOT}" in _variables(process)
            except OSError:
                continue  # it has ended, or is not ours to examine
            ours, others = (ours + count, others) if is_ours else (ours, others + count)
    return ours, others


def _leads_to(descriptor: Path) -> str:
    try:
        return os.readlink(descriptor)
    except FileNotFoundError:  # closed since
        return ""


def _variables(process: Path) -> list[str]:
    return (process / "environ").read_bytes().decode(errors="replace").split("\0")
