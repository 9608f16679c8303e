"""Paint the inside of the mouth between parted lips: a dark cavity, a tongue, a hint of teeth.

Colours, light, blur and grain are matched to the photograph. Teeth that the source shows are kept, and no second row is
painted.

Owns the colours inside the mouth. Leaves its outline to `warp`.
"""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np

from lipsyncd.renderers.framing import RgbImage
from lipsyncd.renderers.preview.draw.photo_colours import PhotoColours, measure_colours
from lipsyncd.renderers.preview.draw.warp import LipEdges, Pose, source_edges
from lipsyncd.renderers.preview.find.face_coordinates import Field, PixelBox, Plane, eased, smoothstep
from lipsyncd.renderers.preview.find.mouth import Mouth

Part = tuple[slice, slice]

# Tints of the skin's colour, RGB. Light in the mouth has passed lips and cheeks, so dim parts are also warm.
HOLLOW = np.array([0.20, 0.10, 0.09], np.float32)
FLOOR = np.array([0.42, 0.22, 0.20], np.float32)
TONGUE = np.array([0.95, 0.62, 0.60], np.float32)
CONTACT = np.array([0.42, 0.34, 0.34], np.float32)
WARMTH = np.array([0.75, 1.10, 1.15], np.float32)  # exponents of a shadow

# The upper row of teeth, in units. Its edge does not move, so the lips uncover it.
TEETH_LOW = 0.050  # how far it reaches below the resting line
TEETH_RISE = 0.55  # for each squared unit sideways, since the row is an arch
TEETH_END = (0.24, 0.32)  # sideways, where it vanishes
TOOTH_GAPS = (0.0, 0.115, 0.205, 0.275)  # sideways


