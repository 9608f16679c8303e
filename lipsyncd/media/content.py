"""Read an open file by position, and the verdicts on whether it is whole.

A file in an inbox may still be growing. Its format's check reads a few headers and the end, never all of it, so no
content can cause more than a bounded amount of work.

Owns the access to bytes and the verdicts. Leaves the formats to `pictures`, `sounds` and `videos`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from enum import StrEnum

MAX_STEPS = 4096  # headers that are followed in one file
TAIL_BYTES = 1 << 16
_ZEROS_BLOCK_BYTES = 1 << 16
_MOST_ZEROS_BYTES = 1 << 24  # that are read of one file's end
ZEROS = "zeros where content belongs"  # as in a file of its final size that a copier still fills


class Completeness(StrEnum):
    COMPLETE = "complete"  # the file's own structure proves that it ends here
    PLAUSIBLE = "plausible"  # no proof either way
    TRUNCATED = "truncated"  # its structure announces more data
    INVALID = "invalid"  # damaged: more data cannot repair it


@dataclass(frozen=True)
class Integrity:
    """The verdict of one format's check. `width` and `height` in pixels, 0 for sound; `note` is for messages.

    declared_s  how long a sound lasts by its header, if it is cut short; 0 where that is not known
    endless     nothing in its format shows where it ends
    unfilled    its end is zeros, as in a file that was laid out at full size and is filled later
    """

    completeness: Completeness
    width: int = 0
    height: int = 0
    note: str = ""
    declared_s: float = 0.0
    endless: bool = False
    unfilled: bool = False


# Lengths that stand for "unknown": programs that stream write them in front and often never correct them. pocket-tts
# writes 2e9, and 1e9 for 8 bits; sox 0x7FFFF000, and 0x7F000000 in AIFF; arecord 2^31 or 2^32, a little less where a
# sample does not fit; others subtract their header from 2^31 - 1 or 2^32 - 1. A sound of exactly such a length would be
# beyond every limit.
_UNKNOWN = frozenset({0, 1_000_000_000, 2_000_000_000})
_UNKNOWN_RANGES = (
    range(0x7EFFFF00, 0x7F000100),
    range(0x7FFF0000, 0x80000100),
    range(0xFFFF0000, 1 << 32),
    range((1 << 63) - 0x10000, (1 << 63) + 1),
    range((1 << 64) - 0x10000, 1 << 64),
)


def is_unknown(length: int) -> bool:
    """Does a declared number of bytes mean that the writer did not know it?"""
    return length in _UNKNOWN or (
        length >= _UNKNOWN_RANGES[0].start and any(length in around for around in _UNKNOWN_RANGES)
    )


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

    def zeros_before(self, end: int, count: int) -> bool:
        """Are the `count` bytes before `end` there, and all of them zeros? The first other byte ends the search."""
        start = end - min(count, _MOST_ZEROS_BYTES)
        if start < 0 or end > self.size:
            return False
        while end > start:
            block = self.at(max(start, end - _ZEROS_BLOCK_BYTES), min(_ZEROS_BLOCK_BYTES, end - start))
            if not block or any(block):
                return False
            end -= len(block)
        return True


def complete(width: int = 0, height: int = 0) -> Integrity:
    return Integrity(Completeness.COMPLETE, width, height)


def plausible(note: str, width: int = 0, height: int = 0) -> Integrity:
    return Integrity(Completeness.PLAUSIBLE, width, height, note)


def endless(note: str) -> Integrity:
    return Integrity(Completeness.PLAUSIBLE, note=note, endless=True)


def unfilled(found: Integrity) -> Integrity:
    """The verdict on a file that would count as whole, but for the zeros at its end."""
    return replace(found, completeness=Completeness.PLAUSIBLE, note=f"its end is {ZEROS}", unfilled=True)


def truncated(note: str, width: int = 0, height: int = 0, *, declared_s: float = 0.0) -> Integrity:
    return Integrity(Completeness.TRUNCATED, width, height, note, declared_s)


def invalid(note: str) -> Integrity:
    return Integrity(Completeness.INVALID, note=note)


def broken(found: bytes, note: str) -> Integrity:
    """`found` is not the expected header. Zeros are not damage: a copier may still fill a file of its final size."""
    return invalid(note) if any(found) else truncated(ZEROS)
