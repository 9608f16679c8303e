"""Some of the frames of a shot, for a video whose parts are drawn by several processes.

A shot that can begin anywhere has a method `span(start, stop)`, which yields what `frames` yields from number `start`
up to and not including `stop`, bit for bit; it may be called more than once. Of any other shot the frames before are
drawn, too, and dropped: no frame differs, and no time is saved.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Protocol, runtime_checkable

from lipsyncd.renderers import Shot
from lipsyncd.renderers.framing import RgbImage


@runtime_checkable
class Spanning(Protocol):
    """A shot that can begin at any frame."""

    def span(self, start: int, stop: int) -> Iterator[RgbImage]: ...


def span_of(shot: Shot, start: int, stop: int) -> Iterator[RgbImage]:
    """The frames from number `start` up to and not including `stop`, (height, width, 3) uint8 RGB each."""
    return shot.span(start, stop) if isinstance(shot, Spanning) else islice(shot.frames(), start, stop)
