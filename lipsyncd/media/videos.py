"""MP4 and WebM by their headers: whether there is a video track, its size, and whether the file is whole.

The same containers carry music, so the handler of a track decides. Nothing is decoded here.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator

from lipsyncd.media.content import MAX_STEPS, Content, Integrity, broken, complete, invalid, plausible, truncated
from lipsyncd.media.mp4_boxes import Mp4Damaged, boxes

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_TRACKS, _CLUSTER = b"\x16\x54\xae\x6b", b"\x1f\x43\xb6\x75"
_TRACK, _TRACK_TYPE, _SOUND = b"\xae", b"\x83", 2
_HDR_TRANSFERS = (b"\x00\x10", b"\x00\x12")
_ENTRY_BYTES = 4096  # of a track's sample entry, which includes the decoder's configuration
_SAMPLE_DESCRIPTION = (b"mdia", b"minf", b"stbl", b"stsd")  # below a trak
_MOST_ELEMENTS = 64  # that are looked at in one parent; a file has about ten before its first cluster
_WEBM, _MATROSKA = b"\x42\x82\x84webm", b"\x42\x82\x88matroska"  # the element DocType


def picture_size(content: Content) -> tuple[int, int] | None:
    """Width and height, as stored, of an MP4's first video track; None when there is none."""
    walk = _Walk(content)
    for trak in walk.inside(walk.file, b"moov", b"trak"):
        if any(content.at(start + 8, 4) == b"vide" for start, _ in walk.inside(trak, b"mdia", b"hdlr")):
            return _stored_size(walk, trak)
    return None


def _stored_size(walk: _Walk, trak: tuple[int, int]) -> tuple[int, int]:
    """From the first sample entry, which holds both 24 bytes after its header. Zeros without one."""
    for start, _ in walk.inside(trak, *_SAMPLE_DESCRIPTION):
        sides = walk.content.at(start + 8 + 8 + 24, 4)
        if len(sides) == 4:
            width, height = struct.unpack(">HH", sides)
            return width, height
    return 0, 0


def is_hdr(content: Content) -> bool:
    """Does an MP4 declare a transfer function beyond a usual screen's range (PQ or HLG, ISO/IEC 23091-2)?"""
    walk = _Walk(content)
    for start, end in walk.inside(walk.file, b"moov", b"trak", *_SAMPLE_DESCRIPTION):
        described = content.at(start, min(end - start, _ENTRY_BYTES))
        _, found, tags = described.partition(b"colrnclx")
        if found and tags[2:4] in _HDR_TRANSFERS:
            return True
    return False


class _Walk:
    """The boxes of an MP4 by their path. All walks together take a bounded number of steps, however boxes are nested.

    Damage ends a walk without an error: `sounds.mp4` judges whether the file is whole.
    """

    def __init__(self, content: Content) -> None:
        self.content = content
        self.file = (0, content.size)
        self._steps = iter(range(MAX_STEPS))

    def inside(self, parent: tuple[int, int], kind: bytes, *path: bytes) -> Iterator[tuple[int, int]]:
        """(start, end) of the payload of each box with this path of kinds below `parent`, itself a payload."""
        start, end = parent
        with contextlib.suppress(Mp4Damaged):
            for box, _ in zip(boxes(self.content.at, start, end), self._steps, strict=False):
                if box.kind == kind:
                    found = (box.payload, min(box.end, end))
                    yield from self.inside(found, *path) if path else (found,)


def is_webm(head: bytes) -> bool:
    """Is this the start of a WebM? A Matroska file may hold anything, so the DocType has to be `webm`."""
    return head.startswith(_EBML) and _WEBM in head[:64]


def is_matroska(head: bytes) -> bool:
    """Is this the start of a Matroska file that is no WebM? Only its sound is used."""
    return head.startswith(_EBML) and _MATROSKA in head[:64]


def webm(content: Content) -> Integrity:
    _, length, behind = _element(content, 0)
    name, length, behind = _element(content, behind + (length or 0))
    if not name:
        return truncated("the file ends inside the WebM header")
    if name != _SEGMENT:
        return broken(name, "the WebM header is damaged")
    if length is None:
        return plausible("the WebM header was written before the length was known")
    missing = behind + length - content.size
    if missing < 0 and content.at(behind + length, 4) == _EBML:
        called = "Matroska" if is_matroska(content.at(0, 64)) else "WebM"
        return invalid(
            f"several {called} files are joined in it, the second one at byte {behind + length}; export them as one"
        )
    return complete() if missing <= 0 else truncated(f"the last {missing} bytes of the WebM are missing")


def holds_sound_alone(content: Content) -> bool:
    """Does a WebM describe tracks, all of sound? False while its tracks cannot be read. Source: RFC 9559, 5.1.4.1."""
    _, length, behind = _element(content, 0)
    name, length, start = _element(content, behind + (length or 0))
    if name != _SEGMENT:
        return False
    for name, first, last in _elements(content, start, content.size):
        if name == _CLUSTER:
            return False
        if name == _TRACKS:
            types = [_track_type(content, *entry) for kind, *entry in _elements(content, first, last) if kind == _TRACK]
            return bool(types) and set(types) == {_SOUND}
    return False


def _track_type(content: Content, start: int, end: int) -> int:
    """1 for pictures, 2 for sound; 0 when the track does not tell."""
    found = (
        content.at(first, 8)[: last - first]
        for name, first, last in _elements(content, start, end)
        if name == _TRACK_TYPE
    )
    return int.from_bytes(next(found, b""), "big")


def _elements(content: Content, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and end of the payload of each element between two positions, as far as their lengths are known."""
    for _ in range(_MOST_ELEMENTS):
        name, length, behind = _element(content, start)
        if not name or length is None or behind >= end:
            return
        start = behind + length
        yield name, behind, min(start, end)


def _element(content: Content, offset: int) -> tuple[bytes, int | None, int]:
    """Name, length and payload position of an EBML element; an empty name at the end of the file.

    The length is None where it is marked as unknown. Source: RFC 8794, sections 4 to 6.
    """
    head = content.at(offset, 12)
    id_bytes = _width(head[:1])
    size_bytes = _width(head[id_bytes : id_bytes + 1])
    if not id_bytes or not size_bytes or len(head) < id_bytes + size_bytes:
        return b"", None, offset
    coded = int.from_bytes(head[id_bytes : id_bytes + size_bytes], "big")
    mask = (1 << 7 * size_bytes) - 1
    length = coded & mask
    return head[:id_bytes], None if length == mask else length, offset + id_bytes + size_bytes


def _width(first: bytes) -> int:
    """How many bytes the number that starts with this byte takes; 0 for an invalid byte."""
    return 9 - first[0].bit_length() if first and first[0] else 0
