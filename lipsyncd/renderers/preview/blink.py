"""Blinks: when they happen, and how a lid comes down over an eye.

The lid is the skin between the eye and the brow, stretched down over the eye with the lashes at its edge; nothing is
painted. Owns the eyes. Leaves everything below them alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers.preview.plane import Field, Picture, Plane, Window

EVERY_S = (3.0, 6.0)
DOWN_S, SHUT_S, UP_S = 0.09, 0.04, 0.15
EYE_AT = 0.5  # units from the middle
SKIN = 0.15  # of skin above the lid that stretches: the brow stays
LASHES = 0.022  # the lashes are this thick and go down with the lid
LEAST_CLEAR = 1.2  # edge strength, in L for each cell, below which no eye is animated


@dataclass(frozen=True)
class Eye:
    """The opening of one eye: u and v of its middle, half its width, height above and below the line of its corners."""

    u: float
    v: float
    half: float
    above: float
    below: float


def lid_closure(at_s: NDArray[np.float64], seed: int) -> Field:
    """How far the lids are down at each time: 0 open to 1 shut, float32. Times must rise."""
    random = np.random.default_rng(seed)
    closure = np.zeros(len(at_s), np.float32)
    end = float(at_s[-1]) if len(at_s) else 0.0
    start = random.uniform(*EVERY_S) / 2
    while start < end:
        since = at_s - start
        down = since / DOWN_S
        up = 1.0 - (since - DOWN_S - SHUT_S) / UP_S
        bump = np.clip(np.minimum(down, up), 0.0, 1.0)
        closure = np.maximum(closure, bump * bump * (3 - 2 * bump)).astype(np.float32)
        start += random.uniform(*EVERY_S)
    return closure


def find_eye(canvas: Picture, plane: Plane, side: int) -> Eye | None:
    """The lids of the eye on the left (-1) or right (+1) of the picture; None where they are not clear enough.

    Two parabolas through the same corners are tried over a small range around what is usual. The upper one wants light
    above and dark below, the lower one the opposite.
    """
    window = Window(side * EYE_AT - 0.40, -0.30, side * EYE_AT + 0.40, 0.30, 128)
    patch = plane.cut(canvas, window).astype(np.float32) / 255
    light = cv2.GaussianBlur(cv2.cvtColor(patch, cv2.COLOR_RGB2Lab)[..., 0], (0, 0), 2)
    rise = cv2.Sobel(light, cv2.CV_32F, 0, 1) / 8
    t = np.linspace(-0.85, 0.85, 15)
    arch = 1.0 - t**2
    middles_v, heights = np.linspace(-0.06, 0.06, 7), np.linspace(0.04, 0.15, 12)
    best: tuple[float, Eye | None] = (-np.inf, None)
    for du, half in product(np.linspace(-0.06, 0.06, 5), (0.18, 0.205, 0.23, 0.255)):
        column = np.rint((0.40 + du + t * half) * window.scale).astype(int)
        for dv in middles_v:
            upper = np.rint((0.30 + dv - heights[:, None] * arch) * window.scale).astype(int)
            lower = np.rint((0.30 + dv + heights[:, None] * arch) * window.scale).astype(int)
            up, low = -rise[upper, column].mean(axis=1), rise[lower, column].mean(axis=1)
            up = up - 0.5 * ((heights - 0.085) / 0.03) ** 2
            low = low - 0.5 * ((heights - 0.070) / 0.03) ** 2
            i, j = int(up.argmax()), int(low.argmax())
            usual = (du / 0.05) ** 2 + (dv / 0.05) ** 2 + ((half - 0.215) / 0.04) ** 2
            score = float(up[i] + 0.7 * low[j] - 0.15 * usual)
            if score > best[0]:
                eye = Eye(side * EYE_AT + float(du), float(dv), half, float(heights[i]), float(heights[j]))
                best = (score, eye)
    return best[1] if best[0] > LEAST_CLEAR else None


class Lid:
    """One eye on a canvas, ready to close."""

    def __init__(self, canvas: Picture, plane: Plane, eye: Eye) -> None:
        self._source = canvas
        scale = plane.unit_px
        reach = eye.half + SKIN
        corner_u, corner_v = np.array([-1, 1, -1, 1]) * reach + eye.u, np.array([-1, -1, 1, 1]) * reach + eye.v
        x = plane.x + corner_u * plane.along_x - corner_v * plane.along_y
        y = plane.y + corner_u * plane.along_y + corner_v * plane.along_x
        left, top = max(int(x.min()), 0), max(int(y.min()), 0)
        right, bottom = min(int(x.max()) + 2, canvas.shape[1]), min(int(y.max()) + 2, canvas.shape[0])
        self._box = np.s_[top:bottom, left:right]
        self._x, self._y = np.meshgrid(
            np.arange(left, right, dtype=np.float32), np.arange(top, bottom, dtype=np.float32)
        )
        u, v = plane.coordinates(self._x, self._y)
        across = (u - eye.u) / eye.half
        arch = np.maximum(1.0 - across**2, 0.0)
        lashes = LASHES * np.minimum(arch * 4, 1.0)
        self._v = v
        self._open = eye.v - eye.above * arch + lashes
        self._shut = eye.v + eye.below * arch
        self._top = eye.v - eye.above * arch - SKIN * np.minimum(arch * 3, 1.0)
        self._inside = (arch > 0) & (v > self._top) & (v < self._shut + 1.5 / scale)
        self._scale = scale
        self._down = np.float32([-plane.along_y, plane.along_x])

    def close(self, frame: Picture, closure: float) -> None:
        """Draw the lid into `frame`, which is a copy of the canvas there: 0 leaves it open, 1 shuts it."""
        edge = self._open + np.float32(closure) * np.maximum(self._shut - self._open, 0)
        share = (self._v - self._top) / np.maximum(edge - self._top, 1e-4)
        moved = (edge - self._open) * np.clip(share, 0.0, 1.0)
        x, y = (at - (moved * way).astype(np.float32) for at, way in zip((self._x, self._y), self._down, strict=True))
        lid = cv2.remap(self._source, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE).astype(np.float32)
        weight = np.clip((edge - self._v) * self._scale + 0.5, 0.0, 1.0)[..., None]
        here = self._source[self._box]
        mixed = here + (lid - here) * weight
        np.copyto(frame[self._box], np.rint(mixed).clip(0, 255).astype(np.uint8), where=self._inside[..., None])

    def open(self, frame: Picture) -> None:
        """Put the open eye back."""
        frame[self._box][self._inside] = self._source[self._box][self._inside]


def lids(canvas: Picture, plane: Plane) -> list[Lid]:
    """Both eyes, or none: a wink would be worse than no blink."""
    eyes = [find_eye(canvas, plane, side) for side in (-1, 1)]
    return [Lid(canvas, plane, cast(Eye, eye)) for eye in eyes] if all(eyes) else []
