"""Move the lower face: lips, jaw and chin of the photograph itself, for any pose of the mouth.

Two sheets meet at the mouth. The upper one carries the upper lip, the lower one the lower lip and the jaw. The
displacement of each is smooth over the whole face, so only the mouth opens. It maps backwards, from the new position of
a pixel to its source, so it needs no inversion; and its slope stays below 1, so there are no folds.

Everything is in the units of `find.face_coordinates`. Owns the movement. Leaves the inside of the mouth to
`mouth_inside`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers.preview.find.face_coordinates import Field, Window, eased, smoothstep
from lipsyncd.renderers.preview.find.mouth import Mouth

WIDEST_GAP = 0.26  # between the lips, at openness 1
UPPER_SHARE = 0.14  # of the gap: the upper lip rises a little, the lower one falls by the rest
CORNER_SHARE = 0.26  # of the gap: the corners move down with the jaw
JAW_SHARE = 0.62  # of the gap: the chin

ROUND_PULL, SPREAD_PULL, OPEN_PULL = 0.115, 0.045, 0.025  # of each corner, sideways
POUT = 0.022  # how much fuller rounded lips are

# Where one movement turns into another, or ends: distances from the lips, the chin and the middle.
UPPER_FADE = 0.26  # above the upper lip: the base of the nose stays
LIP_TO_JAW = 0.30  # below the lower lip: from there on the skin moves with the jaw
NECK_FADE = 0.34  # below the chin
JAW_SIDES = (
    0.20,
    0.95,
    0.72,
)  # sideways: where the jaw's movement begins to fade, ends at the level of the mouth, ends at the chin
PULL_RISE, PULL_SIDES, PULL_FADE = 0.35, (0.40, 0.90), 0.40  # sideways, sideways, above and below the lips
SAG_FADE = 0.35  # beyond the corners
RIM = 0.08  # at the border of the window

INNER_HALF = (0.74, 0.94)  # half width of the opening, as a part of the lips': when slightly and when wide open

CORNERS = 0.80  # of the half width: from here on an opening in the source narrows
REST = 0.5  # the relative height at which the lips close an opening in the source


@dataclass(frozen=True)
class Pose:
    """Openness from 0 to about 1, width from -1 (rounded) to +1 (spread)."""

    openness: float
    width: float


@dataclass(frozen=True)
class LipEdges:
    """The opening of one pose, for each u of a row.

    half    half the width of the opening
    gap     its height in the middle
    pull    how far the skin has moved sideways
    rest    v of the line between closed lips
    upper   v of the upper lip's edge
    lower   v of the lower lip's edge, not above `upper`
    lift    how far the upper edge has moved down from its place in the source
    drop    the same of the lower edge
    """

    half: float
    gap: float
    pull: Field
    rest: Field
    upper: Field
    lower: Field
    lift: Field
    drop: Field


def moving_area(mouth: Mouth) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the area that can move."""
    line = min(float(mouth.upper[-1]), float(mouth.lower[-1]))
    return mouth.middle - JAW_SIDES[1], line - PULL_FADE, mouth.middle + JAW_SIDES[1], mouth.chin + NECK_FADE + 0.02


def lip_edges(mouth: Mouth, pose: Pose, u: Field) -> LipEdges:
    """The edges of the lips in this pose.

    u  (n,) float32, any positions across the face
    """
    x = u.astype(np.float64) - mouth.middle
    gap = WIDEST_GAP * pose.openness
    open_pull = OPEN_PULL + 0.5 * max(mouth.half - 0.36, 0.0)  # a smile gives way to the vowel
    corner = (ROUND_PULL if pose.width < 0 else SPREAD_PULL) * pose.width - open_pull * pose.openness
    beyond = (np.abs(x) - PULL_SIDES[0]) / (PULL_SIDES[1] - PULL_SIDES[0])
    pull = corner * np.tanh(x / PULL_RISE) * (1.0 - smoothstep(beyond))
    line_half = mouth.half + 0.8 * corner  # where the corners move to: tanh of about 0.4 / 0.35
    half = line_half * (INNER_HALF[0] + (INNER_HALF[1] - INNER_HALF[0]) * eased(pose.openness / 0.5))

    source_upper, source_lower = source_edges(mouth, x - pull)
    rest = source_upper + REST * (source_lower - source_upper)
    inside = np.maximum(1.0 - (x / half) ** 2, 0.0)
    # A slit has pointed corners, a wide or rounded mouth is an oval.
    profile = inside ** (1.0 - 0.25 * eased(pose.openness / 0.8) + 0.20 * min(pose.width, 0.0))
    sag = CORNER_SHARE * gap * (1.0 - profile) * (1.0 - smoothstep((np.abs(x) - line_half) / SAG_FADE))
    upper = rest + sag - UPPER_SHARE * gap * profile
    lower = rest + sag + (1.0 - UPPER_SHARE) * gap * profile
    curves = (pull, rest, upper, lower, upper - source_upper, lower - source_lower)
    return LipEdges(half, gap, *(curve.astype(np.float32) for curve in curves))


