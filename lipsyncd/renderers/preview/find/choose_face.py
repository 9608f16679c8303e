"""Choose the face that speaks: the largest one whose eyes and mouth are found reliably.

A moving mouth drawn on a cheek is worse than no video, so a doubtful face is refused with the reason. Owns the choice.
"""

from __future__ import annotations

from dataclasses import dataclass

from lipsyncd.errors import NoFaceFound
from lipsyncd.renderers.framing import RgbImage
from lipsyncd.renderers.preview.find.face import Face, faces
from lipsyncd.renderers.preview.find.mouth import Mouth, find_mouth

LEAST_EYES_PX = 16.0  # from eye to eye: a mouth is 11 pixels wide then
MOST_TILT_DEG = 20.0
ROOM_BELOW = 0.3  # of face below the mouth, at least, in distances between the eyes
CLEAR = 0.28  # least score of a mouth below detected eyes
CLEAR_ALONE = 1.2  # below eyes whose position was only estimated from the box


@dataclass(frozen=True)
class ChosenFace:
    """A face and its mouth, in pixels of the picture and in units of the face."""

    face: Face
    mouth: Mouth


def choose_face(picture: RgbImage) -> ChosenFace:
    """The face that speaks.

    picture  (H, W, 3) uint8 RGB

    Raises `NoFaceFound` with the reason why the best candidate is refused.
    """
    height, width = picture.shape[:2]
    size = f"the picture of {width}x{height} pixels"
    refused: tuple[str, str | None] | None = None
    for variants in faces(picture):
        candidates = [ChosenFace(face, find_mouth(picture, face.plane)) for face in variants]
        best = max(candidates, key=_plausibility)
        fault = _fault(best, picture)
        if fault is None:
            return best
        # The first one is the largest of the most reliable pass: its fault is the most useful message.
        if refused is None and best.face.eyes_seen and best.mouth.score >= CLEAR:
            refused = fault
    if refused is None:
        raise NoFaceFound(f"no face with a clear mouth in {size}")
    what, remedy = refused
    raise NoFaceFound(f"the face in {size} {what}", remedy=remedy)


def _plausibility(candidate: ChosenFace) -> float:
    """How well eyes and mouth fit together: a clear mouth, parallel to eyes that are at a usual place."""
    level = 2.0 * abs(candidate.mouth.slope)
    return min(candidate.mouth.score, 1.0) - level - 0.2 * candidate.face.unusual


def _fault(candidate: ChosenFace, picture: RgbImage) -> tuple[str, str | None] | None:
    """Why this face is refused, and the remedy; None when it can be used."""
    face, mouth = candidate.face, candidate.mouth
    eyes_px, tilt = face.plane.unit_px, face.plane.roll_deg
    if eyes_px < LEAST_EYES_PX:
        closer = (
            f"use a larger picture, or crop it to the face: its eyes must be {LEAST_EYES_PX:g} or more pixels apart"
        )
        return f"is too small: its eyes are {eyes_px:.0f} pixels apart", closer
    if abs(tilt) > MOST_TILT_DEG:
        return f"is tilted by {abs(tilt):.0f} degrees", "turn the picture until the eyes are level"
    x, y = face.plane.pixel(mouth.middle, mouth.line_v + ROOM_BELOW)
    if not (0 <= x < picture.shape[1] and 0 <= y < picture.shape[0]):
        return "is cut off below the mouth", "use a picture that shows the chin"
    # Without detected eyes only closed lips are accepted: any bright area between dark edges could pass for teeth.
    if mouth.score < (CLEAR if face.eyes_seen else CLEAR_ALONE) or (mouth.open_at_rest and not face.eyes_seen):
        return "shows no clear mouth", None
    return None
