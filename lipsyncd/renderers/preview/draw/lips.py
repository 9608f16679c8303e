"""The contours of the lips in any pose of the mouth.

At rest they are the contours of the photograph, and closed lips meet on their own line. A pose moves the corners, parts
the lips along that line, and makes each lip fuller or thinner. Owns these shapes. Leaves moving pixels to `warp`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers.preview.mouth import Mouth, met
from lipsyncd.renderers.preview.plane import Curve, Field, eased, smoothstep

WIDEST_GAP = 0.26  # between the lips, at openness 1
UPPER_SHARE = 0.16  # of the gap: the upper lip rises a little, the lower one falls by the rest
CORNER_SHARE = 0.26  # of the gap: the corners move down with the jaw
SAG_FADE = 0.35  # beyond the corners
SPREAD_SHOWS = 0.03  # how much more the lips of a spread mouth part: the teeth of an ee are seen
BITE_GAP, BITE_UPPER = 0.048, 0.85  # the teeth of an f between the lips; the share of it by which the upper lip rises

ROUND_PULL, SPREAD_PULL, OPEN_PULL = 0.125, 0.050, 0.025  # of each corner, sideways
SMILE_PULL, USUAL_HALF = 0.5, 0.38  # of what a mouth is wider than usual, a wide open one gives back
PULL_RISE, PULL_FROM = 0.35, 0.36  # sideways
MOST_PULL = 0.17  # inwards, so that nothing folds beside the corners

INNER_HALF = (0.78, 0.95)  # half width of the opening, as a part of the lips': when slightly and when wide open

# How much thicker each lip becomes: upper, lower.
ROUND_FULL, SPREAD_FULL, OPEN_FULL = (0.26, 0.20), (-0.12, -0.10), (-0.10, -0.06)
PRESS_FULL, BITE_FULL = (-0.42, -0.42), (-0.05, -0.42)
BITE_ROLL = 0.30  # of the lower lip, which disappears behind the upper teeth


@dataclass(frozen=True)
class Pose:
    """The mouth of one frame.

    openness  0 to 1.2
    width     -1 rounded to +1 spread
    press     0 to 1: lips pressed together, as for p, b and m
    bite      0 to 1: the lower lip under the upper teeth, as for f and v
    """

    openness: float
    width: float = 0.0
    press: float = 0.0
    bite: float = 0.0


@dataclass(frozen=True)
class LipEdges:
    """The lips of one pose at some places across the face; v grows downwards.

    half         half the width of the opening
    gap          its height in the middle
    jaw          how far the jaw has moved down
    pull         how far the skin has moved sideways, in x
    rest         v of the line between closed lips
    upper        v of the upper lip's edge
    lower        v of the lower lip's edge, not above `upper`
    lift         how far the upper edge has moved down from its place in the photograph
    drop         the same of the lower edge
    upper_lip    thickness of the upper lip
    lower_lip    thickness of the lower lip
    upper_outer  how far the outer contour of the upper lip has moved down
    lower_outer  the same of the lower lip
    """

    half: float
    gap: float
    jaw: float
    pull: Field
    rest: Field
    upper: Field
    lower: Field
    lift: Field
    drop: Field
    upper_lip: Field
    lower_lip: Field
    upper_outer: Field
    lower_outer: Field

    def at(self, entries: NDArray[np.intp]) -> LipEdges:
        """The same pose at some of its places."""
        curves = (getattr(self, field.name) for field in fields(self)[3:])
        return LipEdges(self.half, self.gap, self.jaw, *(curve[entries] for curve in curves))


def lip_edges(mouth: Mouth, pose: Pose, x: NDArray[np.floating]) -> LipEdges:
    """The lips in this pose.

    x  (n,) any positions across the face, see `Mouth.frontal`
    """
    at = x.astype(np.float64)
    openness, bite = pose.openness, pose.bite * (1.0 - 0.8 * eased(pose.openness / 0.5))
    rounded, spread = max(-pose.width, 0.0), max(pose.width, 0.0)
    gap = (WIDEST_GAP + SPREAD_SHOWS * spread) * openness
    jaw = gap - 0.02 * pose.press
    smile = SMILE_PULL * max(mouth.half - USUAL_HALF, 0.0)
    corner = SPREAD_PULL * spread - ROUND_PULL * rounded - (OPEN_PULL + smile) * openness + 0.010 * pose.press
    corner = max(corner, -MOST_PULL)
    beyond = (np.abs(at) - PULL_FROM) / (mouth.sides - PULL_FROM)
    pull = corner * np.tanh(at / PULL_RISE) * (1.0 - smoothstep(beyond))
    line_half = mouth.half + 0.8 * corner  # where the corners move to: tanh of about 0.4 / 0.35
    half = line_half * (INNER_HALF[0] + (INNER_HALF[1] - INNER_HALF[0]) * eased(openness / 0.5))

    source = mouth.contours(at - pull)
    rest = met(source)
    inside = np.maximum(1.0 - (at / half) ** 2, 0.0)
    # A slit has pointed corners, a wide or rounded mouth is an oval.
    profile = inside ** (0.95 - 0.25 * eased(openness / 0.8) - 0.20 * rounded)
    sag = CORNER_SHARE * gap * (1.0 - profile) * (1.0 - smoothstep((np.abs(at) - line_half) / SAG_FADE))
    bitten = BITE_GAP * bite * inside**1.5
    upper = rest + sag - UPPER_SHARE * gap * profile - BITE_UPPER * bitten
    lower = rest + sag + (1.0 - UPPER_SHARE) * gap * profile + (1.0 - BITE_UPPER) * bitten
    upper_lip, lower_lip = source.inner_upper - source.outer_upper, source.outer_lower - source.inner_lower
    fuller = (
        1.0 + rounded * r + spread * s + min(openness, 1.0) * o + pose.press * p + bite * b
        for r, s, o, p, b in zip(ROUND_FULL, SPREAD_FULL, OPEN_FULL, PRESS_FULL, BITE_FULL, strict=True)
    )
    top, bottom = (lip * factor for lip, factor in zip((upper_lip, lower_lip), fuller, strict=True))
    rolled = BITE_ROLL * bite * lower_lip
    curves: tuple[Curve, ...] = (
        pull, rest, upper, lower,
        upper - source.inner_upper, lower - source.inner_lower - rolled,
        top, bottom,
        upper - top - source.outer_upper, lower + bottom - source.outer_lower,
    )  # fmt: skip
    return LipEdges(half, gap + BITE_GAP * bite, jaw, *(curve.astype(np.float32) for curve in curves))
