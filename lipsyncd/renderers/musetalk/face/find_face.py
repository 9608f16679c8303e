"""Find the face of a picture that is to speak, measure it, and compute the box that MuseTalk expects.

`renderers.face` finds and chooses the face, as for every renderer. Head and shoulders around it are cropped for DWPose,
which was trained on people, not on faces; so a small face in a wide picture gets as many pixels as in a portrait.
With `parity` DWPose sees the whole picture, as in the original.

Owns the box. Leaves the choice to `renderers.face.choose` and the points to `landmarks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipsyncd.errors import NoFaceFound
from lipsyncd.jobs.options import FaceChoice
from lipsyncd.renderers.face.choose import choose_face, place
from lipsyncd.renderers.face.face import Face
from lipsyncd.renderers.face.finder import overlap
from lipsyncd.renderers.framing import Box, RgbImage
from lipsyncd.renderers.musetalk.face.landmarks import LandmarkNet, Points

MARGIN_PX = 10  # below the chin, as in MuseTalk 1.5
MIN_LANDMARK_SCORE = 0.3  # median score of the 68 points, about 0 to 1

_REACHES = (3.0, 1.8, 1.1)  # sizes of the crop for the landmarks' network, in sizes of the face
_SAME_FACE = 0.25  # least overlap of mesh and landmarks on the same face
_NOSE_BRIDGE = 29  # of the 68 points


@dataclass(frozen=True)
class FaceFound:
    """A face that can be animated, in pixels of its picture.

    box             the part that MuseTalk repaints: within the picture, with the margin below the chin
    landmarks       (68, 2) float32
    score           median score of the landmarks
    yaw_deg         how far the head is turned, positive when the nose points to the picture's right
    detected        the box around the mesh, within the picture
    presence        of the mesh, 0 to 1
    from_landmarks  False: the landmarks gave no box, `box` is the mesh's
    """

    box: Box
    landmarks: NDArray[np.float32]
    score: float
    yaw_deg: float
    detected: Box
    presence: float
    from_landmarks: bool = True


def find_face(
    picture: RgbImage,
    landmarks: LandmarkNet,
    *,
    choose: FaceChoice = None,
    margin_px: int = MARGIN_PX,
    parity: bool = False,
) -> FaceFound:
    """The face of a still that is to speak.

    picture  (H, W, 3) uint8 RGB
    choose   see `choose_face`
    parity   take whatever face there is, and measure it as the original does

    Raises the `NoFaceFound` or `FaceTooSmall` of `choose_face`, and `NoFaceFound` when its points are unclear.
    """
    face = choose_face(picture, choose, judged=not parity)
    return measure_face(picture, face, landmarks, margin_px=margin_px, parity=parity)


def measure_face(
    picture: RgbImage,
    face: Face,
    landmarks: LandmarkNet,
    *,
    margin_px: int = MARGIN_PX,
    flip_test: bool = True,
    parity: bool = False,
) -> FaceFound:
    """The points and the box of one face that is known; see `measure_faces`. Raises its `NoFaceFound`."""
    [found] = measure_faces([(picture, face)], landmarks, margin_px=margin_px, flip_test=flip_test, parity=parity)
    if isinstance(found, NoFaceFound):
        raise found
    return found


def measure_faces(
    seen: Sequence[tuple[RgbImage, Face]],
    landmarks: LandmarkNet,
    *,
    margin_px: int = MARGIN_PX,
    flip_test: bool = True,
    parity: bool = False,
) -> list[FaceFound | NoFaceFound]:
    """The points and the box of each face, which is known in its picture (H, W, 3) uint8 RGB.

    flip_test  see `LandmarkNet.find_all`
    parity     points from the whole picture, whatever their scores and wherever they lie; see `musetalk_box`
    returns    `NoFaceFound` in place of a face whose points are unclear; never with `parity`
    """
    points: Sequence[Points | NoFaceFound]
    if parity:
        whole = [(picture, Box(0, 0, picture.shape[1], picture.shape[0])) for picture, _ in seen]
        points = [found.face for found in landmarks.find_all(whole, flip_test=flip_test)]
    else:
        points = _points(seen, landmarks, flip_test)
    return [
        found if isinstance(found, NoFaceFound) else _face_of(picture, face, found, margin_px, parity)
        for (picture, face), found in zip(seen, points, strict=True)
    ]


def _face_of(picture: RgbImage, face: Face, points: Points, margin_px: int, parity: bool) -> FaceFound:
    height, width = picture.shape[:2]
    detected = _clipped(face.box, width, height)
    box = musetalk_box(points.at, width, height, margin_px=margin_px, parity=parity)
    return FaceFound(
        box=box or _with_margin(detected, height, margin_px),
        landmarks=points.at,
        score=float(np.median(points.score)),
        yaw_deg=face.yaw_deg,
        detected=detected,
        presence=face.presence,
        from_landmarks=box is not None,
    )


# -- its points --------------------------------------------------------------------------------------------------------


def _points(
    seen: Sequence[tuple[RgbImage, Face]], landmarks: LandmarkNet, flip_test: bool
) -> list[Points | NoFaceFound]:
    """The 68 points of each face, or why they are unclear.

    A crop of head and shoulders suits the network best, but may include another face, which the network may prefer;
    tighter crops do not.
    """
    found: dict[int, Points] = {}
    searches = [_Search(picture, face) for picture, face in seen]
    for reach in _REACHES:
        open_ones = [number for number in range(len(seen)) if number not in found]
        looks = [(seen[number][0], searches[number].person(reach)) for number in open_ones]
        for number, points in zip(open_ones, landmarks.find_all(looks, flip_test=flip_test), strict=True):
            if searches[number].takes(points.face):
                found[number] = points.face
    return [found.get(number) or search.refusal() for number, search in enumerate(searches)]


class _Search:
    """The search for the points of one face, and the best that it has seen."""

    def __init__(self, picture: RgbImage, face: Face) -> None:
        self._face = face
        self._height, self._width = picture.shape[:2]
        self._detected = _clipped(face.box, self._width, self._height)
        self._best, self._lost, self._elsewhere = 0.0, 0, False

    def person(self, reach: float) -> Box:
        return _clipped(_grown(self._detected, reach), self._width, self._height)

    def takes(self, points: Points) -> bool:
        """Are these 68 points clear, and on this face?"""
        score, missing = float(np.median(points.score)), int((points.score <= 0).sum())
        here = overlap(_around(points.at), self._detected) >= _SAME_FACE
        if score >= MIN_LANDMARK_SCORE and not missing and here:
            return True
        if score >= self._best:
            self._best, self._lost, self._elsewhere = score, missing, not here
        return False

    def refusal(self) -> NoFaceFound:
        why = f"their score is {self._best:.2f}, below {MIN_LANDMARK_SCORE}"
        if self._lost:
            why = f"{self._lost} of 68 points are missing"
        elif self._best >= MIN_LANDMARK_SCORE and self._elsewhere:
            why = "they lie on another face"
        return NoFaceFound(
            f"the landmarks of the face at {place(self._face)} are unclear: {why}",
            remedy="use a sharper picture of a face that looks at the camera, with nothing in front of it",
        )


def musetalk_box(
    points: NDArray[np.float32], width: int, height: int, *, margin_px: int = MARGIN_PX, parity: bool = False
) -> Box | None:
    """MuseTalk's box: as wide as the points, and reaching as far above the bridge of the nose as the chin is below it.

    points         (68, 2) float32, in pixels of the picture
    width, height  of the picture; the box is clipped to it, and None when nothing is left of it
    parity         None, too, for a box that begins left of the picture: there the original uses its detector's box

    Source: MuseTalk 1.5.
    """
    left, top, right, bottom = unclipped_box(points)
    if parity and left < 0:
        return None
    left, right, bottom = max(left, 0), min(right, width), min(bottom, height)
    if right <= left or bottom <= top:
        return None
    return _with_margin(Box(left, top, right - left, bottom - top), height, margin_px)


def unclipped_box(points: NDArray[np.float32]) -> tuple[int, int, int, int]:
    """The box before clipping, as in the original: left, top, right, bottom; only the top is limited to the picture."""
    x, y = points.astype(np.int32).T
    middle, bottom = int(y[_NOSE_BRIDGE]), int(y.max())
    return int(x.min()), max(2 * middle - bottom, 0), int(x.max()), bottom


# -- boxes -------------------------------------------------------------------------------------------------------------


def _around(points: NDArray[np.float32]) -> Box:
    left, top = np.floor(points.min(axis=0)).astype(int).tolist()
    right, bottom = np.ceil(points.max(axis=0)).astype(int).tolist()
    return Box(left, top, max(right - left, 1), max(bottom - top, 1))


def _grown(box: Box, factor: float) -> Box:
    """Head and shoulders around a face: more below it than above."""
    width, height = round(factor * box.width), round(factor * box.height)
    return Box(box.x - (width - box.width) // 2, box.y - (height - box.height) // 3, width, height)


def _clipped(box: Box, width: int, height: int) -> Box:
    left, top = min(max(box.x, 0), width - 1), min(max(box.y, 0), height - 1)
    return Box(left, top, max(min(box.right, width) - left, 1), max(min(box.bottom, height) - top, 1))


def _with_margin(box: Box, picture_height: int, margin_px: int) -> Box:
    return Box(box.x, box.y, box.width, min(box.bottom + margin_px, picture_height) - box.y)
