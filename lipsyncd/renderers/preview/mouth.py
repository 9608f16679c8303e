"""Find the mouth of a face: the line between the lips, how sure that is, and the opening where teeth already show.

Between closed lips runs a dark line, the most reliable thing in a lower face. It is the path of least cost through the
valleys of lightness near the usual place; how deep the valley is, against its surroundings, is the score. A smile that
shows teeth has two lines with something bright and colourless between them.

Everything is in the units of `plane.py`. Owns the shape of the resting mouth. Leaves moving it to `warp.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers.preview.plane import Field, Picture, Plane, Window

SCALE = 128  # cells for each unit
LOWER_FACE = Window(left=-0.75, top=0.55, right=0.75, bottom=2.1, scale=SCALE)
USUAL_V = 1.10  # the line of most mouths
USUAL_SPREAD, MOST_UNUSUAL = 0.16, 0.34
WELL_LIT = 0.5  # median of the lower face, of full scale
REACH = 0.46  # the path is followed this far from the middle
HALF = 0.36  # half the width of most mouths

NARROWEST, WIDEST = 0.27, 0.46  # half widths
SLOPE_COST = 0.02  # of one row up or down, against a gain of up to about 1 for each column

TEETH_PALER = 6.0  # than the lips, in a of Lab
TEETH_CHROMA = 0.75  # of the skin's on the cheeks, at most
TEETH_DARKER = 20.0  # than that skin at most, in L of Lab
GREY = 4.0  # chroma of a skin without colour: then light has to do
TEETH_LIGHTER = 8.0  # than the lips, in L; most of them lighter than nine tenths of the face
TEETH_SURE = 0.5
TEETH_WIDE, TEETH_HIGH = 0.3, 0.035  # less is a glint on closed lips
MOST_BENT = 1.3  # squared term of its edges
TEETH_RIM = 0.012  # the lips keep nothing of a soft edge between them and the teeth

Mask = NDArray[np.bool_]  # (rows, columns)
Curve = NDArray[np.float64]  # one value for each column
Parabola = NDArray[np.float64]  # (3,) highest power first, as numpy.polyval wants it: v of u


@dataclass(frozen=True)
class Mouth:
    """The resting mouth.

    middle  u of its middle
    half    half its width
    upper   lower edge of the upper lip, v of (u - middle)
    lower   upper edge of the lower lip; the same as `upper` where the lips touch
    chin    v of the chin's edge below the middle
    score   how clearly it stands out, about 1 for a good photograph
    """

    middle: float
    half: float
    upper: Parabola
    lower: Parabola
    chin: float
    score: float

    @property
    def line_v(self) -> float:
        """v of the upper lip's edge in the middle."""
        return float(self.upper[-1])

    @property
    def slope(self) -> float:
        """How much the line falls to the right of the picture, against the line of the eyes."""
        return float(self.upper[-2])

    @property
    def open_at_rest(self) -> bool:
        """Whether the source shows what is behind the lips."""
        return not np.array_equal(self.upper, self.lower)


def find_mouth(picture: Picture, plane: Plane) -> Mouth:
    """The mouth below the eyes of `plane`; the caller judges its score."""
    patch = plane.cut(picture, LOWER_FACE).astype(np.float32) / 255
    # Thresholds of colour are those of a well lit face.
    patch *= np.clip(WELL_LIT / max(float(np.median(patch)), 1e-3), 1.0, 4.0)
    lab = cast(Field, cv2.cvtColor(np.minimum(patch, 1.0), cv2.COLOR_RGB2Lab))
    smooth = cast(Field, cv2.GaussianBlur(lab[..., 0], (0, 0), 4))
    rows = _line(smooth)
    u = LOWER_FACE.grid()[0][0]
    near = np.abs(u) <= REACH
    depth = _depth(smooth[:, near], rows)
    # Clear nearly everywhere: the shadow of a nose or a crease is as deep, but not as wide.
    score = float(np.percentile(depth[np.abs(u[near]) < 0.28], 10) / max(float(smooth[:, near].std()), 3.0))
    middle, half = _width(u[near], depth)
    line = np.polyfit(u[near] - middle, LOWER_FACE.top + rows / SCALE, 2, w=np.exp(-0.5 * (u[near] / 0.25) ** 2))
    chin = _chin(lab[..., 0], float(np.polyval(line, 0.0)))
    return _opened(Mouth(middle, half, line, line, chin, score), lab)


