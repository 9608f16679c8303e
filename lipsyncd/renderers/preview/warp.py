"""Move the lower face: lips, jaw and chin of the photograph itself, for any pose of the mouth.

Two sheets meet at the mouth. The upper one carries the upper lip, the lower one the lower lip and the jaw. Each has a
displacement that is smooth over the whole face, so nothing tears but the mouth itself. It is given backwards, from
where a pixel ends to where it came from, and never falls as steeply as 1, so it has no folds and needs no inversion.

Everything is in the units of `plane.py`. Owns the movement. Leaves the inside of the mouth to `inside.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers.preview.mouth import Mouth
from lipsyncd.renderers.preview.plane import Field, Window, eased, smoothstep

WIDEST_GAP = 0.26  # between the lips, at openness 1
UPPER_SHARE = 0.14  # of the gap: the upper lip rises a little, the lower one does the rest
CORNER_SHARE = 0.26  # of the gap: the corners go down with the jaw
JAW_SHARE = 0.62  # of the gap: the chin

ROUND_PULL, SPREAD_PULL, OPEN_PULL = 0.115, 0.045, 0.025  # of each corner, sideways
POUT = 0.022  # how much fuller rounded lips are

UPPER_FADE = 0.26  # nothing above the lip moves further up than this: the base of the nose stays
LIP_TO_JAW = 0.30  # below the lower lip, its movement becomes the jaw's
NECK_FADE = 0.34  # below the chin, the jaw's movement ends
JAW_SIDES = (0.20, 0.95)  # full this far from the middle, ended there
SIDE_FADE = 0.40

REST = 0.5  # where in an opening that the source already has the lips meet


@dataclass(frozen=True)
class Pose:
    """openness from 0 to about 1, width from -1 rounded to +1 spread."""

    openness: float
    width: float


@dataclass(frozen=True)
class Edges:
    """The opening of one pose, for each u of a row.

    half    half the width of the opening
    gap     its height in the middle
    pull    how far the skin has moved sideways
    upper   v of the upper lip's edge
    lower   v of the lower lip's edge, not above `upper`
    lift    how far the upper edge has moved down from its place in the source
    drop    the same of the lower edge
    """

    half: float
    gap: float
    pull: Field
    upper: Field
    lower: Field
    lift: Field
    drop: Field


def reach(mouth: Mouth) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of all that ever moves."""
    line = min(float(mouth.upper[-1]), float(mouth.lower[-1]))
    return mouth.middle - JAW_SIDES[1], line - SIDE_FADE, mouth.middle + JAW_SIDES[1], mouth.chin + NECK_FADE + 0.02


def edges(mouth: Mouth, pose: Pose, u: Field) -> Edges:
    """Where the lips part in this pose.

    u  (n,) float32, any positions across the face
    """
    x = u.astype(np.float64) - mouth.middle
    gap = WIDEST_GAP * pose.openness
    open_pull = OPEN_PULL + 0.5 * max(mouth.half - 0.36, 0.0)  # a smile gives way to the vowel
    corner = (ROUND_PULL if pose.width < 0 else SPREAD_PULL) * pose.width - open_pull * pose.openness
    pull = corner * np.tanh(x / 0.35) * (1.0 - smoothstep((np.abs(x) - 0.40) / 0.50))
    line_half = mouth.half + corner * 0.8
    half = line_half * (0.74 + 0.20 * eased(pose.openness / 0.5))

    source_upper, source_lower = source_edges(mouth, x - pull)
    rest = source_upper + REST * (source_lower - source_upper)
    inside = np.maximum(1.0 - (x / half) ** 2, 0.0)
    # A slit has pointed corners, a wide or rounded mouth is an oval.
    profile = inside ** (1.0 - 0.25 * eased(pose.openness / 0.8) + 0.20 * min(pose.width, 0.0))
    sag = CORNER_SHARE * gap * (1.0 - profile) * (1.0 - smoothstep((np.abs(x) - line_half) / 0.35))
    upper = rest + sag - UPPER_SHARE * gap * profile
    lower = rest + sag + (1.0 - UPPER_SHARE) * gap * profile
    curves = (pull, upper, lower, upper - source_upper, lower - source_lower)
    return Edges(half, gap, *(curve.astype(np.float32) for curve in curves))


def source_edges(mouth: Mouth, x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The resting edges of the upper and lower lip; one line where they touch, and beyond the corners.

    x  distances from the middle of the mouth
    """
    held = np.clip(x, -1.15 * mouth.half, 1.15 * mouth.half)
    upper, lower = np.polyval(mouth.upper, held), np.polyval(mouth.lower, held)
    line = upper + REST * (lower - upper)
    touching = lower <= upper
    return np.where(touching, line, upper), np.where(touching, line, lower)


class Warp:
    """The displacement of both sheets on the cells of a window."""

    def __init__(self, mouth: Mouth, window: Window) -> None:
        u, self._v = window.grid()
        self._mouth, self._u = mouth, u[0]
        x = np.abs(u - mouth.middle)
        jaw = 1.0 - smoothstep((x - JAW_SIDES[0]) / (JAW_SIDES[1] - JAW_SIDES[0]))
        neck = 1.0 - smoothstep((self._v - mouth.chin) / NECK_FADE)
        self._jaw = (JAW_SHARE * jaw * neck).astype(np.float32)

    def sheets(self, pose: Pose) -> tuple[Field, Field]:
        """How far the pixel that ends in each cell has come.

        returns  upper and lower sheet, each (rows, columns, 2) float32: to the right, and down
        """
        lips = edges(self._mouth, pose, self._u)
        above, below = lips.upper[None] - self._v, self._v - lips.lower[None]
        outside = np.maximum(above, below) / np.float32(SIDE_FADE)
        sideways = lips.pull[None] * (1.0 - smoothstep(outside))

        pout = np.float32(-POUT * min(pose.width, 0.0))
        lip = np.where(np.abs(self._u - self._mouth.middle) < lips.half, 1.0, 0.0)[None]
        upper = lips.lift[None] * (1.0 - smoothstep(above / UPPER_FADE))
        if pout > 0:
            upper = upper - pout * lip * _bump(above)
        to_jaw = smoothstep(below / LIP_TO_JAW)
        lower = lips.drop[None] * (1.0 - to_jaw) + lips.gap * self._jaw * to_jaw
        if pout > 0:
            lower = lower + pout * lip * _bump(below)
        return np.dstack((sideways, upper)), np.dstack((sideways, lower))


def _bump(distance: Field) -> Field:
    """Fuller lips: nothing at the edge, most at the rim of the lip, nothing on the skin beyond."""
    return smoothstep(distance / 0.14) * (1.0 - smoothstep((distance - 0.14) / 0.22))
