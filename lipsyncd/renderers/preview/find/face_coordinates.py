"""The coordinates of a face: its own axes, measured in distances between the eyes.

The origin lies midway between the eyes, u points to the right of the picture along the line through them, v down the
face. One unit is the distance between the eyes. Everything that is known about a face is said in these units, so it
holds for every size of picture and every tilt of a head.

Owns the change between these coordinates and pixels. Pixel coordinates count from the centre of the first pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import atan2, ceil, degrees, floor, hypot
from typing import TypeVar, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers.framing import RgbImage

Field = NDArray[np.float32]
Curve = NDArray[np.float64]  # one value for each column
Parabola = NDArray[np.float64]  # (3,) highest power first, as numpy.polyval wants it: v of u
Pixels = NDArray[np.integer] | NDArray[np.floating]


F = TypeVar("F", bound=np.floating)


def smoothstep(value: NDArray[F]) -> NDArray[F]:
    """0 up to 0, 1 from 1 on, with level ends."""
    held = np.clip(value, 0.0, 1.0)
    return cast(NDArray[F], held * held * (3.0 - 2.0 * held))


def eased(value: float) -> float:
    """`smoothstep` of one number."""
    held = min(max(value, 0.0), 1.0)
    return held * held * (3.0 - 2.0 * held)


def displaced(picture: RgbImage, came_from: Field) -> RgbImage:
    """The picture, read at other places: cubic, because a linear blend would blur whatever moves.

    came_from  (h, w, 2) float32, x and y in pixels of `picture`; outside of it the edges are replicated
    returns    (h, w, 3) uint8
    """
    x, y = cv2.split(came_from)
    return cast(RgbImage, cv2.remap(picture, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE))


@dataclass(frozen=True)
class Window:
    """A part of the plane in square cells, `scale` of them for each unit; the first is centred on (left, top)."""

    left: float
    top: float
    right: float
    bottom: float
    scale: float

    @property
    def columns(self) -> int:
        return int((self.right - self.left) * self.scale) + 1

    @property
    def rows(self) -> int:
        return int((self.bottom - self.top) * self.scale) + 1

    def grid(self) -> tuple[Field, Field]:
        """u as (1, columns) and v as (rows, 1), float32: they broadcast."""
        u = self.left + np.arange(self.columns, dtype=np.float32) / np.float32(self.scale)
        v = self.top + np.arange(self.rows, dtype=np.float32) / np.float32(self.scale)
        return u[None, :], v[:, None]


# Where mouths are looked for: below the eyes, down to the lowest chin.
LOWER_FACE = Window(left=-0.75, top=0.55, right=0.75, bottom=2.1, scale=128)


@dataclass(frozen=True)
class Plane:
    """Where the plane of a face lies in a picture."""

    x: float  # the origin, in pixels
    y: float
    along_x: float  # the u axis, in pixels for one unit; the v axis is the same, a quarter turn clockwise
    along_y: float

    @classmethod
    def through(cls, left_eye: tuple[float, float], right_eye: tuple[float, float]) -> Plane:
        """The plane of the face whose eyes are at these pixels; left means left in the picture."""
        (lx, ly), (rx, ry) = left_eye, right_eye
        return cls((lx + rx) / 2, (ly + ry) / 2, rx - lx, ry - ly)

    @property
    def unit_px(self) -> float:
        """Pixels from eye to eye."""
        return hypot(self.along_x, self.along_y)

    @property
    def roll_deg(self) -> float:
        """How far the head is tilted; clockwise counts positive."""
        return degrees(atan2(self.along_y, self.along_x))

    def pixel(self, u: float, v: float) -> tuple[float, float]:
        """Where a point of the plane lies in the picture: x and y."""
        return self.x + u * self.along_x - v * self.along_y, self.y + u * self.along_y + v * self.along_x

    def to_pixels(self, window: Window) -> NDArray[np.float64]:
        """The affine map (2, 3) from the cells (column, row) of `window` to pixels (x, y)."""
        ax, ay = self.along_x / window.scale, self.along_y / window.scale
        x, y = self.pixel(window.left, window.top)
        return np.array([[ax, -ay, x], [ay, ax, y]])

    def coordinates(self, x: Pixels, y: Pixels) -> tuple[Field, Field]:
        """u and v of pixels, float32; x and y broadcast."""
        dx, dy = x - self.x, y - self.y
        square = self.along_x**2 + self.along_y**2
        u = (dx * self.along_x + dy * self.along_y) / square
        v = (dy * self.along_x - dx * self.along_y) / square
        return u.astype(np.float32), v.astype(np.float32)

    def cut(self, picture: RgbImage, window: Window) -> RgbImage:
        """The picture as the window sees it, upright: (rows, columns, 3) uint8, edges replicated."""
        margin = 8 / window.scale  # what filters at the border of the box can reach
        part = (window.left - margin, window.top - margin, window.right + margin, window.bottom + margin)
        box = PixelBox.around(self, part, picture)
        source, plane = picture[box.slices], self.rescaled(1.0, -box.left, -box.top)
        while plane.unit_px > 2 * window.scale:  # a cubic alone would alias
            source, plane = cast(RgbImage, cv2.pyrDown(source)), plane.rescaled(0.5, 0.0, 0.0)
        size, flags = (window.columns, window.rows), cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        matrix = plane.to_pixels(window)
        return cast(RgbImage, cv2.warpAffine(source, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE))

    def rescaled(self, factor: float, dx: float, dy: float) -> Plane:
        """The same plane in a picture whose pixel (x, y) is `factor` x this one's + (dx, dy)."""
        return Plane(self.x * factor + dx, self.y * factor + dy, self.along_x * factor, self.along_y * factor)


@dataclass(frozen=True)
class PixelBox:
    """A box of pixels inside a picture; right and bottom are the first ones outside."""

    left: int
    top: int
    right: int
    bottom: int

    @classmethod
    def around(cls, plane: Plane, part: tuple[float, float, float, float], picture: RgbImage) -> PixelBox:
        """The smallest box in the picture around a part of a plane: its left, top, right and bottom, in units.

        Of a part outside of the picture it holds the pixels at the edge that are nearest.
        """
        x, y = zip(*(plane.pixel(u, v) for u in part[::2] for v in part[1::2]), strict=True)
        height, width = picture.shape[:2]
        left, top = min(max(floor(min(x)), 0), width - 1), min(max(floor(min(y)), 0), height - 1)
        right, bottom = min(ceil(max(x)) + 1, width), min(ceil(max(y)) + 1, height)
        return cls(left, top, max(right, left + 1), max(bottom, top + 1))

    def within(self, other: PixelBox) -> PixelBox:
        """What this box shares with the other."""
        return PixelBox(
            max(self.left, other.left),
            max(self.top, other.top),
            min(self.right, other.right),
            min(self.bottom, other.bottom),
        )

    @property
    def empty(self) -> bool:
        return self.left >= self.right or self.top >= self.bottom

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.right - self.left, self.bottom - self.top

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns of the picture."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def inside(self, outer: PixelBox) -> tuple[slice, slice]:
        """Rows and columns of an array that covers `outer`."""
        rows = slice(self.top - outer.top, self.bottom - outer.top)
        return rows, slice(self.left - outer.left, self.right - outer.left)
