"""Whether an AIFF, CAF, W64 or AMR file is whole, by its chunks.

Recorders of Apple's programs, of sound editors and of telephones write these. Owns the reading of their chunks; nothing
is decoded here.
"""

from __future__ import annotations

import math
import re
import struct
from itertools import islice
from typing import NamedTuple

from lipsyncd.media.content import (
    MAX_STEPS,
    Content,
    Integrity,
    broken,
    complete,
    endless,
    invalid,
    is_unknown,
    plausible,
    truncated,
    unfilled,
)

AMR = (b"#!AMR\n", b"#!AMR-WB\n")  # not the forms of several channels
CAF = b"caff\0\1"
_W64_TAIL = b"\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"  # of the identifier of each chunk
_W64_RIFF = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
_W64_HEADER_BYTES = 24
_SEARCH_BYTES = 1 << 20
_NO_LENGTH = "the {} header was written before the length was known"


class Change(NamedTuple):
    """Bytes that a file should have at a position."""

    offset: int
    data: bytes


def is_aiff(head: bytes) -> bool:
    return head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC")


def is_w64(head: bytes) -> bool:
    return head.startswith(_W64_RIFF) and head[24:40] == b"wave" + _W64_TAIL


def amr(content: Content) -> Integrity:
    return endless("AMR gives no length") if content.size > 9 else truncated("the file ends behind its header")


