"""Track one face through a video: find it in each frame and smooth its position.

Landmarks jitter from frame to frame, and a jittering box shows as a trembling mouth. So boxes and points are smoothed
over time, within a camera shot and never across a gap or a cut. A frame in which the face is missing, turned away or
unclear has no face and is passed through unchanged.

Frames are decoded in one thread, the face is followed in a second one, and its points are found in the caller's.

Owns the face over time. Leaves which face it is to `follow`, and its box in one picture to `find_face`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from typing import cast

import numpy as np
from numpy.typing import NDArray

from lipsyncd.errors import FaceTooSmall, NoFaceFound
from lipsyncd.jobs.options import FaceChoice
from lipsyncd.renderers.face.face import Face
from lipsyncd.renderers.face.finder import overlap
from lipsyncd.renderers.face.networks import FaceNetworks
from lipsyncd.renderers.framing import Box, RgbImage
from lipsyncd.renderers.musetalk.face.find_face import MARGIN_PX, FaceFound, measure_faces
from lipsyncd.renderers.musetalk.face.follow import SAME_PLACE, Follower
from lipsyncd.renderers.musetalk.face.landmarks import LandmarkNet
from lipsyncd.renderers.prefetcher import Prefetcher

Values = NDArray[np.float64]  # (frames, values)

_Seen = tuple[RgbImage, Face | NoFaceFound | FaceTooSmall]

_AT_ONCE = 16  # frames whose landmarks are found together; as many are followed meanwhile
_WAITING = 4  # decoded frames
_MEDIAN_FRAMES = 5
_SMOOTHING = 0.5  # weight of each new frame in the moving average
_FADE_FRAMES = 3  # in which the painted mouth fades out before a gap


@dataclass(frozen=True)
class FaceTrack:
    """The face in each frame of a video.

    faces     one for each frame, None where the frame is passed through
    strength  (frames,) float32: opacity of the painted face: 0 in a gap, rising to 1 away from it
    """

    faces: tuple[FaceFound | None, ...]
    strength: NDArray[np.float32]

    @property
    def found(self) -> list[FaceFound]:
        return [face for face in self.faces if face is not None]

    @property
    def median_box(self) -> Box:
        """The median of all boxes: the face of a square that stays the same for the whole video."""
        sides = np.median([_edges(face.box) for face in self.found], axis=0)
        return _box(sides)


def track_face(
    pictures: Iterable[RgbImage],
    landmarks: LandmarkNet,
    nets: FaceNetworks | None = None,
    *,
    choose: FaceChoice = None,
    margin_px: int = MARGIN_PX,
    parity: bool = False,
) -> FaceTrack:
    """Find one face in every frame of a video, in order.

    pictures  each (H, W, 3) uint8 RGB
    choose    see `Follower`
    parity    measure each face as the original does, with its flip test; otherwise smoothing over time is the better
              way to steady points

    Raises the `NoFaceFound` or `FaceTooSmall` of the first frame when no frame has a face.
    """
    found: list[FaceFound | None] = []
    first_refusal: NoFaceFound | FaceTooSmall | None = None
    follower = Follower(choose, nets, judged=not parity)

    def followed(frames: Iterator[RgbImage]) -> Iterator[_Seen]:
        return ((picture, follower.find(picture)) for picture in frames)

    with closing(Prefetcher.through(iter(pictures), followed, most=(_WAITING, _AT_ONCE))) as seen:
        while group := list(islice(seen, _AT_ONCE)):
            faces = [(picture, face) for picture, face in group if isinstance(face, Face)]
            measured = iter(measure_faces(faces, landmarks, margin_px=margin_px, flip_test=parity, parity=parity))
            for _, face in group:
                outcome = next(measured) if isinstance(face, Face) else face
                found.append(outcome if isinstance(outcome, FaceFound) else None)
                if not isinstance(outcome, FaceFound):
                    first_refusal = first_refusal or outcome
    if first_refusal is not None and not any(found):
        raise type(first_refusal)(
            f"none of the {len(found)} frames shows a face to animate; in the first one: {first_refusal.message}",
            remedy=first_refusal.remedy,
        )
    return FaceTrack(tuple(smoothed_track(found)), strength(found))


# -- over time ---------------------------------------------------------------------------------------------------------


def smoothed_track(faces: Sequence[FaceFound | None]) -> list[FaceFound | None]:
    """The same faces with smoothed boxes and points, each camera shot for itself."""
    smooth = list(faces)
    for shot in _shots(faces):
        members = [cast(FaceFound, faces[number]) for number in shot]
        boxes = smoothed(np.array([_edges(face.box) for face in members]))
        points = smoothed(np.array([face.landmarks.ravel() for face in members], np.float64))
        for number, face, edges, flat in zip(shot, members, boxes, points, strict=True):
            landmarks = flat.reshape(face.landmarks.shape).astype(np.float32)
            smooth[number] = replace(face, box=_box(edges), landmarks=landmarks)
    return smooth


def _shots(faces: Sequence[FaceFound | None]) -> Iterator[list[int]]:
    """Numbers of consecutive frames in which the face is about where it was in the frame before."""
    shot: list[int] = []
    for number, face in enumerate(faces):
        before = faces[number - 1] if number else None
        if shot and (face is None or before is None or overlap(face.detected, before.detected) < SAME_PLACE):
            yield shot
            shot = []
        if face is not None:
            shot.append(number)
    if shot:
        yield shot


def smoothed(values: Values) -> Values:
    """Each column without outliers of one or two frames, then averaged over a few frames on both sides.

    values  (frames, n) float64

    The average runs forwards and backwards, so that it does not lag behind a moving head.
    """
    reach = _MEDIAN_FRAMES // 2
    padded = np.pad(values, ((reach, reach), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, _MEDIAN_FRAMES, axis=0)
    calm = np.median(windows, axis=-1)
    return (_averaged(calm) + _averaged(calm[::-1])[::-1]) / 2


def _averaged(values: Values) -> Values:
    average = values.copy()
    for number in range(1, len(values)):
        average[number] = average[number - 1] + _SMOOTHING * (values[number] - average[number - 1])
    return average


def strength(faces: Sequence[FaceFound | None]) -> NDArray[np.float32]:
    """The opacity of the painted face in each frame: it fades towards a gap, so that the mouth does not jump."""
    distance = np.full(len(faces), np.inf)  # to the nearest gap, in frames
    gaps = [number for number, face in enumerate(faces) if face is None]
    for gap in gaps:
        near = slice(max(gap - _FADE_FRAMES, 0), gap + _FADE_FRAMES + 1)
        distance[near] = np.minimum(distance[near], np.abs(np.arange(len(faces))[near] - gap))
    return np.minimum(distance / (_FADE_FRAMES + 1), 1).astype(np.float32)


def _edges(box: Box) -> tuple[int, int, int, int]:
    return box.x, box.y, box.right, box.bottom


def _box(edges: Sequence[float] | NDArray[np.float64]) -> Box:
    left, top, right, bottom = (round(float(edge)) for edge in edges)
    return Box(left, top, max(right - left, 1), max(bottom - top, 1))
