"""The resting mouth of a face: the contours of its lips as curves over a face that looks ahead.

A head that is turned shows one half of its mouth shorter than the other. So u is bent into x, the position across the
same face seen from the front: -half at the person's right corner, 0 in the middle, half at the left one. All movements
are functions of x and v.

Lips that touch have one line; the mesh places it within a few hundredths, and the dark valley of the photograph there
tells it exactly. Owns the shape of the resting mouth. Leaves moving it to `draw`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers.face import points
from lipsyncd.renderers.face.networks import Mesh
from lipsyncd.renderers.framing import RgbImage
from lipsyncd.renderers.preview.plane import Curve, Field, Plane, eased

APART = 0.055  # between the inner contours, at most, of lips that touch
CLOSED_AT = 0.5  # of the height of an opening, counted from above: where its lips meet
ENTRIES = 257  # of each table across the mouth
SIDES = (0.75, 1.0)  # least and greatest distance of the cheeks from the middle, in a face seen from the front
ROOM = 0.12  # between a corner and the outline of the face, at least
LEAST_LIP = 0.02

# The search for the dark line between lips that touch.
COLUMNS, ROWS = 97, 41
REACH, SURE = 0.042, 0.020  # how far from the mesh's line, and the distance that is no surprise
BEND_COST = 0.06  # of one row up or down, where the gain of a column is up to 1
SMOOTH = 0.05  # of the found offsets, in widths of the mouth


@dataclass(frozen=True)
class Lips:
    """The four contours at some places across the mouth: v of each, from above."""

    outer_upper: Curve
    inner_upper: Curve
    inner_lower: Curve
    outer_lower: Curve


@dataclass(frozen=True)
class Mouth:
    """The resting mouth.

    middle        u of its middle
    half          half its width from the front
    sides         distance of the cheeks from the middle from the front
    knots         (5,) u of the right cheek, the right corner, the middle, the left corner and the left cheek
    lips          the contours at ENTRIES places from -half to half
    open_at_rest  are the lips apart?
    nose          v of the base of the nose
    chin          u and v of the chin's edge
    """

    middle: float
    half: float
    sides: float
    knots: Curve
    lips: Lips
    open_at_rest: bool
    nose: float
    chin: tuple[float, float]

    @property
    def line_v(self) -> float:
        """v of the line between the lips in the middle, once they are closed."""
        return float(self.closed_line(np.zeros(1))[0])

    def frontal(self, u: NDArray[np.floating]) -> Curve:
        """x of each u."""
        return monotone(self.knots, np.array([-self.sides, -self.half, 0.0, self.half, self.sides]), u)

    def contours(self, x: Curve) -> Lips:
        """The contours at these x; beyond a corner its v."""
        table = np.linspace(-self.half, self.half, ENTRIES)
        lips = self.lips
        parts = (lips.outer_upper, lips.inner_upper, lips.inner_lower, lips.outer_lower)
        return Lips(*(np.interp(x, table, part) for part in parts))

    def closed_line(self, x: Curve) -> Curve:
        """v where the lips meet."""
        return met(self.contours(x))


def met(lips: Lips) -> Curve:
    """v where the lips meet that are apart or touch at rest."""
    return lips.inner_upper + CLOSED_AT * (lips.inner_lower - lips.inner_upper)


def resting_mouth(canvas: RgbImage, mesh: Mesh, plane: Plane) -> Mouth:
    """The mouth of a mesh in pixels of the canvas."""
    u, v = plane.coordinates(mesh[:, 0], mesh[:, 1])
    placed = np.column_stack((u, v)).astype(np.float64)
    knots, half, sides = _knots(placed)
    targets = np.array([-sides, -half, 0.0, half, sides])
    placed[:, 0] = monotone(knots, targets, placed[:, 0])
    lips = _contours(placed, half)
    gap = lips.inner_lower - lips.inner_upper
    apart = bool(gap.max() > APART)
    if not apart:
        middle = (lips.inner_upper + lips.inner_lower) / 2
        columns = np.linspace(-half, half, COLUMNS)
        across = monotone(targets, knots, columns)
        found = _dark_line(canvas, plane, across, np.interp(columns, np.linspace(-half, half, ENTRIES), middle))
        line = middle + np.interp(np.linspace(-half, half, ENTRIES), columns, found)
        upper = np.minimum(lips.outer_upper, line - _least(half))
        lips = Lips(upper, line, line, np.maximum(lips.outer_lower, line + _least(half)))
    nose, chin = float(v[points.NOSE_BASE]), (float(u[points.CHIN]), float(v[points.CHIN]))
    return Mouth(float(knots[2]), half, sides, knots, lips, apart, nose, chin)


def _least(half: float) -> Curve:
    """The least thickness of a lip: none at the corners."""
    return LEAST_LIP * np.sqrt(1.0 - np.linspace(-1.0, 1.0, ENTRIES) ** 2)


def _knots(placed: Curve) -> tuple[Curve, float, float]:
    """u of cheeks, corners and middle; half the width of the mouth and of the face from the front."""
    right, left = placed[points.OUTER_UPPER_LIP[0]], placed[points.OUTER_UPPER_LIP[-1]]
    lips = [contour[len(contour) // 2] for contour in (points.OUTER_UPPER_LIP, points.OUTER_LOWER_LIP)]
    middle = float(placed[lips, 0].mean())
    level = float(placed[lips, 1].mean())
    right_u, left_u = min(float(right[0]), middle - 0.05), max(float(left[0]), middle + 0.05)
    oval = placed[list(points.OVAL)]
    chin = points.OVAL.index(points.CHIN)
    left_side, right_side = (
        float(np.interp(level, part[:, 1], part[:, 0])) for part in (oval[: chin + 1], oval[: chin - 1 : -1])
    )
    right_side, left_side = min(right_side, right_u - ROOM), max(left_side, left_u + ROOM)
    half, sides = (left_u - right_u) / 2, float(np.clip((left_side - right_side) / 2, *SIDES))
    return np.array([right_side, right_u, middle, left_u, left_side]), half, max(sides, half + ROOM)


def _contours(placed: Curve, half: float) -> Lips:
    """The contours over the mouth, from points (468, 2) of x and v. They meet in the corners."""
    at = np.linspace(-half, half, ENTRIES)
    outer = points.OUTER_UPPER_LIP
    upper, lower = ((outer[0], *inner, outer[-1]) for inner in (points.INNER_UPPER_LIP, points.INNER_LOWER_LIP))
    curves = []
    for contour in (outer, upper, lower, points.OUTER_LOWER_LIP):
        x, v = placed[list(contour)].T
        x = np.maximum.accumulate(x) + 1e-3 * np.arange(len(x))  # at a steep angle a corner can hide behind the lip
        curves.append(monotone(x, v, at))
    top, bottom = np.minimum(curves[1], curves[2]), np.maximum(curves[1], curves[2])
    least = _least(half)
    return Lips(np.minimum(curves[0], top - least), top, bottom, np.maximum(curves[3], bottom + least))


def _dark_line(canvas: RgbImage, plane: Plane, u: Curve, v: Curve) -> Curve:
    """How far the dark line between the lips lies below (u, v), at each of these places.

    The path of least cost through the valley of lightness, smooth. Where there is no valley, nothing moves.
    """
    offsets = np.linspace(-1.6 * REACH, 1.6 * REACH, ROWS)
    rows = v + offsets[:, None]
    x, y = (
        origin + u * across + rows * down
        for origin, across, down in (
            (plane.x, plane.across_x, plane.down_x),
            (plane.y, plane.across_y, plane.down_y),
        )
    )
    places = x.astype(np.float32), y.astype(np.float32)
    cut = cast("RgbImage", cv2.remap(canvas, *places, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))
    grey = cv2.GaussianBlur(cv2.cvtColor(cut, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), 3)
    valley = np.maximum(cv2.Sobel(grey, cv2.CV_32F, 0, 2, ksize=5), 0)
    near = np.abs(offsets) <= REACH
    gain = valley[near] / max(float(np.percentile(valley[near], 98)), 1e-6)
    gain *= np.exp(-0.5 * (offsets[near, None] / SURE) ** 2)
    path = _best_path(gain.astype(np.float32))
    weight = gain[path, np.arange(len(path))] + 0.05
    smooth = SMOOTH * COLUMNS
    share, total = (
        cv2.GaussianBlur(row[None].astype(np.float64), (0, 0), smooth, borderType=cv2.BORDER_REFLECT)[0]
        for row in (weight * offsets[near][path], weight)
    )
    clear = eased((float(np.median(valley.max(axis=0))) / max(float(grey.std()), 4.0) - 1.0) / 2.0)
    return cast("Curve", clear * share / total)


def _best_path(gain: Field) -> NDArray[np.int64]:
    """The row in each column of the path with the largest gain; it bends by at most one row a column."""
    total, origin = gain[:, 0].astype(np.float64), np.zeros(gain.shape, np.int64)
    for column in range(1, gain.shape[1]):
        before = np.pad(total, 1, constant_values=-np.inf)
        steps = np.stack([before[:-2] - BEND_COST, before[1:-1], before[2:] - BEND_COST])
        best = steps.argmax(axis=0)
        origin[:, column] = np.arange(len(best)) + best - 1
        total = gain[:, column] + steps.max(axis=0)
    path = np.empty(gain.shape[1], np.int64)
    path[-1] = int(total.argmax())
    for column in range(len(path) - 1, 0, -1):
        path[column - 1] = origin[path[column], column]
    return path


def monotone(knots: Curve, values: Curve, at: NDArray[np.floating]) -> Curve:
    """A smooth curve through points, without overshoot; a straight line beyond the ends.

    Source: Fritsch and Butland, SIAM J. Sci. Stat. Comput. 5 (1984).
    """
    step, slope = np.diff(knots), np.diff(values) / np.diff(knots)
    one, other = 2 * step[1:] + step[:-1], step[1:] + 2 * step[:-1]
    rising = slope[:-1] * slope[1:] > 0
    safe = np.where(rising, slope[:-1], 1.0), np.where(rising, slope[1:], 1.0)
    inner = np.where(rising, (one + other) / (one / safe[0] + other / safe[1]), 0.0)
    tangent = np.concatenate((slope[:1], inner, slope[-1:]))
    place = np.asarray(at, np.float64)
    part = np.clip(np.searchsorted(knots, place) - 1, 0, len(step) - 1)
    t = (place - knots[part]) / step[part]
    held = np.clip(t, 0.0, 1.0)
    left, right = values[part], values[part + 1]
    square, cube = held**2, held**3
    curve = (
        (2 * cube - 3 * square + 1) * left
        + (3 * square - 2 * cube) * right
        + ((cube - 2 * square + held) * tangent[part] + (cube - square) * tangent[part + 1]) * step[part]
    )
    end = np.where(t > 1, tangent[part + 1], tangent[part])
    return cast("Curve", curve + (t - held) * step[part] * end)
