"""The geometry of a frame: boxes, and squares cut out of pictures.

Every renderer cuts its square with `square_around` and `crop_square`, so that all of them frame a portrait alike.
Leaves finding the face to the renderers.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

RgbImage = NDArray[np.uint8]  # (height, width, 3)

_FILTER_PX = 3  # how far the filters of a square reach, in pixels of the coarser side


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels. It may reach beyond the picture, where the pixels of the edge are repeated."""

    x: int
    y: int
    width: int
    height: int

    @property
    def right(self) -> int:
        """The first column to the right of the box."""
        return self.x + self.width

    @property
    def bottom(self) -> int:
        """The first row below the box."""
        return self.y + self.height

    @property
    def place(self) -> tuple[slice, slice]:
        """Its rows and columns in a picture that contains it."""
        return slice(self.y, self.bottom), slice(self.x, self.right)

    def union(self, other: Box) -> Box:
        """The smallest box around both."""
        left, top = min(self.x, other.x), min(self.y, other.y)
        return Box(left, top, max(self.right, other.right) - left, max(self.bottom, other.bottom) - top)

    def within(self, other: Box) -> Box:
        """The part of this box inside the other one; 0 wide or high when they do not meet."""
        left, top = max(self.x, other.x), max(self.y, other.y)
        width, height = min(self.right, other.right) - left, min(self.bottom, other.bottom) - top
        return Box(left, top, max(width, 0), max(height, 0))


def square_around(box: Box, picture_width: int, picture_height: int) -> Box:
    """The square that a job without `stitch` shows: 1.5 x the face's longer side, shifted into the picture.

    A square larger than the picture contains all of it, and is as close to centred on the face as that allows.
    """
    side = -(-3 * max(box.width, box.height) // 2)
    x = box.x + (box.width - side) // 2
    y = box.y + (box.height - side) // 2
    return Box(_shifted(x, side, picture_width), _shifted(y, side, picture_height), side, side)


def _shifted(start: int, side: int, available: int) -> int:
    slack = available - side
    return min(max(start, min(slack, 0)), max(slack, 0))


def crop_square(picture: RgbImage, square: Box, resolution: int) -> RgbImage:
    """Cut `square` out of one picture and scale it; for many pictures use `SquareView`.

    picture  (H, W, 3) uint8
    returns  (resolution, resolution, 3) uint8, memory of its own
    """
    height, width = picture.shape[:2]
    return SquareView(width, height, square, resolution).of(picture)


class SquareView:
    """One square, cut out of each frame and scaled; edges are replicated where it reaches outside."""

    def __init__(self, picture_width: int, picture_height: int, square: Box, resolution: int) -> None:
        left, top = max(square.x, 0), max(square.y, 0)
        right, bottom = min(square.right, picture_width), min(square.bottom, picture_height)
        if left >= right or top >= bottom:
            raise ValueError(f"{square} lies outside a picture of {picture_width}x{picture_height}")
        self._inside = np.s_[top:bottom, left:right]
        self._borders = (top - square.y, square.bottom - bottom, left - square.x, square.right - right)
        self._square, self._size = square, (resolution, resolution)
        self._scaled = square.width != resolution
        # Shrinking averages areas, which avoids aliasing; growing is cubic, which keeps the edges of lips and eyes.
        self._method = cv2.INTER_AREA if square.width > resolution else cv2.INTER_CUBIC

    def shown(self, box: Box) -> Box:
        """The pixels of the square that pixels of the picture in `box` may show in."""
        rows, columns = self._inside
        left, right = _reached(box.x, box.right, columns, self._square.x, self._square.width, self._size[0])
        top, bottom = _reached(box.y, box.bottom, rows, self._square.y, self._square.height, self._size[1])
        return Box(left, top, right - left, bottom - top)

    def of(self, picture: RgbImage) -> RgbImage:
        """The square as (resolution, resolution, 3) uint8, never a view of `picture`."""
        cut = picture[self._inside]
        if any(self._borders):
            cut = cast(RgbImage, cv2.copyMakeBorder(cut, *self._borders, cv2.BORDER_REPLICATE))
        if self._scaled:
            return cast(RgbImage, cv2.resize(cut, self._size, interpolation=self._method))
        return cut.copy()


def _reached(start: int, end: int, visible: slice, square: int, side: int, resolution: int) -> tuple[int, int]:
    """Where pixels from `start` to `end` of a picture show along one axis of a square: first, and behind the last.

    visible  the pixels of the picture in the square; its first and last one are repeated where the square is wider
    """
    scale = resolution / side
    reach = _FILTER_PX * max(scale, 1.0)
    low = 0 if start <= visible.start else floor(scale * (start - square) - reach)
    high = resolution if end >= visible.stop else ceil(scale * (end - square) + reach)
    low = min(max(low, 0), resolution)
    return low, max(min(high, resolution), low)


def make_even(picture: RgbImage) -> RgbImage:
    """Repeat the last row and column where a side is odd: yuv420p has one chroma sample for each 2x2 pixels.

    returns  (H or H + 1, W or W + 1, 3) uint8; `picture` itself when both sides are even
    """
    height, width = picture.shape[:2]
    if height % 2 == 0 and width % 2 == 0:
        return picture
    return cast(RgbImage, cv2.copyMakeBorder(picture, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE))
