"""Size and completeness of HEIC and AVIF files, by their boxes, before any decoder sees them.

A HEIF file (ISO/IEC 23008-12) describes its pictures in the box `meta` and keeps their data in `mdat`. Owns the reading
of those boxes. Nothing is decoded here.
"""

from __future__ import annotations

import struct
from itertools import islice

from lipsyncd.media.content import MAX_STEPS, ZEROS, Content, Integrity, complete, invalid, plausible, truncated
from lipsyncd.media.mp4_boxes import Mp4Damaged, boxes, boxes_in

_HEIC_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis"))
_SEQUENCES = frozenset((b"hevc", b"hevx", b"msf1", b"avis"))
_MOST_META_BYTES = 1 << 20  # a phone's description of some fifty tiles takes a few kilobytes
_VERSION_BYTES = 4


def brand(head: bytes) -> str:
    """ "heic" or "avif" for a file that starts with `head` (64 bytes are enough); "" when it is neither."""
    if head[4:8] != b"ftyp":
        return ""
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = [head[8:12], *(head[start : start + 4] for start in range(16, end - 3, 4))]
    if brands[0] in (b"avif", b"avis"):
        return "avif"
    if brands[0] in _HEIC_BRANDS:
        return "heic"
    if brands[0] in (b"mif1", b"miaf", b"msf1", b"hevc"):
        known = (name for found in brands for name in (_family(found),) if name)
        return next(known, "")
    return ""


def _family(found: bytes) -> str:
    return "heic" if found in _HEIC_BRANDS else "avif" if found == b"avif" else ""


def heif(content: Content) -> Integrity:
    """Whole when the description is there and each box ends inside the file; the largest picture gives the size."""
    width = height = 0
    described = data = False
    try:
        for box in islice(boxes(content.at, 0, content.size), MAX_STEPS):
            if not box.sized:
                return (
                    plausible("the last box of the picture has no length", width, height)
                    if any(box.kind)
                    else truncated(ZEROS)
                )
            if box.end > content.size:
                missing = box.end - content.size
                return truncated(
                    f"the last {missing} bytes of its box {box.kind.decode('latin-1')!r} are missing", width, height
                )
            if box.kind == b"meta":
                if box.end - box.payload > _MOST_META_BYTES:
                    return invalid("the description of the picture is larger than 1 MB")
                meta = memoryview(content.at(box.payload, box.end - box.payload))
                width, height = _largest(meta)
                if not width or not height:
                    return invalid("the picture gives no size")
                described = True
                data = data or any(kind == "idat" for kind, _ in boxes_in(meta[_VERSION_BYTES:]))
            data = data or box.kind == b"mdat"
            if described and data:
                return complete(width, height)
    except (Mp4Damaged, struct.error):
        return invalid("a box of the picture is damaged")
    return truncated("the picture has no description or no data yet", width, height)


def _largest(meta: memoryview) -> tuple[int, int]:
    """Width and height of the largest picture that a `meta` box describes: of the whole, where it is made of tiles."""
    sizes = [(0, 0)]
    for kind, payload in boxes_in(meta[_VERSION_BYTES:]):
        if kind != "iprp":
            continue
        for inner, properties in boxes_in(payload):
            if inner == "ipco":
                sizes += [struct.unpack_from(">II", found, 4) for name, found in boxes_in(properties) if name == "ispe"]
    return max(sizes, key=lambda size: size[0] * size[1])
