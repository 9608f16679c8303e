"""Teeth: two rows to paint into mouths whose photograph shows none.

The upper row is fixed to the head, so the lips uncover it; the lower row moves with the jaw. Positions are in x, across
a face seen from the front, and in v relative to the line between the closed lips.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers.preview.draw.photo_colours import PhotoColours
from lipsyncd.renderers.preview.plane import Field, eased, smoothstep

Floats = NDArray[np.floating]

USUAL_HALF = 0.36  # half width of the mouth for which the sizes below hold

# From the middle outwards: the place where each tooth ends, and how much shorter it is than the middle ones.
UPPER_ENDS, UPPER_SHORT = (0.098, 0.172, 0.238, 0.292, 0.335), (0.0, 0.010, 0.003, 0.014, 0.022)
LOWER_ENDS, LOWER_SHORT = (0.058, 0.118, 0.182, 0.240, 0.290), (0.0, 0.001, 0.0, 0.008, 0.014)
UPPER_LOW = 0.056  # how far the upper row reaches below the line
LOWER_HIGH = 0.040  # how far the lower row's upper edge lies below the line while the jaw is closed
ARCH = 0.22  # for each squared unit sideways: the row curves upwards at its sides
ROUNDED = 0.013  # how much higher the corners of a tooth are than its edge
GAP, GAP_DARK = 0.0075, 0.22  # between teeth: half width, darkness
BRIGHTEST = 246.0  # channel
USUAL_COLOUR = 0.45  # spread of the channels of skin over their mean, under white light
YELLOW = 0.25  # how much yellower than skin
END = (0.26, 0.345)  # sideways, where the row vanishes in the shadow of the cheek


@dataclass(frozen=True)
class Row:
    """One row at each pixel, while the jaw is closed.

    colour  (3, h, w) float32
    inside  (h, w) float32: how far the pixel lies inside the row, from its edge
    weight  (h, w) float32: 0 beyond the last tooth
    """

    colour: Field
    inside: Field
    weight: Field


def upper_row(colours: PhotoColours, x: Field, below: Field, scale: float) -> Row:
    """The upper row.

    x, below  position of each pixel: across, and below the line between the lips
    scale     of the mouth, 1 for a usual one
    """
    side, below = _scaled(np.abs(x), scale), _scaled(below, scale)
    edge, gaps = _teeth(side, UPPER_ENDS, UPPER_SHORT)
    inside = UPPER_LOW - ARCH * side**2 - edge - below
    # Enamel is clearer at the edge, warmer and darker towards the gum.
    tone = (1.0 - GAP_DARK * gaps * smoothstep(inside / 0.012)) * (0.95 + 0.07 * smoothstep(inside / 0.02))
    return _row(colours, tone - 0.12 * smoothstep(inside / 0.10), side, inside * np.float32(scale))


def lower_row(colours: PhotoColours, x: Field, below: Field, scale: float) -> Row:
    """The lower row; it is smaller and lies deeper in the shadow."""
    side, below = _scaled(np.abs(x), scale), _scaled(below, scale)
    edge, gaps = _teeth(side, LOWER_ENDS, LOWER_SHORT)
    inside = below - LOWER_HIGH + 0.5 * ARCH * side**2 - edge
    return _row(colours, 0.72 * (1.0 - GAP_DARK * gaps), side, inside * np.float32(scale))


def _scaled(length: Field, scale: float) -> Field:
    return (length / np.float32(scale)).astype(np.float32)


def _teeth(side: Field, ends: tuple[float, ...], short: tuple[float, ...]) -> tuple[Field, Field]:
    """How much shorter the row is at each place, and 1 in the gaps between teeth."""
    borders = np.array((0.0, *ends), np.float32)
    number = np.clip(np.searchsorted(borders, side.ravel(), side="right") - 1, 0, len(ends) - 1).reshape(side.shape)
    start, end = borders[number], borders[number + 1]
    across = np.clip((side - start) / (end - start), 0.0, 1.0) * 2.0 - 1.0
    edge = np.array(short, np.float32)[number] + np.float32(ROUNDED) * across**4
    nearest = np.minimum(np.abs(side - start), np.abs(side - end))
    return edge.astype(np.float32), np.exp(-((nearest / np.float32(GAP)) ** 2)).astype(np.float32)


def _row(colours: PhotoColours, tone: Floats, side: Field, inside: Floats) -> Row:
    ends = 1.0 - smoothstep((side - END[0]) / (END[1] - END[0]))
    shaded = tone * (1.0 - 1.9 * side**1.8)
    colour = shaded.clip(0.15, 1.1) * _white(colours)[:, None, None]
    return Row(colour.astype(np.float32), inside.astype(np.float32), cast("Field", ends.astype(np.float32)))


def _white(colours: PhotoColours) -> Field:
    """Clean enamel in the light of this photograph, (3,) RGB.

    Under white light it is half as colourful as skin. Light skin that is more colourful than usual stands in coloured
    light; dark skin is more colourful by itself.
    """
    grey = np.float32(colours.brightness)
    off = (colours.skin - grey) / grey
    coloured = eased((float(np.ptp(off)) - USUAL_COLOUR) / 0.5) * eased((colours.brightness - 90.0) / 60.0)
    share = 0.32 + 0.28 * coloured
    off[1] += YELLOW * (off[0] - off[1])
    # The darker the skin, the more the teeth stand out.
    white = grey * (1.0 + np.float32(share) * off) * 1.62 * (190.0 / max(colours.brightness, 20.0)) ** 0.1
    return cast("Field", white * np.float32(min(1.0, BRIGHTEST / float(white.max()))))
