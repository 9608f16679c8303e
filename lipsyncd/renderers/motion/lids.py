"""Lids that close over an eye: the skin above it, stretched down, with the lashes at its edge. Nothing is painted."""

from __future__ import annotations

from math import ceil, floor

import cv2
import numpy as np

from lipsyncd.renderers.framing import Box, RgbImage
from lipsyncd.renderers.motion.eye_opening import Eye, lid_line

# In widths of the eye.
WIDER, OVERLAP = 1.15, 0.06  # the lid is a little wider and longer than the opening, so that no corner stays open
LASHES = 0.06  # the edge of the lid, which moves without being stretched


class Lid:
    """One eye on a canvas, ready to close. Only pixels in `box` are drawn."""

    def __init__(self, canvas: RgbImage, eye: Eye) -> None:
        height, width = canvas.shape[:2]
        reach = WIDER * eye.half_px
        top = float(eye.upper[0]) - eye.skin_px - 0.1 * eye.width_px
        bottom = float(eye.lower[0]) + 0.2 * eye.width_px
        corners = np.array(
            [[eye.x, eye.y] + a * reach * eye.along + b * eye.down for a in (-1, 1) for b in (top, bottom)]
        )
        left, upper = (max(floor(low), 0) for low in corners.min(axis=0))
        right, lower = min(ceil(corners[:, 0].max()) + 1, width), min(ceil(corners[:, 1].max()) + 1, height)
        self.box = Box(left, upper, max(right - left, 1), max(lower - upper, 1))
        self._canvas, self._down = canvas, eye.down.astype(np.float32)
        x, y = np.meshgrid(np.arange(left, max(right, left + 1)), np.arange(upper, max(lower, upper + 1)))
        self._here = np.dstack((x, y)).astype(np.float32)
        dx, dy = x - eye.x, y - eye.y
        s = (dx * eye.along[0] + dy * eye.along[1]) / reach
        self._v = (dx * eye.down[0] + dy * eye.down[1]).astype(np.float32)
        arch = np.maximum(1 - s**2, 0)
        self._lashes = np.float32(LASHES * eye.width_px) * np.minimum(4 * arch, 1).astype(np.float32)
        lid = lid_line(eye.upper, s)
        self._open = (lid + self._lashes).astype(np.float32)
        shut = lid_line(eye.lower, s) + OVERLAP * eye.width_px * np.minimum(3 * arch, 1)
        self._shut = np.maximum(shut, self._open).astype(np.float32)
        self._top = (lid - eye.skin_px * np.minimum(3 * arch, 1)).astype(np.float32)
        self._inside = ((arch > 0) & (self._v > self._top) & (self._v < self._shut + 1.5))[..., None]

    def close(self, frame: RgbImage, closure: float) -> None:
        """Draw the lid into `frame`: 0 leaves the eye as it is, 1 shuts it."""
        edge = self._open + np.float32(closure) * (self._shut - self._open)
        above_edge = edge - self._v
        # The lashes move with the edge; the skin between them and the top is stretched.
        skin = np.maximum(self._open - self._lashes - self._top, np.float32(1e-3))
        stretched = np.maximum(edge - self._lashes - self._top, np.float32(1e-3))
        beyond = self._lashes + (above_edge - self._lashes) * (skin / stretched)
        source = self._open - np.where(above_edge < self._lashes, above_edge, beyond)
        x, y = cv2.split(self._here + (source - self._v)[..., None] * self._down)
        lid = cv2.remap(self._canvas, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        eye = frame[self.box.place]
        weight = np.clip(above_edge + np.float32(0.5), 0.0, 1.0)[..., None]
        mixed = eye + (lid.astype(np.float32) - eye) * weight
        np.copyto(eye, np.rint(mixed).astype(np.uint8), where=self._inside)