def aiff(content: Content) -> Integrity:
    """Source: Audio Interchange File Format 1.3 and AIFF-C, Apple 1989 and 1991."""
    offset, declared_s, bytes_per_s = 12, 0.0, 0
    for _ in range(MAX_STEPS):
        head = content.at(offset, 26)
        if len(head) < 8:
            return truncated("the AIFF ends before its samples", declared_s=declared_s)
        name, length = struct.unpack(">4sI", head[:8])
        if name == b"COMM" and len(head) == 26:
            channels, frames, bits, rate = struct.unpack(">hIh10s", head[8:26])
            rate_hz = _extended(rate)
            if channels <= 0 or not 0 < rate_hz <= 768_000:
                return invalid(f"the AIFF claims {channels} channels at {rate_hz:g} Hz")
            declared_s, bytes_per_s = frames / rate_hz, int(channels * max(1, (bits + 7) // 8) * rate_hz)
        elif name == b"SSND":
            return _judged("AIFF", content, offset + 8, length, declared_s, bytes_per_s)
        elif not _is_name(name):
            return broken(head, "an AIFF chunk is damaged")
        offset += 8 + length + length % 2
    return invalid("the AIFF has too many chunks")


def _extended(data: bytes) -> float:
    """The value of an 80-bit IEEE 754 number; 0 for one that is no finite positive number."""
    exponent, mantissa = struct.unpack(">HQ", data)
    if exponent >= 0x7FFF or exponent - 16383 > 64:
        return 0.0
    return math.ldexp(mantissa, exponent - 16383 - 63)


def caf(content: Content) -> Integrity:
    """Source: Core Audio Format Specification 1.0, Apple 2011."""
    offset, bytes_per_s, found = 8, 0.0, False
    for _ in range(MAX_STEPS):
        head = content.at(offset, 44)
        if len(head) < 12:
            break
        name, length = head[:4], int.from_bytes(head[4:12], "big", signed=True)
        if not _is_name(name):
            return complete() if found else broken(head, "a CAF chunk is damaged")
        if head.startswith(CAF):
            return _several("CAF", offset)
        if name == b"data" and (length == -1 or is_unknown(length)):
            return plausible(_NO_LENGTH.format("CAF"))
        if length < 0:
            return invalid(f"a CAF chunk claims {length} bytes")
        if name == b"desc" and len(head) == 44:
            rate, _, _, packet_bytes, packet_frames = struct.unpack(">d4sIII", head[12:36])
            if math.isfinite(rate) and packet_frames:
                bytes_per_s = rate * packet_bytes / packet_frames
        found = found or name == b"data"
        offset += 12 + length
        if offset > content.size:
            note = f"the last {offset - content.size} bytes of the CAF's chunk {name.decode('ascii')!r} are missing"
            whole_s = length / bytes_per_s if name == b"data" and bytes_per_s > 0 else 0.0
            return truncated(note, declared_s=whole_s)
    else:
        return invalid("the CAF has too many chunks")
    if not found:
        return truncated("the CAF ends before its samples")
    second = int(bytes_per_s) + 1 if 0 < bytes_per_s < content.size else content.size
    return unfilled(complete()) if content.zeros_before(content.size, second) else complete()


def w64(content: Content) -> Integrity:
    """Chunks with 16 bytes of name and 8 of length, which counts both; each begins at a multiple of 8."""
    offset, bytes_per_s = 40, 0
    for _ in range(MAX_STEPS):
        head = content.at(offset, 40)
        if len(head) < _W64_HEADER_BYTES:
            return truncated("the W64 ends before its samples")
        name, length = head[:4], int.from_bytes(head[16:24], "little") - _W64_HEADER_BYTES
        if name == b"data":
            length = 0 if length < 0 or is_unknown(length + _W64_HEADER_BYTES) else length
            declared_s = length / bytes_per_s if bytes_per_s else 0.0
            return _judged("W64", content, offset + _W64_HEADER_BYTES, length, declared_s, bytes_per_s)
        if not _is_name(name) or length < 0:
            return broken(head, "a W64 chunk is damaged")
        if name == b"fmt " and len(head) == 40:
            bytes_per_s = int.from_bytes(head[32:36], "little")
        offset += (_W64_HEADER_BYTES + length + 7) // 8 * 8
    return invalid("the W64 has too many chunks")


def _judged(called: str, content: Content, start: int, length: int, declared_s: float, bytes_per_s: int) -> Integrity:
    """Is a file whole whose samples begin at `start`?"""
    present = content.size - start
    unknown = is_unknown(length) and length != present
    if length > present and not unknown:
        return truncated(f"{max(0, present)} of {length} bytes of samples", declared_s=declared_s)
    ends = {content.size, content.size if unknown else start + length}
    quiet = bytes_per_s > 0 and any(
        end - start > bytes_per_s and content.zeros_before(end, bytes_per_s + 1) for end in ends
    )
    if unknown:
        found = plausible(_NO_LENGTH.format(called))
        return unfilled(found) if quiet else found
    behind = content.at(start + length + length % 2, 64)
    if is_aiff(behind) or is_w64(behind):
        return _several(called, start + length)
    return unfilled(complete()) if quiet else complete()


def _several(called: str, second: int) -> Integrity:
    """A player shows the first of them alone."""
    return invalid(f"several {called}s are joined in it, the second one at byte {second}; make one of them")


def without_headers(content: Content) -> list[tuple[int, int]]:
    """Where the frames of AMRs lie that are joined in a file, with the first header; [] for a file of one.

    A decoder takes the header of the second for a frame.
    """
    header = next((magic for magic in AMR if content.at(0, len(magic)) == magic), b"")
    starts: list[int] = []
    for begin in range(len(header), content.size, _SEARCH_BYTES) if header else ():
        block = content.at(begin, _SEARCH_BYTES + len(header) - 1)
        found = islice(re.finditer(re.escape(header), block), MAX_STEPS - len(starts))
        starts += [begin + match.start() for match in found]
    edges = [0, *(edge for start in starts for edge in (start, start + len(header))), content.size]
    return list(zip(edges[::2], edges[1::2], strict=True)) if starts else []


# -- the right length for a decoder ------------------------------------------------------------------------------------


def true_lengths(content: Content) -> list[Change]:
    """What to change in the header of an AIFF, CAF or W64 that was written before its length was known; [] in others.

    ffmpeg finds no samples behind such a header.
    """
    head = content.at(0, 40)
    if is_aiff(head):
        return _aiff_lengths(content)
    return _caf_lengths(content) if head.startswith(CAF) else _w64_lengths(content) if is_w64(head) else []


def _aiff_lengths(content: Content) -> list[Change]:
    offset = 12
    for _ in range(MAX_STEPS):
        head = content.at(offset, 8)
        if len(head) < 8:
            break
        name, length = struct.unpack(">4sI", head)
        present = content.size - offset - 8
        if name == b"SSND":
            if not is_unknown(length) or length == present or content.size >> 32:
                break
            return [Change(4, struct.pack(">I", content.size - 8)), Change(offset + 4, struct.pack(">I", present))]
        offset += 8 + length + length % 2
    return []


def _caf_lengths(content: Content) -> list[Change]:
    """Its own form of "unknown" is -1, which decoders understand."""
    offset = 8
    for _ in range(MAX_STEPS):
        head = content.at(offset, 12)
        length = int.from_bytes(head[4:], "big", signed=True)
        if head[:4] == b"data":
            return [Change(offset + 4, b"\xff" * 8)] if is_unknown(length) and content.size > offset + 12 else []
        if len(head) < 12 or length < 0:
            break
        offset += 12 + length
    return []


def _w64_lengths(content: Content) -> list[Change]:
    offset = 40
    for _ in range(MAX_STEPS):
        head = content.at(offset, _W64_HEADER_BYTES)
        if len(head) < _W64_HEADER_BYTES:
            break
        counted = int.from_bytes(head[16:24], "little")
        present = content.size - offset
        if head[:4] == b"data":
            length = max(0, counted - _W64_HEADER_BYTES)
            if counted == present or not (is_unknown(length) or is_unknown(counted)):
                break
            return [Change(16, struct.pack("<Q", content.size)), Change(offset + 16, struct.pack("<Q", present))]
        if counted < _W64_HEADER_BYTES:
            break
        offset += (counted + 7) // 8 * 8
    return []


def _is_name(name: bytes) -> bool:
    return all(0x20 <= letter < 0x7F for letter in name)