class MouthInside:
    """The inside of one mouth, on a box of canvas pixels."""

    def __init__(self, canvas: RgbImage, plane: Plane, mouth: Mouth, box: PixelBox, seed: int) -> None:
        """`seed` fixes the grain."""
        self._mouth, self._colours = mouth, measure_colours(canvas, plane, mouth)
        tints = (HOLLOW, FLOOR, TONGUE, CONTACT, WARMTH)
        self._hollow, self._floor, self._tongue, self._contact, self._warmth = map(self._colours.tint, tints)
        across, down = np.arange(box.left, box.right)[None, :], np.arange(box.top, box.bottom)[:, None]
        u, self._v = plane.coordinates(across, down)
        self._x = u - np.float32(mouth.middle)
        self._soft = float((0.8 + 0.8 * self._colours.blur_px) / plane.unit_px)
        source = canvas[box.slices].astype(np.float32)
        shade = cv2.GaussianBlur(source.mean(axis=2), (0, 0), 0.22 * plane.unit_px)
        self._light = (shade / np.float32(self._colours.brightness)).clip(0.4, 1.15)[..., None]
        noise = np.random.default_rng(seed).standard_normal((*self._v.shape, 1), np.float32)
        self._grain = noise * np.float32(self._colours.grain)
        if mouth.open_at_rest:
            self._teeth, self._tooth = self._own_teeth(source)
        else:
            self._teeth, self._tooth = painted_teeth(self._colours, self._x, self._v - mouth.line_v, self._soft)

    def paint(self, part: Part, pose: Pose, lips: LipEdges, upper: Field, lower: Field) -> tuple[Field, Field]:
        """The inside in this pose, in a part of the box.

        upper, lower  v of the lips' edges at each pixel of the part
        returns       colours (h, w, 3) and their weight (h, w, 1), float32
        """
        below, above = self._v[part] - upper, lower - self._v[part]  # distances from the upper and from the lower lip
        height = lower - upper
        weight = np.clip(np.minimum(below, above) / self._soft + np.float32(0.5), 0.0, 1.0)
        weight *= smoothstep(height / (1.5 * self._soft))  # a slit thinner than the blur is not visible

        colour = self._throat(below / np.maximum(height, np.float32(1e-3)))
        colour = self._with_tongue(colour, part, lips, above)
        colour = self._with_teeth(colour, part, pose, lips)
        over, under = np.exp(np.minimum(-below, 0) / 0.022), np.exp(np.minimum(-above, 0) / 0.015)
        open_wide = 0.66 + 0.34 * eased(lips.gap / 0.10)
        light = self._light[part]
        colour *= ((1.0 - 0.42 * over - 0.30 * under) * np.float32(open_wide))[..., None] ** self._warmth * light
        # The inner, wet side of the lower lip.
        colour += (self._colours.lips * np.float32(0.50) * light - colour) * (0.5 * under)[..., None]
        if self._colours.blur_px > 0.7:
            colour = cast(Field, cv2.GaussianBlur(colour, (0, 0), 0.9 * self._colours.blur_px))
        # Dark parts of a photograph have less noise.
        brightness = colour.mean(axis=2, keepdims=True) / np.float32(self._colours.brightness)
        colour += self._grain[part] * (0.35 + 0.65 * brightness)
        return self._with_contact(colour, weight[..., None], part, lips, upper)

    def _throat(self, depth: Field) -> Field:
        """The throat: almost dark, redder and lighter towards the floor of the mouth."""
        tint = self._hollow + (self._floor - self._hollow) * smoothstep((depth - 0.35) / 0.65)[..., None]
        return cast(Field, self._colours.skin * tint)

    def _with_tongue(self, colour: Field, part: Part, lips: LipEdges, above: Field) -> Field:
        """A soft hill behind the lower lip, visible when the mouth is wide open."""
        visible = 0.85 * eased((lips.gap - 0.06) / 0.10)
        if visible <= 0:
            return colour
        side = np.maximum(1.0 - (self._x[part] / np.float32(0.80 * lips.half)) ** 2, 0.0)
        hill = np.float32(0.46 * lips.gap) * side ** np.float32(0.6)
        weight = np.float32(visible) * smoothstep((hill - above) / 0.045)
        tone = 0.56 + 0.26 * smoothstep(above / 0.08)
        flesh = 0.55 * self._colours.lips + 0.45 * self._colours.skin * self._tongue
        return cast(Field, colour + (flesh * tone[..., None] - colour) * weight[..., None])

    def _with_teeth(self, colour: Field, part: Part, pose: Pose, lips: LipEdges) -> Field:
        """The upper row: of the photograph, or painted; rounded lips hide most of a painted one."""
        if self._mouth.open_at_rest:
            visible = eased((lips.gap - 0.02) / 0.05)
        else:
            visible = eased((lips.gap - 0.03) / 0.06) * (1.0 + 0.75 * min(pose.width, 0.0))
        return colour + (self._teeth[part] - colour) * (self._tooth[part] * np.float32(visible))

    def _with_contact(
        self, colour: Field, weight: Field, part: Part, lips: LipEdges, upper: Field
    ) -> tuple[Field, Field]:
        """Lips that are apart in the source have no dark line between them: paint it while they touch."""
        visible = 0.62 * (1.0 - eased(lips.gap / 0.10))
        if not self._mouth.open_at_rest or visible <= 0:
            return colour, weight
        across = np.minimum(np.abs(self._x[part]) / np.float32(self._mouth.half), 1.0)
        line = np.exp(-(((self._v[part] - upper) / max(0.016, self._soft)) ** 2)) * (1.0 - across**4)
        line = np.float32(visible) * line[..., None] * (1.0 - weight)
        dark = self._colours.lips * self._contact * self._light[part]
        both = weight + line
        return (colour * weight + dark * line) / np.maximum(both, np.float32(1e-4)), both

    def _own_teeth(self, source: Field) -> tuple[Field, Field]:
        """The source between its lips, and its weight at each pixel."""
        upper, lower = source_edges(self._mouth, self._x.astype(np.float64))
        weight = np.minimum(self._v - upper, lower - self._v) / self._soft
        return source / self._light, np.clip(weight, 0.0, 1.0).astype(np.float32)[..., None]


def painted_teeth(colours: PhotoColours, x: Field, low: Field, soft: float) -> tuple[Field, Field]:
    """The upper row at rest behind closed lips.

    x        distance from the middle, to the right
    low      distance from the line between the lips, downwards
    soft     width of an edge
    returns  colours (h, w, 3) and weight (h, w, 1), float32
    """
    side = np.abs(x)
    from_edge = TEETH_LOW - TEETH_RISE * side**2 - low
    ends = smoothstep((side - TEETH_END[0]) / (TEETH_END[1] - TEETH_END[0]))
    weight = 0.9 * smoothstep(from_edge / max(0.020, soft) + 0.5) * (1.0 - ends)
    gaps = np.sum([np.exp(-(((side - gap) / 0.010) ** 2)) for gap in TOOTH_GAPS], axis=0)
    tone = (1.0 - 1.6 * side**1.6) * (1.0 - 0.14 * gaps) * (0.90 + 0.10 * smoothstep(from_edge / 0.03))
    # Less than half as colourful as the skin; the darker the skin, the more the teeth stand out.
    grey = np.float32(colours.brightness)
    white = (grey + 0.4 * (colours.skin - grey)) * 1.25 * (190.0 / max(colours.brightness, 20.0)) ** 0.25
    return (tone.clip(0.2, 1.0)[..., None] * white).astype(np.float32), weight[..., None].astype(np.float32)
