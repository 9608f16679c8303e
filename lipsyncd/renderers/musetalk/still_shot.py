"""The frames of a still picture that speaks.

Only the area under the mask changes. Frames in a pause are the unchanged picture and cost nothing.

Owns the sequence of a still's frames. Leaves preparing the face to `painting.prepared_face` and painting it to
`painting.pipeline`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers import Scene, Still
from lipsyncd.renderers.framing import Box, RgbImage, SquareView, make_even, square_around
from lipsyncd.renderers.musetalk.audio_features import AudioFeatures
from lipsyncd.renderers.musetalk.painting.pipeline import FrameInput, Pipeline
from lipsyncd.renderers.musetalk.painting.prepared_face import PreparedFace
from lipsyncd.renderers.prefetcher import Prefetcher


@dataclass(frozen=True)
class Voice:
    """The features of a voice, and the opacity of the painted face in each frame: (frames,) float32, 0 to 1."""

    features: AudioFeatures
    weights: NDArray[np.float32]

    def begin(self) -> None:
        """Encode the sound of the first painted frame: when a job is opened ahead, its first frame waits for less."""
        for number in np.flatnonzero(self.weights)[:1].tolist():
            self.features.window(number)


class StillShot:
    """A still scene whose face is prepared; see `lipsyncd.renderers.Shot`."""

    def __init__(
        self,
        scene: Scene,
        face: Box,
        prepared: PreparedFace,
        voice: Voice,
        pipeline: Pipeline,
        *,
        parity: bool,
        notes: dict[str, object],
        done: Callable[[dict[str, object]], None],
    ) -> None:
        """
        parity  scale patches with OpenCV, as the original does, and not on the device
        done    called with the notes after the last frame, or when the iterator is closed early
        """
        self._scene, self._prepared, self._voice, self._pipeline = scene, prepared, voice, pipeline
        self._parity, self._notes, self._done = parity, notes, done
        self._canvas = make_even(scene.picture)
        height, width = scene.picture.shape[:2]
        square = square_around(face, width, height)
        self._view = None if scene.stitch else SquareView(width, height, square, scene.resolution)

    @property
    def still(self) -> Still:
        """The frame in which nothing moves. The head is moved after painting, so the patch never leaves its place."""
        area = self._prepared.paste.area
        return Still(self._framed(self._canvas), changes=area if self._view is None else self._view.shown(area))

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
        return self.span(0, len(self._voice.weights))

    def span(self, start: int, stop: int) -> Iterator[RgbImage]:
        """See `renderers.span`. Whole batches are painted, the same ones as for the whole video: in another batch a
        frame could differ by single levels.
        """
        weights = self._voice.weights
        painted = np.flatnonzero(weights)
        first, last = np.searchsorted(painted, (start, stop)).tolist()
        size = self._pipeline.begin() if first < last else 1
        begin = first - first % size
        batches = painted[begin : begin if first == last else last + -last % size]
        frame, unpainted = self._canvas.copy(), self._framed(self._canvas)
        blend = self._prepared.paste.blend_patch if self._parity else self._prepared.blend
        try:
            with (
                self._voice.features.ahead(batches.tolist()),
                closing(Prefetcher(self._pipeline.patches(self._frame_inputs(batches)))) as patches,
            ):
                for _ in range(begin, first):
                    next(patches)
                for weight in weights[start:stop]:
                    if weight == 0:
                        yield unpainted
                    else:
                        blend(self._canvas, next(patches), frame, weight=float(weight))
                        yield self._framed(frame)
        finally:
            self._notes["painted_frames"] = int(np.count_nonzero(weights))
            self._done(self._notes)

    def _frame_inputs(self, numbers: NDArray[np.intp]) -> Iterator[FrameInput]:
        paste = None if self._parity else self._prepared.paste
        for number in numbers:
            yield FrameInput(self._prepared.latents, self._voice.features.window(int(number)), paste)

    def _framed(self, picture: RgbImage) -> RgbImage:
        return picture if self._view is None else self._view.of(picture)