def _line(lightness: Field) -> NDArray[np.int64]:
    """The dark line between the lips: a row for each column within REACH.

    lightness  (rows, columns) of LOWER_FACE, smooth
    """
    u, v = LOWER_FACE.grid()
    valley = np.maximum(cv2.Sobel(lightness, cv2.CV_32F, 0, 2, ksize=3), 0.0)
    prior = np.exp(-0.5 * ((v - USUAL_V) / USUAL_SPREAD) ** 2) * (np.abs(v - USUAL_V) < MOST_UNUSUAL)
    gain = (valley * prior)[:, np.abs(u[0]) <= REACH] / max(float(np.percentile(valley, 99)), 1e-6)

    total = gain.copy()
    origin = np.zeros(gain.shape, np.int64)
    for column in range(1, gain.shape[1]):
        before = np.pad(total[:, column - 1], 1, constant_values=-np.inf)
        steps = np.stack([before[:-2] - SLOPE_COST, before[1:-1], before[2:] - SLOPE_COST])
        best = steps.argmax(axis=0)
        origin[:, column] = np.arange(len(best)) + best - 1
        total[:, column] += steps.max(axis=0)
    path = np.empty(gain.shape[1], np.int64)
    path[-1] = int(total[:, -1].argmax())
    for column in range(len(path) - 1, 0, -1):
        path[column - 1] = origin[path[column], column]
    return path


def _depth(lightness: Field, path: NDArray[np.int64]) -> NDArray[np.float64]:
    """How much darker the line is than both its sides, 0.12 units above and below; one value for each column."""
    column = np.arange(len(path))
    off, last = round(0.12 * SCALE), len(lightness) - 1
    above, below = (lightness[np.clip(path + way, 0, last), column] for way in (-off, off))
    return cast(NDArray[np.float64], np.minimum(above, below) - lightness[path, column])


def _width(u: NDArray[np.float32], depth: NDArray[np.float64]) -> tuple[float, float]:
    """Middle and half width of the mouth: as far as the line stays clear, held near what is usual."""
    usual = float(np.median(depth[np.abs(u) < 0.2]))
    clear = cv2.GaussianBlur(depth[None], (0, 0), 3)[0] > 0.4 * usual
    ends = []
    for side in (u < 0, u > 0):
        outwards = np.argsort(np.abs(u[side]))
        stays = clear[side][outwards]
        reach = len(stays) if stays.all() else int(np.argmin(stays))
        ends.append(float(u[side][outwards][max(reach - 1, 0)]))
    left, right = np.clip(ends[0], -WIDEST, -NARROWEST), np.clip(ends[1], NARROWEST, WIDEST)
    return float(np.clip((left + right) / 2, -0.06, 0.06)), float((right - left) / 2)


def _chin(lightness: Field, line_v: float) -> float:
    """v of the chin's edge: the sharpest fall of lightness at a likely distance below the mouth."""
    u, v = LOWER_FACE.grid()
    middle = lightness[:, np.abs(u[0]) < 0.15].mean(axis=1)
    middle = cv2.GaussianBlur(middle[:, None], (0, 0), 5)[:, 0]
    distance = v[:, 0] - line_v
    likely = np.exp(-0.5 * ((distance - 0.70) / 0.12) ** 2) * ((distance > 0.5) & (distance < 0.95))
    return float(v[int(np.argmax(np.maximum(-np.gradient(middle), 0.02) * likely)), 0])


def _opened(mouth: Mouth, lab: Field) -> Mouth:
    """The same mouth with two edges when teeth show, else as it is."""
    u, top, bottom, certain = _teeth(mouth, lab)
    if not len(u) or u[-1] - u[0] < TEETH_WIDE or np.median(bottom - top) < TEETH_HIGH:
        return mouth
    upper, lower = _fitted(u, top - TEETH_RIM), _fitted(u, bottom + TEETH_RIM)
    if lower[0] > upper[0] or abs(upper[0]) > MOST_BENT or abs(lower[0]) > MOST_BENT:
        return mouth  # the edges of a smile come together sideways
    # The opening ends where they meet, in the dark corners beyond the last tooth.
    meet = np.roots(upper - lower)
    ends = (float(meet.min()), float(meet.max())) if np.isreal(meet).all() and len(meet) == 2 else (-WIDEST, WIDEST)
    left, right = min(max(ends[0], -WIDEST), u[0]), max(min(ends[1], WIDEST), u[-1])
    middle, half = float(left + right) / 2, float(right - left) / 2
    upper, lower = (_shifted(edge, middle) for edge in (upper, lower))
    score = max(mouth.score, 1.0) if certain else mouth.score
    return replace(mouth, middle=middle, half=half, upper=upper, lower=lower, score=score)


