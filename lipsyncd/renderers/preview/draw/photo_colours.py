"""Measurements of the photograph: the colours of skin and lips, its blur and its grain.

Owns these measurements. Leaves their use to `mouth_inside`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np

from lipsyncd.renderers.framing import RgbImage
from lipsyncd.renderers.preview.mouth import Mouth
from lipsyncd.renderers.preview.plane import Field, PixelBox, Plane, Window, eased

SCALE = 64  # cells for each unit: colours need no detail
HALF_STEP = 2.5066  # sqrt(2 pi): height over steepest slope of an edge of unit blur
FROM_HIGH_PASS = 1.3  # the noise relative to its part that passes a high-pass filter at 1 pixel
MOST_GRAIN = 10.0
CHEEK = 0.30  # beside the mouth, and above the base of the nose: where skin is measured
COLOURLESS, COLOURFUL = 0.04, 0.20  # spread of the skin's channels over their mean


@dataclass(frozen=True)
class PhotoColours:
    """The properties of the photograph that painted parts have to match.

    skin     (3,) float32 RGB, 0..255: median colour of the cheeks beside the nose
    lips     (3,) float32: median colour of the lips
    blur_px  standard deviation of the blur of a sharp edge
    grain    standard deviation of the noise, in levels of 255
    """

    skin: Field
    lips: Field
    blur_px: float
    grain: float

    @property
    def brightness(self) -> float:
        """The brightness of the skin, 1..255."""
        return max(float(self.skin.mean()), 1.0)

    def tint(self, colour: Field) -> Field:
        """A colour as in this photograph: in a grey photograph it becomes grey. (3,) in any scale."""
        spread = float(np.ptp(self.skin)) / self.brightness
        share = np.float32(eased((spread - COLOURLESS) / (COLOURFUL - COLOURLESS)))
        grey = colour.mean()
        return cast(Field, grey + (colour - grey) * share)


def measure_colours(canvas: RgbImage, plane: Plane, mouth: Mouth) -> PhotoColours:
    """Measure the photograph around the mouth."""
    left, right = float(mouth.knots[1]), float(mouth.knots[3])
    window = Window(left - CHEEK, mouth.nose - CHEEK, right + CHEEK, mouth.line_v + 0.3, SCALE)
    patch = plane.cut(canvas, window).astype(np.float32)
    u, v = window.grid()
    x = mouth.frontal(u[0])
    lips = mouth.contours(x)
    # The cheeks beside the nose: further down a beard can grow, further up glasses sit.
    cheeks = (np.abs(x) > 0.30) & (np.abs(x) < 0.70) & (v < mouth.nose - 0.04)
    near = (v > lips.outer_upper + 0.01) & (v < lips.outer_lower - 0.01) & (np.abs(x) < 0.6 * mouth.half)
    on_lips = near & ((v < lips.inner_upper - 0.015) | (v > lips.inner_lower + 0.02))
    skin = np.median(patch[cheeks], axis=0).astype(np.float32)
    return PhotoColours(
        skin=skin,
        lips=np.median(patch[on_lips], axis=0).astype(np.float32) if on_lips.any() else skin * np.float32(0.8),
        **_texture(canvas, plane),
    )


def _texture(canvas: RgbImage, plane: Plane) -> dict[str, float]:
    """Blur and grain, from the pixels between the brows and the chin."""
    box = PixelBox.around(plane, (-0.8, -0.4, 0.8, 1.6), canvas)
    grey = cast(Field, cv2.cvtColor(canvas[box.slices], cv2.COLOR_RGB2GRAY).astype(np.float32))
    fine = grey - cv2.GaussianBlur(grey, (0, 0), 1.0)
    grain = 1.4826 * float(np.median(np.abs(fine - np.median(fine)))) * FROM_HIGH_PASS
    # Strong grain has steeper slopes than the face: smooth it first, and take that off again.
    smooth = min(grain / 5.0, 2.0) if grain > 3.0 else 0.0
    if smooth:
        grey = cast(Field, cv2.GaussianBlur(grey, (0, 0), smooth))
    slope = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)) / 8
    size = max(3, round(0.06 * plane.unit_px)) | 1
    around = np.ones((size, size), np.uint8)
    height = cv2.dilate(grey, around) - cv2.erode(grey, around)
    steep = slope >= np.percentile(slope, 98)
    blur_px = float(np.median(height[steep] / np.maximum(slope[steep], 1e-3))) / HALF_STEP
    blur_px = float(np.sqrt(max(blur_px**2 - smooth**2, (0.6 * blur_px) ** 2)))
    return {"blur_px": float(np.clip(blur_px, 0.5, max(0.06 * plane.unit_px, 0.5))), "grain": min(grain, MOST_GRAIN)}
