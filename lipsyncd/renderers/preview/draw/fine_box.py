"""A part of a photograph, made finer once, to be read at other places for every frame.

A photograph never changes, so it can be made four times as fine as it is: what is read linearly there differs from a
cubic interpolation of the photograph by less than a level, for an eighth of its time.
"""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers.finer import REACH, finer
from lipsyncd.renderers.framing import RgbImage
from lipsyncd.renderers.preview.plane import Field, PixelBox

Places = NDArray[np.float64]

# The most pixels of a box for each scale: 25 MB. A large face is softer by itself, so there less is as good.
_SCALES = ((4, 2**19), (2, 2**21))


class FineBox:
    """A box of a picture, ready to be read between its pixels.

    scale  columns and rows for each one of the picture; 1 in a box so large that it is read cubically
    """

    def __init__(self, picture: RgbImage, box: PixelBox) -> None:
        height, width = picture.shape[:2]
        self._left, self._top = max(box.left - REACH, 0), max(box.top - REACH, 0)
        part = picture[self._top : min(box.bottom + REACH, height), self._left : min(box.right + REACH, width)]
        pixels = part.shape[0] * part.shape[1]
        self.scale = next((scale for scale, most in _SCALES if pixels <= most), 1)
        self._pixels = finer(part, self.scale)
        self._method = cv2.INTER_LINEAR if self.scale > 1 else cv2.INTER_CUBIC

    def places(self, x: Places, y: Places) -> tuple[Places, Places]:
        """Pixels of the picture as places in here."""
        return (x - self._left) * self.scale, (y - self._top) * self.scale

    def read(self, x: Field, y: Field) -> RgbImage:
        """The colours at `places`, (h, w, 3); beyond the edges of the picture they are repeated."""
        return cast(RgbImage, cv2.remap(self._pixels, x, y, self._method, borderMode=cv2.BORDER_REPLICATE))