def _shifted(edge: Parabola, by: float) -> Parabola:
    """The same curve as a function of the distance from `by`."""
    square, linear, constant = edge
    return np.array([square, linear + 2 * square * by, constant + by * (linear + square * by)])


def _teeth(mouth: Mouth, lab: Field) -> tuple[Curve, Curve, Curve, bool]:
    """Where teeth show: u, and v of their upper and lower edge, for every column that has them; and whether colour says so.

    Down a column of a smile the red falls from lip to tooth and rises again to the other lip. The edges are where it
    has come half way. Light alone would not do, a glossy lip is as bright as a tooth; in a grey picture it has to.
    """
    strips, possible, certain, contrast = _unlike_lips(lab)
    coloured = certain is possible
    grid_u = LOWER_FACE.grid()[0][0]
    above, below, reach = (round(part * SCALE) for part in (0.04, 0.14, 0.16))
    found = []
    for column in np.flatnonzero(np.abs(grid_u - mouth.middle) < 0.4):
        line = round((float(np.polyval(mouth.upper, grid_u[column] - mouth.middle)) - LOWER_FACE.top) * SCALE)
        line = min(max(line, above + reach), LOWER_FACE.rows - below - reach)
        strip = strips[:, column]
        tooth = line - above + int(np.argmin(strip[line - above : line + below]))
        over, under = strip[tooth - reach : tooth + 1][::-1], strip[tooth : tooth + reach + 1]
        paler = min(float(over.max()), float(under.max())) - float(strip[tooth])
        if paler < contrast or not possible[tooth, column]:
            continue
        halves = [int(np.argmax(part > (part[0] + part[: int(part.argmax()) + 1].max()) / 2)) for part in (over, under)]
        edges = (tooth - halves[0]) / SCALE, (tooth + halves[1]) / SCALE
        found.append((column / SCALE, *edges, float(certain[tooth, column])))
    u, top, bottom, sure = _longest_run(np.array(found).reshape(-1, 4)).T
    if not len(sure) or sure.mean() < TEETH_SURE:
        u, top, bottom = np.empty((3, 0))
    return u + LOWER_FACE.left, top + LOWER_FACE.top, bottom + LOWER_FACE.top, coloured


def _unlike_lips(lab: Field) -> tuple[Field, Mask, Mask, float]:
    """A field that is low on teeth and high on lips, where teeth are possible, where certain, and how far it must fall.

    lab  (rows, columns, 3) of LOWER_FACE
    """
    u, v = LOWER_FACE.grid()
    cheeks = (np.abs(u) > 0.35) & (np.abs(u) < 0.6) & (v > 0.6) & (v < 0.9)
    light, red, yellow = cv2.split(cv2.GaussianBlur(lab, (0, 0), 2))
    chroma = np.hypot(red, yellow)
    skin_light, skin_chroma = float(np.median(light[cheeks])), float(np.median(chroma[cheeks]))
    if skin_chroma < GREY:
        brightest = float(np.percentile(light[:, np.abs(u[0]) < 0.6], 90))
        return cast(Field, -light), light > skin_light, light > brightest, TEETH_LIGHTER
    possible = (chroma < TEETH_CHROMA * skin_chroma) & (light > skin_light - TEETH_DARKER)
    return cast(Field, red), possible, possible, TEETH_PALER


def _longest_run(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The longest part of `rows` whose first column has no gap wider than the one between two teeth."""
    runs = np.split(rows, np.flatnonzero(np.diff(rows[:, 0]) > 0.05) + 1)
    return max(runs, key=len)


def _fitted(u: NDArray[np.float64], v: NDArray[np.float64]) -> Parabola:
    """A parabola through an edge, which a gap between teeth or a speck does not bend."""
    weight = np.ones(len(u))
    for _ in range(6):
        edge = np.polyfit(u, v, 2, w=weight)
        weight = 1.0 / np.maximum(np.abs(v - np.polyval(edge, u)) / 0.01, 1.0)
    return edge
