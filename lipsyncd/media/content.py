"""Read an open file by position, and the verdicts on whether it is whole.

A file in an inbox may still be growing. Its format's check reads a few headers and the end, never all of it, so no
content can cause more than a bounded amount of work.

Owns the access to bytes and the verdicts. Leaves the formats to `pictures`, `sounds` and `videos`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum

MAX_STEPS = 4096  # headers that are followed in one file
TAIL_BYTES = 1 << 16
ZEROS = "zeros where content belongs"  # as in a file of its final size that a copier still fills


class Completeness(StrEnum):
    COMPLETE = "complete"  # the file's own structure proves that it ends here
    PLAUSIBLE = "plausible"  # no proof either way
    TRUNCATED = "truncated"  # its structure announces more data
    INVALID = "invalid"  # damaged: more data cannot repair it


@dataclass(frozen=True)
class Integrity:
    """The verdict of one format's check. `width` and `height` in pixels, 0 for sound; `note` is for messages."""

    completeness: Completeness
    width: int = 0
    height: int = 0
    note: str = ""


class Content:
    """The bytes of an open file, by position. Owns no descriptor: the caller opens and closes it."""

    def __init__(self, descriptor: int, size_bytes: int) -> None:
        self._descriptor = descriptor
        self.size = size_bytes

    def at(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes from `offset`; fewer at the end. An OSError comes from the storage."""
        wanted = min(count, self.size - offset)
        return os.pread(self._descriptor, wanted, offset) if wanted > 0 else b""

    def tail(self, count: int) -> bytes:
        return self.at(max(0, self.size - count), count)


def complete(width: int = 0, height: int = 0) -> Integrity:
    return Integrity(Completeness.COMPLETE, width, height)


def plausible(note: str, width: int = 0, height: int = 0) -> Integrity:
    return Integrity(Completeness.PLAUSIBLE, width, height, note)


def truncated(note: str, width: int = 0, height: int = 0) -> Integrity:
    return Integrity(Completeness.TRUNCATED, width, height, note)


def invalid(note: str) -> Integrity:
    return Integrity(Completeness.INVALID, note=note)


def broken(found: bytes, note: str) -> Integrity:
    """`found` is not the expected header. Zeros are not damage: a copier may still fill a file of its final size."""
    return invalid(note) if any(found) else truncated(ZEROS)
