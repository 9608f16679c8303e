"""What a process did to its files, in order: strace's record, read back as events.

A call of one thread may begin before another's ends; an event knows the place of both, so that "A before B" can mean
that A had ended when B began.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

CALLS = "open,openat,pwrite64,fsync,fdatasync,rename,renameat,renameat2,link,linkat,unlink,unlinkat,mkdir,rmdir"
OPTIONS = ["-f", "-y", "-qq", "--seccomp-bpf", "-s", "64", "-xx", "-e", f"trace={CALLS}"]

_WHOLE = re.compile(r"^(\d+) +(\w+)\((.*)\) += (-?\d+|\?)")
_BEGUN = re.compile(r"^(\d+) +(\w+)\((.*) <unfinished \.\.\.>$")
_ENDED = re.compile(r"^(\d+) +<\.\.\. (\w+) resumed>(.*)\) += (-?\d+|\?)")
_PLACE = re.compile(r'"((?:\\x[0-9a-f]{2})*)"|<((?:\\x[0-9a-f]{2})+)>')
_WAL_FRAME_BYTES = 24  # of its header, which SQLite writes by itself


@dataclass(frozen=True)
class Event:
    """One call that worked.

    paths       of its descriptor, or its arguments: two for a rename
    arguments   as strace writes them
    begin, end  lines of the record
    """

    thread: int
    name: str
    paths: tuple[str, ...]
    arguments: str
    begin: int
    end: int

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


def read(record: Path) -> list[Event]:
    """The calls that worked, in the order in which they began."""
    return sorted(_events(record.read_text().splitlines()), key=lambda event: event.begin)


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
    if gave == "?" or int(gave) < 0:
        return
    found = [_text(quoted or angled) for quoted, angled in _PLACE.findall(arguments)]
    if name in ("openat", "unlinkat", "renameat", "renameat2", "linkat"):
        found = _absolute(found)
    yield Event(thread, name, tuple(found), arguments, begin, end)


def _absolute(found: list[str]) -> list[str]:
    """The *at calls name a folder before each path, which counts only when that path is relative."""
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
