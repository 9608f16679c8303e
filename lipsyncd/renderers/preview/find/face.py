"""Find faces in a picture: the box, the eyes, and the plane through them.

Haar cascades propose boxes, which are ranked by their eyes. A box without a plausible pair of eyes is a second choice,
and is used only with a clear mouth (`choose_face`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers.framing import Box, RgbImage
from lipsyncd.renderers.preview.find.face_coordinates import Plane

Grey = NDArray[np.uint8]  # (height, width)
Point = tuple[float, float]
Pair = tuple[float, Point, Point]  # cost of its unusual position, left eye, right eye

PROPOSALS = 6  # the largest ones of each pass
PAIRS = 4  # of eyes for each box, those with the lowest cost
BOX_PX = 300  # the face box is scaled to this width for the detection of eyes
EYE_ROWS = 0.62  # the upper part of the box in which eyes are searched
EYE_PX = (36, 110)
# In 300 pixels: the usual middle, distance and height of a pair of eyes, and the usual deviation of each.
USUAL = np.array([150.0, 135.0, 115.0])
SPREAD = np.array([30.0, 25.0, 25.0])
DISTANCE_PX = (100.0, 190.0)
MOST_UNEVEN = 0.42  # difference in height relative to the distance: 23 degrees
WORST_PAIR = 6.0  # sum of squared deviations


@dataclass(frozen=True)
class Face:
    """A face in a picture, in its pixels."""

    box: Box
    plane: Plane
    eyes_seen: bool  # False: no eyes were found, the plane is estimated from the box
    unusual: float = 0.0  # deviation of the eyes from their usual position: sum of squares


def faces(picture: RgbImage) -> Iterator[list[Face]]:
    """All candidates for faces, likely ones first: large before small, detected eyes before estimated ones.

    picture  (H, W, 3) uint8 RGB
    returns  for each box its variants, since glasses and brows can be taken for eyes

    Each pass is more thorough and more expensive than the one before; it runs only when more candidates are requested.
    """
    grey = cast(Grey, cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))
    estimated = []
    for boxes in _passes(grey):
        for box in boxes:
            pairs = _eyes(grey, box)
            if pairs:
                yield [Face(box, Plane.from_eyes(left, right), True, cost) for cost, left, right in pairs]
            else:
                estimated.append(Face(box, _usual_plane(box), False))
    for face in estimated:
        yield [face]


def _passes(grey: Grey) -> Iterator[list[Box]]:
    """Boxes of faces, from one pass after the other."""
    yield _propose(grey, "alt2", long_side=900, step=1.1, neighbours=4)
    flat = cast(Grey, cv2.createCLAHE(2.0, (8, 8)).apply(grey))
    yield _propose(flat, "alt2", long_side=900, step=1.04, neighbours=3)
    yield _propose(grey, "default", long_side=900, step=1.05, neighbours=4)
    yield _propose(grey, "alt2", long_side=2200, step=1.06, neighbours=3)


def _propose(grey: Grey, cascade: str, *, long_side: int, step: float, neighbours: int) -> list[Box]:
    """The boxes that a cascade detects, the largest first, at most PROPOSALS, in pixels of `grey`."""
    height, width = grey.shape
    scale = min(long_side / max(height, width), 2.0)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    scaled = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=method)
    found = _cascade(f"frontalface_{cascade}").detectMultiScale(scaled, step, neighbours, minSize=(40, 40))
    boxes = [Box(*(round(float(side) / scale) for side in box)) for box in found]
    return sorted(boxes, key=lambda box: (-box.width, box.x, box.y))[:PROPOSALS]


def _eyes(grey: Grey, box: Box) -> list[Pair]:
    """The pairs of eyes in `box` that are nearest to the usual position, in pixels of `grey`; perhaps none."""
    scale = BOX_PX / box.width
    left, top = max(box.x, 0), max(box.y, 0)
    cut = grey[top : box.y + round(EYE_ROWS * box.height), left : box.right]
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    patch = cv2.resize(cut, None, fx=scale, fy=scale, interpolation=method)
    smallest, largest = ((side, side) for side in EYE_PX)
    costs = []
    for name in ("eye", "eye_tree_eyeglasses"):
        found = _cascade(name).detectMultiScale(patch, 1.05, 3, minSize=smallest, maxSize=largest)
        middles = sorted((float(x + w / 2), float(y + h / 2)) for x, y, w, h in found)
        costs += [(_pair_cost(one, other), one, other) for one, other in combinations(middles, 2)]

    def in_picture(point: Point) -> Point:
        return (point[0] + 0.5) / scale - 0.5 + left, (point[1] + 0.5) / scale - 0.5 + top

    likely = sorted(pair for pair in costs if pair[0] <= WORST_PAIR)[:PAIRS]
    return [(cost, in_picture(one), in_picture(other)) for cost, one, other in likely]


def _pair_cost(left: Point, right: Point) -> float:
    """The cost of two eyes in a box of BOX_PX by their position; infinite when they cannot be a pair."""
    distance, drop = right[0] - left[0], right[1] - left[1]
    if not DISTANCE_PX[0] <= distance <= DISTANCE_PX[1] or abs(drop) > MOST_UNEVEN * distance:
        return float("inf")
    position = np.array([(left[0] + right[0]) / 2, distance, (left[1] + right[1]) / 2])
    return float(np.sum(((position - USUAL) / SPREAD) ** 2) + (drop / 25.0) ** 2)


def _usual_plane(box: Box) -> Plane:
    """The plane through the usual position of the eyes in a box of the cascades."""
    y = box.y + 0.385 * box.height
    return Plane.from_eyes((box.x + 0.30 * box.width, y), (box.x + 0.70 * box.width, y))


@cache
def _cascade(name: str) -> cv2.CascadeClassifier:
    return cv2.CascadeClassifier(str(Path(cv2.__file__).parent / "data" / f"haarcascade_{name}.xml"))
