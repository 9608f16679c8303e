"""One portrait that speaks: the frames of a still picture, one after another.

Only the area under the mask ever changes. Frames in a pause are the picture itself and cost nothing.

Owns the order of a still's frames. Leaves preparing the face to `look` and painting it to `pipeline`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers import Scene
from lipsyncd.renderers.framing import Box, RgbImage, SquareView, make_even, square_around
from lipsyncd.renderers.musetalk.audio_features import Track
from lipsyncd.renderers.musetalk.painting.pipeline import Ahead, Pipeline, Wanted
from lipsyncd.renderers.musetalk.painting.prepared_face import Look


@dataclass(frozen=True)
class Voice:
    """What is heard, and how much of each frame it paints: `weights` (frames,) float32, 0 to 1."""

    track: Track
    weights: NDArray[np.float32]


class StillShot:
    """A scene with its face found; see `lipsyncd.renderers.Shot`."""

    def __init__(
        self,
        scene: Scene,
        face: Box,
        look: Look,
        voice: Voice,
        pipeline: Pipeline,
        *,
        exact: bool,
        notes: dict[str, object],
        done: Callable[[dict[str, object]], None],
    ) -> None:
        """
        exact  scale patches with OpenCV, as the original does, and not on the device
        done   called with the notes when the last frame is out or the shot is given up
        """
        self._scene, self._look, self._voice, self._pipeline = scene, look, voice, pipeline
        self._exact, self._notes, self._done = exact, notes, done
        self._canvas = make_even(scene.picture)
        height, width = scene.picture.shape[:2]
        square = square_around(face, width, height)
        self._view = None if scene.stitch else SquareView(width, height, square, scene.resolution)

    @property
    def width(self) -> int:
        return int(self._canvas.shape[1]) if self._view is None else self._scene.resolution

    @property
    def height(self) -> int:
        return int(self._canvas.shape[0]) if self._view is None else self._scene.resolution

    @property
    def notes(self) -> Mapping[str, object]:
        return self._notes

    def frames(self) -> Iterator[RgbImage]:
        """See `Shot.frames`."""
        weights = self._voice.weights
        frame, quiet = self._canvas.copy(), self._shown(self._canvas)
        paint = self._look.paste.onto if self._exact else self._look.paste.lay
        try:
            with closing(Ahead(self._pipeline.patches(self._wanted()))) as patches:
                for weight in weights:
                    if weight == 0:
                        yield quiet
                    else:
                        paint(self._canvas, next(patches), frame, weight=float(weight))
                        yield self._shown(frame)
        finally:
            self._notes["painted_frames"] = int(np.count_nonzero(weights))
            self._done(self._notes)

    def _wanted(self) -> Iterator[Wanted]:
        paste = None if self._exact else self._look.paste
        for number in np.flatnonzero(self._voice.weights):
            yield Wanted(self._look.latents, self._voice.track.window(int(number)), paste)

    def _shown(self, picture: RgbImage) -> RgbImage:
        return picture if self._view is None else self._view.of(picture)