def source_edges(mouth: Mouth, x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The resting edges of the upper and lower lip; one line where they touch, and beyond the corners.

    x  distances from the middle of the mouth
    """
    held = np.clip(x, -mouth.half, mouth.half)
    upper, lower = np.polyval(mouth.upper, held), np.polyval(mouth.lower, held)
    line = upper + REST * (lower - upper)
    # The two parabolas need not meet at the corners, but the lips do.
    apart = np.where(lower > upper, 1.0 - smoothstep((np.abs(x) / mouth.half - CORNERS) / (1.0 - CORNERS)), 0.0)
    return line + apart * (upper - line), line + apart * (lower - line)


class Warp:
    """The displacement of both sheets on the cells of a window."""

    def __init__(self, mouth: Mouth, window: Window) -> None:
        u, self._v = window.grid()
        self._mouth, self._u = mouth, u[0]
        x = np.abs(u - mouth.middle)
        # The jaw is narrower at the chin than at the mouth; the background beside it must not move.
        lower_jaw = smoothstep((self._v - mouth.line_v) / (mouth.chin - mouth.line_v))
        sides = JAW_SIDES[1] - (JAW_SIDES[1] - JAW_SIDES[2]) * lower_jaw
        jaw = 1.0 - smoothstep((x - JAW_SIDES[0]) / (sides - JAW_SIDES[0]))
        neck = 1.0 - smoothstep((self._v - mouth.chin) / NECK_FADE)
        self._jaw = (JAW_SHARE * jaw * neck).astype(np.float32)
        # The border of the window never moves. The lower sheet is hidden at the top, the upper one at the bottom.
        beside = smoothstep(np.minimum(u - u[0, 0], u[0, -1] - u) / RIM)
        top, bottom = (smoothstep(np.abs(self._v - end) / RIM) for end in (self._v[0, 0], self._v[-1, 0]))
        self._rims = (beside * top)[..., None], (beside * bottom)[..., None]

    def sheets(self, pose: Pose) -> tuple[Field, Field]:
        """The displacement of the pixel that ends in each cell.

        returns  upper and lower sheet, each (rows, columns, 2) float32: to the right, and down
        """
        lips = lip_edges(self._mouth, pose, self._u)
        above, below = lips.upper[None] - self._v, self._v - lips.lower[None]
        # In every column from the lowest point of the lower lip on: the edge itself is too steep as a reference.
        outside = np.maximum(lips.rest[None] - self._v, self._v - lips.rest[None] - np.float32(lips.gap))
        sideways = lips.pull[None] * (1.0 - smoothstep(outside / PULL_FADE))

        to_jaw = smoothstep(below / LIP_TO_JAW)
        upper = lips.lift[None] * (1.0 - smoothstep(above / UPPER_FADE))
        lower = lips.drop[None] * (1.0 - to_jaw) + lips.gap * self._jaw * to_jaw
        if pose.width < 0:
            across = np.maximum(1.0 - ((self._u - self._mouth.middle) / lips.half) ** 2, 0.0)[None]
            pout = np.float32(-POUT * pose.width) * across
            upper -= pout * _bump(above)
            lower += pout * _bump(below)
        over, under = self._rims
        return np.dstack((sideways, upper)) * over, np.dstack((sideways, lower)) * under


def _bump(distance: Field) -> Field:
    """Fuller lips: nothing at the edge, most at the rim of the lip, nothing on the skin beyond."""
    return smoothstep(distance / 0.14) * (1.0 - smoothstep((distance - 0.14) / 0.22))
