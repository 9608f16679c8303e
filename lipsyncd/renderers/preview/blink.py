"""Blinks: when they happen, and how a lid comes down over an eye.

The lid is the skin between the eye and the brow, stretched down over the eye with the lashes at its edge; nothing is
painted. Owns the eyes. Leaves everything below them alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers.preview.plane import Field, Picture, PixelBox, Plane, Window, displaced

EVERY_S = (3.0, 6.0)
DOWN_S, SHUT_S, UP_S = 0.09, 0.04, 0.15
EYE_AT = 0.5  # units from the middle
SKIN, LEAST_SKIN = 0.15, 0.07  # of skin above the lid that stretches: brows and the rims of glasses stay
CORNERS, OVERLAP = 1.10, 0.02  # the lid is a little wider and longer than the opening: no corner stays open
LASHES = 0.022  # the lashes are this thick and go down with the lid
LEAST_CLEAR = 8.0  # difference from the skin, in Lab, below which no eye is animated


@dataclass(frozen=True)
class Eye:
    """The opening of one eye: u and v of its middle, half its width, height above and below the line of its corners."""

    u: float
    v: float
    half: float
    above: float
    below: float
    skin: float  # how high the skin above it goes, up to a brow, a fringe or the rim of glasses


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
    """The opening of the eye on the left (-1) or right (+1) of the picture; None where it is not clear enough.

    Iris, white and lashes all differ from the skin below the eye. Of all openings between two parabolas near the usual
    place, it is the one that gathers most of that difference and least of the skin.
    """
    window = Window(side * EYE_AT - 0.42, -0.34, side * EYE_AT + 0.42, 0.42, 128)
    lab = cv2.cvtColor(plane.cut(canvas, window).astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
    lab = cv2.GaussianBlur(lab, (0, 0), 2)
    u, v = window.grid()
    below = (v > 0.20) & (v < 0.36) & (np.abs(u - side * EYE_AT) < 0.2)
    strange = np.linalg.norm(lab - np.median(lab[below], axis=0), axis=2)
    core = (np.abs(v) < 0.10) & (np.abs(u - side * EYE_AT) < 0.20)
    clear = float(np.percentile(strange[core], 80))
    if clear < LEAST_CLEAR:
        return None
    gain = np.minimum(strange / clear, 1.0) - 0.5
    gathered = np.pad(np.cumsum(gain, axis=0), ((1, 0), (0, 0))) / window.scale

    t = np.linspace(-1.0, 1.0, 41)
    arch = 1.0 - t**2
    heights = np.linspace(0.03, 0.17, 15)
    best, eye = -np.inf, cast(Eye | None, None)
    for du, dv, half in product(np.linspace(-0.09, 0.09, 7), np.linspace(-0.09, 0.09, 10), np.linspace(0.17, 0.27, 6)):
        column = np.rint((0.42 + du + t * half) * window.scale).astype(int)
        upper = np.rint((0.34 + dv - heights[:, None] * arch) * window.scale).astype(int)
        lower = np.rint((0.34 + dv + heights[:, None] * arch) * window.scale).astype(int)
        up, low = -gathered[upper, column].mean(axis=1), gathered[lower, column].mean(axis=1)
        up, low = (part * 2 * half - 0.0015 * ((heights - 0.08) / 0.03) ** 2 for part in (up, low))
        i, j = int(up.argmax()), int(low.argmax())
        unusual = (du / 0.06) ** 2 + (dv / 0.06) ** 2 + ((half - 0.22) / 0.04) ** 2
        score = float(up[i] + low[j]) - 0.0015 * unusual
        if score > best:
            best = score
            eye = Eye(side * EYE_AT + float(du), float(dv), float(half), float(heights[i]), float(heights[j]), 0.0)
    if eye is None:
        return None
    band = strange[:, np.abs(u[0] - eye.u) < 0.6 * eye.half].mean(axis=1)[v[:, 0] < eye.v - eye.above - 0.02][::-1]
    free = int(np.argmax(np.append(band > 0.75 * clear, True))) / window.scale
    return replace(eye, skin=min(free, SKIN)) if free > LEAST_SKIN else None


class Lid:
    """One eye on a canvas, ready to close."""

    def __init__(self, canvas: Picture, plane: Plane, eye: Eye) -> None:
        self._canvas = canvas
        self._unit_px = np.float32(plane.unit_px)
        half = CORNERS * eye.half
        part = (eye.u - half, eye.v - eye.above - eye.skin, eye.u + half, eye.v + eye.below + OVERLAP)
        self._box = PixelBox.around(plane, part, canvas)
        x, y = np.meshgrid(np.arange(self._box.left, self._box.right), np.arange(self._box.top, self._box.bottom))
        self._here = np.dstack((x, y)).astype(np.float32)
        self._down = np.array([-plane.along_y, plane.along_x], np.float32)
        u, self._v = plane.coordinates(x, y)
        arch = np.maximum(1.0 - ((u - eye.u) / np.float32(half)) ** 2, 0.0)
        lid = eye.v - eye.above * arch
        self._open = lid + LASHES * np.minimum(4 * arch, 1.0)
        self._shut = np.maximum(eye.v + (eye.below + OVERLAP) * arch, self._open)
        self._top = lid - eye.skin * np.minimum(3 * arch, 1.0)
        self._inside = ((arch > 0) & (self._v > self._top) & (self._v < self._shut + 1.5 / self._unit_px))[..., None]

    def close(self, frame: Picture, closure: float) -> None:
        """Draw the lid into `frame`: 0 leaves the eye as it is on the canvas, 1 shuts it."""
        edge = self._open + np.float32(closure) * (self._shut - self._open)
        share = np.clip((self._v - self._top) / np.maximum(edge - self._top, np.float32(1e-4)), 0.0, 1.0)
        moved = ((edge - self._open) * share)[..., None] * self._down
        lid = displaced(self._canvas, self._here - moved).astype(np.float32)
        eye = self._canvas[self._box.slices]
        weight = np.clip((edge - self._v) * self._unit_px + np.float32(0.5), 0.0, 1.0)[..., None]
        mixed = np.rint(eye + (lid - eye) * weight).astype(np.uint8)
        np.copyto(frame[self._box.slices], mixed, where=self._inside)


def lids(canvas: Picture, plane: Plane) -> list[Lid]:
    """Both eyes, or none: a wink would be worse than no blink."""
    left, right = (find_eye(canvas, plane, side) for side in (-1, 1))
    return [] if left is None or right is None else [Lid(canvas, plane, left), Lid(canvas, plane, right)]
