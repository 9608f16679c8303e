"""Find the opening of an eye, and the skin above it that becomes the lid.

Iris, white and lashes all differ in colour from the skin below the eye. Of all openings between two parabolas near the
usual place, the eye is the one that contains most of that difference and least of the skin.

Everything is in the units of `face_coordinates`. Owns the shape of eyes. Leaves closing them to `draw.blink`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import cv2
import numpy as np

from lipsyncd.renderers.framing import RgbImage
from lipsyncd.renderers.preview.find.face_coordinates import Field, Plane, Window

AT_U = 0.5  # left and right of the middle
AROUND = (0.42, 0.34, 0.42)  # the searched area around the eye: sideways, up, down
SCALE = 128
CHEEK = (0.20, 0.36)  # v of the skin with which everything is compared
CORE = (0.20, 0.10)  # sideways; up and down: certainly inside the eye
LEAST_CLEAR = 8.0  # difference from the skin, in Lab, below which no eye is animated

# Tried and usual values: offsets of the middle, half widths, heights above and below.
OFFSETS = tuple(np.linspace(-0.09, 0.09, 7))
HALVES = tuple(np.linspace(0.17, 0.27, 6))
HEIGHTS = np.linspace(0.03, 0.17, 15)
USUAL_HALF, USUAL_HEIGHT = 0.22, 0.08
OFFSET_SPREAD, HALF_SPREAD, HEIGHT_SPREAD = 0.06, 0.04, 0.03
UNUSUAL = 0.0015  # penalty for one squared spread, in square units

MOST_SKIN, LEAST_SKIN = 0.15, 0.07  # above the lid; with less, a brow or glasses are in the way
NOT_SKIN = 0.75  # of the eye's difference


@dataclass(frozen=True)
class Eye:
    """The opening of one eye.

    u, v          its middle, on the line through its corners
    half          half its width
    above, below  its height above and below that line
    skin          height of the skin above it, up to a brow, a fringe or glasses
    """

    u: float
    v: float
    half: float
    above: float
    below: float
    skin: float


def find_eye(canvas: RgbImage, plane: Plane, side: int) -> Eye | None:
    """The eye on the left (-1) or right (+1) of the picture; None when it is not clear enough to animate."""
    middle = side * AT_U
    sideways, up, down = AROUND
    window = Window(middle - sideways, -up, middle + sideways, down, SCALE)
    lab = cv2.cvtColor(plane.cut(canvas, window).astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
    lab = cv2.GaussianBlur(lab, (0, 0), 2)
    u, v = window.grid()
    across = np.abs(u - middle)
    cheek = (v > CHEEK[0]) & (v < CHEEK[1]) & (across < CORE[0])
    difference: Field = np.linalg.norm(lab - np.median(lab[cheek], axis=0), axis=2)
    clear = float(np.percentile(difference[(across < CORE[0]) & (np.abs(v) < CORE[1])], 80))
    if clear < LEAST_CLEAR:
        return None
    du, dv, half, above, below = _best_opening(np.minimum(difference / clear, 1.0) - 0.5)

    columns = np.abs(u[0] - middle - du) < 0.6 * half
    upwards = difference[:, columns].mean(axis=1)[v[:, 0] < dv - above - 0.02][::-1]
    skin = int(np.argmax(np.append(upwards > NOT_SKIN * clear, True))) / SCALE
    return Eye(middle + du, dv, half, above, below, min(skin, MOST_SKIN)) if skin > LEAST_SKIN else None


def _best_opening(gain: Field) -> tuple[float, float, float, float, float]:
    """Offset to the right and down, half width, height above and below of the opening with the highest total gain.

    gain  (rows, columns) of the window around the eye: positive on the eye, negative on skin
    """
    summed = np.pad(np.cumsum(gain, axis=0), ((1, 0), (0, 0))) / SCALE  # of each column, from the top down
    t = np.linspace(-1.0, 1.0, 41)
    arches = HEIGHTS[:, None] * (1.0 - t**2)
    heights_cost = UNUSUAL * ((HEIGHTS - USUAL_HEIGHT) / HEIGHT_SPREAD) ** 2
    best, found = -np.inf, (0.0, 0.0, USUAL_HALF, USUAL_HEIGHT, USUAL_HEIGHT)
    for du, dv, half in product(OFFSETS, OFFSETS, HALVES):
        columns = np.rint((AROUND[0] + du + t * half) * SCALE).astype(int)
        gains = []
        for way in (-1, 1):
            rows = np.rint((AROUND[1] + dv + way * arches) * SCALE).astype(int)
            gains.append(way * 2 * half * summed[rows, columns].mean(axis=1) - heights_cost)
        above, below = gains
        i, j = int(above.argmax()), int(below.argmax())
        unusual = (du**2 + dv**2) / OFFSET_SPREAD**2 + ((half - USUAL_HALF) / HALF_SPREAD) ** 2
        score = float(above[i] + below[j]) - UNUSUAL * unusual
        if score > best:
            best, found = score, (float(du), float(dv), float(half), float(HEIGHTS[i]), float(HEIGHTS[j]))
    return found
