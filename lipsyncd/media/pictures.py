"""Size and completeness of PNG, JPEG and WebP files, by their headers.

Owns the reading of those headers. Nothing is decoded here; `lipsyncd.prepare.picture_child` does that, in the jail.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from mmap import mmap

from lipsyncd.media.content import (
    MAX_STEPS,
    TAIL_BYTES,
    Content,
    Integrity,
    broken,
    complete,
    invalid,
    plausible,
    truncated,
)

_MAX_SCAN_BYTES = 32 << 20  # of a JPEG whose last bytes are no end marker
_SCAN_BLOCK_BYTES = 1 << 20
MAX_JPEG_SCANS = 200  # programs that write progressive JPEGs make about ten
# Coded data hold FF only before 00 or a restart marker, D0 to D7. More FFs may stand before a marker.
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
_PNG_END = bytes.fromhex("0000000049454e44ae426082")
_JPEG_END = b"\xff\xd9"


def png(content: Content) -> Integrity:
    header = content.at(8, 16)
    if len(header) < 16:
        return truncated("the file ends inside the PNG header")
    length, name, width, height = struct.unpack(">I4sII", header)
    if name != b"IHDR" or length != 13 or not width or not height:
        return broken(header, "the PNG header is damaged")
    if content.tail(len(_PNG_END)) == _PNG_END:
        return complete(width, height)
    offset = 33
    for _ in range(MAX_STEPS):
        head = content.at(offset, 8)
        if len(head) < 8:
            return truncated("the PNG has no IEND at its end", width, height)
        length, name = struct.unpack(">I4s", head)
        if not name.isalpha():
            return broken(head, "a PNG chunk is damaged")
        offset += 12 + length
        if name == b"IEND" and offset <= content.size:
            return complete(width, height)
    return plausible("the PNG has very many chunks", width, height)


def jpeg(content: Content) -> Integrity:
    width = height = 0
    offset = 2
    for _ in range(MAX_STEPS):
        head = content.at(offset, 9)
        if len(head) < 9:
            return truncated("the file ends inside the JPEG header", width, height)
        if head[0] != 0xFF:
            return broken(head, "the JPEG header is damaged")
        marker = head[1]
        if marker == 0xFF:  # fill byte
            offset += 1
            continue
        if marker == 0xDA:
            if not width or not height:
                return invalid("the JPEG gives no size")
            return _jpeg_integrity(content, offset, width, height)
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:  # markers without a body
            offset += 2
            continue
        length = int.from_bytes(head[2:4], "big")
        if length < 2 or marker in (0x00, 0xD8, 0xD9):
            return broken(head[1:], "the JPEG header is damaged")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", head[5:9])
        offset += 2 + length
    return invalid("the JPEG has too many segments")


def _jpeg_integrity(content: Content, scan: int, width: int, height: int) -> Integrity:
    """Look for the end marker after `scan`. Coded data cannot hold it: there FF is followed by 00 or a restart marker.

    Most files end with the marker. Phones append a second picture or a video, so otherwise the scan is searched.
    """
    if content.tail(TAIL_BYTES).rstrip(b"\0").endswith(_JPEG_END):
        return complete(width, height)
    limit = min(content.size, scan + _MAX_SCAN_BYTES)
    for offset in range(scan, limit, _SCAN_BLOCK_BYTES):
        if _JPEG_END in content.at(offset, _SCAN_BLOCK_BYTES + 1):
            return complete(width, height)
    if limit < content.size:
        return plausible("the JPEG has much data after its picture", width, height)
    return truncated("the JPEG has no end marker", width, height)


def scan_fault(data: bytes | mmap) -> str:
    """Why a JPEG would take too long to decode, as what it has more of than any program writes; "" if it would not.

    A decoder goes through the whole picture for each scan, and a scan may be a few bytes long. Reads all of `data`, so
    call it in the jail.
    """
    scans = offset = 0
    for _ in range(MAX_STEPS):
        marker = _JPEG_MARKER.search(data, offset)
        if marker is None or marker[1] == b"\xd9":
            return ""
        offset = marker.end()
        if marker[1] in (b"\xd8", b"\x01"):  # no body
            continue
        scans += marker[1] == b"\xda"
        if scans > MAX_JPEG_SCANS:
            return f"more than {MAX_JPEG_SCANS} scans"
        offset += int.from_bytes(data[offset : offset + 2], "big")
    return f"more than {MAX_STEPS} segments"


@dataclass(frozen=True)
class JpegBlocks:
    """What a JPEG has to decode: blocks of 8 x 8 coefficients of all components.

    kept   all of them stay in memory until the last scan, as in a progressive JPEG
    grey   it has one component
    """

    count: int
    kept: bool
    grey: bool

    @property
    def kept_bytes(self) -> int:
        return 128 * self.count if self.kept else 0


def jpeg_blocks(content: Content) -> JpegBlocks | None:
    """The blocks of a JPEG, by its header up to the first scan; None when that is damaged. Source: ITU-T T.81, B.2."""
    offset, frame, progressive = 2, b"", False
    for _ in range(MAX_STEPS):
        head = content.at(offset, 5)
        marker, length = head[1:2], int.from_bytes(head[2:4], "big")
        if len(head) < 5 or head[0] != 0xFF:
            return None
        if marker == b"\xff":
            offset += 1
        elif marker == b"\x01" or b"\xd0" <= marker <= b"\xd7":
            offset += 2
        elif marker == b"\xda":
            return _blocks_of(frame, kept=progressive or head[4] < frame[5]) if len(frame) > 5 else None
        else:
            if b"\xc0" <= marker <= b"\xcf" and marker not in (b"\xc4", b"\xc8", b"\xcc"):
                frame, progressive = content.at(offset + 4, length - 2), marker in (b"\xc2", b"\xca")
            offset += 2 + length
    return None


def _blocks_of(frame: bytes, *, kept: bool) -> JpegBlocks | None:
    """`frame`: the content of the segment that describes the picture and its components."""
    height, width, components = struct.unpack_from(">HHB", frame, 1)
    factors = [(code >> 4, code & 15) for code in frame[7 : 6 + 3 * components : 3]]
    if len(factors) != components or not all(across and down for across, down in factors):
        return None
    most_across, most_down = (max(values) for values in zip(*factors, strict=True))
    units = -(-width // (8 * most_across)) * -(-height // (8 * most_down))
    return JpegBlocks(units * sum(across * down for across, down in factors), kept=kept, grey=components == 1)


def webp(content: Content) -> Integrity:
    head = content.at(0, 30)
    if len(head) < 30:
        return truncated("the file ends inside the WebP header")
    width, height = _webp_size(head)
    if not width or not height:
        return broken(head[12:], "the WebP header is damaged")
    declared = 8 + int.from_bytes(head[4:8], "little")
    if declared > content.size:
        return truncated(f"{content.size} of {declared} bytes", width, height)
    return complete(width, height)


@dataclass(frozen=True)
class WebpFrame:
    """One picture of a WebP: width and height in pixels, whether it is of an animation, and whether it is lossless."""

    size: tuple[int, int]
    animated: bool
    lossless: bool


def webp_frames(content: Content) -> Iterator[WebpFrame]:
    """The pictures of a WebP, by the headers of its chunks. Source: RFC 9649, 2.3 to 2.7."""
    offset = 12
    for _ in range(MAX_STEPS):
        head = content.at(offset, 32)
        name, length = head[:4], int.from_bytes(head[4:8], "little")
        if name == b"ANMF" and len(head) == 32:
            size = 1 + int.from_bytes(head[14:17], "little"), 1 + int.from_bytes(head[17:20], "little")
            yield WebpFrame(size, animated=True, lossless=head[24:28] == b"VP8L")
        elif name in (b"VP8 ", b"VP8L"):
            yield WebpFrame(_webp_size(bytes(12) + head), animated=False, lossless=name == b"VP8L")
        if len(head) < 8:
            return
        offset += 8 + length + length % 2


def _webp_size(head: bytes) -> tuple[int, int]:
    """Width and height from the first chunk; the canvas of an extended file. Zeros when there is none."""
    if head[12:16] == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if head[12:16] == b"VP8L" and head[20] == 0x2F:
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if head[12:16] == b"VP8 " and head[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", head[26:30])
        return width & 0x3FFF, height & 0x3FFF
    return 0, 0
