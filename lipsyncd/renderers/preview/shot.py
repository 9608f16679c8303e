"""The frames of one face that speaks.

The canvas is the frame in which nothing moves. Every other frame is the canvas with a box around the lower face
redrawn, and two boxes around the eyes during a blink. Pixels outside these boxes never change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

import cv2
import numpy as np

from lipsyncd.renderers import Scene
from lipsyncd.renderers.audio import frame_times
from lipsyncd.renderers.framing import RgbImage, crop_square, make_even, square_around
from lipsyncd.renderers.preview.draw.blink import lid_closure, lids
from lipsyncd.renderers.preview.draw.mouth_inside import MouthInside
from lipsyncd.renderers.preview.draw.sway import Sway
from lipsyncd.renderers.preview.draw.warp import LipEdges, Pose, Warp, lip_edges, moving_area
from lipsyncd.renderers.preview.find.choose_face import ChosenFace
from lipsyncd.renderers.preview.find.face import Face
from lipsyncd.renderers.preview.find.face_coordinates import Field, PixelBox, Plane, Window, displaced
from lipsyncd.renderers.preview.find.mouth import Mouth
from lipsyncd.renderers.preview.options import Options
from lipsyncd.renderers.preview.voice import motion

FIELD_SCALE = 64.0  # cells of the displacement field for each unit, at most; the field is smooth
HOLE_HALF, HOLE_ABOVE, HOLE_BELOW = 0.56, 0.24, 0.52  # units around the line between the lips; holds every opening
TABLE_SCALE = 512.0  # entries of the table of the lips' edges for each unit


class SpeakingMouth:
    """Draws the lower face of one canvas in any pose."""

    def __init__(self, canvas: RgbImage, plane: Plane, mouth: Mouth, seed: int) -> None:
        self._canvas, self._plane, self._mouth = canvas, plane, mouth
        moving = moving_area(mouth)
        self._field = Window(*moving, scale=min(FIELD_SCALE, max(plane.unit_px, 24.0)))
        self._warp = Warp(mouth, self._field)
        self._box = PixelBox.around(plane, moving, canvas)
        self._axes = np.array([[plane.along_x, plane.along_y], [-plane.along_y, plane.along_x]], np.float32)
        x, y = np.meshgrid(np.arange(self._box.left, self._box.right), np.arange(self._box.top, self._box.bottom))
        self._here = np.dstack((x, y)).astype(np.float32)
        u, self._v = plane.coordinates(x, y)
        self._table_u = np.arange(moving[0] - 0.6, moving[2] + 0.6, 1 / TABLE_SCALE, dtype=np.float32)
        entry = np.rint((u - self._table_u[0]) * TABLE_SCALE)
        self._entry = np.clip(entry, 0, len(self._table_u) - 1).astype(np.int32)
        line = mouth.line_v
        hole = (mouth.middle - HOLE_HALF, line - HOLE_ABOVE, mouth.middle + HOLE_HALF, line + HOLE_BELOW)
        self._hole = PixelBox.around(plane, hole, canvas).within(self._box)
        self._inside = MouthInside(canvas, plane, mouth, self._hole, seed)

    def draw(self, frame: RgbImage, pose: Pose) -> None:
        """Draw the lower face in this pose into `frame`."""
        lips = lip_edges(self._mouth, pose, self._table_u)
        upper, lower = self._warp.sheets(pose)
        _, cell_v = self._field.grid()
        line = np.interp(self._field.grid()[0][0], self._table_u, (lips.upper + lips.lower) / 2)
        face = self._moved(np.where((cell_v < line)[..., None], upper, lower), self._box)
        self._part_lips(face, pose, lips, upper, lower)
        frame[self._box.slices] = face

    def _part_lips(self, face: RgbImage, pose: Pose, lips: LipEdges, upper: Field, lower: Field) -> None:
        """Redraw the surroundings of the line between the lips pixel by pixel, with the inside of the mouth."""
        inside = np.abs(self._table_u - self._mouth.middle) <= max(lips.half, self._mouth.half)
        margin = 3.0 / self._field.scale
        left, right = self._table_u[inside][[0, -1]]
        part = (left - margin, lips.upper[inside].min() - margin, right + margin, lips.lower[inside].max() + margin)
        box = PixelBox.around(self._plane, part, self._canvas).within(self._hole)
        if box.empty:
            return
        here = box.inside(self._box)
        entry, v = self._entry[here], self._v[here]
        top, bottom = lips.upper[entry], lips.lower[entry]
        # Pixels where the sheets meet are blended, which avoids jagged edges.
        below = np.clip((v - (top + bottom) / 2) * np.float32(self._plane.unit_px) + 0.5, 0.0, 1.0)[..., None]
        over, under = self._moved(upper, box), self._moved(lower, box)
        colour = over + (under.astype(np.float32) - over) * below
        if lips.gap > 0 or self._mouth.open_at_rest:
            painted, weight = self._inside.paint(box.inside(self._hole), pose, lips, top, bottom)
            colour += (painted - colour) * weight
        face[here] = np.rint(colour).clip(0, 255)

    def _moved(self, sheet: Field, box: PixelBox) -> RgbImage:
        """The canvas in `box`, displaced by `sheet`, which covers the cells of the plane; (h, w, 3)."""
        to_box = self._plane.to_pixels(self._field) - [[0, 0, box.left], [0, 0, box.top]]
        in_pixels = (sheet @ self._axes).astype(np.float32)
        displacement = cast(Field, cv2.warpAffine(in_pixels, to_box, box.size, flags=cv2.INTER_LINEAR))
        return displaced(self._canvas, self._here[box.inside(self._box)] - displacement)


class PreviewShot:
    """A scene whose face is chosen; see `lipsyncd.renderers.Shot`."""

    def __init__(self, scene: Scene, chosen: ChosenFace, options: Options, seed: int) -> None:
        self._canvas, plane = make_canvas(scene, chosen.face)
        self._at_s = frame_times(scene.fps, scene.frames)
        self._motion = motion(scene.speech, scene.fps, scene.frames, strength=options.strength)
        self._mouth = SpeakingMouth(self._canvas, plane, chosen.mouth, seed)
        self._lids = lids(self._canvas, plane) if options.blink and chosen.face.eyes_seen else []
        self._closure = lid_closure(self._at_s, seed)
        self._sway = Sway(self._canvas, plane, options.sway_percent, seed) if options.sway_percent > 0 else None
        box = chosen.face.box
        self._notes = {
            "face": [box.x, box.y, box.width, box.height],
            "eyes_px": round(chosen.face.plane.unit_px, 1),
            "blinks": bool(self._lids),
            "teeth": "own" if chosen.mouth.open_at_rest else "painted",
        }

    @property
    def width(self) -> int:
        return int(self._canvas.shape[1])

    @property
    def height(self) -> int:
        return int(self._canvas.shape[0])

    @property
    def notes(self) -> Mapping[str, object]:
        return self._notes

    def frames(self) -> Iterator[RgbImage]:
        """See `Shot.frames`. Only changes are drawn, so silence costs nothing."""
        frame = self._canvas.copy()
        swayed = frame.copy()
        drawn: Pose | None = None
        down = 0.0
        for at_s, openness, width, closure in self._frame_parameters():
            pose = Pose(openness, width)
            if pose != drawn:
                self._mouth.draw(frame, pose)
                drawn = pose
            if closure != down:
                for lid in self._lids:
                    lid.close(frame, closure)
                down = closure
            if self._sway is None:
                yield frame
            else:
                self._sway.apply(frame, swayed, at_s)
                yield swayed

    def _frame_parameters(self) -> Iterator[tuple[float, float, float, float]]:
        """For each frame its time in seconds, openness, width, and how far the lids are closed."""
        curves = (self._at_s, self._motion.openness, self._motion.width, self._closure)
        return ((float(a), float(b), float(c), float(d)) for a, b, c, d in zip(*curves, strict=True))


def make_canvas(scene: Scene, face: Face) -> tuple[RgbImage, Plane]:
    """The canvas of a scene, (H, W, 3) with even sides, and the face's plane on it."""
    if scene.stitch:
        return make_even(scene.picture), face.plane
    height, width = scene.picture.shape[:2]
    square = square_around(face.box, width, height)
    factor = scene.resolution / square.width
    dx, dy = ((0.5 - start) * factor - 0.5 for start in (square.x, square.y))
    return crop_square(scene.picture, square, scene.resolution), face.plane.rescaled(factor, dx, dy)
