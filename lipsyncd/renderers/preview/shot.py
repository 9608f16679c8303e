"""The frames of one face that speaks.

The canvas is the frame in which nothing moves. Every other frame is the canvas with the mouth drawn in its pose; all
else stays as it is. The head is moved afterwards, mouth and all, by `renderers.motion`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from lipsyncd.renderers import Scene, Still
from lipsyncd.renderers.face.face import Face
from lipsyncd.renderers.face.networks import Mesh
from lipsyncd.renderers.framing import RgbImage, crop_square, make_even, square_around
from lipsyncd.renderers.preview.draw.lips import Pose
from lipsyncd.renderers.preview.draw.speaking_mouth import SpeakingMouth
from lipsyncd.renderers.preview.options import Options
from lipsyncd.renderers.preview.voice import Motion, motion


class PreviewShot:
    """A scene whose face is chosen; see `lipsyncd.renderers.Shot`."""

    def __init__(self, scene: Scene, face: Face, options: Options, seed: int) -> None:
        self._canvas, mesh = make_canvas(scene, face)
        self._poses = poses(motion(scene.speech, scene.fps, scene.frames, strength=options.strength))
        self._mouth = SpeakingMouth(self._canvas, mesh, seed)
        self.still = Still(self._canvas, mesh, self._mouth.box)
        box = face.box
        self._notes = {
            "face": [box.x, box.y, box.width, box.height],
            "eyes_px": round(face.eyes_px, 1),
            "teeth": "own" if self._mouth.open_at_rest else "painted",
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
        return self.span(0, len(self._poses))

    def span(self, start: int, stop: int) -> Iterator[RgbImage]:
        """See `renderers.span`: a pose is drawn over the whole of the part that changes."""
        frame = self._canvas.copy()
        drawn: Pose | None = None
        for pose in self._poses[start:stop]:
            if pose != drawn:
                self._mouth.draw(frame, pose)
                drawn = pose
            yield frame


def poses(mouth: Motion) -> list[Pose]:
    """The pose of each frame."""
    curves = (mouth.openness, mouth.width, mouth.press, mouth.bite)
    return [Pose(*numbers) for numbers in np.stack(curves, axis=1).astype(float).tolist()]


def make_canvas(scene: Scene, face: Face) -> tuple[RgbImage, Mesh]:
    """The canvas of a scene, (H, W, 3) with even sides, and the face's mesh in its pixels."""
    if scene.stitch:
        return make_even(scene.picture), face.mesh
    height, width = scene.picture.shape[:2]
    square = square_around(face.box, width, height)
    factor = scene.resolution / square.width
    mesh = face.mesh.astype(np.float64)
    mesh[:, :2] += (0.5 - square.x, 0.5 - square.y)
    mesh *= factor
    mesh[:, :2] -= 0.5
    return crop_square(scene.picture, square, scene.resolution), mesh.astype(np.float32)
