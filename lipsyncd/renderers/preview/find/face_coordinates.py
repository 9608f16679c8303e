"""The coordinates of a face: its own axes, measured in distances between the eyes.

The origin lies midway between the eyes, u points to the right of the picture along the line through them, v down the
face. One unit is the distance between the eyes. All constants about faces are in these units, so they hold for every
size of picture and every tilt of a head.

Owns the conversion between these coordinates and pixels. Pixel coordinates count from the centre of the first pixel.
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
Parabola = NDArray[np.float64]  # (3,) v as a function of u, highest power first, for numpy.polyval
Pixels = NDArray[np.integer] | NDArray[np.floating]


F = TypeVar("F", bound=np.floating)


def smoothstep(value: NDArray[F]) -> NDArray[F]:
    """0 up to 0, 1 from 1 on, and a cubic with level ends between."""
    held = np.clip(value, 0.0, 1.0)
    return cast(NDArray[F], held * held * (3.0 - 2.0 * held))


def eased(value: float) -> float:
    """`smoothstep` of one number."""
    held = min(max(value, 0.0), 1.0)
    return held * held * (3.0 - 2.0 * held)


def displaced(picture: RgbImage, came_from: Field) -> RgbImage:
    """The picture, sampled at other positions: cubic, because linear interpolation would blur moving parts.

    came_from  (h, w, 2) float32, x and y in pixels of `picture`; outside of it the edges are replicated
    returns    (h, w, 3) uint8
    """
    x, y = cv2.split(came_from)
    return cast(RgbImage, cv2.remap(picture, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE))


@dataclass(frozen=True)
class Window:
    """A part of the plane in square cells, `scale` for each unit; the first one is centred on (left, top)."""

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


# The area in which mouths are searched: below the eyes, down to the lowest chin.
LOWER_FACE = Window(left=-0.75, top=0.55, right=0.75, bottom=2.1, scale=128)


@dataclass(frozen=True)
class Plane:
    """The position of the plane of a face in a picture."""

    x: float  # the origin, in pixels
    y: float
    along_x: float  # the u axis, in pixels for one unit; the v axis is the same turned clockwise by 90 degrees
    along_y: float

    @classmethod
    def from_eyes(cls, left_eye: tuple[float, float], right_eye: tuple[float, float]) -> Plane:
        """The plane of the face whose eyes are at these pixels; left means left in the picture."""
        (lx, ly), (rx, ry) = left_eye, right_eye
        return cls((lx + rx) / 2, (ly + ry) / 2, rx - lx, ry - ly)

    @property
    def unit_px(self) -> float:
        """Pixels from eye to eye."""
        return hypot(self.along_x, self.along_y)

    @property
    def roll_deg(self) -> float:
        """The tilt of the head; clockwise is positive."""
        return degrees(atan2(self.along_y, self.along_x))

    def pixel(self, u: float, v: float) -> tuple[float, float]:
        """The position of a point of the plane in the picture: x and y."""
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
        """The part of the picture in the window, upright: (rows, columns, 3) uint8, edges replicated."""
        margin = 8 / window.scale  # for filters at the border of the box
        part = (window.left - margin, window.top - margin, window.right + margin, window.bottom + margin)
        box = PixelBox.around(self, part, picture)
        source, plane = picture[box.slices], self.rescaled(1.0, -box.left, -box.top)
        while plane.unit_px > 2 * window.scale:  # cubic interpolation alone would alias
            source, plane = cast(RgbImage, cv2.pyrDown(source)), plane.rescaled(0.5, 0.0, 0.0)
        size, flags = (window.columns, window.rows), cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        matrix = plane.to_pixels(window)
        return cast(RgbImage, cv2.warpAffine(source, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE))

    def rescaled(self, factor: float, dx: float, dy: float) -> Plane:
        """The same plane in a picture whose pixel coordinates are `factor` x those of this one + (dx, dy)."""
        return Plane(self.x * factor + dx, self.y * factor + dy, self.along_x * factor, self.along_y * factor)


@dataclass(frozen=True)
class PixelBox:
    """A box of pixels inside a picture; right and bottom are the first pixels outside."""

    left: int
    top: int
    right: int
    bottom: int

    @classmethod
    def around(cls, plane: Plane, part: tuple[float, float, float, float], picture: RgbImage) -> PixelBox:
        """The smallest box in the picture around a part of a plane: its left, top, right and bottom, in units.

        For a part outside the picture it holds the nearest pixels at the edge.
        """
        x, y = zip(*(plane.pixel(u, v) for u in part[::2] for v in part[1::2]), strict=True)
        height, width = picture.shape[:2]
        left, top = min(max(floor(min(x)), 0), width - 1), min(max(floor(min(y)), 0), height - 1)
        right, bottom = min(ceil(max(x)) + 1, width), min(ceil(max(y)) + 1, height)
        return cls(left, top, max(right, left + 1), max(bottom, top + 1))

    def within(self, other: PixelBox) -> PixelBox:
        """The intersection of both boxes."""
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
