"""Paint the inside of the mouth between parted lips: a dark cavity, a tongue, teeth.

Colours, light, blur and grain are matched to the photograph. Where the photograph shows an open mouth, its own inside
is kept in its place, and no second row of teeth is painted.

Owns the colours inside the mouth. Leaves its outline to `lips`.
"""

from __future__ import annotations

import cv2
import numpy as np

from lipsyncd.renderers.framing import RgbImage
from lipsyncd.renderers.preview.draw.lips import LipEdges, Pose
from lipsyncd.renderers.preview.draw.photo_colours import measure_colours
from lipsyncd.renderers.preview.draw.teeth import USUAL_HALF, Row, lower_row, upper_row
from lipsyncd.renderers.preview.mouth import Mouth
from lipsyncd.renderers.preview.plane import Field, PixelBox, Plane, eased, smoothstep

Part = tuple[slice, slice]

# Tints of the skin's colour, RGB. Light in the mouth has passed lips and cheeks, so dim parts are also warm.
HOLLOW = np.array([0.17, 0.08, 0.075], np.float32)
FLOOR = np.array([0.40, 0.20, 0.19], np.float32)
TONGUE = np.array([0.92, 0.58, 0.57], np.float32)
CONTACT = np.array([0.42, 0.34, 0.34], np.float32)
WARMTH = np.array([0.75, 1.10, 1.15], np.float32)  # exponents of a shadow

LOWER_JAW = 0.66  # of the jaw's movement: the lower row of teeth


