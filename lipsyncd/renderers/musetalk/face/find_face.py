"""Find the face of a picture that is to speak: choose it, measure it, and compute the box that MuseTalk expects.

YuNet finds the faces. Head and shoulders around the chosen one are cropped for DWPose, which was trained on people, not
on faces; so a small face in a wide picture gets as many pixels as in a portrait.

Owns the choice, the box and the reasons for a refusal. Leaves the networks to `detector` and `landmarks`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipsyncd.errors import BadOption, FaceTooSmall, NoFaceFound
from lipsyncd.renderers.framing import Box, RgbImage
from lipsyncd.renderers.musetalk.face.detector import MIN_SCORE, DetectedFace, Detector
from lipsyncd.renderers.musetalk.face.landmarks import LandmarkNet, Points

FaceChoice = int | tuple[float, float] | Box | None

MARGIN_PX = 10  # below the chin, as in MuseTalk 1.5
MIN_FACE_PX = 48  # shorter side of a face's box
MIN_LANDMARK_SCORE = 0.3  # median score of the 68 points, about 0 to 1
MAX_YAW_DEG = 50.0  # MuseTalk was trained on frontal faces

_REACHES = (3.0, 1.8, 1.1)  # sizes of the crop for the landmarks' network, in sizes of the face
_SAME_FACE = 0.25  # least overlap of detector and landmarks, or of two frames of a video, for the same face
_NOSE_BRIDGE, _NOSE_TIP = 29, 30  # of the 68 points
_EYE_CORNERS = (36, 45)  # the outer ones


@dataclass(frozen=True)
class FaceFound:
    """A face that can be animated, in pixels of its picture.

    box             the part that MuseTalk repaints: within the picture, with the margin below the chin
    landmarks       (68, 2) float32
    score           median score of the landmarks
    yaw_deg         how far the head is turned, positive when the nose points to the picture's right
    detected        the detector's box, within the picture
    detector_score  0 to 1
    from_landmarks  False: the landmarks gave no box, `box` is the detector's
    """

    box: Box
    landmarks: NDArray[np.float32]
    score: float
    yaw_deg: float
    detected: Box
    detector_score: float
    from_landmarks: bool = True


def read_choice(value: object) -> FaceChoice:
    """The option `face` of a manifest: 0 is the largest face, 1 the next; or "x,y", a point on it in pixels.

    Raises `BadOption`.
    """
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1000:
        return value
    if isinstance(value, str) and re.fullmatch(r"\s*\d{1,5}(\.\d{1,3})?\s*,\s*\d{1,5}(\.\d{1,3})?\s*", value):
        x, y = value.split(",")
        return float(x), float(y)
    raise BadOption(
        f"option face is {value!r}", remedy='it must be a number (0 is the largest face) or "x,y" in pixels'
    )


def find_face(
    picture: RgbImage,
    detector: Detector,
    landmarks: LandmarkNet,
    *,
    choose: FaceChoice = None,
    margin_px: int = MARGIN_PX,
    flip_test: bool = True,
) -> FaceFound:
    """The face that is to speak.

    picture    (H, W, 3) uint8 RGB
    choose     None or 0: the largest; n: the next ones; (x, y): the one at this point; a Box: the one that was there in
               the frame before
    flip_test  see `LandmarkNet.find`

    Raises `NoFaceFound` when there is none, or it is unclear or turned away, and `FaceTooSmall`.
    """
    height, width = picture.shape[:2]
    chosen = _choose(picture, detector, choose)
    detected = _clipped(chosen.box, width, height)
    if min(detected.width, detected.height) < MIN_FACE_PX:
        raise FaceTooSmall(
            f"the face has {detected.width}x{detected.height} pixels in a picture of {width}x{height}; "
            f"it needs at least {MIN_FACE_PX}"
        )
    points, score = _points(picture, landmarks, detected, flip_test)
    yaw = yaw_deg(points.at)
    if abs(yaw) > MAX_YAW_DEG:
        raise NoFaceFound(
            f"the face is turned sideways by about {abs(yaw):.0f} degrees; up to {MAX_YAW_DEG:.0f} can be animated",
            remedy="use a picture in which the face looks at the camera",
        )
    box = musetalk_box(points.at, width, height, margin_px=margin_px)
    return FaceFound(
        box=box or _with_margin(detected, height, margin_px),
        landmarks=points.at,
        score=score,
        yaw_deg=yaw,
        detected=detected,
        detector_score=chosen.score,
        from_landmarks=box is not None,
    )


# -- which face --------------------------------------------------------------------------------------------------------


def _choose(picture: RgbImage, detector: Detector, choose: FaceChoice) -> DetectedFace:
    most: list[DetectedFace] = []
    best_score = 0.0
    for found in detector.passes(picture):
        faces = [face for face in found if face.is_face]
        if (chosen := _pick(faces, choose)) is not None:
            return chosen
        most = max(most, faces, key=len)
        best_score = max([best_score, *(face.score for face in found)])
    raise _no_face_error(most, best_score, choose, picture)


def _pick(faces: Sequence[DetectedFace], choose: FaceChoice) -> DetectedFace | None:
    """The chosen one of `faces`, which are sorted by size, the largest first."""
    if choose is None or isinstance(choose, int):
        return faces[choose or 0] if len(faces) > (choose or 0) else None
    if isinstance(choose, Box):
        nearest = max(faces, key=lambda face: overlap(face.box, choose), default=None)
        return nearest if nearest is not None and overlap(nearest.box, choose) >= _SAME_FACE else None
    x, y = choose
    around = [f for f in faces if f.box.x <= x < f.box.right and f.box.y <= y < f.box.bottom]
    # Where boxes overlap: the one whose centre is nearest.
    return min(
        around, key=lambda f: math.hypot(f.box.x + f.box.width / 2 - x, f.box.y + f.box.height / 2 - y), default=None
    )


def _no_face_error(
    faces: Sequence[DetectedFace], best_score: float, choose: FaceChoice, picture: RgbImage
) -> NoFaceFound:
    height, width = picture.shape[:2]
    where = f"the picture of {width}x{height} pixels"
    if not faces:
        best = f"the best candidate has a score of {best_score:.2f}" if best_score else "there is no candidate"
        return NoFaceFound(f"no face in {where}: {best}, a face needs {MIN_SCORE}")
    places = "; ".join(f"{f.box.x + f.box.width // 2},{f.box.y + f.box.height // 2}" for f in faces[:8])
    found = f"the faces that were found, the largest first, have their centres at {places}"
    if isinstance(choose, int):
        return NoFaceFound(f"no face number {choose} in {where}; {found}", remedy="number 0 is the largest face")
    if isinstance(choose, Box):
        return NoFaceFound(f"the face is no longer where it was in {where}; {found}")
    x, y = choose or (0.0, 0.0)
    return NoFaceFound(f"no face at {x:g},{y:g} in {where}; {found}", remedy="use one of these points")


# -- its points --------------------------------------------------------------------------------------------------------


def _points(picture: RgbImage, landmarks: LandmarkNet, face: Box, flip_test: bool) -> tuple[Points, float]:
    """The 68 points of the face in a box and their score. Raises `NoFaceFound` when they are unclear.

    A crop of head and shoulders suits the network best, but may include another face, which the network may prefer;
    tighter crops do not.
    """
    height, width = picture.shape[:2]
    best, lost, elsewhere = 0.0, 0, False
    for reach in _REACHES:
        person = _clipped(_grown(face, reach), width, height)
        points = landmarks.find(picture, person, flip_test=flip_test).face
        score, missing = float(np.median(points.score)), int((points.score <= 0).sum())
        here = overlap(_around(points.at), face) >= _SAME_FACE
        if score >= MIN_LANDMARK_SCORE and not missing and here:
            return points, score
        if score >= best:
            best, lost, elsewhere = score, missing, not here
    why = f"{lost} of 68 points are missing" if lost else f"their score is {best:.2f}, below {MIN_LANDMARK_SCORE}"
    if best >= MIN_LANDMARK_SCORE and elsewhere and not lost:
        why = "they lie on another face"
    raise NoFaceFound(
        f"the landmarks of the face at {face.x + face.width // 2},{face.y + face.height // 2} are unclear: {why}",
        remedy="use a sharper picture of a face that looks at the camera, with nothing in front of it",
    )


def musetalk_box(points: NDArray[np.float32], width: int, height: int, *, margin_px: int = MARGIN_PX) -> Box | None:
    """MuseTalk's box: as wide as the points, and reaching as far above the bridge of the nose as the chin is below it.

    points         (68, 2) float32, in pixels of the picture
    width, height  of the picture; the box is clipped to it, and None when nothing is left of it

    Source: MuseTalk 1.5, which uses the detector's box where ours is clipped at the left.
    """
    left, top, right, bottom = unclipped_box(points)
    left, right, bottom = max(left, 0), min(right, width), min(bottom, height)
    if right <= left or bottom <= top:
        return None
    return _with_margin(Box(left, top, right - left, bottom - top), height, margin_px)


def unclipped_box(points: NDArray[np.float32]) -> tuple[int, int, int, int]:
    """The box before clipping, as in the original: left, top, right, bottom; only the top is limited to the picture."""
    x, y = points.astype(np.int32).T
    middle, bottom = int(y[_NOSE_BRIDGE]), int(y.max())
    return int(x.min()), max(2 * middle - bottom, 0), int(x.max()), bottom


def yaw_deg(points: NDArray[np.float32]) -> float:
    """How far a head is turned to the side, in degrees, independent of its tilt.

    points  (68, 2)

    The tip of the nose lies about as far in front of the line through the outer corners of the eyes as the corners lie
    from its middle. So it appears above one of them when the head is turned by 45 degrees.
    """
    first, second = (points[n].astype(np.float64) for n in _EYE_CORNERS)
    between = (second - first) / 2
    half = float(np.hypot(*between))
    if half == 0:
        return 90.0
    aside = float((points[_NOSE_TIP] - (first + second) / 2) @ between) / half
    return math.degrees(math.atan2(aside, half))


# -- boxes -------------------------------------------------------------------------------------------------------------


def overlap(one: Box, other: Box) -> float:
    """Area that both share for each area that one of them covers: 0 to 1."""
    across = min(one.right, other.right) - max(one.x, other.x)
    down = min(one.bottom, other.bottom) - max(one.y, other.y)
    shared = max(across, 0) * max(down, 0)
    return shared / (one.width * one.height + other.width * other.height - shared)


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
