"""Lay the moving head over the shot of any renderer.

A renderer draws on a canvas on which nothing but the mouth moves, and says so by the attribute `still` of its shot.
Here the finished frames are moved, by the same code for all renderers.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from itertools import cycle

import numpy as np

from lipsyncd.errors import FaceTooSmall, NoFaceFound
from lipsyncd.jobs.options import read_choice
from lipsyncd.renderers import Scene, Shot, Still
from lipsyncd.renderers.audio import frame_times
from lipsyncd.renderers.content_seed import content_seed
from lipsyncd.renderers.face.choose import choose_face
from lipsyncd.renderers.face.finder import SAME_FACE, find_faces, overlap
from lipsyncd.renderers.face.networks import Mesh
from lipsyncd.renderers.framing import Box, RgbImage
from lipsyncd.renderers.motion.still import StillMotion
from lipsyncd.renderers.prefetcher import Prefetcher
from lipsyncd.renderers.span import Spanning, span_of
from lipsyncd.renderers.voice.emphasis import emphasis

NONE = "none"


class MovingShot:
    """A shot whose head moves; see `lipsyncd.renderers.Shot`."""

    def __init__(self, shot: Shot, motion: StillMotion, still: Still) -> None:
        """`still` is that of the shot."""
        self._shot, self._motion = shot, motion
        self._drawn = np.s_[:, :] if still.changes is None else still.changes.place
        self.still = replace(still, changes=motion.changes)
        if isinstance(shot, Spanning):
            self.span = self._span

    @property
    def width(self) -> int:
        return self._shot.width

    @property
    def height(self) -> int:
        return self._shot.height

    @property
    def notes(self) -> Mapping[str, object]:
        return {**self._shot.notes, "motion": dict(self._motion.notes)}

    def frames(self) -> Iterator[RgbImage]:
        """See `Shot.frames`."""
        return self._moved(self._shot.frames(), 0)

    def _span(self, start: int, stop: int) -> Iterator[RgbImage]:
        """See `renderers.span`: the motion of each frame is known from the whole voice."""
        return self._moved(span_of(self._shot, start, stop), start)

    def _moved(self, still_frames: Iterator[RgbImage], first: int) -> Iterator[RgbImage]:
        """The frames from number `first` on, with their motion. The next one is drawn while this one is moved."""
        drawn = self._copies(still_frames)
        try:
            with closing(Prefetcher(drawn, most=1)) as frames:
                for number, frame in enumerate(frames, first):
                    yield self._motion.apply(frame, number)
        finally:
            drawn.close()

    def _copies(self, frames: Iterator[RgbImage]) -> Generator[RgbImage]:
        """The frames, each in a buffer that the next ones leave alone."""
        # One is being moved, one waits, one is being drawn.
        for buffer, frame in zip(cycle([self.still.canvas.copy() for _ in range(3)]), frames, strict=False):
            buffer[self._drawn] = frame[self._drawn]
            yield buffer
        if isinstance(frames, Generator):
            frames.close()


class StillShot:
    """A shot whose head could not be moved, with the reason in its notes."""

    def __init__(self, shot: Shot, still: Still, why: str) -> None:
        """`still` is that of the shot."""
        self._shot, self._why, self.still = shot, why, still
        self.frames, self.width, self.height = shot.frames, shot.width, shot.height
        if isinstance(shot, Spanning):
            self.span = shot.span

    @property
    def notes(self) -> Mapping[str, object]:
        return {**self._shot.notes, "motion": {"kind": NONE, "why": self._why}}


def moving(shot: Shot, scene: Scene) -> Shot:
    """The shot with the motion that its job asks for; the shot itself where there is none, as in films."""
    still, kind = getattr(shot, "still", None), motion_of(scene)
    if kind == NONE or not isinstance(still, Still) or scene.video is not None:
        return shot
    try:
        mesh = still.mesh if still.mesh is not None else _mesh(still, scene)
    except (NoFaceFound, FaceTooSmall) as error:
        return StillShot(shot, still, error.message)
    delivery = emphasis(scene.speech, scene.fps, scene.frames)
    motion = StillMotion(
        still.canvas,
        mesh,
        kind=kind,
        at_s=frame_times(scene.fps, scene.frames),
        seed=content_seed(scene),
        emphasis=delivery.stress,
        speaking=delivery.speaking,
        blink=scene.options.get("blink") is not False,
        other_faces=_others(still.canvas, mesh),
        changes=still.changes,
    )
    return MovingShot(shot, motion, still)


def motion_of(scene: Scene) -> str:
    """What the job asks for. With `parity` nothing moves; `sway` of older versions means a subtle motion."""
    if scene.options.get("parity") is True:
        return NONE
    sway = scene.options.get("sway")
    swaying = isinstance(sway, int | float) and not isinstance(sway, bool) and sway > 0
    return "subtle" if scene.motion == NONE and swaying else scene.motion


def _mesh(still: Still, scene: Scene) -> Mesh:
    """The face of a canvas; the square shows the chosen one in its middle."""
    choice = read_choice(scene.options.get("face")) if scene.stitch else None
    return choose_face(still.canvas, choice).mesh


def _others(canvas: RgbImage, mesh: Mesh) -> list[Box]:
    """The boxes of the other faces in the canvas, which must not be torn."""
    left, top = np.floor(mesh[:, :2].min(axis=0)).astype(int).tolist()
    right, bottom = np.ceil(mesh[:, :2].max(axis=0)).astype(int).tolist()
    moved = Box(left, top, max(right - left, 1), max(bottom - top, 1))
    return [face.box for face in find_faces(canvas) if overlap(face.box, moved) < SAME_FACE]
