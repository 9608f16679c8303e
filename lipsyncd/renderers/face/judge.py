"""Tell what is wrong with a face that is to speak: turned away, cut off, or its mouth covered.

The mesh lays lips over every face, also over a mask and a hand: it has learned where lips must be. But it is not sure
of them. Shown the same face through slightly other crops, it moves covered lips by 1 to 3 % of the face's width and
visible ones by 0.3 to 0.8 %. And between visible lips lies a dark line, or teeth; on a mask, nothing.

Owns the reasons for a refusal. Leaves finding the face to `finder`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers.face import points
from lipsyncd.renderers.face.crops import Crop, crop_of, cut, mesh_in
from lipsyncd.renderers.face.face import Face
from lipsyncd.renderers.face.networks import FaceNetworks, networks
from lipsyncd.renderers.framing import RgbImage

MOST_YAW_DEG = 48.0  # half of the mouth is hidden beyond
LEAST_WIDTH_PX = 24.0  # of a face: a mouth is 9 pixels wide then
_ROOM = 0.06  # of the face's width, around the lips, in the picture

# Of lips that are covered: least unrest, in per cent of the face's width, with most darkness between them, in levels.
_COVERED = ((1.15, 10.0), (0.90, 3.5))
_LEAST_PRESENCE = 0.9  # with less, one of the two is enough
_SHIFTS = ((0.90, 0.0, 0.0), (1.15, 0.0, 0.0), (1.0, 0.06, 0.12), (1.0, -0.06, -0.12))  # size, aside, angle of crops

_LUMINANCE = np.array([[0.212671, 0.715160, 0.072169]], np.float32)  # of linear red, green and blue

_PATCH = 160  # pixels for each width of the face, in which the line between the lips is measured
_ACROSS = slice(2, 9)  # the middle of the contours of the inner lips; towards the corners there is no line
_LIPS = list(points.INNER_UPPER_LIP + points.INNER_LOWER_LIP + points.OUTER_LOWER_LIP)


@dataclass(frozen=True)
class Fault:
    """Why a face cannot speak: the end of a sentence about it, and what to do."""

    what: str
    remedy: str
    too_small: bool = False


def fault(face: Face, picture: RgbImage, nets: FaceNetworks | None = None) -> Fault | None:
    """What is wrong with a face; None when it can speak."""
    if (found := plain_fault(face, picture)) is not None:
        return found
    if _covered(face, picture, nets or networks()):
        return Fault("its mouth is covered", "use a picture in which nothing is in front of the mouth")
    return None


def plain_fault(face: Face, picture: RgbImage) -> Fault | None:
    """The same without the question whether the mouth is covered, which can take 30 ms."""
    if face.width_px < LEAST_WIDTH_PX:
        return Fault(
            f"it is too small: a face needs {LEAST_WIDTH_PX:g} px", "use a larger picture, or crop it to the face", True
        )
    if abs(face.yaw_deg) > MOST_YAW_DEG:
        return Fault(
            f"it is turned sideways by about {abs(face.yaw_deg):.0f} degrees",
            f"use a picture in which the face looks at the camera; up to {MOST_YAW_DEG:.0f} degrees can be animated",
        )
    if (side := _cut_off(face, picture)) is not None:
        return Fault(f"its mouth is cut off {side}", "use a picture that shows the whole mouth and the chin")
    return None


def _cut_off(face: Face, picture: RgbImage) -> str | None:
    """At which edge of the picture the mouth ends, in words."""
    height, width = picture.shape[:2]
    room = _ROOM * face.width_px
    left, top = (face.mesh[_LIPS, :2].min(axis=0) - room).tolist()
    right, bottom = (face.mesh[_LIPS, :2].max(axis=0) + room).tolist()
    if bottom > height:
        return "at the bottom"
    if top < 0:
        return "at the top"
    return "at the side" if left < 0 or right > width else None


def _covered(face: Face, picture: RgbImage, nets: FaceNetworks) -> bool:
    dark = _darkness(face, picture)
    if face.presence < _LEAST_PRESENCE:
        least, most = _COVERED[0]
        return dark < most or _unrest(face, picture, nets) > least
    # The unrest takes four meshes, and a clear line between the lips needs none.
    doubtful = [least for least, most in _COVERED if dark < most]
    return bool(doubtful) and _unrest(face, picture, nets) > min(doubtful)


def _unrest(face: Face, picture: RgbImage, nets: FaceNetworks) -> float:
    """How far the lips move when the crop changes a little, in per cent of the face's width."""
    crop = crop_of(face.mesh)
    along = np.array([math.cos(crop.angle), math.sin(crop.angle)])
    moved = []
    for size, aside, turn in _SHIFTS:
        shifted = Crop(crop.centre + aside * crop.side * along, size * crop.side, crop.angle + turn)
        mesh, _ = mesh_in(picture, nets, shifted)
        moved.append(np.abs(mesh[_LIPS, :2] - face.mesh[_LIPS, :2]).mean())
    return float(100 * np.mean(moved) / face.width_px)


def _darkness(face: Face, picture: RgbImage) -> float:
    """How much darker the darkest place between the lips is than both lips' rims, in levels of 255, on average.

    Lips apart have an edge at each rim, and teeth or a shadow between: the upper lip's own shadow is darker than both.
    """
    crop = Crop(np.asarray(face.mouth), face.width_px, math.radians(face.roll_deg))
    matrix = crop.matrix(_PATCH)
    grey = cast(NDArray[np.float32], cv2.GaussianBlur(lightness(cut(picture, matrix, _PATCH)), (0, 0), 1.5))
    back = np.linalg.inv(matrix[:, :2])
    place = (face.mesh[:, :2] - matrix[:, 2]) @ back.T
    upper, lower = place[list(points.OUTER_UPPER_LIP)], place[list(points.OUTER_LOWER_LIP)]
    middle = (place[list(points.INNER_UPPER_LIP), 0] + place[list(points.INNER_LOWER_LIP), 0]) / 2
    depths = []
    for x, top, bottom in zip(middle[_ACROSS], upper[_ACROSS, 1], lower[_ACROSS, 1], strict=True):
        column = grey[_rows(top, bottom), int(np.clip(round(x), 0, _PATCH - 1))]
        rim = max(1, len(column) // 4)
        depths.append(min(column[:rim].mean(), column[-rim:].mean()) - column.min())
    return float(np.mean(depths))


def lightness(picture: RgbImage) -> NDArray[np.float32]:
    """The L of CIE Lab of each pixel, (h, w) float32, 0 to 255.

    `cv2.COLOR_RGB2LAB` gives the same, rounded; its first call takes 50 ms to make tables.
    """
    level = np.arange(256) / 255
    linear = np.where(level > 0.04045, ((level + 0.055) / 1.055) ** 2.4, level / 12.92).astype(np.float32)
    y = cv2.transform(cv2.LUT(picture, linear), _LUMINANCE)
    return np.where(
        y > 0.008856, np.float32(2.55 * 116) * np.cbrt(y) - np.float32(2.55 * 16), np.float32(2.55 * 903.3) * y
    )


def _rows(top: float, bottom: float) -> slice:
    first = int(np.clip(round(top) - 3, 0, _PATCH - 4))
    return slice(first, max(int(np.clip(round(bottom) + 3, 0, _PATCH)), first + 4))
