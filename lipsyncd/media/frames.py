"""Sounds that are only a row of frames: MP3, MP2 and AAC in ADTS, with or without a tag in front.

Such a file may begin anywhere: behind an ID3 tag, behind zeros or junk, in the middle of a frame when it was cut out of
a stream. So its frames are looked for: three in a row that agree, within the first 64 KiB.

Owns the headers of these frames and the lengths that their files declare. Nothing is decoded here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from lipsyncd.media.content import (
    Content,
    Integrity,
    broken,
    complete,
    endless,
    is_unknown,
    plausible,
    truncated,
)

MP3, AAC = "mp3", "aac"
WINDOW_BYTES = 1 << 16
_IN_A_ROW = 3
_SYNC = re.compile(rb"\xff[\xe2-\xff]")
_TAG = re.compile(rb"ID3|TAG")
_SEARCH_BYTES = 1 << 20
_MOST_PLACES = 1 << 14  # that are looked at; chance makes one in 8 MB of sound
_ROW_BYTES = 1 << 13  # as long as three frames at most

# kbit/s by the code in the header. Source: ISO/IEC 11172-3 and 13818-3.
_MPEG1_LAYER_2 = (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384)
_MPEG1_LAYER_3 = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_MPEG2 = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_ADTS_RATES = 13

# Other containers can hold the very same frames. The frames of one would be taken for a sound without a container, and
# what lies between them would be played. So nothing is looked for in a file that begins as one of them.
_CONTAINERS = (
    b"RIFF", b"RIFX", b"RF64", b"BW64", b"FORM", b"caff", b"riff\x2e\x91", b"FLV", b"OggS", b"fLaC",
    b"\x1a\x45\xdf\xa3", b"\0\0\1\xba", b"\0\0\1\xb3", b"\x30\x26\xb2\x75", b"PK\3\4", b"Rar!", b"7z\xbc\xaf",
    b"\x1f\x8b", b".RMF", b"%PDF", b"\x89PNG", b"GIF8", b"\xff\xd8\xff", b"MThd", b"wvpk", b"MAC ", b".snd", b"#!AMR",
)  # fmt: skip
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"moof", b"free", b"skip", b"wide", b"styp")
_TS_BYTES = 188


class Frames(NamedTuple):
    """Where a row of frames starts, and of which kind it is: `MP3` (layer 2 or 3) or `AAC`."""

    kind: str
    start: int


def at_start(head: bytes) -> str | None:
    """The kind of the frames with which `head` starts; as many have to follow one another as it can show, up to 3."""
    for kind, frame_bytes in _KINDS.items():
        if frame_bytes(head[:4] if kind == MP3 else head[:7]) and _agree(head, 0, kind, ends=True):
            return kind
    return None


def find(window: bytes, *, ends: bool = False) -> Frames | None:
    """The first three frames in a row in `window`.

    ends  the window shows the file's end, so that a file of fewer frames is a row as well when it starts with them
    """
    if ends and (kind := at_start(window)):
        return Frames(kind, 0)
    for match in _SYNC.finditer(window):
        for kind in _KINDS:
            if _agree(window, match.start(), kind, ends=False):
                return Frames(kind, match.start())
    return None


def holds_other_format(head: bytes) -> bool:
    """Does a file begin as a container that may hold such frames, but that is no row of frames itself?"""
    if head.startswith(_CONTAINERS) or head[4:8] in _MP4_BOXES or head[257:262] == b"ustar":
        return True
    return len(head) > 2 * _TS_BYTES and head[::_TS_BYTES][:3] == b"GGG"


def _agree(data: bytes, position: int, kind: str, *, ends: bool) -> bool:
    """Do frames of the same format follow one another from `position` on?"""
    frame_bytes, first = _KINDS[kind], data[position : position + 4]
    for _ in range(_IN_A_ROW):
        head = data[position : position + 7]
        if len(head) < 7 and ends:
            return True
        length = frame_bytes(head)
        # The first two bytes hold the version and the layer, the third the sample rate. The other bits may change.
        if not length or head[:2] != first[:2] or (head[2] ^ first[2]) & (0x0C if kind == MP3 else 0xFC):
            return False
        position += length
    return True


def sound(content: Content) -> Integrity:
    """Is a file of frames whole? Only an MP3 may tell its length, in its first frame."""
    start = behind_tags(content)
    if start >= content.size:
        return truncated("the file ends inside the tag before the sound")
    window = content.at(start, WINDOW_BYTES)
    found = find(window, ends=start + len(window) == content.size)
    if found is None:
        return broken(window, "no MP3 or AAC frames follow one another in its first 64 KiB")
    if found.kind == AAC:
        return endless("the AAC gives no length")
    declared, declared_s = _mp3_length(window[found.start : found.start + 192])
    if not declared:
        return endless("the MP3 gives no length")
    if is_unknown(declared):
        return plausible("the MP3's header was written before the length was known")
    present = content.size - start - found.start
    if declared <= present:
        return complete()
    return truncated(f"{present} of {declared} bytes of MP3", declared_s=declared_s)


def behind_tags(content: Content) -> int:
    """Where the sound begins, after one or several ID3v2 tags."""
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


def without_tags(content: Content) -> list[tuple[int, int]]:
    """Where the sound of a file lies that has tags inside, as joined MP3s do; [] for a file without.

    A decoder takes such a tag for damage. Only what frames or another tag follow is one.
    """
    tags: list[tuple[int, int]] = []
    free = behind_tags(content)
    for at in islice(_places(content), _MOST_PLACES):
        end = at + _tag_bytes(content.at(at, 10))
        behind = content.at(end, _ROW_BYTES) if at >= free and end > at else b""
        if behind and (_tag_bytes(behind[:10]) or at_start(behind)):
            tags.append((at, end))
            free = end
    edges = [0, *(edge for tag in tags for edge in tag), content.size]
    return list(zip(edges[::2], edges[1::2], strict=True)) if tags else []


def _places(content: Content) -> Iterator[int]:
    """Where something stands in a file that begins as a tag does."""
    for start in range(0, content.size, _SEARCH_BYTES):
        for match in _TAG.finditer(content.at(start, _SEARCH_BYTES + 2)):
            yield start + match.start()


def _tag_bytes(head: bytes) -> int:
    """Length of the ID3 tag that starts with these 10 bytes; 0 for no tag. Source: id3.org, ID3v1 and ID3v2.4."""
    if head[:3] == b"TAG":
        return 128
    if len(head) < 10 or head[:3] != b"ID3" or max(head[3:5]) == 0xFF or max(head[6:10]) > 0x7F:
        return 0
    size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
    return 10 + size + (10 if head[5] & 0x10 else 0)


def mpeg_frame_bytes(head: bytes) -> int:
    """Length of the layer II or III frame that starts with these 4 bytes; 0 for no frame. Source: ISO/IEC 11172-3."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return 0
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3  # version 3 is MPEG-1, 2 is MPEG-2, 0 is MPEG-2.5
    rate_code, frequency_code, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or layer not in (1, 2) or rate_code in (0, 15) or frequency_code == 3 or head[3] & 3 == 2:
        return 0
    frequency = _frequency(head)
    table = _MPEG2 if version != 3 else _MPEG1_LAYER_2 if layer == 2 else _MPEG1_LAYER_3
    samples = 576 if layer == 1 and version != 3 else 1152
    return samples * 125 * table[rate_code - 1] // frequency + padding


