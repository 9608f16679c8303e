"""The field that moves a picture: where each pixel of a frame comes from.

The field is linear in a few numbers, one for each way in which a head moves (`WAYS`), so the parts are computed once
and a frame costs their weighted sum on a coarse grid, its enlargement, and one `cv2.remap` of the box that moves.

It holds still where nothing may move: beyond the fade around the head, at other faces, and, across the border, at the
edges of the picture, which therefore never open. It never folds: `steepest` bounds its slopes before any frame is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor

import cv2
import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers.coarse_grid import Grid
from lipsyncd.renderers.face.networks import Mesh
from lipsyncd.renderers.framing import Box
from lipsyncd.renderers.motion.depth import depth_map
from lipsyncd.renderers.motion.easing import smoothstep
from lipsyncd.renderers.motion.head_pose import HeadPose

Values = NDArray[np.float64]

# The numbers of a frame: turns in radians (to the picture's right, down, clockwise); in sizes of the head shifts to
# the right and down, the lift of the brows, and the fall of the chest.
WAYS = ("yaw", "pitch", "roll", "right", "down", "brows", "breath")

CENTRE_V, WHOLE, ENDED = -0.12, 0.80, 1.45  # the fade, in sizes from a point above the middle of the face
NECK_BEGINS, NECK_ENDS = 0.25, 1.10  # v between which turns and shifts fade down the neck
PIVOT_V = 0.62  # of the roll
EDGE = 0.30  # sizes over which movement across a border of the picture fades, at most this share of the picture
EDGE_SHARE = 0.15
NEIGHBOUR = 0.35  # sizes over which movement fades towards another face
BROWS_V, BROWS_ABOVE, BROWS_BELOW, BROWS_HALF = -0.30, 0.20, 0.09, 0.42
CHEST = (0.75, 1.35, 2.6)  # v where the chest begins to move, moves most, and where the box ends
CHEST_HALF = 1.7
MOST_CELLS = 144  # along a side of the grid
LEAST_JACOBIAN = 0.5


class Field:
    """The movement of one head on one canvas.

    box    the pixels that move, inside the canvas
    parts  (ways, 2, rows, columns) float32: where content goes, in pixels right and down, for 1 of each number
    """

    def __init__(self, size: tuple[int, int], mesh: Mesh, pose: HeadPose, other_faces: Sequence[Box] = ()) -> None:
        """`size` is the width and height of the canvas in pixels."""
        self.box = _moving_box(size, pose)
        self._grid = grid = _grid_over(self.box)
        x, y = grid.x[None, :], grid.y[:, None]
        u, v = pose.own(x, y)
        borders = _Borders.of(size, pose, x, y, grid.cell_px)
        neighbours = _beside(other_faces, pose, x, y, grid.cell_px)
        held = borders.both_ways * neighbours
        head = _head_weight(u, v)
        depth = depth_map(mesh, pose, grid.x, grid.y) * smoothstep((ENDED - _away(u, v)) / (ENDED - WHOLE))
        along_u, along_v = pose.axes
        pivot = np.array([pose.x, pose.y]) + PIVOT_V * pose.size_px * along_v
        turning = np.dstack(np.broadcast_arrays(pivot[1] - y, x - pivot[0])) * head[..., None]
        chest = _chest_weight(u, v) * pose.size_px
        parts = (
            depth[..., None] * along_u * held,
            depth[..., None] * along_v * held,
            turning * held,
            head[..., None] * (along_u * pose.size_px) * held,
            head[..., None] * (along_v * pose.size_px) * held,
            _brows_weight(u, v)[..., None] * (along_v * -pose.size_px) * held,
            chest[..., None] * along_v * borders.one_way(*along_v) * neighbours,
        )
        self.parts = np.ascontiguousarray(np.stack(parts).transpose(0, 3, 1, 2), np.float32)
        self._here = np.stack(np.broadcast_arrays(x - grid.left, y - grid.top)).astype(np.float32)

    def sources(self, numbers: NDArray[np.float32], scale: int = 1) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Where each pixel of the box comes from: where it is, minus the movement.

        numbers  (ways,) float32
        scale    pixels of the source for each pixel of the canvas
        returns  x and y, each (height, width) float32, in pixels of the source from the upper left corner of the box
        """
        coarse = self._here.copy()
        for number, part in zip(numbers.tolist(), self.parts, strict=True):
            if number:
                for axis in (0, 1):
                    cv2.scaleAdd(part[axis], -number, coarse[axis], coarse[axis])
        coarse *= scale
        x, y = (self._grid.enlarged(axis) for axis in coarse)
        return x, y

    def jacobian(self, numbers: NDArray[np.float32]) -> Values:
        """The area of the canvas shown by each cell of a frame, in cells: 1 where nothing moves, below 0 in a fold."""
        moved = np.tensordot(numbers.astype(np.float64), self.parts.astype(np.float64), 1) / self._grid.cell_px
        (xx, yx), (xy, yy) = _slopes(moved[0]), _slopes(moved[1])
        return (1 - xx) * (1 - yy) - xy * yx

    def least_jacobian(self, most: NDArray[np.float32]) -> float:
        """A lower bound of the Jacobian for all numbers whose sizes are at most `most`, (ways,)."""
        slopes = np.zeros((4, self._grid.rows + 1, self._grid.columns + 1))
        for number, part in zip(np.abs(most), self.parts.astype(np.float64) / self._grid.cell_px, strict=True):
            slopes += float(number) * np.abs([*_slopes(part[0]), *_slopes(part[1])])
        xx, yx, xy, yy = slopes
        return float((np.maximum(1 - xx, 0) * np.maximum(1 - yy, 0) - xy * yx).min())


