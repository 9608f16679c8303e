"""The file calls of a process in order: strace's record, read back as events.

A call of one thread may begin before another's ends. An event has the place of its begin and of its end, so that
"A before B" can mean that A had ended when B began.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tests.kits.installation import Installation

CALLS = "open,openat,pwrite64,fsync,fdatasync,rename,renameat,renameat2,link,linkat,unlink,unlinkat,mkdir,mkdirat,rmdir"
# The kernel selects the calls, so that other calls cost nothing. Calls that a seccomp filter of the traced process
# refuses are then not recorded; they have no effect either.
QUICKLY = "--seccomp-bpf"

MAKES_A_CHILD = ("clone", "clone3", "fork", "vfork")

_WHOLE = re.compile(r"^(\d+) +(\w+)\((.*)\) += (.*)")
_BEGUN = re.compile(r"^(\d+) +(\w+)\((.*) <unfinished \.\.\.>$")
_ENDED = re.compile(r"^(\d+) +<\.\.\. (\w+) resumed>(.*)\) += (.*)")
_RESULT = re.compile(r"^(-?\d+)(?:<((?:\\x[0-9a-f]{2})+)>)?(?: (E[A-Z]+))?")
_PLACE = re.compile(r'"((?:\\x[0-9a-f]{2})*)"|<((?:\\x[0-9a-f]{2})+)>')
_WAL_FRAME_BYTES = 24  # of its header, which SQLite writes by itself


@dataclass(frozen=True)
class Event:
    """One call.

    paths       of its descriptor or its arguments: two for a rename; for execve the program and all its arguments
    arguments   as strace writes them
    begin, end  lines of the record
    gave        the value that it returned
    led_to      the path of the descriptor that it returned, links followed
    error       the name of its errno, empty if it succeeded
    """

    thread: int
    name: str
    paths: tuple[str, ...]
    arguments: str
    begin: int
    end: int
    gave: int = 0
    led_to: str = ""
    error: str = ""

    @property
    def path(self) -> str:
        return self.paths[0] if self.paths else ""

    @property
    def is_sync(self) -> bool:
        return self.name in ("fsync", "fdatasync")

    def moves(self, source: str, target: str) -> bool:
        return self.name.startswith("rename") and self.paths == (source, target)

    def __str__(self) -> str:
        return f"{self.name} {' -> '.join(self.paths)}"


@dataclass(frozen=True)
class Origin:
    """The process that made a call.

    program    the arguments of its last execve, or of its parent's
    jailed_at  the line of the record where it, or its parent, restricted itself by Landlock; 0: never
    """

    program: tuple[str, ...] = ()
    jailed_at: int = 0

    def __str__(self) -> str:
        return f"{'a jailed' if self.jailed_at else 'an unjailed'} {' '.join(self.program)[:200]}"


def strace(record: Path, calls: str, *options: str) -> list[str]:
    """The first part of a command line: strace with the `calls` of a program and all its children in `record`."""
    found = shutil.which("strace")
    assert found, "strace is missing: apt-get install strace"
    return [found, "-f", "-y", "-qq", "-xx", *options, "-e", f"trace={calls}", "-o", os.fspath(record)]


@contextmanager
def traced(installation: Installation, record: Path, calls: str, *options: str) -> Iterator[None]:
    """Run a daemon under strace; afterwards `record` has the `calls` of it and of all its children."""
    run = [sys.executable, "-m", "lipsyncd", "--config", str(installation.config), "run"]
    command = [*strace(record, calls, QUICKLY, *options), *run]
    with (installation.root / "daemon.log").open("wb") as log:
        tracer = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=installation.environment()
        )
    try:
        installation.until((installation.path("state") / "ledger.db").exists, "the ledger")
        yield
    finally:
        for daemon in Path(f"/proc/{tracer.pid}/task/{tracer.pid}/children").read_text().split():
            os.kill(int(daemon), signal.SIGTERM)
        status = tracer.wait(60)
    assert status == 0, installation.log[-3000:]


def read(record: Path, *, refused: bool = False) -> list[Event]:
    """The calls that succeeded, with `refused` also those that failed, in the order of their begin."""
    events = sorted(_events(record.read_text().splitlines()), key=lambda event: event.begin)
    return [event for event in events if refused or not event.error]


def with_origins(events: Iterable[Event]) -> Iterator[tuple[Origin, Event]]:
    """Each call with its process. Landlock is inherited over fork and exec; the program over fork only.

    A child's calls begin after the call that made it has begun, so one pass is enough.
    """
    origins: dict[int, Origin] = {}
    for event in events:
        origin = origins.get(event.thread, Origin())
        yield origin, event
        if event.error:
            continue
        if event.name in MAKES_A_CHILD:
            origins[event.gave] = origin
        elif event.name == "execve":
            origins[event.thread] = replace(origin, program=event.paths[1:])
        elif event.name == "landlock_restrict_self":
            origins[event.thread] = replace(origin, jailed_at=event.begin)


def _events(lines: Sequence[str]) -> Iterator[Event]:
    begun: dict[tuple[str, str], tuple[int, str]] = {}
    for number, line in enumerate(lines):
        if found := _BEGUN.match(line):
            begun[found[1], found[2]] = number, found[3]
        elif (found := _ENDED.match(line)) and (found[1], found[2]) in begun:
            begin, arguments = begun.pop((found[1], found[2]))
            yield from _event(int(found[1]), found[2], arguments + found[3], found[4], begin, number)
        elif found := _WHOLE.match(line):
            yield from _event(int(found[1]), found[2], found[3], found[4], number, number)


def _event(thread: int, name: str, arguments: str, gave: str, begin: int, end: int) -> Iterator[Event]:
    result = _RESULT.match(gave)
    if result is None:  # "?": the process was killed during the call
        return
    found = [_text(quoted or angled) for quoted, angled in _PLACE.findall(arguments)]
    if name in ("openat", "openat2", "unlinkat", "renameat", "renameat2", "linkat"):
        found = _absolute(found)
    value, led_to, error = result.groups("")
    yield Event(thread, name, tuple(found), arguments, begin, end, int(value), _text(led_to), error)


def _absolute(found: list[str]) -> list[str]:
    """The *at calls have a folder before each path; it applies only if that path is relative."""
    return [path if path.startswith("/") else f"{folder}/{path}" for folder, path in zip(found[::2], found[1::2])]  # noqa: B905 - an empty path has no folder


def _text(escaped: str) -> str:
    return bytes.fromhex(escaped.replace("\\x", "")).decode(errors="surrogateescape")


def is_commit(event: Event) -> bool:
    """Does this write the header of a WAL frame that ends a transaction? Its second word is then not zero.

    Source: SQLite, fileformat2.html, "The Write-Ahead Log".
    """
    if event.name != "pwrite64" or not event.path.endswith("-wal"):
        return False
    [data] = re.findall(r'"((?:\\x[0-9a-f]{2})*)"', event.arguments)
    content = bytes.fromhex(data.replace("\\x", ""))
    return f", {_WAL_FRAME_BYTES}, " in event.arguments and struct.unpack_from(">I", content, 4)[0] > 0
