"""Choose who speaks: the largest face whose eyes and mouth can be trusted.

A moving mouth drawn on a cheek is worse than no video, so a doubtful face is refused with the reason. Owns that choice.
"""

from __future__ import annotations

from dataclasses import dataclass

from lipsyncd.errors import NoFaceFound
from lipsyncd.renderers.framing import RgbImage
from lipsyncd.renderers.preview.find.face import Face, faces
from lipsyncd.renderers.preview.find.mouth import Mouth, find_mouth

LEAST_EYES_PX = 16.0  # from eye to eye: a mouth is 11 pixels wide then
MOST_TILT_DEG = 20.0
ROOM_BELOW = 0.3  # eye distances of face below the mouth, at least
CLEAR = 0.28  # score of a mouth under eyes that were seen
CLEAR_ALONE = 1.2  # under eyes that were guessed from the box


@dataclass(frozen=True)
class Speaker:
    """A face and its mouth, in the pixels and units of the picture that they were found in."""

    face: Face
    mouth: Mouth


def find_speaker(picture: RgbImage) -> Speaker:
    """The one face that will speak.

    picture  (H, W, 3) uint8 RGB

    Raises `NoFaceFound`, which says what was wrong with the best candidate.
    """
    height, width = picture.shape[:2]
    size = f"the picture of {width}x{height} pixels"
    refused: tuple[str, str | None] | None = None
    for ways in faces(picture):
        seen = [Speaker(face, find_mouth(picture, face.plane)) for face in ways]
        best = max(seen, key=_merit)
        fault = _fault(best, picture)
        if fault is None:
            return best
        # The first one is the largest of the most careful pass: its fault is the one worth reading.
        if refused is None and best.face.eyes_seen and best.mouth.score >= CLEAR:
            refused = fault
    if refused is None:
        raise NoFaceFound(f"no face with a clear mouth in {size}")
    what, remedy = refused
    raise NoFaceFound(f"the face in {size} {what}", remedy=remedy)


def _merit(speaker: Speaker) -> float:
    """How well eyes and mouth fit together: a clear mouth, level below eyes that are where eyes usually are."""
    level = 2.0 * abs(speaker.mouth.slope)
    return min(speaker.mouth.score, 1.0) - level - 0.2 * speaker.face.unusual


def _fault(speaker: Speaker, picture: RgbImage) -> tuple[str, str | None] | None:
    """Why this face cannot speak, and what helps; None when it can."""
    face, mouth = speaker.face, speaker.mouth
    eyes_px, tilt = face.plane.unit_px, face.plane.roll_deg
    if eyes_px < LEAST_EYES_PX:
        closer = f"use a picture where they are {LEAST_EYES_PX:g} or more pixels apart: larger, or cropped to the face"
        return f"is too small: its eyes are {eyes_px:.0f} pixels apart", closer
    if abs(tilt) > MOST_TILT_DEG:
        return f"is tilted by {abs(tilt):.0f} degrees", "turn the picture until the eyes are level"
    x, y = face.plane.pixel(mouth.middle, mouth.line_v + ROOM_BELOW)
    if not (0 <= x < picture.shape[1] and 0 <= y < picture.shape[0]):
        return "is cut off below the mouth", "use a picture that shows the chin"
    # Without eyes only closed lips are proof enough: anything bright between dark edges passes for teeth.
    if mouth.score < (CLEAR if face.eyes_seen else CLEAR_ALONE) or (mouth.open_at_rest and not face.eyes_seen):
        return "shows no clear mouth", None
    return None
