"""Whether an Ogg, MP4 or FLAC file is whole, by its headers and its last frames.

Owns the reading of those headers. Leaves WAV to `wav`, and streams of bare frames (MP3, ADTS)
to `frames`. Nothing is decoded here, so the duration of a sound stays unknown.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cache
from itertools import islice

from lipsyncd.media.content import (
    MAX_STEPS,
    TAIL_BYTES,
    ZEROS,
    Content,
    Integrity,
    broken,
    complete,
    endless,
    invalid,
    plausible,
    truncated,
)
from lipsyncd.media.mp4_boxes import Mp4Damaged, boxes

_OGG_PAGE_BYTES = 27 + 255 + 32  # a page's header, and the start of its content
_OGG_SUM, _FLAC_HEADER_SUM, _FLAC_FRAME_SUM = (0x104C11DB7, 32), (0x107, 8), (0x18005, 16)  # polynomial, bits


def ogg(content: Content) -> Integrity:
    """The last page has to be whole. Its end-of-stream flag is proof of completeness; streamed recordings lack it."""
    tail = content.tail(2 * TAIL_BYTES)  # the largest page takes 65,307 bytes
    page = tail[max(0, tail.rfind(b"OggS\0")) :]
    if not page.startswith(b"OggS\0"):
        return plausible("no Ogg page near the end") if any(tail) else truncated(ZEROS)
    segments = page[26] if len(page) > 26 else 255
    length = 27 + segments + sum(page[27 : 27 + segments])
    if length > len(page):
        return truncated("the file ends inside an Ogg page")
    unsummed = page[:22] + b"\0\0\0\0" + page[26:length]
    if _checksum(unsummed, *_OGG_SUM) != int.from_bytes(page[22:26], "little"):
        return truncated("the last Ogg page is damaged or not written yet")
    if page[14:18] != content.at(14, 4) and (fault := _mixed_oggs(content)):
        return invalid(fault)
    return complete() if page[5] & 4 else endless("the last Ogg page does not end the stream")


def _mixed_oggs(content: Content) -> str:
    """Why the Oggs that are joined in a file are no single sound; "" when they are. Source: RFC 3533, section 4.

    Decoders go on from one to the next where both have one format, of FLAC also where they differ.
    """
    first, offset, inside = "", 0, False
    for _ in range(MAX_STEPS):
        page = content.at(offset, _OGG_PAGE_BYTES)
        if len(page) < 28 or not page.startswith(b"OggS\0"):
            break
        payload = 27 + page[26]
        begins = bool(page[5] & 2)
        form = _ogg_format(page[payload:]) if begins else ""
        if form and not first:
            first = form
        elif form and inside and form != first:
            return (
                f"several Oggs are joined in it: the first has {first}, the one at byte {offset} has {form};"
                " join them in one format"
            )
        inside = not begins
        offset += payload + sum(page[27:payload])
    return ""


def _ogg_format(packet: bytes) -> str:
    """The format of the sound whose stream starts with this packet, as far as decoders need it to stay the same."""
    if packet.startswith(b"\1vorbis") and len(packet) >= 16:
        return f"Vorbis with {packet[11]} channels at {int.from_bytes(packet[12:16], 'little')} Hz"
    if packet.startswith(b"OpusHead") and len(packet) >= 10:
        return f"Opus with {packet[9]} channels"
    return "FLAC" if packet.startswith(b"\x7fFLAC") else ""


def mp4(content: Content) -> Integrity:
    found: set[bytes] = set()
    try:
        for box in islice(boxes(content.at, 0, content.size), MAX_STEPS):
            if not box.sized:
                return plausible("the last box of the MP4 has no length") if any(box.kind) else truncated(ZEROS)
            if box.end > content.size:
                kind, missing = box.kind.decode("latin-1"), box.end - content.size
                note = f"the last {missing} bytes of the MP4's box {kind!r} are missing"
                return truncated(note, declared_s=_mp4_seconds(content))
            found.add(box.kind)
            if b"mfra" in found or ({b"moov", b"mdat"} <= found and b"moof" not in found):
                return _alone(content, box.end)
    except Mp4Damaged:
        return invalid("a box of the MP4 is damaged")
    if b"moof" in found:
        return endless("a fragmented MP4 does not tell how many fragments it has")
    return truncated("the MP4 has no index or no samples yet")


def _alone(content: Content, end: int) -> Integrity:
    """A whole MP4 that ends at `end`, or refused when another one is joined to it: a player shows the first alone."""
    for box in islice(boxes(content.at, end, content.size), MAX_STEPS):
        if box.kind == b"ftyp" and box.end <= content.size:
            return invalid(
                f"several MP4 files are joined in it, the second one at byte {box.payload - 8}; export them as one"
            )
        if not box.sized or not box.kind.isalnum():
            break
    return complete()


def _mp4_seconds(content: Content) -> float:
    """How long the whole lasts by the box `mvhd`; 0 when the file does not have it yet."""
    top = list(islice(boxes(content.at, 0, content.size), MAX_STEPS))
    moov = next((box for box in top if box.kind == b"moov" and box.end <= content.size), None)
    for box in islice(boxes(content.at, moov.payload, moov.end), MAX_STEPS) if moov else ():
        if box.kind == b"mvhd":
            head = content.at(box.payload, 32)
            if len(head) < 32:
                break
            scale, length = (
                struct.unpack(">IQ", head[20:32]) if head[:1] == b"\1" else struct.unpack(">II", head[12:20])
            )
            return float(length / scale) if scale else 0.0
    return 0.0


def flac(content: Content) -> Integrity:
    info = content.at(4, 38)
    if len(info) < 38:
        return truncated("the file ends inside the FLAC header")
    if info[0] & 0x7F or int.from_bytes(info[1:4], "big") != 34:
        return broken(info, "the FLAC header is damaged")
    block_size = int.from_bytes(info[4:6], "big")
    total = int.from_bytes(info[14:22], "big") & (1 << 36) - 1
    if not total:
        return plausible("the FLAC header gives no length")
    tail = content.tail(TAIL_BYTES)
    starts = {end: start for start, end in _flac_frames(tail, block_size) if end <= total}
    if total in starts:
        whole = not _checksum(tail[starts[total] :], *_FLAC_FRAME_SUM)
        return complete() if whole else plausible("the last FLAC frame is not whole, or other data follows it")
    if starts or not any(tail) or content.size <= TAIL_BYTES:
        rate = int.from_bytes(info[14:17], "big") >> 4
        note = f"the last frames of the FLAC's {total} samples are missing"
        return truncated(note, declared_s=total / rate if rate else 0.0)
    return plausible("no FLAC frame near the end")


def _flac_frames(tail: bytes, block_size: int) -> Iterator[tuple[int, int]]:
    """Where frames start in `tail`, the last one first, each with the number of the first sample after it."""
    position = len(tail)
    for _ in range(MAX_STEPS):
        position = tail.rfind(b"\xff", 0, position)
        if position < 0:
            return
        if end := _flac_frame_end(tail[position : position + 16], block_size):
            yield position, end


def _flac_frame_end(head: bytes, block_size: int) -> int:
    """The number of the first sample after this frame; 0 when `head` starts no frame. Source: RFC 9639, 9.1.

    Frames of the stream's fixed `block_size` count frames in their header, frames of variable size count samples.
    """
    if len(head) < 6 or head[1] not in (0xF8, 0xF9) or head[3] & 1:
        return 0
    size_code, rate_code = head[2] >> 4, head[2] & 15
    extra = 0 if head[4] < 0x80 else 7 - (~head[4] & 0xFF).bit_length()  # bytes that follow, as in UTF-8
    number = head[4] & 0x7F if not extra else head[4] & (0x3F >> extra)
    for byte in head[5 : 5 + extra]:
        number = number << 6 | byte & 0x3F
    behind = 5 + extra
    size_bytes = {6: 1, 7: 2}.get(size_code, 0)
    length = behind + size_bytes + {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if not size_code or rate_code == 15 or len(head) <= length or _checksum(head[: length + 1], *_FLAC_HEADER_SUM):
        return 0
    if size_bytes:
        samples = int.from_bytes(head[behind : behind + size_bytes], "big") + 1
    else:
        samples = 192 if size_code == 1 else 576 << size_code - 2 if size_code < 6 else 256 << size_code - 8
    return (number if head[1] & 1 else number * block_size) + samples


# -- check sums --------------------------------------------------------------------------------------------------------


def _checksum(data: bytes, polynomial: int, bits: int) -> int:
    """The CRC of Ogg and FLAC: most significant bit first, initial value 0. Data that ends with its CRC gives 0."""
    table, mask, crc = _checksum_table(polynomial, bits), (1 << bits) - 1, 0
    for byte in data:
        crc = (crc << 8 & mask) ^ table[crc >> bits - 8 ^ byte]
    return crc


@cache
def _checksum_table(polynomial: int, bits: int) -> tuple[int, ...]:
    table: list[int] = []
    for crc in range(0, 256 << bits - 8, 1 << bits - 8):
        for _ in range(8):
            crc = crc << 1 ^ (polynomial if crc >> bits - 1 else 0)
        table.append(crc)
    return tuple(table)