def _grid_over(box: Box) -> Grid:
    cell = 2
    while max(box.width, box.height) > cell * MOST_CELLS:
        cell *= 2
    return Grid(box.x, box.y, box.width, box.height, cell)


def _slopes(values: Values) -> tuple[Values, Values]:
    """Steps along x and along y between neighbouring cells, the steeper one of each square: (rows - 1, columns - 1)."""
    along_x, along_y = np.diff(values, axis=1), np.diff(values, axis=0)
    return _larger(along_x[:-1], along_x[1:]), _larger(along_y[:, :-1], along_y[:, 1:])


def _larger(a: Values, b: Values) -> Values:
    return np.where(np.abs(a) >= np.abs(b), a, b)


# -- what moves --------------------------------------------------------------------------------------------------------


def _away(u: Values, v: Values) -> Values:
    return np.hypot(u, v - CENTRE_V)


def _head_weight(u: Values, v: Values) -> Values:
    """1 on the head and its hair, 0 in the background, falling down the neck."""
    return smoothstep((ENDED - _away(u, v)) / (ENDED - WHOLE)) * smoothstep((NECK_ENDS - v) / (NECK_ENDS - NECK_BEGINS))


def _brows_weight(u: Values, v: Values) -> Values:
    """1 on the brows, 0 at the lids, the hairline and the temples."""
    rise = v - BROWS_V
    upright = smoothstep(1 + rise / BROWS_ABOVE) * smoothstep(1 - rise / BROWS_BELOW)
    return upright * smoothstep((BROWS_HALF - np.abs(u)) / (0.5 * BROWS_HALF))


def _chest_weight(u: Values, v: Values) -> Values:
    begins, most, ends = CHEST
    down = smoothstep((v - begins) / (most - begins)) * smoothstep((ends - v) / (ends - most))
    return down * smoothstep((CHEST_HALF - np.abs(u)) / (0.6 * CHEST_HALF))


def _moving_box(size: tuple[int, int], pose: HeadPose) -> Box:
    """The part of the canvas in which anything moves."""
    width, height = size
    (c, s), _ = pose.axes
    reach = ENDED + 0.05
    u = np.array([-reach, reach, -reach, reach, -CHEST_HALF, CHEST_HALF, -CHEST_HALF, CHEST_HALF])
    v = np.array([CENTRE_V - reach] * 2 + [CENTRE_V + reach] * 2 + [CHEST[0]] * 2 + [CHEST[2]] * 2)
    x, y = pose.x + pose.size_px * (u * c - v * s), pose.y + pose.size_px * (u * s + v * c)
    left, top = min(max(floor(x.min()), 0), width - 1), min(max(floor(y.min()), 0), height - 1)
    right, bottom = min(ceil(x.max()), width), min(ceil(y.max()), height)
    return Box(left, top, max(right - left, 1), max(bottom - top, 1))


# -- what stays --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Borders:
    """The share of a movement that is left near each border of the picture: 0 at it, 1 far from it.

    Across a border nothing moves, so that the picture never opens there; along it everything may.
    """

    left: Values
    right: Values
    top: Values
    bottom: Values

    @classmethod
    def of(cls, size: tuple[int, int], pose: HeadPose, x: Values, y: Values, still_px: int) -> _Borders:
        """still_px  the width of the strip along each border in which nothing moves at all"""
        width, height = size

        def fade(distance: Values, side: int) -> Values:
            return smoothstep((distance - still_px) / min(EDGE * pose.size_px, EDGE_SHARE * side))

        return cls(fade(x, width), fade(width - 1 - x, width), fade(y, height), fade(height - 1 - y, height))

    @property
    def both_ways(self) -> Values:
        """For movements to and fro: (rows, columns, 2) for x and y."""
        return np.dstack(np.broadcast_arrays(self.left * self.right, self.top * self.bottom))

    def one_way(self, dx: float, dy: float) -> Values:
        """For a movement that only goes this way: content may leave the picture, but none may be missing."""
        return np.dstack(np.broadcast_arrays(self.left if dx > 0 else self.right, self.top if dy > 0 else self.bottom))


def _beside(other_faces: Sequence[Box], pose: HeadPose, x: Values, y: Values, still_px: int) -> Values:
    """The share of the movement left beside other faces, (rows, columns, 1): 0 on them and `still_px` around."""
    left = np.ones((y.size, x.size, 1))
    for other in other_faces:
        aside = np.maximum(np.maximum(other.x - x, x - other.right), 0)
        above = np.maximum(np.maximum(other.y - y, y - other.bottom), 0)
        left *= smoothstep((np.hypot(aside, above) - still_px) / (NEIGHBOUR * pose.size_px))[..., None]
    return left
