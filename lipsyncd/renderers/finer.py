"""Pictures with pixels between their pixels, for reading them at other places.

Between pixels, linear interpolation is soft and cubic interpolation takes eight times as long. So a picture is made
finer once, with the cubic filter for the pixels between, and is read linearly there from frame to frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers.framing import RgbImage

REACH = 2  # pixels on either side of a place that the filter uses
_A = -0.75  # the slope of the cubic of `cv2.INTER_CUBIC` one pixel away


def finer(picture: RgbImage, times: int) -> RgbImage:
    """The picture with `times` as many columns and rows; each pixel keeps its value, at `times` its place.

    picture  (h, w, 3) uint8
    returns  (times * h, times * w, 3) uint8; beyond the last pixel the edge is repeated
    """
    if times == 1:
        return picture
    height, width = picture.shape[:2]
    result = np.empty((height, times, times * width, 3), np.uint8)
    for step, rows in enumerate(finer_rows(picture, times)):
        result[:, step] = rows
    return result.reshape(times * height, times * width, 3)


def finer_rows(picture: RgbImage, times: int) -> Iterator[RgbImage]:
    """The rows of `finer` for times > 1: every `times`th one from the first on, then from the second on, and so on.

    yields  `times` arrays (h, times * w, 3) uint8
    """
    height, width = picture.shape[:2]
    kernels = [_cubic(step / times) for step in range(1, times)]
    beside = (cv2.filter2D(picture, -1, kernel, anchor=(1, 0), borderType=cv2.BORDER_REPLICATE) for kernel in kernels)
    # Six channels or more in place of three: the pixels between follow their neighbours in memory.
    rows = cast(RgbImage, cv2.merge((picture, *beside)).reshape(height, times * width, 3))
    yield rows
    for kernel in kernels:
        between = cv2.filter2D(rows, -1, kernel.T, anchor=(0, 1), borderType=cv2.BORDER_REPLICATE)
        yield cast(RgbImage, between)


def _cubic(part: float) -> NDArray[np.float32]:
    """The weights (1, 4) of the pixels around a place that is this part of a pixel to the right of the second."""
    away = np.array([1 + part, part, 1 - part, 2 - part])
    near = ((_A + 2) * away - (_A + 3)) * away**2 + 1
    far = ((_A * away - 5 * _A) * away + 8 * _A) * away - 4 * _A
    weights: NDArray[np.float32] = np.where(away < 1, near, far).astype(np.float32)[None]
    return weights
