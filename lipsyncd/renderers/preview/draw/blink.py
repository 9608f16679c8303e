"""Blinks: when they happen, and how a lid closes over an eye.

The lid is the skin between the eye and the brow, stretched down over the eye with the lashes at its edge; nothing is
painted. Owns the lids. Leaves finding the eyes to `find.eye`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers.framing import RgbImage
from lipsyncd.renderers.preview.find.eye import Eye, find_eye
from lipsyncd.renderers.preview.find.face_coordinates import Field, PixelBox, Plane, displaced, smoothstep

EVERY_S = (3.0, 6.0)
DOWN_S, SHUT_S, UP_S = 0.09, 0.04, 0.15
CORNERS, OVERLAP = 1.10, 0.02  # the lid is a little wider and longer than the opening, so that no corner stays open
LASHES = 0.022  # thickness of the lashes, which move with the lid


def lid_closure(at_s: NDArray[np.float64], seed: int) -> Field:
    """How far the lids are closed at each time: 0 open to 1 shut, float32. Times must increase."""
    random = np.random.default_rng(seed)
    closure = np.zeros(len(at_s), np.float32)
    end = float(at_s[-1]) if len(at_s) else 0.0
    start = random.uniform(*EVERY_S) / 2
    while start < end:
        since = at_s - start
        down = since / DOWN_S
        up = 1.0 - (since - DOWN_S - SHUT_S) / UP_S
        closure = np.maximum(closure, smoothstep(np.minimum(down, up)).astype(np.float32))
        start += random.uniform(*EVERY_S)
    return closure


class Lid:
    """One eye on a canvas, ready to close."""

    def __init__(self, canvas: RgbImage, plane: Plane, eye: Eye) -> None:
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

    def close(self, frame: RgbImage, closure: float) -> None:
        """Draw the lid into `frame`: 0 leaves the eye as on the canvas, 1 shuts it."""
        edge = self._open + np.float32(closure) * (self._shut - self._open)
        share = np.clip((self._v - self._top) / np.maximum(edge - self._top, np.float32(1e-4)), 0.0, 1.0)
        moved = ((edge - self._open) * share)[..., None] * self._down
        lid = displaced(self._canvas, self._here - moved).astype(np.float32)
        eye = self._canvas[self._box.slices]
        weight = np.clip((edge - self._v) * self._unit_px + np.float32(0.5), 0.0, 1.0)[..., None]
        mixed = np.rint(eye + (lid - eye) * weight).astype(np.uint8)
        np.copyto(frame[self._box.slices], mixed, where=self._inside)


def lids(canvas: RgbImage, plane: Plane) -> list[Lid]:
    """Both eyes, or none: a wink would be worse than no blink."""
    left, right = (find_eye(canvas, plane, side) for side in (-1, 1))
    return [] if left is None or right is None else [Lid(canvas, plane, left), Lid(canvas, plane, right)]
