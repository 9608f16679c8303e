"""For tests of the moving head: faces of known pictures, and what a mesh sees in finished frames."""

from __future__ import annotations

from functools import cache
from typing import cast

import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers.face import points
from lipsyncd.renderers.face.face import Face
from lipsyncd.renderers.face.finder import find_faces
from lipsyncd.renderers.framing import RgbImage
from lipsyncd.renderers.motion.still import StillMotion
from tests.kits.media.portraits import picture

FPS = 25


@cache
def face(name: str) -> Face:
    """The face of one of `portraits.NAMES`."""
    return find_faces(picture(name))[0]


def times(seconds: float) -> NDArray[np.float64]:
    return np.arange(round(seconds * FPS)) / FPS


def hills(at_s: NDArray[np.float64], *peaks_s: float) -> NDArray[np.float32]:
    """Emphasis with these peaks."""
    curve = np.zeros(len(at_s))
    for peak in peaks_s:
        curve = np.maximum(curve, np.exp(-0.5 * ((at_s - peak) / 0.08) ** 2))
    return curve.astype(np.float32)


def motion(name: str, **changed: object) -> StillMotion:
    """The motion of a portrait: `subtle`, ten seconds, unless `changed`."""
    values: dict[str, object] = {"kind": "subtle", "at_s": times(10), "seed": 5}
    return StillMotion(picture(name), face(name).mesh, **(values | changed))  # type: ignore[arg-type]


def looks(moving: StillMotion, canvas: RgbImage, numbers: range) -> list[Face]:
    """The face in some frames of a still whose mouth rests."""
    return [find_faces(moving.apply(canvas, number))[0] for number in numbers]


def eyes_open(seen: Face) -> float:
    """The height of the openings of the eyes by the mesh, as a share of their width."""
    shares = []
    for upper, lower in (
        (points.RIGHT_UPPER_LID, points.RIGHT_LOWER_LID),
        (points.LEFT_UPPER_LID, points.LEFT_LOWER_LID),
    ):
        between = seen.mesh[list(upper[2:-2]), :2].mean(axis=0) - seen.mesh[list(lower[2:-2]), :2].mean(axis=0)
        shares.append(np.linalg.norm(between) / np.linalg.norm(seen.mesh[upper[0], :2] - seen.mesh[upper[-1], :2]))
    return cast(float, float(np.mean(shares)))
