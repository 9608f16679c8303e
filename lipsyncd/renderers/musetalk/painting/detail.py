"""Give a painted face the fine texture of its source back.

MuseTalk paints 256 pixels, however large the face is. Scaled up to a larger face the painted part is soft beside the
source: skin, beard and film grain end at a seam. What the source has above the resolution of the patch is added to it,
where picture and patch agree in what the patch can show; nowhere on lips and teeth, which move.

Owns that texture and where it goes. Leaves the patch to `pipeline` and pasting it to `blend`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers.framing import Box, RgbImage
from lipsyncd.renderers.musetalk.painting.blend import PasteBack
from lipsyncd.renderers.musetalk.painting.networks import PATCH

Weights = NDArray[np.float32]  # one value for each cell of a grid over the area, 0 to 1

_CELL = 4  # pixels of the patch on each side of a cell in which picture and patch are compared
_AGREE, _DIFFER = 10.0, 30.0  # levels of 255 between them: with less all of the texture is added, with more nothing
_OUTER_LIPS = slice(48, 60)  # of the 68 points
_AROUND_LIPS = 0.04  # of the face box's width that moves with them


@dataclass(frozen=True, eq=False)
class Detail:
    """The texture of one face, for the area of its paste.

    texture  (h, w, 3) float32, levels of 255: the source without what the patch can show
    coarse   (h', w', 3) float32: the mean of the source in each cell
    most     (h', w') float32: how much of the texture may be added in each cell
    """

    texture: NDArray[np.float32]
    coarse: NDArray[np.float32]
    most: Weights

    @classmethod
    def of(cls, picture: RgbImage, paste: PasteBack, landmarks: NDArray[np.float32], strength: float) -> Self | None:
        """From a picture (H, W, 3), the place of its face and the 68 points; None where there is nothing to add.

        strength  0 to 1: the option `detail`
        """
        face, area = paste.face, paste.area
        if strength <= 0 or max(face.width, face.height) <= PATCH or not area.width or not area.height:
            return None
        inside = paste.area_in_face
        source = picture[face.y : face.bottom, face.x : face.right]
        # An axis along which the face is smaller than the patch loses nothing.
        small = min(face.width, PATCH), min(face.height, PATCH)
        shown = cv2.resize(cv2.resize(source, small, interpolation=cv2.INTER_AREA), (face.width, face.height))
        texture = source[inside].astype(np.float32) - shown[inside]
        cells = _cells(face, area)
        coarse = cv2.resize(source[inside], cells, interpolation=cv2.INTER_AREA).astype(np.float32)
        still = cv2.resize(_still(face, area, landmarks), cells, interpolation=cv2.INTER_AREA)
        return cls(texture, coarse, (strength * still).astype(np.float32))

    @property
    def nbytes(self) -> int:
        return self.texture.nbytes

    def add(self, painted: RgbImage) -> RgbImage:
        """A painted area (h, w, 3) uint8 with the texture of the source."""
        seen = cv2.resize(painted, self.most.shape[::-1], interpolation=cv2.INTER_AREA)
        apart = cv2.GaussianBlur(np.abs(seen - self.coarse).max(axis=2), (3, 3), 0)
        weights = self.most * np.clip((_DIFFER - apart) / (_DIFFER - _AGREE), 0, 1)
        smooth = cv2.resize(weights, painted.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        return cast(RgbImage, cv2.add(painted, self.texture * smooth[..., None], dtype=cv2.CV_8U))


def _cells(face: Box, area: Box) -> tuple[int, int]:
    """Columns and rows of the grid over the area."""
    return (
        max(1, round(area.width * PATCH / (_CELL * face.width))),
        max(1, round(area.height * PATCH / (_CELL * face.height))),
    )


def _still(face: Box, area: Box, landmarks: NDArray[np.float32]) -> Weights:
    """1 for each pixel of the area that lies beside the lips, 0 on them: (h, w) float32."""
    lips = cv2.convexHull(np.rint(landmarks[_OUTER_LIPS] - (area.x, area.y)).astype(np.int32))
    moving = np.zeros((area.height, area.width), np.uint8)
    cv2.fillConvexPoly(moving, lips, 255)
    around = 2 * max(1, round(_AROUND_LIPS * face.width)) + 1
    grown = cv2.dilate(moving, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (around, around)))
    soft = cv2.GaussianBlur(grown, (around, around), 0)
    return cast(Weights, 1 - soft.astype(np.float32) / 255)
