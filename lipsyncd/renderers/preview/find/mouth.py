"""Find the mouth of a face: the line between the lips, and a score.

Between closed lips runs a dark line, the most reliable feature of a lower face. It is found as the path of least cost
through the valleys of lightness near the usual position; the score is the depth of the valley relative to its
surroundings. Lips that are apart in the source have two edges instead (`parted_lips`).

Everything is in the units of `face_coordinates`. Owns the shape of the resting mouth. Leaves moving it to `draw.warp`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers.framing import RgbImage
from lipsyncd.renderers.preview.find.face_coordinates import LOWER_FACE, Curve, Field, Parabola, Plane
from lipsyncd.renderers.preview.find.parted_lips import find_opening

WELL_LIT, MOST_GAIN = 0.5, 4.0  # target median of the lower face, of full scale; most gain for a dark face

USUAL_V, USUAL_SPREAD, MOST_UNUSUAL = 1.10, 0.16, 0.34  # position of the line: usual, deviation, limit
REACH = 0.46  # the path is computed up to this distance from the middle
SLOPE_COST = 0.02  # of one row up or down, where the gain of a column is up to about 1
BESIDE = 0.12  # distance above and below the line at which it is compared with the skin
ENDED = 0.4  # of its usual depth, at which the line ends
NARROWEST, WIDEST = 0.27, 0.46  # half widths
OFF_CENTRE = 0.06  # at most, since faces are frontal
CHIN, CHIN_SPREAD, CHIN_RANGE = 0.70, 0.12, (0.50, 0.95)  # below the line
SURE = 1.0  # score of a mouth with teeth found by their colour


@dataclass(frozen=True)
class Mouth:
    """The resting mouth.

    middle  u of its middle
    half    half its width
    upper   lower edge of the upper lip, v of (u - middle)
    lower   upper edge of the lower lip; the same as `upper` where the lips touch
    chin    v of the chin's edge below the middle
    score   how clear it is, about 1 for a good photograph
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
        """The slope of the line relative to the line of the eyes, positive when it falls to the right."""
        return float(self.upper[-2])

    @property
    def open_at_rest(self) -> bool:
        """Are the lips apart in the source?"""
        return not np.array_equal(self.upper, self.lower)


def find_mouth(picture: RgbImage, plane: Plane) -> Mouth:
    """The mouth below the eyes of `plane`; the caller judges its score."""
    patch = plane.cut(picture, LOWER_FACE).astype(np.float32) / 255
    # The colour thresholds hold for a well lit face.
    patch *= np.clip(WELL_LIT / max(float(np.median(patch)), 1e-3), 1.0, MOST_GAIN)
    lab = cast(Field, cv2.cvtColor(np.minimum(patch, 1.0), cv2.COLOR_RGB2Lab))
    smooth = cast(Field, cv2.GaussianBlur(lab[..., 0], (0, 0), 4))

    u = LOWER_FACE.grid()[0][0]
    near = np.abs(u) <= REACH
    u, rows, smooth = u[near], _line(smooth), smooth[:, near]
    depth = _depth(smooth, rows)
    # A low percentile, as the line is clear everywhere: the shadow of a nose or a crease is as deep, but not as wide.
    score = float(np.percentile(depth[np.abs(u) < 0.28], 10)) / max(float(smooth.std()), 3.0)
    middle, half = _width(u, depth)
    weight = np.exp(-0.5 * (u / 0.25) ** 2)
    line = np.polyfit(u - middle, LOWER_FACE.top + rows / LOWER_FACE.scale, 2, w=weight)
    mouth = Mouth(middle, half, line, line, _chin(lab[..., 0], float(line[-1])), score)

    opening = find_opening(lab, line, middle, WIDEST)
    if opening is None:
        return mouth
    return replace(
        mouth,
        middle=opening.middle,
        half=opening.half,
        upper=opening.upper,
        lower=opening.lower,
        score=max(score, SURE) if opening.coloured else score,
    )


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


def _depth(lightness: Field, path: NDArray[np.int64]) -> Curve:
    """How much darker the line is than its surroundings above and below; one value for each column."""
    column = np.arange(len(path))
    off, last = round(BESIDE * LOWER_FACE.scale), len(lightness) - 1
    above, below = (lightness[np.clip(path + way, 0, last), column] for way in (-off, off))
    return cast(Curve, np.minimum(above, below) - lightness[path, column])


def _width(u: Field, depth: Curve) -> tuple[float, float]:
    """Middle and half width of the mouth: as far as the line stays clear, limited to usual values."""
    usual = float(np.median(depth[np.abs(u) < 0.2]))
    clear = cv2.GaussianBlur(depth[None], (0, 0), 3)[0] > ENDED * usual
    ends = []
    for side in (u < 0, u > 0):
        outwards = np.argsort(np.abs(u[side]))
        stays = clear[side][outwards]
        reach = len(stays) if stays.all() else int(np.argmin(stays))
        ends.append(float(u[side][outwards][max(reach - 1, 0)]))
    left, right = np.clip(ends[0], -WIDEST, -NARROWEST), np.clip(ends[1], NARROWEST, WIDEST)
    return float(np.clip((left + right) / 2, -OFF_CENTRE, OFF_CENTRE)), float((right - left) / 2)


def _chin(lightness: Field, line_v: float) -> float:
    """v of the chin's edge: the steepest fall of lightness at a plausible distance below the mouth."""
    u, v = LOWER_FACE.grid()
    middle = lightness[:, np.abs(u[0]) < 0.15].mean(axis=1, keepdims=True)
    falls = -np.gradient(cv2.GaussianBlur(middle, (0, 0), 5)[:, 0])
    distance = v[:, 0] - line_v
    likely = np.exp(-0.5 * ((distance - CHIN) / CHIN_SPREAD) ** 2)
    likely *= (distance > CHIN_RANGE[0]) & (distance < CHIN_RANGE[1])
    # Without a fall the most likely position is used.
    return float(v[int(np.argmax(np.maximum(falls, 0.02) * likely)), 0])
