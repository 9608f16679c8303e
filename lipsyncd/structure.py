"""Where a media file ends, by its own headers: one function for each format, in pure Python.

A file in an inbox may still be growing. Each function reads a few headers and the end of the file, never all of it,
and says whether the file's own structure proves that it is whole. Nothing is decoded here, so nothing here can be
talked into more than a bounded amount of work: `_MAX_STEPS` headers and `_MAX_SCAN_BYTES` bytes.

Owns the reading of PNG, JPEG, WebP, WAV, FLAC, Ogg, MP4 and MP3 headers. Leaves choosing the format to `media`.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

_MAX_STEPS = 4096
_MAX_SCAN_BYTES = 32 << 20
_SCAN_BLOCK_BYTES = 1 << 20
_TAIL_BYTES = 1 << 16
_PNG_END = bytes.fromhex("0000000049454e44ae426082")
_JPEG_END = b"\xff\xd9"

# Writers that stream put 0 or a number near 2 or 4 GiB where the length belongs, and often never come back to correct
# it (arecord, sox, ffmpeg into a pipe). A true 2 GiB is far over the longest sound that we take.
_UNKNOWN_WAV_BYTES = 0x7FFF0000
_MOST_CHANNELS, _HIGHEST_RATE = 64, 768_000  # what ffmpeg can mix down, and the highest rate that recorders know


class Completeness(StrEnum):
    COMPLETE = "complete"  # the file's own structure proves that it ends here
    PLAUSIBLE = "plausible"  # no proof either way
    TRUNCATED = "truncated"  # its structure says that more must come
    INVALID = "invalid"  # more bytes cannot help


@dataclass(frozen=True)
class Ending:
    """What one format's function found. `width` and `height` in pixels, 0 for sound; `note` is for people."""

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
        """Up to `count` bytes from `offset`; fewer at the end. OSError is the storage's, not the content's."""
        wanted = min(count, self.size - offset)
        return os.pread(self._descriptor, wanted, offset) if wanted > 0 else b""

    def tail(self, count: int) -> bytes:
        return self.at(max(0, self.size - count), count)


def _complete(width: int = 0, height: int = 0) -> Ending:
    return Ending(Completeness.COMPLETE, width, height)


def _plausible(note: str, width: int = 0, height: int = 0) -> Ending:
    return Ending(Completeness.PLAUSIBLE, width, height, note)


def _truncated(note: str, width: int = 0, height: int = 0) -> Ending:
    return Ending(Completeness.TRUNCATED, width, height, note)


def _invalid(note: str) -> Ending:
    return Ending(Completeness.INVALID, note=note)


def _broken(found: bytes, note: str) -> Ending:
    """Something else stands where a header belongs. Zeros do so while a copier fills a file of its final size."""
    return _invalid(note) if any(found) else _truncated("zeros where content belongs")


# -- pictures ----------------------------------------------------------------------------------------------------------


def png(content: Content) -> Ending:
    header = content.at(8, 16)
    if len(header) < 16:
        return _truncated("ends inside the PNG header")
    length, name, width, height = struct.unpack(">I4sII", header)
    if name != b"IHDR" or length != 13 or not width or not height:
        return _broken(header, "the PNG header is damaged")
    if content.tail(len(_PNG_END)) == _PNG_END:
        return _complete(width, height)
    offset = 33
    for _ in range(_MAX_STEPS):
        head = content.at(offset, 8)
        if len(head) < 8:
            return _truncated("no IEND at the end of the PNG", width, height)
        length, name = struct.unpack(">I4s", head)
        if not name.isalpha():
            return _broken(head, "a PNG chunk is damaged")
        offset += 12 + length
        if name == b"IEND" and offset <= content.size:
            return _complete(width, height)
    return _plausible("a PNG of very many chunks", width, height)