class MouthInside:
    """The inside of one mouth, on a box of canvas pixels. Colours are three planes, (3, h, w)."""

    def __init__(self, canvas: RgbImage, plane: Plane, mouth: Mouth, box: PixelBox, seed: int) -> None:
        """`seed` fixes the grain."""
        self._mouth, self._colours = mouth, measure_colours(canvas, plane, mouth)
        skin, lips = self._colours.skin, self._colours.lips
        hollow, floor, tongue, contact, warmth = map(self._colours.tint, (HOLLOW, FLOOR, TONGUE, CONTACT, WARMTH))
        self._hollow, self._floor = _plane(skin * hollow), _plane(skin * (floor - hollow))
        self._tongue = _plane(0.55 * lips + 0.45 * skin * tongue)
        self._wet, self._contact, self._warmth = _plane(0.50 * lips), _plane(lips * contact), _plane(warmth)
        across, down = np.arange(box.left, box.right)[None, :], np.arange(box.top, box.bottom)[:, None]
        u, self._v = plane.coordinates(across, down)
        table = np.linspace(float(u.min()), float(u.max()), 1024)
        self._x = np.interp(u, table, mouth.frontal(table)).astype(np.float32)
        self._soft = float((0.8 + 0.8 * self._colours.blur_px) / plane.unit_px)
        source = canvas[box.slices].astype(np.float32)
        shade = cv2.GaussianBlur(source.mean(axis=2), (0, 0), 0.22 * plane.unit_px)
        self._light = (shade / np.float32(self._colours.brightness)).clip(0.4, 1.15)
        noise = np.random.default_rng(seed).standard_normal(self._v.shape, np.float32)
        self._grain = noise * np.float32(self._colours.grain)
        scale = min(mouth.half / USUAL_HALF, 1.15)
        slope = float(np.polyfit(*_line(mouth), 1)[0])
        below = self._v - np.float32(mouth.line_v) - np.float32(slope) * self._x
        self._own = self._own_inside(source.transpose(2, 0, 1)) if mouth.open_at_rest else None
        rows = (row(self._colours, self._x, below, scale) for row in (upper_row, lower_row))
        self._upper_row, self._lower_row = rows
        self._groove = 1.0 - 0.12 * np.exp(-((self._x / 0.03) ** 2))

    def paint(self, part: Part, pose: Pose, lips: LipEdges, upper: Field, lower: Field) -> tuple[Field, Field]:
        """The inside in this pose, in a part of the box.

        upper, lower  v of the lips' edges at each pixel of the part
        returns       colours (3, h, w) and their weight (h, w), float32
        """
        below, above = self._v[part] - upper, lower - self._v[part]  # distances from the upper and from the lower lip
        height = lower - upper
        weight = np.clip(np.minimum(below, above) / self._soft + np.float32(0.5), 0.0, 1.0)
        weight *= smoothstep(height / (1.5 * self._soft))  # a slit thinner than the blur is not visible

        # The throat: almost dark, redder and lighter towards the floor of the mouth.
        depth = below / np.maximum(height, np.float32(1e-3))
        colour = self._hollow + self._floor * smoothstep((depth - 0.35) / 0.65)
        self._lay_tongue(colour, part, lips, above)
        self._lay_teeth(colour, part, pose, lips)
        over, under = np.exp(np.minimum(-below, 0) / 0.022), np.exp(np.minimum(-above, 0) / 0.015)
        open_wide = 0.66 + 0.34 * eased((lips.gap + 0.06 * pose.bite) / 0.10)
        light = self._light[part]
        shade = cv2.log((1.0 - 0.42 * over - 0.30 * under) * np.float32(open_wide))
        colour *= np.exp(shade * self._warmth) * light  # to the power of the warmth
        # The inner, wet side of the lower lip.
        _lay(colour, self._wet * light, 0.5 * (1.0 - 0.7 * pose.bite) * under)
        if self._colours.blur_px > 0.7:
            for plane in colour:
                cv2.GaussianBlur(plane, (0, 0), 0.9 * self._colours.blur_px, dst=plane)
        # Dark parts of a photograph have less noise.
        brightness = (colour[0] + colour[1] + colour[2]) * np.float32(1 / 3 / self._colours.brightness)
        colour += self._grain[part] * (0.35 + 0.65 * brightness)
        return self._with_contact(colour, weight, part, lips, upper)

    def _lay_tongue(self, colour: Field, part: Part, lips: LipEdges, above: Field) -> None:
        """A soft hill behind the lower lip, visible when the mouth is wide open."""
        visible = 0.85 * eased((lips.gap - 0.06) / 0.10)
        if visible <= 0:
            return
        side = np.maximum(1.0 - (self._x[part] / np.float32(0.80 * lips.half)) ** 2, 0.0)
        hill = np.float32(0.46 * lips.gap) * side ** np.float32(0.6)
        weight = np.float32(visible) * smoothstep((hill - above) / 0.045)
        tone = (0.54 + 0.28 * smoothstep(above / 0.08)) * self._groove[part]
        _lay(colour, self._tongue * tone, weight)

    def _lay_teeth(self, colour: Field, part: Part, pose: Pose, lips: LipEdges) -> None:
        """Both rows, or the inside of the photograph in their place; rounded lips hide most of painted ones."""
        rows, columns = part
        if self._own is not None:
            own, weight = self._own
            visible = max(eased((lips.gap - 0.02) / 0.05), pose.bite)
            _lay(colour, own[:, rows, columns], weight[part] * np.float32(visible))
            return
        hidden = 1.0 + 0.72 * min(pose.width, 0.0)
        if lips.gap > 0.10:
            low = 0.75 * hidden * eased((lips.gap - 0.10) / 0.06)
            self._lay_row(colour, part, self._lower_row, low, LOWER_JAW * lips.jaw)
        self._lay_row(colour, part, self._upper_row, max(eased((lips.gap - 0.02) / 0.05) * hidden, pose.bite))

    def _lay_row(self, colour: Field, part: Part, row: Row, visible: float, down: float = 0.0) -> None:
        """One row over what lies behind it; `down` is how far its jaw has moved."""
        rows, columns = part
        inside = (row.inside[part] - np.float32(down)) / np.float32(max(0.012, self._soft)) + np.float32(0.5)
        weight = np.clip(inside, 0.0, 1.0) * row.weight[part] * np.float32(0.95 * visible)
        _lay(colour, row.colour[:, rows, columns], weight)

    def _with_contact(
        self, colour: Field, weight: Field, part: Part, lips: LipEdges, upper: Field
    ) -> tuple[Field, Field]:
        """Lips that are apart in the photograph have no dark line between them: paint it while they touch."""
        visible = 0.62 * (1.0 - eased(lips.gap / 0.10))
        if self._own is None or visible <= 0:
            return colour, weight
        across = np.minimum(np.abs(self._x[part]) / np.float32(self._mouth.half), 1.0)
        line = np.exp(-(((self._v[part] - upper) / max(0.016, self._soft)) ** 2)) * (1.0 - across**4)
        line = np.float32(visible) * line * (1.0 - weight)
        both = weight + line
        shares = (weight / np.maximum(both, np.float32(1e-4)), line / np.maximum(both, np.float32(1e-4)))
        return colour * shares[0] + self._contact * (self._light[part] * shares[1]), both

    def _own_inside(self, source: Field) -> tuple[Field, Field]:
        """The photograph between its lips, and its weight at each pixel."""
        table = np.linspace(-1.2, 1.2, 2048)
        lips = self._mouth.contours(table)
        upper, lower = (np.interp(self._x, table, edge) for edge in (lips.inner_upper, lips.inner_lower))
        weight = np.minimum(self._v - upper, lower - self._v) / self._soft
        return np.ascontiguousarray(source / self._light), np.clip(weight, 0.0, 1.0).astype(np.float32)


def _plane(colour: Field) -> Field:
    """A colour (3,) for arithmetic with planes: (3, 1, 1) float32."""
    return colour.astype(np.float32)[:, None, None]


def _lay(colour: Field, over: Field, weight: Field) -> None:
    """Lay a colour over another one, with its weight at each pixel."""
    colour += (over - colour) * weight


def _line(mouth: Mouth) -> tuple[Field, Field]:
    """The line between the closed lips: x and v."""
    x = np.linspace(-mouth.half, mouth.half, 33)
    return x.astype(np.float32), mouth.closed_line(x).astype(np.float32)
