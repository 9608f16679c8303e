"""Sway: the head drifts slowly by less than a hundredth of the picture.

The head moves as a whole; the movement fades out around it, so the distant background stays. Off by default. Owns the
drift. Leaves the face itself to the other modules.
"""

from __future__ import annotations

from typing import cast

import numpy as np

from lipsyncd.renderers.framing import RgbImage
from lipsyncd.renderers.preview.find.face_coordinates import Field, PixelBox, Plane, displaced, eased, smoothstep

CENTRE_V = 0.35
WHOLE, ENDED = 1.6, 2.7  # units from the centre: everything moves within the first, nothing beyond the second
PERIODS_S = (4.1, 6.7)  # their ratio is not integer, so the movement does not repeat soon
STARTS_S = 1.5  # the first frame is still


class Sway:
    """The drift of one head on one canvas."""

    def __init__(self, canvas: RgbImage, plane: Plane, percent: float, seed: int) -> None:
        """`percent` of the picture's shorter side is the largest drift to each side."""
        reach = (-ENDED, CENTRE_V - ENDED, ENDED, CENTRE_V + ENDED)
        self._box = PixelBox.around(plane, reach, canvas)
        x, y = np.meshgrid(np.arange(self._box.left, self._box.right), np.arange(self._box.top, self._box.bottom))
        u, v = plane.coordinates(x, y)
        away = np.hypot(u, v - CENTRE_V)
        self._share: Field = (1.0 - smoothstep((away - WHOLE) / (ENDED - WHOLE)))[..., None].astype(np.float32)
        self._here = np.dstack((x, y)).astype(np.float32)
        self._most_px = percent / 100 * min(canvas.shape[:2])
        self._phases = np.random.default_rng(seed).uniform(0, 2 * np.pi, (2, len(PERIODS_S)))

    def at(self, time_s: float) -> Field:
        """The offset of the head to the right and down, in pixels: (2,) float32."""
        angles = 2 * np.pi * time_s / np.array(PERIODS_S) + self._phases
        there = np.sin(angles) @ np.array([0.6, 0.4]) * np.array([1.0, 0.5])
        return cast(Field, (there * self._most_px * eased(time_s / STARTS_S)).astype(np.float32))

    def apply(self, still: RgbImage, moved: RgbImage, time_s: float) -> None:
        """Draw `still` into `moved`, with the head displaced; both are whole frames."""
        moved[self._box.slices] = displaced(still, self._here - self._share * self.at(time_s))