def jpeg(content: Content) -> Ending:
    width = height = 0
    offset = 2
    for _ in range(_MAX_STEPS):
        head = content.at(offset, 9)
        if len(head) < 9:
            return _truncated("ends inside the JPEG header", width, height)
        if head[0] != 0xFF:
            return _broken(head, "the JPEG header is damaged")
        marker = head[1]
        if marker == 0xFF:  # fill byte
            offset += 1
            continue
        if marker == 0xDA:
            if not width or not height:
                return _invalid("a JPEG without a size")
            return _jpeg_ending(content, offset, width, height)
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:  # markers without a body
            offset += 2
            continue
        length = int.from_bytes(head[2:4], "big")
        if length < 2 or marker in (0x00, 0xD8, 0xD9):
            return _broken(head[1:], "the JPEG header is damaged")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", head[5:9])
        offset += 2 + length
    return _invalid("a JPEG of too many segments")


def _jpeg_ending(content: Content, scan: int, width: int, height: int) -> Ending:
    """Look for the end marker behind `scan`. Coded data cannot hold it: there each FF is followed by 00 or a restart.

    Most files end with it. Phones append more (a second picture, a film), so else all of the scan is searched.
    """
    tail_start = max(scan, content.size - _TAIL_BYTES)
    if content.at(tail_start, _TAIL_BYTES).rstrip(b"\0").endswith(_JPEG_END):
        return _complete(width, height)
    limit = min(content.size, scan + _MAX_SCAN_BYTES)
    for offset in range(scan, limit, _SCAN_BLOCK_BYTES):
        if _JPEG_END in content.at(offset, _SCAN_BLOCK_BYTES + 1):
            return _complete(width, height)
    if limit < content.size:
        return _plausible("a JPEG with much behind its picture", width, height)
    return _truncated("no end marker in the JPEG", width, height)


def webp(content: Content) -> Ending:
    head = content.at(0, 30)
    if len(head) < 30:
        return _truncated("ends inside the WebP header")
    width, height = _webp_size(head)
    if not width or not height:
        return _broken(head[12:], "the WebP header is damaged")
    declared = 8 + int.from_bytes(head[4:8], "little")
    whole = declared <= content.size
    return _complete(width, height) if whole else _truncated(f"{content.size} of {declared} bytes", width, height)


