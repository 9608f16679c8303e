"""A video that speaks: each frame's own face, painted where it is.

Frames come from the decoder a few at a time; those in which something is to be painted go through the networks
together, and come out in their order. A thread does all that ahead of whoever encodes, by a bounded number of frames:
memory does not grow with the length.

Owns the order of a video's frames. Leaves finding the face to `track`, preparing it to `look`, painting to `pipeline`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from itertools import islice

from lipsyncd.renderers import Scene, Source
from lipsyncd.renderers.framing import RgbImage, SquareView, make_even, square_around
from lipsyncd.renderers.musetalk.face.find_face import FaceFound
from lipsyncd.renderers.musetalk.face.track import FaceTrack
from lipsyncd.renderers.musetalk.painting.pipeline import Ahead, Pipeline, Wanted
from lipsyncd.renderers.musetalk.painting.prepared_face import Look
from lipsyncd.renderers.musetalk.still_shot import Voice

TOGETHER = 16  # a usual batch
_KEPT_BYTES = 128 << 20  # of masks, for the frames that show again; the latents beside them are small


class MovingShot:
    """A scene whose video's faces are found; see `lipsyncd.renderers.Shot`."""

    def __init__(
        self,
        scene: Scene,
        source: Source,
        track: FaceTrack,
        prepare: Callable[[RgbImage, FaceFound], Look],
        voice: Voice,
        pipeline: Pipeline,
        *,
        together: int = TOGETHER,
        exact: bool,
        notes: dict[str, object],
        done: Callable[[dict[str, object]], None],
    ) -> None:
        """
        prepare   makes a frame's face ready for the networks
        together  frames that are read before the networks see the first of them
        exact     scale patches with OpenCV, as the original does, and not on the device
        done      called with the notes when the last frame is out or the shot is given up
        """
        self._scene, self._source, self._track, self._prepare = scene, source, track, prepare
        self._voice, self._pipeline, self._exact, self._notes, self._done = voice, pipeline, exact, notes, done
        self._at_once = together
        self._looks: dict[int, Look] = {}
        self._kept_bytes = 0
        self._painted = 0
        height, width = scene.picture.shape[:2]
        self._size = (width + width % 2, height + height % 2)
        # One square for the whole video: one that goes with the face would look like a shaking camera.
        square = square_around(track.usual_box, width, height)
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
        finished = self._finished()
        try:
            with closing(Ahead(finished)) as ready:
                yield from ready
        finally:
            finished.close()  # and with it the decoder
            self._notes["painted_frames"] = self._painted
            self._notes["source_frames"] = self._source.frames
            self._notes["frames_without_face"] = self._source.frames - len(self._track.found)
            self._done(self._notes)

    def _finished(self) -> Generator[RgbImage]:
        """Every frame as it is shown, on the thread ahead."""
        with closing(self._source.play(self._scene.frames)) as playing:
            numbered = enumerate(playing)
            while some := list(islice(numbered, self._at_once)):
                yield from self._together([(number, *shown) for number, shown in some])

    def _together(self, some: list[tuple[int, int, RgbImage]]) -> Iterator[RgbImage]:
        """Paint a few frames, each with its number in the video and in the source."""
        weights = [self._weight(number, index) for number, index, _ in some]
        looks = [
            self._look(index, picture) if weight > 0 else None
            for (_, index, picture), weight in zip(some, weights, strict=True)
        ]
        wanted = [
            Wanted(look.latents, self._voice.track.window(number), None if self._exact else look.paste)
            for (number, _, _), look in zip(some, looks, strict=True)
            if look is not None
        ]
        patches = self._pipeline.patches(wanted)
        for (_, _, picture), look, weight in zip(some, looks, weights, strict=True):
            if look is None:
                yield self._shown(picture)
                continue
            painted = picture.copy()  # the source may show the same one again
            lay = look.paste.onto if self._exact else look.paste.lay
            lay(picture, next(patches), painted, weight=weight)
            self._painted += 1
            yield self._shown(painted)

    def _weight(self, number: int, index: int) -> float:
        """How much of a frame is painted: nothing in a pause and where there is no face."""
        return float(self._voice.weights[number] * self._track.strength[index])

    def _look(self, index: int, picture: RgbImage) -> Look:
        look = self._looks.get(index)
        if look is None:
            face = self._track.faces[index]
            assert face is not None  # its strength is 0 where there is none
            look = self._prepare(picture, face)
            if self._kept_bytes < _KEPT_BYTES:
                self._looks[index] = look
                self._kept_bytes += look.paste.alpha.nbytes
        return look

    def _shown(self, picture: RgbImage) -> RgbImage:
        return make_even(picture) if self._view is None else self._view.of(picture)
