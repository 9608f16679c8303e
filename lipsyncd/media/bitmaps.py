"""Size and completeness of BMP, GIF and TIFF files, by their headers.

Owns the reading of those headers. Nothing is decoded here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

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

_BMP_HEADERS = frozenset((12, 40, 52, 56, 64, 108, 124))  # lengths of the header's versions
_MOST_ENTRIES = 1024  # of a TIFF's directory
_MOST_STRIPS = 1 << 16
_FIELD_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
_KIND_OF_PICTURE, _WIDTH, _HEIGHT, _PHOTOMETRIC, _DNG = 254, 256, 257, 262, 50706
_PLACES = ((273, 279), (324, 325))  # where strips or tiles are, and how long
_RAW = frozenset((32803, 34892))  # pixels of a camera's sensor, not of a picture


def is_bmp(head: bytes) -> bool:
    return head[:2] == b"BM" and (len(head) < 18 or int.from_bytes(head[14:18], "little") in _BMP_HEADERS)


def bmp(content: Content) -> Integrity:
    head = content.at(0, 38)
    if len(head) < 38:
        return truncated("the file ends inside the BMP header")
    declared, _, start, header = struct.unpack_from("<IIII", head, 2)
    layout, compression, coded_bytes = "<iiHH", *struct.unpack_from("<II", head, 30)
    if header == 12:
        layout, compression = "<HHHH", 0
    width, height, _, bits = struct.unpack_from(layout, head, 18)
    height = abs(height)  # negative: rows from the top
    if width <= 0 or not height or (not bits and compression < 4):
        return broken(head[18:], "the BMP header is damaged")
    plain = compression in (0, 3, 6)
    end = start + ((width * bits + 31) // 32 * 4 * height if plain else coded_bytes or max(0, declared - start))
    return (
        complete(width, height) if end <= content.size else truncated(f"{content.size} of {end} bytes", width, height)
    )


def gif(content: Content) -> Integrity:
    head = content.at(0, 13)
    if len(head) < 13:
        return truncated("the file ends inside the GIF header")
    width, height, flags = struct.unpack_from("<HHB", head, 6)
    if not width or not height:
        return broken(head[6:], "the GIF header is damaged")
    if content.tail(TAIL_BYTES).rstrip(b"\0").endswith(b";") and content.tail(2) == b"\0;":
        return complete(width, height)
    offset = 13 + _palette_bytes(flags)
    for _ in range(MAX_STEPS):
        block = content.at(offset, 10)
        if not block:
            break
        if block[0] == 0x3B:
            return complete(width, height)
        if block[0] == 0x21:
            offset += 2
        elif block[0] == 0x2C and len(block) == 10:
            offset += 11 + _palette_bytes(block[9])
        else:
            return (
                broken(block, "a GIF block is damaged")
                if len(block) == 10
                else truncated("the GIF has no end", width, height)
            )
        for _ in range(_MOST_STRIPS):
            length = content.at(offset, 1)
            offset += 1 + int.from_bytes(length, "big")
            if length in (b"", b"\0"):
                break
    return (
        truncated("the GIF has no end", width, height)
        if offset >= content.size
        else plausible("a long GIF", width, height)
    )


def _palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def tiff(content: Content) -> Integrity:
    """The first directory gives the size, and where the picture's strips or tiles are."""
    head = content.at(0, 8)
    if len(head) < 8:
        return truncated("the file ends inside the TIFF header")
    order = "<" if head[:2] == b"II" else ">"
    (offset,) = struct.unpack_from(order + "I", head, 4)
    count_bytes = content.at(offset, 2)
    if offset < 8:
        return broken(head[4:], "the TIFF header is damaged")
    if len(count_bytes) < 2:
        return truncated("the TIFF's directory is missing")
    (count,) = struct.unpack(order + "H", count_bytes)
    entries = content.at(offset + 2, 12 * count)
    if len(entries) < 12 * count:
        return truncated("the TIFF's directory is cut short")
    if not 0 < count <= _MOST_ENTRIES:
        return broken(count_bytes, "the TIFF's directory is damaged")
    fields = {
        struct.unpack_from(order + "H", entries, at)[0]: entries[at : at + 12] for at in range(0, len(entries), 12)
    }

    def values(tag: int) -> list[int]:
        return list(_values(content, order, fields[tag])) if tag in fields else []

    def first(tag: int) -> int:
        return next(iter(values(tag)), 0)

    if _DNG in fields or first(_PHOTOMETRIC) in _RAW or first(_KIND_OF_PICTURE) & 1:
        return invalid("it is a camera's raw picture, which is not taken")
    width, height = first(_WIDTH), first(_HEIGHT)
    if not width or not height:
        return invalid("the TIFF gives no size")
    places = [place for pair in _PLACES for place in zip(*map(values, pair), strict=False)]
    if not places:
        return invalid("the TIFF does not tell where its picture is")
    end = max(start + length for start, length in (*places, *_outside(order, fields.values())))
    return (
        complete(width, height) if end <= content.size else truncated(f"{content.size} of {end} bytes", width, height)
    )


def _outside(order: str, entries: Iterable[bytes]) -> Iterator[tuple[int, int]]:
    """Where the values of a directory are that do not fit into their entries, and how long."""
    for entry in entries:
        _, kind, count, place = struct.unpack(order + "HHII", entry)
        if (length := count * _FIELD_BYTES.get(kind, 0)) > 4:
            yield place, length


def _values(content: Content, order: str, entry: bytes) -> Iterator[int]:
    """The whole numbers of a directory's entry; none when it holds others, or far too many."""
    _, kind, count = struct.unpack_from(order + "HHI", entry)
    form = {1: "B", 3: "H", 4: "I"}.get(kind)
    if form is None or not 0 < count <= _MOST_STRIPS:
        return
    length = count * _FIELD_BYTES[kind]
    data = entry[8 : 8 + length] if length <= 4 else content.at(struct.unpack_from(order + "I", entry, 8)[0], length)
    if len(data) == length:
        yield from struct.unpack(f"{order}{count}{form}", data)
