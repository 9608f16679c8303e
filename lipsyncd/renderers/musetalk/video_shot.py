"""The frames of a source video that speaks: each frame's face is painted where it is.

Each step has a thread of its own, and works on the next frames while the others are busy with those before:

    decode ──► cut out and mask the face ──► encode it, paint it ──► blend, frame ──► (the encoder)
                                             (the device's thread)

Frames go through the networks in batches that no border between groups cuts short. Between two steps a few frames wait,
so memory does not grow with the length. Which frames share a batch depends on their numbers alone, never on time.

Owns the sequence of a video's frames. Leaves finding the face to `face.track`, preparing it to
`painting.prepared_face`, painting it to `painting.pipeline`, and the threads to `renderers.prefetcher`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import numpy as np

from lipsyncd.renderers import Scene, Source
from lipsyncd.renderers.framing import RgbImage, SquareView, make_even, square_around
from lipsyncd.renderers.musetalk.face.find_face import FaceFound
from lipsyncd.renderers.musetalk.face.track import FaceTrack
from lipsyncd.renderers.musetalk.painting.face_encoder import FaceEncoder, InFlight
from lipsyncd.renderers.musetalk.painting.pipeline import FrameInput, Pipeline
from lipsyncd.renderers.musetalk.painting.prepared_face import PlacedFace, PreparedFace
from lipsyncd.renderers.musetalk.still_shot import Voice
from lipsyncd.renderers.prefetcher import Prefetcher, Step

_LEAST_WAITING, _WAITING_BYTES = 4, 64 << 20  # frames between two steps: a batch, or fewer where frames are large
_KEPT_BYTES = 128 << 20  # of masks and textures, for frames that are shown again; the latents are small beside them


@dataclass
class _Face:
    """A face on its way: placed, then under way in the encoder with neither, then prepared."""

    placed: PlacedFace | None
    prepared: PreparedFace | None = None

    @property
    def ready(self) -> PreparedFace:
        assert self.prepared is not None  # frames pass the encoder in their order
        return self.prepared


@dataclass(frozen=True)
class _Frame:
    """A frame on its way: its number in the result, its picture, and the opacity of its painted face, 0 without one."""

    number: int
    picture: RgbImage
    weight: float
    face: _Face | None


@dataclass(frozen=True)
class _Encoding:
    """A few frames, and those of their faces that are being encoded."""

    frames: list[_Frame]
    faces: list[tuple[_Face, PlacedFace]]
    in_flight: list[InFlight]


class VideoShot:
    """A scene with a source video whose faces are found; see `lipsyncd.renderers.Shot`."""

    def __init__(
        self,
        scene: Scene,
        source: Source,
        track: FaceTrack,
        place: Callable[[RgbImage, FaceFound], PlacedFace],
        encoder: FaceEncoder,
        voice: Voice,
        pipeline: Pipeline,
        *,
        place_on_device: bool = False,
        parity: bool,
        notes: dict[str, object],
        done: Callable[[dict[str, object]], None],
    ) -> None:
        """
        place            cuts out and masks the face of a frame
        place_on_device  it uses the device, so it has to run in the thread that paints
        parity           scale patches with OpenCV, as the original does, and not on the device
        done             called with the notes after the last frame, or when the iterator is closed early
        """
        self._scene, self._source, self._track, self._place = scene, source, track, place
        self._encoder, self._voice, self._pipeline = encoder, voice, pipeline
        self._place_on_device, self._parity, self._notes, self._done = place_on_device, parity, notes, done
        self._faces: dict[int, _Face] = {}
        self._kept_bytes = 0
        self._painted_frames = 0
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
        steps: list[Step] = [self._placed, self._painted, self._blended]
        if self._place_on_device:
            steps = [lambda frames: self._painted(self._placed(frames)), self._blended]
        source = self._source.play(self._scene.frames)
        try:
            with (
                self._voice.features.ahead(np.flatnonzero(self._voice.weights).tolist()),
                closing(Prefetcher.through(source, *steps, most=[self._waiting] * (1 + len(steps)))) as ready,
            ):
                yield from ready
        finally:
            self._notes["painted_frames"] = self._painted_frames
            self._notes["source_frames"] = self._source.frames
            self._notes["frames_without_face"] = self._source.frames - len(self._track.found)
            self._done(self._notes)

    @property
    def _waiting(self) -> int:
        """How many frames may wait between two steps."""
        fit = _WAITING_BYTES // self._scene.picture.nbytes
        return max(min(max(self._pipeline.size, _LEAST_WAITING), fit), 2)

    # -- the steps, each in its thread ---------------------------------------------------------------------------------

    def _placed(self, source: Iterator[tuple[int, RgbImage]]) -> Iterator[_Frame]:
        """Each picture of the source with the face that is to be painted in it."""
        for number, (index, picture) in enumerate(source):
            weight = float(self._voice.weights[number] * self._track.strength[index])
            yield _Frame(number, picture, weight, self._face(index, picture) if weight > 0 else None)

    def _painted(self, frames: Iterator[_Frame]) -> Iterator[tuple[_Frame, RgbImage | None]]:
        """Each frame with its patch; None where nothing is painted. Whatever the device does is done here."""
        waiting, ended = deque[_Frame](), False

        def inputs() -> Iterator[FrameInput]:
            nonlocal ended
            for frame in encoded:
                waiting.append(frame)
                if frame.face is not None:
                    face, tokens = frame.face.ready, self._voice.features.window(frame.number)
                    yield FrameInput(face.latents, tokens, None if self._parity else face.paste)
                # In a pause no batch gets full, and those before it must not wait until its end.
                if len(waiting) > 2 * self._pipeline.size + self._waiting:
                    return
            ended = True

        encoded = self._encoded(frames)
        while not ended:
            for patch in self._pipeline.patches(inputs()):
                while (frame := waiting.popleft()).face is None:
                    yield frame, None
                yield frame, patch
            while waiting:  # the others have their patches
                yield waiting.popleft(), None

    def _encoded(self, frames: Iterator[_Frame]) -> Iterator[_Frame]:
        """The same frames once their faces are encoded: some are encoded while those before are checked."""
        under_way = deque[_Encoding]()
        while group := list(islice(frames, self._encoder.at_once)):
            under_way.append(self._start(group))
            while len(under_way) > 1:
                yield from self._finish(under_way.popleft())
        while under_way:
            yield from self._finish(under_way.popleft())

    def _start(self, frames: list[_Frame]) -> _Encoding:
        faces = []
        for face in (frame.face for frame in frames):
            if face is not None and face.placed is not None:
                faces.append((face, face.placed))
                face.placed = None  # a second frame with the same face waits for the same latents
        return _Encoding(frames, faces, self._encoder.start([placed.pictures for _, placed in faces]))

    def _finish(self, encoding: _Encoding) -> list[_Frame]:
        latents = self._encoder.finish(encoding.in_flight)
        for (face, placed), of_face in zip(encoding.faces, latents, strict=True):
            face.prepared = placed.with_latents(of_face)
        return encoding.frames

    def _blended(self, painted: Iterator[tuple[_Frame, RgbImage | None]]) -> Iterator[RgbImage]:
        """Each frame of the result."""
        for frame, patch in painted:
            if frame.face is None or patch is None:
                yield self._framed(frame.picture)
                continue
            face, target = frame.face.ready, frame.picture.copy()  # the source may yield the same array again
            blend = face.paste.blend_patch if self._parity else face.blend
            blend(frame.picture, patch, target, weight=frame.weight)
            self._painted_frames += 1
            yield self._framed(target)

    def _face(self, index: int, picture: RgbImage) -> _Face:
        face = self._faces.get(index)
        if face is None:
            found = self._track.faces[index]
            assert found is not None  # without a face the strength is 0
            placed = self._place(picture, found)
            face = _Face(placed)
            if self._kept_bytes < _KEPT_BYTES:
                self._faces[index] = face
                self._kept_bytes += placed.nbytes
        return face

    def _framed(self, picture: RgbImage) -> RgbImage:
        return make_even(picture) if self._view is None else self._view.of(picture)
