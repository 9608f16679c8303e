"""Walk the boxes of an MP4, in a file or in memory.

Owns the header of a box (ISO/IEC 14496-12, 4.2). Leaves the content of the boxes to `mp4`, `videos` and `sounds`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

_HEADER_BYTES, _LARGE_HEADER_BYTES = 8, 16


class Mp4Damaged(ValueError):
    """The bytes are no MP4 that we can use, or contradict themselves."""


@dataclass(frozen=True)
class Box:
    """One box, by position.

    kind     its four letters
    payload  where its content starts
    end      where it ends as its header claims, which may be beyond its parent or the file
    sized    False: its header gives no length, so it reaches to the end of its parent
    """

    kind: bytes
    payload: int
    end: int
    sized: bool


def boxes(read: Callable[[int, int], bytes | memoryview], start: int, end: int) -> Iterator[Box]:
    """The boxes between two positions, in order. A header that is cut off ends the walk.

    read  takes an offset and a count, and returns that many bytes or fewer; it is asked for headers only

    Raises `Mp4Damaged` for a box that claims to be shorter than its own header.
    """
    while start + _HEADER_BYTES <= end:
        header = bytes(read(start, min(_LARGE_HEADER_BYTES, end - start)))
        size, kind, payload = int.from_bytes(header[:4], "big"), header[4:8], start + _HEADER_BYTES
        if size == 1:  # the length follows the kind, in 64 bits
            size, payload = int.from_bytes(header[8:], "big"), start + _LARGE_HEADER_BYTES
        if len(header) < payload - start:
            return
        box = Box(kind, payload, start + size if size else end, sized=size != 0)
        if box.end < payload:
            raise Mp4Damaged(f"the box {kind!r} at byte {start} claims {size} bytes")
        yield box
        start = box.end


def boxes_in(data: memoryview) -> list[tuple[str, memoryview]]:
    """The boxes inside a payload in memory, in order, each with its kind and its content.

    Raises `Mp4Damaged` also for a box that reaches beyond its parent: here, unlike in the file, a contradiction.
    """
    found = []
    for box in boxes(lambda offset, count: data[offset : offset + count], 0, len(data)):
        if not box.sized or box.end > len(data):
            raise Mp4Damaged(f"its box {box.kind!r} does not end inside its parent")
        found.append((box.kind.decode("latin-1"), data[box.payload : box.end]))
    return found
