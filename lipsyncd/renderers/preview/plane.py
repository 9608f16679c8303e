"""The coordinates of a face: its own axes, measured in distances between the eyes.

The origin lies midway between the eyes, u points from the person's right to the left, v down the face. One unit is the
distance between the eyes. All constants about faces are in these units, so they hold for every size of picture and
every angle of a head: a head that is turned to the side or leans back has shorter axes.

Owns the conversion between these coordinates and pixels. Pixel coordinates count from the centre of the first pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, hypot
from typing import TypeVar, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers.face import points
from lipsyncd.renderers.face.networks import Mesh
from lipsyncd.renderers.framing import RgbImage

Field = NDArray[np.float32]
Curve = NDArray[np.float64]  # one value for each column
Pixels = NDArray[np.integer] | NDArray[np.floating]

_EYES = (points.RIGHT_EYE_CORNERS, points.LEFT_EYE_CORNERS)

F = TypeVar("F", bound=np.floating)


def smoothstep(value: NDArray[F]) -> NDArray[F]:
    """0 up to 0, 1 from 1 on, and a cubic with level ends between."""
    held = np.clip(value, 0.0, 1.0)
    return cast("NDArray[F]", held * held * (3.0 - 2.0 * held))


def eased(value: float) -> float:
    """`smoothstep` of one number."""
    held = min(max(value, 0.0), 1.0)
    return held * held * (3.0 - 2.0 * held)


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


@dataclass(frozen=True)
class Plane:
    """The position of the plane of a face in a picture: its origin and both axes, in pixels for one unit.

    The axes need not have the same length, nor a right angle between them: a head that is turned looks narrower.
    """

    x: float
    y: float
    across_x: float
    across_y: float
    down_x: float
    down_y: float

    @classmethod
    def from_eyes(cls, left_eye: tuple[float, float], right_eye: tuple[float, float]) -> Plane:
        """The plane of a face that looks ahead, whose eyes are at these pixels; left means left in the picture."""
        (lx, ly), (rx, ry) = left_eye, right_eye
        return cls((lx + rx) / 2, (ly + ry) / 2, rx - lx, ry - ly, ly - ry, rx - lx)

    @classmethod
    def of(cls, mesh: Mesh) -> Plane:
        """The plane of a mesh, (468, 3) in pixels; one unit is the distance between the eyes as the mesh has it."""
        right_eye, left_eye = (mesh[list(corners)].mean(axis=0) for corners in _EYES)
        unit = float(np.linalg.norm(left_eye - right_eye))
        pairs = np.asarray(points.MIRRORED)
        across = (mesh[pairs[:, 1]] - mesh[pairs[:, 0]]).sum(axis=0)
        down = mesh[points.CHIN] - mesh[points.FOREHEAD]
        (ax, ay, _), (dx, dy, _) = ((unit * axis / np.linalg.norm(axis)).tolist() for axis in (across, down))
        x, y, _ = ((left_eye + right_eye) / 2).tolist()
        return cls(x, y, ax, ay, dx, dy)

    @property
    def unit_px(self) -> float:
        """Pixels of one unit, along the longer axis."""
        return max(hypot(self.across_x, self.across_y), hypot(self.down_x, self.down_y))

    @property
    def axes(self) -> Field:
        """Both axes as rows, (2, 2) float32: a displacement in units times this is one in pixels."""
        return np.array([[self.across_x, self.across_y], [self.down_x, self.down_y]], np.float32)

    def pixel(self, u: float, v: float) -> tuple[float, float]:
        """The position of a point of the plane in the picture: x and y."""
        return self.x + u * self.across_x + v * self.down_x, self.y + u * self.across_y + v * self.down_y

    def to_pixels(self, window: Window) -> NDArray[np.float64]:
        """The affine map (2, 3) from the cells (column, row) of `window` to pixels (x, y)."""
        x, y = self.pixel(window.left, window.top)
        scale = window.scale
        return np.array(
            [[self.across_x / scale, self.down_x / scale, x], [self.across_y / scale, self.down_y / scale, y]]
        )

    def coordinates(self, x: Pixels, y: Pixels) -> tuple[Field, Field]:
        """u and v of pixels, float32; x and y broadcast."""
        dx, dy = x - self.x, y - self.y
        area = self.across_x * self.down_y - self.across_y * self.down_x
        u = (dx * self.down_y - dy * self.down_x) / area
        v = (dy * self.across_x - dx * self.across_y) / area
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
        axes = (factor * axis for axis in (self.across_x, self.across_y, self.down_x, self.down_y))
        return Plane(self.x * factor + dx, self.y * factor + dy, *axes)


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
