"""Paint what shows between parted lips: a dark hollow, a tongue, a hint of teeth.

It takes its colours, its light, its blur and its grain from the photograph, so that it looks taken with it. Teeth that
the source shows already are kept and no second row is painted.

Owns the colours inside the mouth. Leaves its outline to `warp.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np

from lipsyncd.renderers.preview.mouth import Mouth
from lipsyncd.renderers.preview.plane import Field, Picture, Plane, Window
from lipsyncd.renderers.preview.warp import Edges, Pose, smoothstep, source_edges

TEETH_LOW = 0.050  # v of the edge of the upper teeth below the resting line, in the middle
TEETH_RISE = 0.55  # of that edge, for each squared unit sideways: the row is an arch
TOOTH_GAPS = (0.0, 0.115, 0.205, 0.275)  # distances from the middle


@dataclass(frozen=True)
class Look:
    """What the painted inside takes from the photograph.

    skin       (3,) float32 RGB, 0..255: the usual colour around the mouth
    lips       (3,) float32: the usual colour of the lips
    blur_px    standard deviation of the softest edge that still looks sharp here
    grain      standard deviation of the noise, in levels
    """

    skin: Field
    lips: Field
    blur_px: float
    grain: float


def look_of(canvas: Picture, plane: Plane, mouth: Mouth) -> Look:
    """Measure the photograph around the mouth."""
    window = Window(mouth.middle - 0.6, 0.55, mouth.middle + 0.6, mouth.chin, 64)
    patch = plane.cut(canvas, window).astype(np.float32)
    u, v = window.grid()
    x = np.abs(u - mouth.middle)
    line = np.polyval(mouth.upper, u - mouth.middle)
    low = np.polyval(mouth.lower, u - mouth.middle)
    skin = np.median(patch[(x > 0.3) & (v < line - 0.12)], axis=0)
    near = (x < 0.6 * mouth.half) & (((v < line - 0.02) & (v > line - 0.07)) | ((v > low + 0.03) & (v < low + 0.10)))
    lips = np.median(patch[near], axis=0)
    return Look(skin, lips, *_texture(canvas, plane, mouth))


def _texture(canvas: Picture, plane: Plane, mouth: Mouth) -> tuple[float, float]:
    """Blur in pixels and grain in levels, from the pixels of the face."""
    unit = plane.unit_px
    x, y = round(plane.x), round(plane.y)
    half = round(unit)
    grey = cv2.cvtColor(canvas, cv2.COLOR_RGB2GRAY)[max(y - half // 2, 0) : y + 2 * half, max(x - half, 0) : x + half]
    grey = grey.astype(np.float32)
    slope = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0) / 8, cv2.Sobel(grey, cv2.CV_32F, 0, 1) / 8)
    size = max(3, round(0.06 * unit)) | 1
    kernel = np.ones((size, size), np.uint8)
    contrast = cv2.dilate(grey, kernel) - cv2.erode(grey, kernel)
    steep = slope > np.percentile(slope, 98)
    # A step of height c blurred by s rises by c / (s x sqrt(2 pi)) for each pixel at its steepest.
    blur = float(np.median(contrast[steep] / np.maximum(slope[steep], 1e-3))) / 2.5066
    fine = grey - cv2.GaussianBlur(grey, (0, 0), 1.0)
    grain = 1.4826 * float(np.median(np.abs(fine - np.median(fine)))) * 1.3
    return float(np.clip(blur, 0.5, 0.06 * unit)), float(np.clip(grain, 0.0, 5.0))


class Inside:
    """The inside of one mouth, on a box of canvas pixels."""

    def __init__(self, canvas: Picture, plane: Plane, mouth: Mouth, box: tuple[int, int, int, int], seed: int) -> None:
        """`box` is left, top, right, bottom in pixels of the canvas; `seed` fixes the grain."""
        left, top, right, bottom = box
        self.look = look_of(canvas, plane, mouth)
        u, v = plane.coordinates(np.arange(left, right)[None, :], np.arange(top, bottom)[:, None])
        self._x, self._v = u - np.float32(mouth.middle), v
        self._mouth = mouth
        self._unit = plane.unit_px
        self._soft = np.float32((0.8 + 0.8 * self.look.blur_px) / plane.unit_px)
        patch = canvas[top:bottom, left:right].astype(np.float32)
        shade = cv2.GaussianBlur(patch.mean(axis=2), (0, 0), 0.22 * plane.unit_px)
        self._light = (shade / max(float(self.look.skin.mean()), 1.0)).clip(0.4, 1.15)[..., None]
        noise = np.random.default_rng(seed).normal(0.0, self.look.grain, (bottom - top, right - left, 1))
        self._grain = noise.astype(np.float32)
        self._teeth = self._painted_teeth()
        if mouth.open_at_rest:
            upper, lower = source_edges(mouth, self._x.astype(np.float64))
            inner = np.minimum(v - upper, lower - v) / self._soft
            self._own = np.clip(inner, 0.0, 1.0).astype(np.float32)[..., None]
            self._patch = patch

    def paint(self, lips: Edges, upper: Field, lower: Field, pose: Pose) -> tuple[Field, Field]:
        """The inside in this pose.

        upper, lower  v of the lips' edges at each pixel of the box
        returns       colours (h, w, 3) and their weight (h, w, 1), float32
        """
        below, above = self._v - upper, lower - self._v  # distance from the upper and from the lower lip
        height = lower - upper
        inner = np.minimum(below, above)
        alpha = np.clip(inner / self._soft + 0.5, 0.0, 1.0) * smoothstep(height / (1.5 * self._soft))

        depth = np.clip(below / np.maximum(height, 1e-3), 0.0, 1.0)[..., None]
        wide = np.float32(smoothstep(lips.gap / 0.10))
        colour = self._hollow(depth, lips)
        colour = self._with_tongue(colour, lips, above)
        colour = self._with_teeth(colour, lips, below, pose)
        near_lips = 1.0 - 0.55 * np.exp(-np.maximum(below, 0) / 0.030) - 0.40 * np.exp(-np.maximum(above, 0) / 0.020)
        colour = colour * (near_lips[..., None] * (0.62 + 0.38 * wide)) * self._light
        rim = np.exp(-np.maximum(above, 0) / 0.016)[..., None] * 0.55
        colour = colour * (1 - rim) + rim * self.look.lips * 0.52 * self._light
        if self.look.blur_px > 0.7:
            colour = cv2.GaussianBlur(colour, (0, 0), self.look.blur_px * 0.9)
        return colour + self._grain, cast(Field, alpha[..., None].astype(np.float32))

    def _hollow(self, depth: Field, lips: Edges) -> Field:
        """The throat: the skin's own tint, almost without light, redder and lighter towards the floor."""
        dark = self.look.skin * np.float32([0.20, 0.10, 0.09])
        floor = self.look.skin * np.float32([0.42, 0.22, 0.20])
        return cast(Field, dark + (floor - dark) * smoothstep((depth - 0.35) / 0.65))

    def _with_tongue(self, colour: Field, lips: Edges, above: Field) -> Field:
        """A soft hill behind the lower lip; it shows when the mouth is well open."""
        side = 1.0 - (self._x / (0.80 * lips.half)) ** 2
        hill = 0.46 * lips.gap * np.maximum(side, 0.0) ** 0.6
        weight = smoothstep((hill - above) / 0.045) * smoothstep((lips.gap - 0.06) / 0.10)
        tone = 0.50 + 0.22 * smoothstep(above / 0.08)
        tongue = (0.55 * self.look.lips + 0.45 * self.look.skin * np.float32([0.95, 0.62, 0.60])) * tone[..., None]
        return cast(Field, colour + (tongue - colour) * (0.85 * weight)[..., None])

    def _with_teeth(self, colour: Field, lips: Edges, below: Field, pose: Pose) -> Field:
        """The upper row: fixed to the skull, so the lips uncover it; own teeth where the source shows them."""
        if self._mouth.open_at_rest:
            shown = smoothstep((lips.gap - 0.02) / 0.05)
            return cast(Field, colour + (self._patch / self._light - colour) * self._own * shown)
        colours, weight = self._teeth
        shown = smoothstep((lips.gap - 0.03) / 0.06) * (1.0 + 0.75 * min(pose.width, 0.0))
        return cast(Field, colour + (colours - colour) * (weight * np.float32(shown)))

    def _painted_teeth(self) -> tuple[Field, Field]:
        """Colours and weight of the upper row, at rest behind the lips."""
        x = np.abs(self._x)
        line = float(self._mouth.upper[-1])
        edge = line + TEETH_LOW - TEETH_RISE * x**2
        weight = smoothstep((edge - self._v) / max(0.020, float(self._soft)) + 0.5) * (
            1.0 - smoothstep((x - 0.24) / 0.08)
        )
        gaps = sum(np.exp(-(((x - gap) / 0.010) ** 2)) for gap in TOOTH_GAPS)
        tone = (0.98 - 1.9 * x**1.6) * (1.0 - 0.16 * gaps) * (0.86 + 0.14 * smoothstep((edge - self._v) / 0.03))
        bright = float(self.look.skin.mean())
        white = 0.72 * np.float32([1.02, 0.98, 0.90]) * bright + 0.24 * self.look.skin
        return tone.clip(0.2, 1.0)[..., None].astype(np.float32) * white, (0.9 * weight)[..., None].astype(np.float32)
