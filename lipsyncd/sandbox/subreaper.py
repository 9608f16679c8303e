"""End what programs outside of the jail leave behind: the render child, and the operator's speaker.

A jailed program can start no process. These two can, and one that takes a session of its own is not reached by the kill
of a process group. So the daemon becomes their subreaper: a process whose parent has ended becomes a child of the
daemon, which ends it once the program that it came from has ended.

A child of the daemon was left behind if the daemon did not start it, it lies outside of the daemon's own session, it
was not there before, and it belongs to no program that still runs: it lies in no such program's session, and has the
mark of none in its environment.

Owns the list of processes that were started in a session of their own. Source: prctl(2), PR_SET_CHILD_SUBREAPER.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from lipsyncd.log import printable

log = logging.getLogger(__name__)

MARK = "LAUNCH_MARK"  # the variable in a program's environment; its children inherit it

_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.005
_PROC = Path("/proc")

Started = TypeVar("Started", bound="subprocess.Popen[bytes]")


@dataclass
class _Register:
    """`programs` are the processes that this one has started in sessions of their own, with their marks."""

    guard: threading.Lock = field(default_factory=threading.Lock)
    programs: list[tuple[subprocess.Popen[bytes], str]] = field(default_factory=list)
    before: frozenset[int] | None = None  # children from before `become`; None: this process is no subreaper


_register = _Register()


class _Child(NamedTuple):
    pid: int
    session: int
    ended: bool


def become() -> None:
    """Make this process the subreaper of everything that it starts from now on."""
    if ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, *(ctypes.c_ulong(value) for value in (1, 0, 0, 0))) == 0:
        _register.before = frozenset(child.pid for child in _children())


def new_mark() -> str:
    return uuid.uuid4().hex


def start(make: Callable[[], Started], mark: str = "") -> Started:
    """Call `make`, which starts a process in a session of its own. A program outside of the jail has a `mark`."""
    with _register.guard:  # `sweep` must not see a process that is not in the list yet
        _register.programs = [each for each in _register.programs if each[0].returncode is None]
        popen = make()
        _register.programs.append((popen, mark))
    return popen


def sweep(within_s: float = 2.0) -> int:
    """Kill and reap what programs that have ended left behind, with all that it started; returns how many those were.

    Does nothing in a process that is no subreaper.
    """
    deadline = time.monotonic() + within_s
    pending: set[int] = set()
    killed = 0
    while _register.before is not None and time.monotonic() < deadline:
        with _register.guard:
            found = [child for child in _left_behind(_register.before) if child.pid not in pending]
            killed += sum(_killed(child) for child in found)
        pending |= {child.pid for child in found}
        pending = {pid for pid in pending if not _reaped(pid)}
        if not found and not pending:
            break
        time.sleep(_POLL_S)
    return killed


def _killed(child: _Child) -> bool:
    if child.ended:
        return False
    try:
        os.kill(child.pid, signal.SIGKILL)  # we have not reaped it, so no other process has its number
    except OSError as error:  # it has become another user
        log.warning("process %d (%s) was left behind and cannot be ended: %s", child.pid, _name(child.pid), error)
        return False
    log.warning("process %d (%s) was left behind and is ended", child.pid, _name(child.pid))
    return True


def _left_behind(before: frozenset[int]) -> Iterator[_Child]:
    running = [(popen, mark) for popen, mark in _register.programs if popen.returncode is None]
    sessions = {popen.pid for popen, _ in running}
    marks = {f"{MARK}={mark}".encode() for _, mark in running if mark}
    own = os.getsid(0)
    for child in _children():
        if child.pid in sessions or child.pid in before or child.session == own:
            continue
        if child.ended or not (child.session in sessions or marks & set(_environment(child.pid))):
            yield child


def _children() -> Iterator[_Child]:
    for task in (_PROC / "self/task").iterdir():
        with contextlib.suppress(OSError):  # the thread has ended
            for pid in (task / "children").read_text().split():
                with contextlib.suppress(OSError):
                    fields = (_PROC / pid / "stat").read_bytes().rpartition(b")")[2].split()
                    yield _Child(int(pid), int(fields[3]), fields[0] in (b"Z", b"X"))


def _environment(pid: int) -> list[bytes]:
    try:
        return (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _name(pid: int) -> str:
    try:
        return printable((_PROC / str(pid) / "comm").read_bytes().strip())
    except OSError:
        return "?"


def _reaped(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True
