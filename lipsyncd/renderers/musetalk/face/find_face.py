"""The one face of a picture that is to speak: chosen, measured, and with the box that MuseTalk's networks expect.

YuNet says where faces are. Around the chosen one, head and shoulders are cut out and shown to DWPose, which knows
people and not faces; so a small face in a wide picture gets as many pixels as a portrait.

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
from lipsyncd.renderers.musetalk.face.detector import SURE, Detected, Detector
from lipsyncd.renderers.musetalk.face.landmarks import LandmarkNet, Points

Choice = int | tuple[float, float] | Box | None

MARGIN_PX = 10  # below the chin, as MuseTalk 1.5 has it
LEAST_FACE_PX = 48  # shorter side of a face's box
LEAST_SCORE = 0.3  # of the middle one of 68 points, about 0 to 1
MOST_YAW_DEG = 50.0  # MuseTalk was trained on faces that look at the camera

_REACHES = (3.0, 1.8, 1.1)  # how much of a picture around a face the landmarks' network sees, in sizes of the face
_SAME_FACE = 0.25  # overlap from which detector and landmarks, or two frames of a video, mean the same face
_NOSE_BRIDGE, _NOSE_TIP = 29, 30  # of the 68 points
_EYE_CORNERS = (36, 45)  # the outer ones


@dataclass(frozen=True)
class FaceFound:
    """A face that can speak, in pixels of its picture.

    box             what MuseTalk repaints: within the picture, with the margin below the chin
    landmarks       (68, 2) float32
    score           of the middle one of the landmarks
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


