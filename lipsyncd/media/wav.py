"""WAV files by their headers: whether one is whole, how long it claims to be, and whether several are joined.

Programs that stream write a length that stands for "unknown", services that speak join whole WAVs end to end, and a
program that is interrupted leaves the length of what it wanted to write. All three are distinguished here.

Owns the chunks of RIFF, RF64 and BW64. Nothing is decoded here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from lipsyncd.media.content import (
    Content,
    Integrity,
    broken,
    complete,
    invalid,
    is_unknown,
    plausible,
    truncated,
    unfilled,
)

MAGICS = (b"RIFF", b"RF64", b"BW64")  # not RIFX: ffmpeg plays its samples as noise
_MOST_CHANNELS, _HIGHEST_RATE = 64, 768_000  # what ffmpeg can mix down; the highest rate of any recorder
_PLAIN = frozenset((1, 3, 6, 7, 0xFFFE))  # formats of uncoded samples: PCM, float, A-law, mu-law, extensible
_FORMAT_BYTES = 1024  # of the chunk `fmt `, which holds the decoder's configuration as well
_SEARCH_BYTES = 1 << 20
_HEADER_BYTES = 16  # RIFF, length, WAVE, fmt
_MAX_STEPS = 1 << 14  # chunks of one file: a sentence of many words may be as many WAVs


@dataclass(frozen=True)
class Part:
    """One WAV of those that are joined in a file.

    format     the content of its chunk `fmt `
    header     where it begins
    start      where its samples begin
    declared   how many bytes of samples its header claims
    unknown    the header was written before the length was known
    """

    format: bytes
    header: int
    start: int
    declared: int

    @property
    def unknown(self) -> bool:
        return is_unknown(self.declared)

    @property
    def end(self) -> int:
        return self.start + self.declared

    @property
    def pcm_bytes_per_s(self) -> int:
        """By the format of its samples; by the header's own word, which may lie, for those that are coded."""
        tag, channels, rate, bytes_per_s, _, bits = struct.unpack("<HHIIHH", self.format[:16])
        count: int = channels * rate * bits // 8 if tag in _PLAIN and bits >= 8 else bytes_per_s or channels * rate
        return count

    @property
    def seconds(self) -> float:
        bytes_per_s = int.from_bytes(self.format[8:12], "little")
        return self.declared / bytes_per_s if bytes_per_s else 0.0

    @property
    def described(self) -> str:
        tag, channels, rate, _, _, bits = struct.unpack("<HHIIHH", self.format[:16])
        return f"format {tag} with {channels} channels of {bits} bits at {rate} Hz"

    def fits(self, other: Part) -> bool:
        """Can the samples of both be joined? The bytes per second are only a hint and may differ."""
        mine, others = self.format.rstrip(b"\0"), other.format.rstrip(b"\0")
        return mine[:8] + mine[12:] == others[:8] + others[12:]


def wav(content: Content) -> Integrity:
    try:
        parts = list(_parts(content))
    except _Bad as bad:
        return bad.integrity
    last = parts[-1]
    present = content.size - last.start
    unknown = last.unknown and last.declared != present
    if last.declared > present and not unknown:
        whole_s = sum(part.seconds for part in parts)
        return truncated(f"{present} of {last.declared} bytes of samples", declared_s=whole_s)
    found = plausible("the WAV header was written before the length was known") if unknown else complete()
    return unfilled(found) if _ends_in_zeros(content, last, content.size if unknown else last.end) else found


def _ends_in_zeros(content: Content, last: Part, end: int) -> bool:
    """Does more than a second of exact zeros end the samples, or the file?"""
    count = last.pcm_bytes_per_s + 1
    return any(place - last.start >= count and content.zeros_before(place, count) for place in {end, content.size})


@dataclass(frozen=True)
class Samples:
    """Where all samples of a file lie.

    format   the content of the chunk `fmt `, the same for all
    ranges   start and end of each WAV's samples
    behind   bytes behind the last one that are neither chunks nor zeros
    as_is    a decoder that opens the file finds all of them
    """

    format: bytes
    ranges: list[tuple[int, int]]
    behind: int
    as_is: bool

    @property
    def behind_s(self) -> float:
        """How long `behind` would last if it were samples."""
        bytes_per_s = int.from_bytes(self.format[8:12], "little")
        return self.behind / bytes_per_s if bytes_per_s else 0.0

    def header(self) -> bytes:
        """The header of one WAV that holds all of them, each cut down to whole blocks."""
        count = min(sum(end - start for start, end in self.blocks()), 0xFFFFFFFF)
        form = b"fmt " + struct.pack("<I", len(self.format)) + self.format + bytes(len(self.format) % 2)
        body = b"WAVE" + form + b"data" + struct.pack("<I", count)
        return b"RIFF" + struct.pack("<I", min(len(body) + count, 0xFFFFFFFF)) + body

    def blocks(self) -> list[tuple[int, int]]:
        """`ranges`, where each but the last ends with a whole block: what follows would be out of step."""
        size = int.from_bytes(self.format[12:14], "little") or 1
        return [(start, end - (end - start) % size) for start, end in self.ranges[:-1]] + self.ranges[-1:]


