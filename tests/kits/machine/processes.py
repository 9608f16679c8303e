"""Other processes, as /proc shows them. Each of them, and each of its threads, may end between two looks."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

GONE = (FileNotFoundError, ProcessLookupError)  # when a file of its folder is opened, and when an open one is read


def is_alive(pid: int | str | None) -> bool:
    """Does that process still do anything? A zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except GONE:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def is_gone(pid: int | None, within_s: float = 60.0) -> bool:
    """Does that process end in time?"""
    deadline = time.monotonic() + within_s
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not is_alive(pid)


def children_of(pid: int | str = "self") -> list[int]:
    """The children of all threads of a process."""
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(*GONE):
            found += map(int, children.read_text().split())
    return found


def command_of(pid: int) -> bytes:
    """The arguments of a process, each with a NUL behind it; b"" of one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except GONE:
        return b""