def _frequency(head: bytes) -> int:
    """Samples per second of a valid frame."""
    return (44_100, 48_000, 32_000)[head[2] >> 2 & 3] >> {3: 0, 2: 1, 0: 2}[head[1] >> 3 & 3]


def adts_frame_bytes(head: bytes) -> int:
    """Length of the ADTS frame that starts with these 7 bytes; 0 for no frame. Source: ISO/IEC 14496-3, 1.A.3."""
    if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0 or head[2] >> 2 & 15 >= _ADTS_RATES:
        return 0
    length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return length if length > 7 else 0


_KINDS = {MP3: mpeg_frame_bytes, AAC: adts_frame_bytes}


def _mp3_length(frame: bytes) -> tuple[int, float]:
    """Bytes and seconds of the sound by the Xing or Info header in the first frame; zeros where it has none."""
    mono, mpeg1 = frame[3] >> 6 == 3, frame[1] >> 3 & 3 == 3
    side_bytes = (17 if mono else 32) if mpeg1 else (9 if mono else 17)
    header = frame[4 + side_bytes :]
    flags = int.from_bytes(header[4:8], "big")
    if header[:4] not in (b"Xing", b"Info") or not flags & 2:
        return 0, 0.0
    counted = flags & 1
    where = 12 if counted else 8
    count = int.from_bytes(header[8:12], "big") if counted else 0
    seconds = count * (1152 if mpeg1 else 576) / _frequency(frame)
    return int.from_bytes(header[where : where + 4], "big"), seconds
