"""One face through a video: found in each frame, followed, and held steady.

Landmarks tremble from frame to frame, and a box that trembles shows as a trembling mouth. So boxes and points are
smoothed over time, within a shot and never across a gap or a cut. A frame in which the face is missing, turned away or
unclear has none: it passes through as it is, and every other frame keeps its place.

Owns the face's way through time. Leaves one picture's face to `faces`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from lipsyncd.errors import FaceTooSmall, NoFaceFound
from lipsyncd.renderers.framing import Box, RgbImage
from lipsyncd.renderers.musetalk.face.detector import Detector
from lipsyncd.renderers.musetalk.face.find_face import MARGIN_PX, Choice, FaceFound, find_face, overlap
from lipsyncd.renderers.musetalk.face.landmarks import LandmarkNet

Values = NDArray[np.float64]  # (frames, values)

_MEDIAN_FRAMES = 5
_FOLLOW = 0.5  # how much of each new frame an average over time takes
_SAME_SHOT = 0.3  # overlap of the boxes of two frames that show the same shot
_FADE_FRAMES = 3  # in which a painted mouth gives way to a gap


@dataclass(frozen=True)
class FaceTrack:
    """What was found in each frame of a video.

    faces     one for each frame, None where it passes through
    strength  (frames,) float32: how much of each is painted, 1 but near a gap, 0 in it
    """

    faces: tuple[FaceFound | None, ...]
    strength: NDArray[np.float32]

    @property
    def found(self) -> list[FaceFound]:
        return [face for face in self.faces if face is not None]

    @property
    def usual_box(self) -> Box:
        """The median of all boxes: what a square that stands still is laid around."""
        sides = np.median([_edges(face.box) for face in self.found], axis=0)
        return _box(sides)


def follow_face(
    pictures: Iterable[RgbImage],
    detector: Detector,
    landmarks: LandmarkNet,
    *,
    choose: Choice = None,
    margin_px: int = MARGIN_PX,
    flip_test: bool = False,
) -> FaceTrack:
    """Find one face in every frame of a video, in order.

    pictures   each (H, W, 3) uint8 RGB
    choose     in the first frame that shows it, and again when it is lost; in between the face is followed
    flip_test  takes twice the time; smoothing over time does the same work better

    Raises `NoFaceFound` or `FaceTooSmall`, as the first frame had it, when there is none in any frame.
    """
    found: list[FaceFound | None] = []
    first_refusal: NoFaceFound | FaceTooSmall | None = None
    last: Box | None = None
    for picture in pictures:
        face = None
        for place in (choose,) if last is None else (last, choose):
            try:
                face = find_face(picture, detector, landmarks, choose=place, margin_px=margin_px, flip_test=flip_test)
            except (NoFaceFound, FaceTooSmall) as refusal:
                first_refusal = first_refusal or refusal
                if isinstance(place, Box) and _is_there(picture, detector, place):
                    break  # it only looks away: the next one would be somebody else
            else:
                break
        last = face.detected if face is not None else last
        found.append(face)
    if first_refusal is not None and not any(found):
        raise type(first_refusal)(
            f"none of {len(found)} frames shows a face to animate; the first one: {first_refusal.message}",
            remedy=first_refusal.remedy,
        )
    return FaceTrack(tuple(steadied(found)), strength(found))


def _is_there(picture: RgbImage, detector: Detector, place: Box) -> bool:
    return any(
        overlap(face.box, place) >= _SAME_SHOT and face.sure for faces in detector.passes(picture) for face in faces
    )


# -- over time ---------------------------------------------------------------------------------------------------------


def steadied(faces: Sequence[FaceFound | None]) -> list[FaceFound | None]:
    """The same faces with boxes and points that move smoothly, each shot for itself."""
    steady = list(faces)
    for shot in _shots(faces):
        members = [cast(FaceFound, faces[number]) for number in shot]
        boxes = smoothed(np.array([_edges(face.box) for face in members]))
        points = smoothed(np.array([face.landmarks.ravel() for face in members], np.float64))
        for number, face, edges, flat in zip(shot, members, boxes, points, strict=True):
            landmarks = flat.reshape(face.landmarks.shape).astype(np.float32)
            steady[number] = replace(face, box=_box(edges), landmarks=landmarks)
    return steady


def _shots(faces: Sequence[FaceFound | None]) -> Iterator[list[int]]:
    """Numbers of frames that follow each other and show the face about where it was."""
    shot: list[int] = []
    for number, face in enumerate(faces):
        before = faces[number - 1] if number else None
        if shot and (face is None or before is None or overlap(face.detected, before.detected) < _SAME_SHOT):
            yield shot
            shot = []
        if face is not None:
            shot.append(number)
    if shot:
        yield shot


def smoothed(values: Values) -> Values:
    """Each column without outliers of one or two frames, then averaged over a few frames on both sides.

    values  (frames, n) float64

    The average runs forwards and backwards, so that a head in motion is not lagged behind.
    """
    reach = _MEDIAN_FRAMES // 2
    padded = np.pad(values, ((reach, reach), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, _MEDIAN_FRAMES, axis=0)
    calm = np.median(windows, axis=-1)
    return (_averaged(calm) + _averaged(calm[::-1])[::-1]) / 2


def _averaged(values: Values) -> Values:
    average = values.copy()
    for number in range(1, len(values)):
        average[number] = average[number - 1] + _FOLLOW * (values[number] - average[number - 1])
    return average


def strength(faces: Sequence[FaceFound | None]) -> NDArray[np.float32]:
    """How much of each frame is painted: it fades towards a gap, so that the mouth does not jump."""
    away = np.full(len(faces), np.inf)  # frames to the nearest gap
    gaps = [number for number, face in enumerate(faces) if face is None]
    for gap in gaps:
        near = slice(max(gap - _FADE_FRAMES, 0), gap + _FADE_FRAMES + 1)
        away[near] = np.minimum(away[near], np.abs(np.arange(len(faces))[near] - gap))
    return np.minimum(away / (_FADE_FRAMES + 1), 1).astype(np.float32)


def _edges(box: Box) -> tuple[int, int, int, int]:
    return box.x, box.y, box.right, box.bottom


def _box(edges: Sequence[float] | NDArray[np.float64]) -> Box:
    left, top, right, bottom = (round(float(edge)) for edge in edges)
    return Box(left, top, max(right - left, 1), max(bottom - top, 1))
