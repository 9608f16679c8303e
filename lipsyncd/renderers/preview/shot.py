"""One face that speaks: the canvas, the moving parts on it, and the frames that come out.

The canvas is what the video shows when nothing moves. Each frame is that canvas with one box around the lower face
drawn anew, and two around the eyes during a blink. Pixels outside these never change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers.preview.blink import Lid
from lipsyncd.renderers.preview.inside import Inside
from lipsyncd.renderers.preview.mouth import Mouth
from lipsyncd.renderers.preview.plane import Field, Picture, Plane, Window
from lipsyncd.renderers.preview.voice import Motion
from lipsyncd.renderers.preview.warp import Pose, Warp, edges, reach

FIELD_SCALE = 64.0  # cells for each unit of the displacement, at most: it is smooth
TABLE_SCALE = 512.0  # entries for each unit of the edges of the lips


class SpeakingMouth:
    """The lower face of one canvas, in any pose."""

    def __init__(self, canvas: Picture, plane: Plane, mouth: Mouth, seed: int) -> None:
        self._canvas, self._mouth = canvas, mouth
        left, top, right, bottom = reach(mouth)
        field = Window(left, top, right, bottom, min(FIELD_SCALE, max(plane.unit_px, 24.0)))
        self._warp = Warp(mouth, field)
        x0, y0, x1, y1 = _pixel_box(plane, (left, top, right, bottom), canvas)
        self.box = np.s_[y0:y1, x0:x1]
        self._size = (x1 - x0, y1 - y0)
        self._to_box = plane.to_pixels(field) - [[0, 0, x0], [0, 0, y0]]
        self._axes = np.array([[plane.along_x, plane.along_y], [-plane.along_y, plane.along_x]], np.float32)
        x, y = np.meshgrid(np.arange(x0, x1, dtype=np.float32), np.arange(y0, y1, dtype=np.float32))
        u, self._v = plane.coordinates(x, y)
        self._here = np.dstack((x, y))
        self._table_u = np.arange(left - 0.6, right + 0.6, 1 / TABLE_SCALE, dtype=np.float32)
        self._entry = np.clip(np.rint((u - self._table_u[0]) * TABLE_SCALE), 0, len(self._table_u) - 1).astype(np.int32)

        line = float(mouth.upper[-1])
        hole = (mouth.middle - 0.55, line - 0.22, mouth.middle + 0.55, line + 0.48)
        hx0, hy0, hx1, hy1 = _pixel_box(plane, hole, canvas)
        self._hole = np.s_[hy0 - y0 : hy1 - y0, hx0 - x0 : hx1 - x0]
        self._inside = Inside(canvas, plane, mouth, (hx0, hy0, hx1, hy1), seed)

    def draw(self, frame: Picture, pose: Pose) -> None:
        """Draw the lower face in this pose into `frame`."""
        lips = edges(self._mouth, pose, self._table_u)
        upper, lower = self._in_pixels(self._warp.sheets(pose))
        line = ((lips.upper + lips.lower) / 2)[self._entry]
        moved = np.where((self._v < line)[..., None], upper, lower)
        came_from = self._here - moved
        warped = cv2.remap(self._canvas, came_from, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        if lips.gap > 0:
            entry = self._entry[self._hole]
            colour, weight = self._inside.paint(lips, lips.upper[entry], lips.lower[entry], pose)
            here = warped[self._hole]
            here[:] = np.rint(here + (colour - here) * weight).clip(0, 255)
        frame[self.box] = warped

    def _in_pixels(self, sheets: tuple[Field, Field]) -> list[NDArray[np.float32]]:
        """Displacements of the plane's cells as displacements of the box's pixels, (h, w, 2) each."""
        return [
            cast(
                Field,
                cv2.warpAffine(
                    (sheet @ self._axes).astype(np.float32), self._to_box, self._size, flags=cv2.INTER_LINEAR
                ),
            )
            for sheet in sheets
        ]


class PreviewShot:
    """A scene with its face found; see `lipsyncd.renderers.Shot`."""

    def __init__(
        self,
        canvas: Picture,
        mouth: SpeakingMouth,
        lids: list[Lid],
        motion: Motion,
        closure: Field,
        notes: Mapping[str, object],
    ) -> None:
        self._canvas, self._mouth, self._lids = canvas, mouth, lids
        self._motion, self._closure = motion, closure
        self.notes = notes

    @property
    def width(self) -> int:
        return self._canvas.shape[1]

    @property
    def height(self) -> int:
        return self._canvas.shape[0]

    def frames(self) -> Iterator[Picture]:
        frame = self._canvas.copy()
        shown: Pose | None = None
        down = 0.0
        for openness, width, closure in zip(self._motion.openness, self._motion.width, self._closure, strict=True):
            pose = Pose(float(openness), float(width))
            if pose != shown:
                self._mouth.draw(frame, pose)
                shown = pose
            if closure != down:
                for lid in self._lids:
                    lid.close(frame, float(closure)) if closure else lid.open(frame)
                down = closure
            yield frame


def _pixel_box(plane: Plane, part: tuple[float, float, float, float], canvas: Picture) -> tuple[int, int, int, int]:
    """The smallest box of canvas pixels around a part of the plane: left, top, right, bottom."""
    left, top, right, bottom = part
    u, v = np.array([left, right, left, right]), np.array([top, top, bottom, bottom])
    x = plane.x + u * plane.along_x - v * plane.along_y
    y = plane.y + u * plane.along_y + v * plane.along_x
    x0, x1 = np.clip([np.floor(x.min()), np.ceil(x.max()) + 1], 0, canvas.shape[1])
    y0, y1 = np.clip([np.floor(y.min()), np.ceil(y.max()) + 1], 0, canvas.shape[0])
    return int(x0), int(y0), int(x1), int(y1)
