"""Find the opening between lips that are apart in the source, by the teeth in it.

Down a column of a smile the red of the skin falls from lip to tooth and rises again to the other lip; the edges are at
half of the change. Lightness alone is not enough, because a glossy lip is as bright as a tooth. In a grey picture only
lightness is available, and then the teeth must be the lightest part of the face.

Everything is in the units of `face_coordinates`. Owns the shape of the opening. Leaves closed lips to `mouth`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers.preview.find.face_coordinates import LOWER_FACE, Curve, Field, Parabola

ABOVE, BELOW = 0.04, 0.14  # of the dark line: teeth are searched between
LIP = 0.16  # the red of a lip is searched within this distance from a tooth
SIDEWAYS = 0.40  # from the middle of the mouth
GAP = 0.05  # most distance between two columns with teeth

PALER = 6.0  # teeth than lips, at least, in the a of Lab
CHROMA = 0.75  # of teeth, relative to the skin on the cheeks, at most
DARKER = 20.0  # teeth than that skin, at most, in the L of Lab
GREY = 4.0  # chroma of the skin in a grey picture, at most
LIGHTER = 8.0  # teeth than grey lips, at least, in L
LIGHTEST = 90  # percentile of lightness in a grey face from which teeth are certain
SURE = 0.5  # part of the columns in which teeth must be certain

WIDE, HIGH = 0.3, 0.035  # least size of an opening; less is a reflection on closed lips
MOST_BENT = 1.3  # squared term of an edge, at most
RIM = 0.012  # width of the soft edge between lips and teeth, which belongs to the opening


@dataclass(frozen=True)
class Opening:
    """The opening of parted lips: u of the middle, half the width, and both edges as v of (u - middle)."""

    middle: float
    half: float
    upper: Parabola
    lower: Parabola
    coloured: bool  # found by its colour, which is reliable


@dataclass(frozen=True)
class _Contrast:
    """The contrast of teeth and lips in a picture; arrays are (rows, columns) of LOWER_FACE."""

    field: Field  # low on teeth, high on lips
    fall: float  # least difference
    possible: NDArray[np.bool_]
    sure: NDArray[np.bool_]
    coloured: bool


def find_opening(lab: Field, line: Parabola, middle: float, widest: float) -> Opening | None:
    """The opening of a smile, or None where the lips touch.

    lab     (rows, columns, 3) float32: LOWER_FACE in Lab
    line    the dark line below the upper lip, v of (u - middle)
    widest  half width that no mouth exceeds
    """
    contrast = _contrast(lab)
    u, top, bottom = _edges(contrast, line, middle)
    if not len(u) or u[-1] - u[0] < WIDE or np.median(bottom - top) < HIGH:
        return None
    upper, lower = _fitted(u, top - RIM), _fitted(u, bottom + RIM)
    if lower[0] > upper[0] or max(abs(upper[0]), abs(lower[0])) > MOST_BENT:
        return None  # the edges of a smile converge sideways
    # They meet in the dark corners, beyond the last tooth.
    meet = np.roots(upper - lower)
    left, right = (float(meet.min()), float(meet.max())) if np.isreal(meet).all() and len(meet) == 2 else (u[0], u[-1])
    left, right = min(max(left, -widest), u[0]), max(min(right, widest), u[-1])
    middle = (left + right) / 2
    return Opening(middle, (right - left) / 2, _moved(upper, middle), _moved(lower, middle), contrast.coloured)


def _contrast(lab: Field) -> _Contrast:
    u, v = LOWER_FACE.grid()
    cheeks = (np.abs(u) > 0.35) & (np.abs(u) < 0.6) & (v > 0.6) & (v < 0.9)
    light, red, yellow = cv2.split(cv2.GaussianBlur(lab, (0, 0), 2))
    chroma = np.hypot(red, yellow)
    skin_light, skin_chroma = float(np.median(light[cheeks])), float(np.median(chroma[cheeks]))
    if skin_chroma < GREY:
        lightest = float(np.percentile(light[:, np.abs(u[0]) < 0.6], LIGHTEST))
        return _Contrast(cast(Field, -light), LIGHTER, light > skin_light, light > lightest, False)
    pale = (chroma < CHROMA * skin_chroma) & (light > skin_light - DARKER)
    return _Contrast(cast(Field, red), PALER, pale, pale, True)


def _edges(contrast: _Contrast, line: Parabola, middle: float) -> tuple[Curve, Curve, Curve]:
    """u, and v of the upper and the lower edge, of every column with teeth; empty when too few are certain."""
    grid_u, scale = LOWER_FACE.grid()[0][0], LOWER_FACE.scale
    above, below, lip = (round(part * scale) for part in (ABOVE, BELOW, LIP))
    found = []
    for column in np.flatnonzero(np.abs(grid_u - middle) < SIDEWAYS):
        strip = contrast.field[:, column]
        start = round((float(np.polyval(line, grid_u[column] - middle)) - LOWER_FACE.top) * scale)
        start = min(max(start, above + lip), len(strip) - below - lip)
        tooth = start - above + int(np.argmin(strip[start - above : start + below]))
        upwards, downwards = strip[tooth - lip : tooth + 1][::-1], strip[tooth : tooth + lip + 1]
        fall = min(float(upwards.max()), float(downwards.max())) - float(strip[tooth])
        if fall >= contrast.fall and contrast.possible[tooth, column]:
            reach = tooth - _half_way(upwards), tooth + _half_way(downwards)
            found.append((column, *reach, contrast.sure[tooth, column]))
    run = _longest_run(np.array(found, np.float64).reshape(-1, 4))
    if not len(run) or run[:, 3].mean() < SURE:
        run = run[:0]
    columns, top, bottom, _ = run.T
    return LOWER_FACE.left + columns / scale, LOWER_FACE.top + top / scale, LOWER_FACE.top + bottom / scale


def _half_way(strip: Field) -> int:
    """Steps until the values have risen half way from the first to the greatest."""
    return int(np.argmax(strip > (strip[0] + strip.max()) / 2))


def _longest_run(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The longest part of `rows` whose first value, a column, never jumps by more than GAP."""
    breaks = np.flatnonzero(np.diff(rows[:, 0]) > GAP * LOWER_FACE.scale)
    return max(np.split(rows, breaks + 1), key=len)


def _fitted(u: Curve, v: Curve) -> Parabola:
    """A parabola through an edge, fitted robustly against gaps between teeth and specks."""
    weight = np.ones(len(u))
    for _ in range(6):
        edge = np.polyfit(u, v, 2, w=weight)
        weight = 1.0 / np.maximum(np.abs(v - np.polyval(edge, u)) / 0.01, 1.0)
    return edge


def _moved(edge: Parabola, by: float) -> Parabola:
    """The same curve as a function of the distance from `by`."""
    square, linear, constant = edge
    return np.array([square, linear + 2 * square * by, constant + by * (linear + square * by)])