def samples(content: Content) -> Samples:
    """All WAVs of a file, also those behind one whose length is unknown. Raises ValueError when they do not fit."""
    ranges: list[tuple[int, int]] = []
    try:
        parts = list(_parts(content, search=True))
    except _Bad as bad:
        raise ValueError(bad.integrity.note) from None
    for part, following in zip(parts, [*parts[1:], None], strict=True):
        end = part.end
        if part.unknown:
            end = content.size if following is None else following.header
        ranges.append((part.start, min(end, content.size)))
    # ffmpeg believes the 64 bits of a length whatever they are, also the zeros that it writes itself for "unknown".
    as_is = len(parts) == 1 and not (parts[0].unknown and content.at(0, 4) != b"RIFF")
    return Samples(parts[0].format, ranges, _behind(content, ranges[-1][1]), as_is)


class _Bad(Exception):
    def __init__(self, integrity: Integrity) -> None:
        self.integrity = integrity


def _parts(content: Content, *, search: bool = False) -> Iterator[Part]:
    """The WAVs of a file, one behind the other. Raises `_Bad`.

    search  look through samples of unknown length for the next header
    """
    steps = iter(range(_MAX_STEPS))
    first: Part | None = None
    offset: int | None = 0
    while offset is not None:
        part = _part(content, offset, steps)
        if first is not None and not part.fits(first):
            raise _Bad(
                invalid(
                    f"several WAVs are joined in it: the first has {first.described}, the one at byte {offset} has"
                    f" {part.described}; join them in one format"
                )
            )
        first = first or part
        yield part
        offset = None if part.unknown else _next(content, part, steps)
        if part.unknown and search:
            offset = _search(content, part.start)


def _part(content: Content, offset: int, steps: Iterator[int]) -> Part:
    """The WAV whose header begins at `offset`."""
    large_bytes, form = 0, b""  # the length in the chunk ds64
    header, offset = offset, offset + 12
    for _ in steps:
        head = content.at(offset, 24)
        if len(head) < 8:
            raise _Bad(truncated("the WAV ends before its samples"))
        name, length = struct.unpack("<4sI", head[:8])
        if name == b"data":
            if not form:
                raise _Bad(invalid("the WAV does not describe the format of its samples"))
            return Part(form, header, offset + 8, large_bytes if length == 0xFFFFFFFF and large_bytes else length)
        if name == b"fmt " and len(head) >= 24:
            form = content.at(offset + 8, min(length, _FORMAT_BYTES)).ljust(16, b"\0")
            _, channels, rate = struct.unpack("<HHI", head[8:16])
            if not 0 < channels <= _MOST_CHANNELS or not 0 < rate <= _HIGHEST_RATE:
                raise _Bad(invalid(f"the WAV claims {channels} channels at {rate} Hz"))
        elif name == b"ds64" and len(head) == 24:
            large_bytes = int.from_bytes(head[16:24], "little")
        elif not _is_name(name):
            raise _Bad(broken(head, "a WAV chunk is damaged"))
        offset += 8 + length + length % 2
    raise _Bad(invalid("the WAV has too many chunks"))


def _next(content: Content, part: Part, steps: Iterator[int]) -> int | None:
    """Where the next WAV begins behind the samples of `part`, also behind other chunks; None without one.

    An odd number of bytes is filled up to an even one, but not by every program.
    """
    for offset in sorted({part.end, part.end + part.declared % 2}):
        at = offset
        for _ in steps:
            head = content.at(at, 12)
            if _is_header(head):
                return at
            if len(head) < 8 or not _is_name(head[:4]):
                break
            length = int.from_bytes(head[4:8], "little")
            at += 8 + length + length % 2
        else:
            raise _Bad(invalid("the WAV has too many chunks"))
    return None


def _search(content: Content, start: int) -> int | None:
    """Where the next header of a WAV lies at or behind `start`; None without one."""
    while start < content.size:
        block = content.at(start, _SEARCH_BYTES)
        at = block.find(b"WAVEfmt ")
        while at >= 0:
            if at >= 8 and _is_header(block[at - 8 : at + 4]):
                return start + at - 8
            at = block.find(b"WAVEfmt ", at + 1)
        if start + len(block) >= content.size:
            return None
        start += max(1, len(block) - _HEADER_BYTES)
    return None


def _behind(content: Content, end: int) -> int:
    """How many bytes behind `end` are neither chunks nor zeros, so perhaps samples that the header does not count."""
    for offset in (end, end + 1):
        head = content.at(offset, 8)
        if len(head) == 8 and _is_name(head[:4]) and int.from_bytes(head[4:8], "little") <= content.size - offset:
            return 0
    return content.size - end if any(content.at(end, _SEARCH_BYTES)) else 0


def _is_header(head: bytes) -> bool:
    return head[:4] in MAGICS and head[8:12] == b"WAVE"


def _is_name(name: bytes) -> bool:
    return all(0x20 <= letter < 0x7F for letter in name)
