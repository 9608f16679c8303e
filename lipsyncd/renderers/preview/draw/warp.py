"""Move the lower face: lips, jaw and chin of the photograph itself, for any pose of the mouth.

Two sheets meet at the mouth. The upper one carries the upper lip, the lower one the lower lip and the jaw. The
displacement of each is smooth over the whole face, so only the mouth opens. It maps backwards, from the new position of
a pixel to its source, so it needs no inversion; and its slope stays below 1, so there are no folds.

Everything is in the units of `plane`. Owns the movement. Leaves the shape of the lips to `lips` and the inside of the
mouth to `mouth_inside`.
"""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np

from lipsyncd.renderers.face import points
from lipsyncd.renderers.face.networks import Mesh
from lipsyncd.renderers.preview.draw.lips import LipEdges
from lipsyncd.renderers.preview.mouth import Mouth
from lipsyncd.renderers.preview.plane import Field, Plane, Window, smoothstep

JAW_SHARE = 0.62  # of the opening: the chin

# Where one movement turns into another, or ends: distances from the lips, the chin and the middle.
UPPER_FADE = (0.10, 0.26)  # above the upper lip, at least and at most: the base of the nose stays
LIP_TO_JAW = 0.24  # below the lower lip: from there on the skin moves with the jaw
NECK_FADE = 0.34  # beyond the outline of the face
JAW_SIDES = (
    0.20,
    0.85,
)  # sideways: where the jaw's movement begins to fade; its end at the chin, in parts of the mouth's
PULL_FADE = 0.40  # sideways movement, above and below the lips
OUTLINE = 0.22  # inside the outline of the face: from there on nothing moves sideways
RIM = 0.08  # at the border of the window
STEEPEST = 1.7  # of a fade, in its height for each unit of its length, so that nothing folds


Sheet = tuple[Field, Field]


def moving_area(mouth: Mouth) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the area that can move."""
    top = min(float(mouth.lips.inner_upper.min()) - PULL_FADE, mouth.line_v - PULL_FADE)
    return float(mouth.knots[0]), top, float(mouth.knots[-1]), max(mouth.chin[1], mouth.line_v + 0.4) + NECK_FADE + 0.02


class Warp:
    """The displacement of both sheets at some places of a face."""

    def __init__(
        self, mouth: Mouth, mesh: Mesh, plane: Plane, window: Window, places: tuple[Field, Field] | None = None
    ) -> None:
        """
        mesh    in the pixels of `plane`
        window  the area that can move
        places  u and v, which broadcast to (rows, columns); None: the cells of the window
        """
        u, self._v = places or window.grid()
        self.x = mouth.frontal(u).astype(np.float32)
        near = np.float64(0.5 / window.scale)
        bend = (mouth.frontal(u + near) - mouth.frontal(u - near)) / (2 * near)
        self._nose_fade = float(np.clip(float(mouth.lips.outer_upper.min()) - mouth.nose, *UPPER_FADE))
        across, down = ((at - start) * window.scale for at, start in ((u, window.left), (self._v, window.top)))
        cells = np.stack(np.broadcast_arrays(across, down)).astype(np.float32)
        # The outline of a face is drawn over the window, whose cells are square in the plane.
        outside = _outside(mesh, plane, window)
        read = cv2.remap(outside, cells[0], cells[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        away = cast("Field", read)
        self._jaw = (JAW_SHARE * _jaw(mouth, u, self._v) * (1.0 - smoothstep(away / NECK_FADE))).astype(np.float32)
        self._du = (smoothstep(-away / OUTLINE) / bend).astype(np.float32)
        # The border of the window never moves. The lower sheet is hidden at the top, the upper one at the bottom.
        (left, right), (top, bottom) = (axis.ravel()[[0, -1]] for axis in window.grid())
        beside = smoothstep(np.minimum(u - left, right - u) / RIM)
        self._rims = tuple(
            (beside * smoothstep(inside / RIM)).astype(np.float32) for inside in (self._v - top, bottom - self._v)
        )

    def sheets(self, lips: LipEdges) -> tuple[Sheet, Sheet]:
        """The displacement of the pixel that ends at each place.

        lips     at the places, whose x are `self.x`
        returns  upper and lower sheet, each two fields (rows, columns) float32: to the right, and down
        """
        above, below = lips.upper - self._v, self._v - lips.lower
        # In every column from the lowest point of the lower lip on: the edge itself is too steep as a reference.
        outside = np.maximum(lips.rest - self._v, self._v - lips.rest - np.float32(lips.gap))
        sideways = lips.pull * self._du * (1.0 - smoothstep(outside / PULL_FADE))

        fade = np.maximum(STEEPEST * np.abs(lips.upper_outer), self._nose_fade)
        on_lip = _along(above, lips.upper_lip)
        upper = lips.lift + (lips.upper_outer - lips.lift) * on_lip
        upper *= 1.0 - smoothstep((above - lips.upper_lip) / fade)

        jaw = lips.jaw * self._jaw
        fade = np.maximum(STEEPEST * np.abs(lips.lower_outer - np.float32(JAW_SHARE * lips.jaw)), LIP_TO_JAW)
        on_lip = _along(below, lips.lower_lip)
        to_jaw = smoothstep((below - lips.lower_lip) / fade)
        lower = lips.drop + (lips.lower_outer - lips.drop) * on_lip
        lower += (jaw - lower) * to_jaw
        over, under = self._rims
        return (sideways * over, upper * over), (sideways * under, lower * under)


def _along(distance: Field, thickness: Field) -> Field:
    """0 at the inner contour of a lip to 1 at the outer one, and beyond."""
    return np.clip(distance / np.maximum(thickness, np.float32(1e-3)), np.float32(0), np.float32(1))


def _jaw(mouth: Mouth, u: Field, v: Field) -> Field:
    """How much each place follows the jaw, 0 to 1, less towards the sides."""
    down = np.clip((v - mouth.line_v) / (mouth.chin[1] - mouth.line_v), 0.0, 1.3)
    middle = down * np.float32(mouth.chin[0] - mouth.middle)  # the chin of a turned head lies beside its mouth
    x = np.abs(mouth.frontal(u - middle))
    begins, narrow = JAW_SIDES
    sides = mouth.sides * (1.0 - (1.0 - narrow) * smoothstep(down))
    return np.asarray(1.0 - smoothstep((x - begins) / (sides - begins)), np.float32)


def _outside(mesh: Mesh, plane: Plane, window: Window) -> Field:
    """The distance of each cell of a window from the outline of the face, negative inside."""
    outline = np.column_stack(plane.coordinates(*mesh[list(points.OVAL), :2].T))
    cells = (outline - (window.left, window.top)) * window.scale
    face = np.zeros((window.rows, window.columns), np.uint8)
    cv2.fillPoly(face, [np.rint(cells).astype(np.int32)], 1)
    outside, inside = (cv2.distanceTransform(side, cv2.DIST_L2, 5) for side in (1 - face, face))
    return cast("Field", cv2.GaussianBlur(outside - inside, (0, 0), 2.0) / np.float32(window.scale))