def _webp_size(head: bytes) -> tuple[int, int]:
    """Width and height out of the first chunk; the canvas for an extended file. Zeros when there is none."""
    if head[12:16] == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if head[12:16] == b"VP8L" and head[20] == 0x2F:
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if head[12:16] == b"VP8 " and head[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", head[26:30])
        return width & 0x3FFF, height & 0x3FFF
    return 0, 0


# -- sound -------------------------------------------------------------------------------------------------------------


def wav(content: Content) -> Ending:
    order = ">" if content.at(0, 4) == b"RIFX" else "<"
    large_bytes = 0  # what RF64 puts into its chunk ds64
    offset, has_format = 12, False
    for _ in range(_MAX_STEPS):
        head = content.at(offset, 24)
        if len(head) < 8:
            return _truncated("ends before the samples of the WAV")
        name, length = struct.unpack(order + "4sI", head[:8])
        if name == b"data":
            if not has_format:
                return _invalid("the WAV says nothing about its samples")
            return _wav_ending(content.size - offset - 8, large_bytes if length == 0xFFFFFFFF else length)
        if name == b"fmt " and len(head) >= 16:
            has_format = True
            _, channels, rate = struct.unpack(order + "HHI", head[8:16])
            if not 0 < channels <= _MOST_CHANNELS or not 0 < rate <= _HIGHEST_RATE:
                return _invalid(f"the WAV says {channels} channels at {rate} Hz")
        elif name == b"ds64" and len(head) == 24:
            large_bytes = int.from_bytes(head[16:24], "little")
        elif not all(0x20 <= letter < 0x7F for letter in name):
            return _broken(head, "a WAV chunk is damaged")
        offset += 8 + length + length % 2
    return _invalid("a WAV of too many chunks")


def _wav_ending(present_bytes: int, declared_bytes: int) -> Ending:
    if not declared_bytes or (declared_bytes >= _UNKNOWN_WAV_BYTES and declared_bytes > present_bytes):
        return _plausible("the WAV header was written before the length was known")
    whole = declared_bytes <= present_bytes
    return _complete() if whole else _truncated(f"{present_bytes} of {declared_bytes} bytes of samples")


def ogg(content: Content) -> Ending:
    """The last page has to be whole. The flag on it that ends the stream is proof; streamed recordings lack it."""
    tail = content.tail(2 * _TAIL_BYTES)  # the largest page takes 65,307 bytes
    start = tail.rfind(b"OggS\0")
    if start < 0:
        return _plausible("no Ogg page near the end") if any(tail) else _truncated("zeros where content belongs")
    header = tail[start : start + 27]
    lacing = tail[start + 27 : start + 27 + header[26]] if len(header) == 27 else b""
    if len(header) < 27 or len(lacing) < header[26] or start + 27 + len(lacing) + sum(lacing) > len(tail):
        return _truncated("ends inside an Ogg page")
    return _complete() if header[5] & 4 else _plausible("the last Ogg page does not end the stream")


def mp4(content: Content) -> Ending:
    found: set[bytes] = set()
    offset = 0
    for _ in range(_MAX_STEPS):
        if b"mfra" in found or ({b"moov", b"mdat"} <= found and b"moof" not in found):
            return _complete()
        head = content.at(offset, 16)
        if len(head) < 8:
            break
        length, name = struct.unpack(">I4s", head[:8])
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        elif length == 0 and any(name):
            return _plausible("the last box of the MP4 has no length")
        if length < 8:
            return _broken(head[:8], "a box of the MP4 is damaged")
        if offset + length > content.size:
            return _truncated(f"the box {name.decode('latin-1')!r} ends {offset + length - content.size} bytes later")
        found.add(name)
        offset += length
    if b"moof" in found:
        return _plausible("a fragmented MP4: more fragments may come")
    return _truncated("the MP4 has no index or no samples yet")


def flac(content: Content) -> Ending:
    info = content.at(4, 38)
    if len(info) < 38:
        return _truncated("ends inside the FLAC header")
    if info[0] & 0x7F or int.from_bytes(info[1:4], "big") != 34:
        return _broken(info, "the FLAC header is damaged")
    block_size = int.from_bytes(info[4:6], "big")
    total = int.from_bytes(info[14:22], "big") & (1 << 36) - 1
    if not total:
        return _plausible("the FLAC does not say how long it is")
    tail = content.tail(_TAIL_BYTES)
    starts = {end: start for start, end in _flac_frames(tail, block_size) if end <= total}
    if total in starts:
        whole = _crc(tail[starts[total] :], 0x18005, bits=16) == 0
        return _complete() if whole else _plausible("the last FLAC frame is not whole, or something follows it")
    if starts or not any(tail):
        return _truncated(f"the FLAC promises {total} samples; its last frames are missing")
    return _plausible("no FLAC frame near the end")


def _flac_frames(tail: bytes, block_size: int) -> Iterator[tuple[int, int]]:
    """Where frames start in `tail`, the last one first, each with the number of the sample behind its last one."""
    position = len(tail)
    for _ in range(_MAX_STEPS):
        position = tail.rfind(b"\xff", 0, position)
        if position < 0:
            return
        if end := _flac_frame_end(tail[position : position + 16], block_size):
            yield position, end


def _flac_frame_end(head: bytes, block_size: int) -> int:
    """The number of the sample behind this frame's last one; 0 when `head` starts no frame. Source: RFC 9639, 9.1.

    A frame of the stream's fixed `block_size` is numbered by frames, one of variable size by its first sample.
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
    if not size_code or rate_code == 15 or len(head) <= length or _crc(head[: length + 1], 0x107, bits=8):
        return 0
    if size_bytes:
        samples = int.from_bytes(head[behind : behind + size_bytes], "big") + 1
    else:
        samples = 192 if size_code == 1 else 576 << size_code - 2 if size_code < 6 else 256 << size_code - 8
    return (number if head[1] & 1 else number * block_size) + samples


@cache
def _crc_table(polynomial: int, bits: int) -> tuple[int, ...]:
    table: list[int] = []
    for rest in range(0, 256 << bits - 8, 1 << bits - 8):
        for _ in range(8):
            rest = rest << 1 ^ (polynomial if rest >> bits - 1 else 0)
        table.append(rest)
    return tuple(table)


def _crc(data: bytes, polynomial: int, bits: int) -> int:
    """FLAC's check sum, 8 bits over a frame's header and 16 over all of it; 0 when `data` ends with its own sum."""
    table, mask, rest = _crc_table(polynomial, bits), (1 << bits) - 1, 0
    for byte in data:
        rest = (rest << 8 & mask) ^ table[rest >> bits - 8 ^ byte]
    return rest


def mp3(content: Content) -> Ending:
    start = mp3_start(content)
    if start >= content.size:
        return _truncated("ends inside the tag before the sound")
    window = content.at(start, _TAIL_BYTES)
    first = _first_mp3_frame(window)
    if first is None:
        return _broken(window, "no MP3 frame after its tag")
    declared = _mp3_bytes(window[first : first + 192])
    if not declared:
        return _plausible("an MP3 does not say where it ends")
    if start + first + declared > content.size:
        return _truncated(f"{content.size - start - first} of {declared} bytes of MP3")
    return _complete()


def mp3_start(content: Content) -> int:
    """Where the sound begins behind the ID3v2 tags, which may be several."""
    offset = 0
    for _ in range(8):
        head = content.at(offset, 10)
        if len(head) < 10 or not head.startswith(b"ID3"):
            break
        size = 0
        for byte in head[6:10]:
            size = size << 7 | byte & 0x7F
        offset += 10 + size + (10 if head[5] & 0x10 else 0)
    return offset


def _first_mp3_frame(window: bytes) -> int | None:
    """Where the first frame starts that is followed by another one, or by the end of `window`."""
    position = -1
    for _ in range(_MAX_STEPS):
        position = window.find(b"\xff", position + 1)
        if position < 0:
            return None
        length = mp3_frame_bytes(window[position : position + 4])
        behind = window[position + length : position + length + 4]
        if length and (len(behind) < 4 or mp3_frame_bytes(behind)):
            return position
    return None


def mp3_frame_bytes(head: bytes) -> int:
    """Length of the layer III frame that starts with these 4 bytes; 0 when none does. Source: ISO/IEC 11172-3."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return 0
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3  # version 3 is MPEG-1, 2 is MPEG-2, 0 is MPEG-2.5
    rate_code, frequency_code, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or layer != 1 or rate_code in (0, 15) or frequency_code == 3 or head[3] & 3 == 2:
        return 0
    frequency = (44_100, 48_000, 32_000)[frequency_code] >> {3: 0, 2: 1, 0: 2}[version]
    if version == 3:
        kbps = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)[rate_code - 1]
        return 144_000 * kbps // frequency + padding
    kbps = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)[rate_code - 1]
    return 72_000 * kbps // frequency + padding


def _mp3_bytes(frame: bytes) -> int:
    """How many bytes the sound takes, as the first frame may say in a Xing or Info header; else 0."""
    mono = frame[3] >> 6 == 3
    side_bytes = (17 if mono else 32) if frame[1] >> 3 & 3 == 3 else (9 if mono else 17)
    header = frame[4 + side_bytes :]
    flags = int.from_bytes(header[4:8], "big")
    if header[:4] not in (b"Xing", b"Info") or not flags & 2:
        return 0
    where = 12 if flags & 1 else 8
    return int.from_bytes(header[where : where + 4], "big")
