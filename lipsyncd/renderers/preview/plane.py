"""The coordinates of a face: its own axes, measured in distances between the eyes.

The origin lies midway between the eyes, u points to the right of the picture along the line through them, v down the
face. One unit is the distance between the eyes. Everything that is known about a face is said in these units, so it
holds for every size of picture and every tilt of a head.

Owns the change between these coordinates and pixels. Pixel coordinates count from the centre of the first pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import atan2, degrees, hypot
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]  # (height, width, 3) RGB
Field = NDArray[np.float32]


@dataclass(frozen=True)
class Window:
    """A part of the plane, cut into square cells: `scale` cells for each unit, the first cell centred on (left, top)."""

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

    def to_pixels(self, window: Window) -> NDArray[np.float64]:
        """The affine map (2, 3) from the cells (column, row) of `window` to pixels (x, y)."""
        ax, ay = self.along_x / window.scale, self.along_y / window.scale
        x = self.x + window.left * self.along_x - window.top * self.along_y
        y = self.y + window.left * self.along_y + window.top * self.along_x
        return np.array([[ax, -ay, x], [ay, ax, y]])

    def coordinates(self, x: NDArray[np.floating], y: NDArray[np.floating]) -> tuple[Field, Field]:
        """u and v of pixels, float32; x and y broadcast."""
        dx, dy = x - self.x, y - self.y
        square = self.along_x**2 + self.along_y**2
        u = (dx * self.along_x + dy * self.along_y) / square
        v = (dy * self.along_x - dx * self.along_y) / square
        return u.astype(np.float32), v.astype(np.float32)

    def cut(self, picture: Picture, window: Window) -> Picture:
        """The picture as the window sees it, upright: (rows, columns, 3) uint8, edges replicated."""
        source = picture
        plane = self
        while plane.unit_px > 2 * window.scale:  # a cubic alone would alias
            source = cast(Picture, cv2.pyrDown(source))
            plane = plane.rescaled(0.5, 0.0, 0.0)
        size = (window.columns, window.rows)
        flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        matrix = plane.to_pixels(window)
        return cast(Picture, cv2.warpAffine(source, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE))

    def rescaled(self, factor: float, dx: float, dy: float) -> Plane:
        """The same plane in a picture whose pixel (x, y) is `factor` x this one's + (dx, dy)."""
        return Plane(self.x * factor + dx, self.y * factor + dy, self.along_x * factor, self.along_y * factor)