def read_choice(value: object) -> Choice:
    """The option `face` of a manifest: 0 is the largest face, 1 the next; or "x,y", a place on it in pixels.

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
    choose: Choice = None,
    margin_px: int = MARGIN_PX,
    flip_test: bool = True,
) -> FaceFound:
    """The face that is to speak.

    picture    (H, W, 3) uint8 RGB
    choose     None or 0: the largest; n: the next ones; (x, y): the one at that place; a Box: the one that was there in
               the frame before
    flip_test  see `LandmarkNet.find`

    Raises `NoFaceFound` where there is none, or it is not clear or looks away, and `FaceTooSmall`; with the numbers.
    """
    height, width = picture.shape[:2]
    chosen = _chosen(picture, detector, choose)
    seen = _clipped(chosen.box, width, height)
    if min(seen.width, seen.height) < LEAST_FACE_PX:
        raise FaceTooSmall(
            f"the face has {seen.width}x{seen.height} pixels in a picture of {width}x{height}; "
            f"it needs {LEAST_FACE_PX} at least"
        )
    points, score = _points(picture, landmarks, seen, flip_test)
    yaw = yaw_deg(points.at)
    if abs(yaw) > MOST_YAW_DEG:
        raise NoFaceFound(
            f"the face is turned aside by about {abs(yaw):.0f} degrees; up to {MOST_YAW_DEG:.0f} can be animated",
            remedy="use a picture in which the face looks at the camera",
        )
    box = speaking_box(points.at, width, height, margin_px=margin_px)
    return FaceFound(
        box=box or _with_margin(seen, height, margin_px),
        landmarks=points.at,
        score=score,
        yaw_deg=yaw,
        detected=seen,
        detector_score=chosen.score,
        from_landmarks=box is not None,
    )


# -- which face --------------------------------------------------------------------------------------------------------


def _chosen(picture: RgbImage, detector: Detector, choose: Choice) -> Detected:
    most: list[Detected] = []
    surest = 0.0
    for found in detector.passes(picture):
        faces = [face for face in found if face.sure]
        if (chosen := _pick(faces, choose)) is not None:
            return chosen
        most = max(most, faces, key=len)
        surest = max([surest, *(face.score for face in found)])
    raise _not_there(most, surest, choose, picture)


def _pick(faces: Sequence[Detected], choose: Choice) -> Detected | None:
    """The chosen one of `faces`, which come with the largest first."""
    if choose is None or isinstance(choose, int):
        return faces[choose or 0] if len(faces) > (choose or 0) else None
    if isinstance(choose, Box):
        nearest = max(faces, key=lambda face: overlap(face.box, choose), default=None)
        return nearest if nearest is not None and overlap(nearest.box, choose) >= _SAME_FACE else None
    x, y = choose
    around = [f for f in faces if f.box.x <= x < f.box.right and f.box.y <= y < f.box.bottom]
    # Where boxes overlap, the one whose middle is nearest.
    return min(
        around, key=lambda f: math.hypot(f.box.x + f.box.width / 2 - x, f.box.y + f.box.height / 2 - y), default=None
    )


def _not_there(faces: Sequence[Detected], surest: float, choose: Choice, picture: RgbImage) -> NoFaceFound:
    height, width = picture.shape[:2]
    where = f"the picture of {width}x{height} pixels"
    if not faces:
        guess = f"the surest guess has a score of {surest:.2f}, a face has {SURE}" if surest else "not even a guess"
        return NoFaceFound(f"no face in {where}: {guess}")
    places = "; ".join(f"{f.box.x + f.box.width // 2},{f.box.y + f.box.height // 2}" for f in faces[:8])
    told = f"the {len(faces)} found, the largest first, have their middles at {places}"
    if isinstance(choose, int):
        return NoFaceFound(f"no face number {choose} in {where}; {told}", remedy="number 0 is the largest")
    if isinstance(choose, Box):
        return NoFaceFound(f"the face is no longer where it was in {where}; {told}")
    x, y = choose or (0.0, 0.0)
    return NoFaceFound(f"no face at {x:g},{y:g} in {where}; {told}", remedy="name one of these places")


# -- its points --------------------------------------------------------------------------------------------------------


def _points(picture: RgbImage, landmarks: LandmarkNet, face: Box, flip_test: bool) -> tuple[Points, float]:
    """The 68 points of the face in that box and their score. Raises `NoFaceFound` when they are not clear.

    Head and shoulders suit the network best. But they may show a neighbour, whose face it then takes; closer looks do
    not.
    """
    height, width = picture.shape[:2]
    best, lost, elsewhere = 0.0, 0, False
    for reach in _REACHES:
        person = _clipped(_grown(face, reach), width, height)
        points = landmarks.find(picture, person, flip_test=flip_test).face
        score, missing = float(np.median(points.score)), int((points.score <= 0).sum())
        here = overlap(_around(points.at), face) >= _SAME_FACE
        if score >= LEAST_SCORE and not missing and here:
            return points, score
        if score >= best:
            best, lost, elsewhere = score, missing, not here
    why = f"{lost} of 68 points are missing" if lost else f"their score is {best:.2f}, a clear face has {LEAST_SCORE}"
    if best >= LEAST_SCORE and elsewhere and not lost:
        why = "they lie on another face"
    raise NoFaceFound(
        f"the landmarks of the face at {face.x + face.width // 2},{face.y + face.height // 2} are not clear: {why}",
        remedy="use a sharper picture of a face that looks at the camera, with nothing in front of it",
    )


def speaking_box(points: NDArray[np.float32], width: int, height: int, *, margin_px: int = MARGIN_PX) -> Box | None:
    """MuseTalk's box: as wide as the points, and as far above the bridge of the nose as the chin is below it.

    points         (68, 2) float32, in pixels of the picture
    width, height  of the picture; the box is cut off there, and None when nothing is left of it

    Source: MuseTalk 1.5, which takes the detector's box where ours is cut off at the left.
    """
    left, top, right, bottom = uncut_box(points)
    left, right, bottom = max(left, 0), min(right, width), min(bottom, height)
    if right <= left or bottom <= top:
        return None
    return _with_margin(Box(left, top, right - left, bottom - top), height, margin_px)


def uncut_box(points: NDArray[np.float32]) -> tuple[int, int, int, int]:
    """The same box as the original computes it first: left, top, right, bottom; only the top stays in the picture."""
    x, y = points.astype(np.int32).T
    middle, bottom = int(y[_NOSE_BRIDGE]), int(y.max())
    return int(x.min()), max(2 * middle - bottom, 0), int(x.max()), bottom


def yaw_deg(points: NDArray[np.float32]) -> float:
    """How far a head is turned to the side, in degrees, whichever way it is tilted.

    points  (68, 2)

    The tip of the nose stands about as far before the line through the outer corners of the eyes as these are from its
    middle. So it appears above one of them when the head is turned by 45 degrees.
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
