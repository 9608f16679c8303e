"""The frames of a source video that speaks: each frame's face is painted where it is.

Frames come from the decoder in groups; those of a group in which a face is painted go through the networks together. A
thread does this ahead of the encoder by a bounded number of frames, so memory does not grow with the length.

Owns the sequence of a video's frames. Leaves finding the face to `face.track`, preparing it to
`painting.prepared_face`, painting it to `painting.pipeline`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from itertools import islice

from lipsyncd.renderers import Scene, Source
from lipsyncd.renderers.framing import RgbImage, SquareView, make_even, square_around
from lipsyncd.renderers.musetalk.face.find_face import FaceFound
from lipsyncd.renderers.musetalk.face.track import FaceTrack
from lipsyncd.renderers.musetalk.painting.pipeline import FrameInput, Pipeline
from lipsyncd.renderers.musetalk.painting.prepared_face import PreparedFace
from lipsyncd.renderers.musetalk.still_shot import Voice
from lipsyncd.renderers.prefetcher import Prefetcher

FRAMES_AT_ONCE = 16  # the usual batch
_KEPT_BYTES = 128 << 20  # of masks and textures, for frames that are shown again; the latents are small beside them


class VideoShot:
    """A scene with a source video whose faces are found; see `lipsyncd.renderers.Shot`."""

    def __init__(
        self,
        scene: Scene,
        source: Source,
        track: FaceTrack,
        prepare: Callable[[RgbImage, FaceFound], PreparedFace],
        voice: Voice,
        pipeline: Pipeline,
        *,
        frames_at_once: int = FRAMES_AT_ONCE,
        parity: bool,
        notes: dict[str, object],
        done: Callable[[dict[str, object]], None],
    ) -> None:
        """
        prepare         prepares the face of a frame for the networks
        frames_at_once  frames that are read before the networks run
        parity          scale patches with OpenCV, as the original does, and not on the device
        done            called with the notes after the last frame, or when the iterator is closed early
        """
        self._scene, self._source, self._track, self._prepare = scene, source, track, prepare
        self._voice, self._pipeline, self._parity, self._notes, self._done = voice, pipeline, parity, notes, done
        self._at_once = frames_at_once
        self._prepared: dict[int, PreparedFace] = {}
        self._kept_bytes = 0
        self._painted = 0
        height, width = scene.picture.shape[:2]
        self._size = (width + width % 2, height + height % 2)
        # One square for the whole video: a square that follows the face would look like a shaking camera.
        square = square_around(track.median_box, width, height)
        self._view = None if scene.stitch else SquareView(width, height, square, scene.resolution)

    @property
    def width(self) -> int:
        return self._size[0] if self._view is None else self._scene.resolution

    @property
    def height(self) -> int:
        return self._size[1] if self._view is None else self._scene.resolution

    @property
    def notes(self) -> Mapping[str, object]:
        return self._notes

    def frames(self) -> Iterator[RgbImage]:
        """See `Shot.frames`."""
        frames = self._render_frames()
        try:
            with closing(Prefetcher(frames)) as ready:
                yield from ready
        finally:
            frames.close()  # and with it the decoder
            self._notes["painted_frames"] = self._painted
            self._notes["source_frames"] = self._source.frames
            self._notes["frames_without_face"] = self._source.frames - len(self._track.found)
            self._done(self._notes)

    def _render_frames(self) -> Generator[RgbImage]:
        """Every frame of the result; runs on the prefetcher's thread."""
        with closing(self._source.play(self._scene.frames)) as source:
            numbered = enumerate(source)
            while group := list(islice(numbered, self._at_once)):
                yield from self._paint([(number, index, picture) for number, (index, picture) in group])

    def _paint(self, group: list[tuple[int, int, RgbImage]]) -> Iterator[RgbImage]:
        """Paint a few frames, each with its number in the result and in the source."""
        weights = [self._weight(number, index) for number, index, _ in group]
        faces = [
            self._prepared_face(index, picture) if weight > 0 else None
            for (_, index, picture), weight in zip(group, weights, strict=True)
        ]
        inputs = [
            FrameInput(face.latents, self._voice.features.window(number), None if self._parity else face.paste)
            for (number, _, _), face in zip(group, faces, strict=True)
            if face is not None
        ]
        patches = self._pipeline.patches(inputs)
        for (_, _, picture), face, weight in zip(group, faces, weights, strict=True):
            if face is None:
                yield self._framed(picture)
                continue
            painted = picture.copy()  # the source may yield the same array again
            blend = face.paste.blend_patch if self._parity else face.blend
            blend(picture, next(patches), painted, weight=weight)
            self._painted += 1
            yield self._framed(painted)

    def _weight(self, number: int, index: int) -> float:
        """The opacity of the painted face in a frame: 0 in a pause and where there is no face."""
        return float(self._voice.weights[number] * self._track.strength[index])

    def _prepared_face(self, index: int, picture: RgbImage) -> PreparedFace:
        prepared = self._prepared.get(index)
        if prepared is None:
            face = self._track.faces[index]
            assert face is not None  # without a face the strength is 0
            prepared = self._prepare(picture, face)
            if self._kept_bytes < _KEPT_BYTES:
                self._prepared[index] = prepared
                self._kept_bytes += prepared.nbytes
        return prepared

    def _framed(self, picture: RgbImage) -> RgbImage:
        return make_even(picture) if self._view is None else self._view.of(picture)
