"""The lower face of one canvas, drawn in any pose of the mouth.

`warp` moves the photograph, `mouth_inside` paints between the lips. Pixels outside a box around the lower face never
change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers.coarse_grid import Grid
from lipsyncd.renderers.face.networks import Mesh
from lipsyncd.renderers.framing import Box, RgbImage
from lipsyncd.renderers.preview.draw.fine_box import FineBox
from lipsyncd.renderers.preview.draw.lips import LipEdges, Pose, lip_edges
from lipsyncd.renderers.preview.draw.mouth_inside import MouthInside
from lipsyncd.renderers.preview.draw.warp import Sheet, Warp, moving_area
from lipsyncd.renderers.preview.mouth import resting_mouth
from lipsyncd.renderers.preview.plane import Field, PixelBox, Plane, Window

FIELD_SCALE = 48.0  # cells of the displacement field for each unit, about; the field is smooth
HOLE_HALF, HOLE_ABOVE, HOLE_BELOW = 0.56, 0.26, 0.52  # units around the line between the lips; holds every opening
TABLE_PX = 0.5  # pixels between entries of the table of the lips' edges, about
_ZERO = np.zeros(1)


class SpeakingMouth:
    """Draws the lower face of one canvas in any pose."""

    def __init__(self, canvas: RgbImage, mesh: Mesh, seed: int) -> None:
        """`mesh` is in the pixels of the canvas; `seed` fixes the grain of painted parts."""
        self._canvas, self._plane = canvas, Plane.of(mesh)
        plane = self._plane
        self._mouth = mouth = resting_mouth(canvas, mesh, plane)
        moving = moving_area(mouth)
        self._box = box = PixelBox.around(plane, moving, canvas)
        self._photo = FineBox(canvas, box)
        cell_px = max(round(plane.unit_px / FIELD_SCALE), 1)
        self._grid = grid = Grid(box.left, box.top, *box.size, cell_px)
        x, y = grid.x[None, :], grid.y[:, None]
        cell_u, self._cell_v = plane.coordinates(x, y)
        window = Window(*moving, scale=min(FIELD_SCALE, max(plane.unit_px, 24.0)))
        self._warp = Warp(mouth, mesh, plane, window, (cell_u, self._cell_v))
        self._here = tuple(np.broadcast_to(at, cell_u.shape).astype(np.float32) for at in self._photo.places(x, y))
        u, self._v = plane.coordinates(np.arange(box.left, box.right)[None, :], np.arange(box.top, box.bottom)[:, None])
        scale = float(np.clip(plane.unit_px / TABLE_PX, 128, 1024))
        self._table_u = np.arange(moving[0] - 0.05, moving[2] + 0.05, 1 / scale, dtype=np.float32)
        self._table_x = mouth.frontal(self._table_u)

        def entries(u: Field) -> NDArray[np.intp]:
            nearest: NDArray[np.intp] = np.rint((u - self._table_u[0]) * scale).astype(np.intp)
            return nearest.clip(0, len(self._table_u) - 1)

        self._entry, self._cell_entry = entries(u), entries(cell_u)
        left, right = np.interp((-HOLE_HALF, HOLE_HALF), self._table_x, self._table_u).tolist()
        hole = (left, mouth.line_v - HOLE_ABOVE, right, mouth.line_v + HOLE_BELOW)
        self._hole = PixelBox.around(plane, hole, canvas).within(self._box)
        self._inside = MouthInside(canvas, plane, mouth, self._hole, seed)

    @property
    def box(self) -> Box:
        """The pixels of the canvas that are drawn."""
        return Box(self._box.left, self._box.top, *self._box.size)

    @property
    def open_at_rest(self) -> bool:
        """Are the lips apart in the photograph?"""
        return self._mouth.open_at_rest

    def draw(self, frame: RgbImage, pose: Pose) -> None:
        """Draw the lower face in this pose into `frame`."""
        lips = lip_edges(self._mouth, pose, self._table_x)
        cells = lips.at(self._cell_entry)
        upper, lower = (self._sources(sheet) for sheet in self._warp.sheets(cells))
        on_upper = self._cell_v < (cells.upper + cells.lower) / 2
        source = [self._grid.enlarged(np.where(on_upper, *both)) for both in zip(upper, lower, strict=True)]
        box = self._lips_box(lips)
        if box.empty:
            frame[self._box.slices] = self._photo.read(*source)
            return
        # Around the line between the lips each pixel belongs to one sheet, not to a mixture of both.
        here = box.inside(self._box)
        entry, v = self._entry[here], self._v[here]
        top, bottom = lips.upper[entry], lips.lower[entry]
        over, under = ([self._grid.enlarged(axis, here) for axis in sheet] for sheet in (upper, lower))
        below = v - (top + bottom) / 2
        if not self._mouth.open_at_rest:
            for whole, *both in zip(source, under, over, strict=True):
                whole[here] = np.where(below > 0, *both)
        face = self._photo.read(*source)
        if lips.gap > 0 or self._mouth.open_at_rest:
            if self._mouth.open_at_rest:
                # Two parts of the photograph meet that lie apart in it: blend them, which avoids jagged edges.
                colour, lower_lip = (_planes(self._photo.read(*sheet)) for sheet in (over, under))
                colour += (lower_lip - colour) * np.clip(below * np.float32(self._plane.unit_px) + 0.5, 0.0, 1.0)
            else:
                colour = _planes(face[here])
            painted, weight = self._inside.paint(box.inside(self._hole), pose, lips, top, bottom)
            colour += (painted - colour) * weight
            face[here] = _picture(colour)
        frame[self._box.slices] = face

    def _sources(self, sheet: Sheet) -> Sheet:
        """Where the pixels in the middle of each cell come from, in pixels of the fine photograph."""
        right, down = sheet
        scale, plane = self._photo.scale, self._plane
        x, y = self._here
        return (
            x - (right * np.float32(scale * plane.across_x) + down * np.float32(scale * plane.down_x)),
            y - (right * np.float32(scale * plane.across_y) + down * np.float32(scale * plane.down_y)),
        )

    def _lips_box(self, lips: LipEdges) -> PixelBox:
        """The surroundings of the line between the lips."""
        inside = np.abs(self._table_x) <= max(lips.half, self._mouth.half)
        margin = 3.0 * self._grid.cell_px / self._plane.unit_px
        left, right = self._table_u[inside][[0, -1]]
        part = (left - margin, lips.upper[inside].min() - margin, right + margin, lips.lower[inside].max() + margin)
        return PixelBox.around(self._plane, part, self._canvas).within(self._hole)


def _planes(picture: RgbImage) -> Field:
    """The same as (3, h, w) float32."""
    return np.stack(cv2.split(picture)).astype(np.float32)


def _picture(planes: Field) -> RgbImage:
    """The same, rounded, as (h, w, 3) uint8."""
    _, height, width = planes.shape
    whole = cv2.add(planes.reshape(3 * height, width), _ZERO, dtype=cv2.CV_8U)  # rounds to even and saturates
    return cast(RgbImage, cv2.merge(cast(Sequence[RgbImage], whole.reshape(3, height, width))))
