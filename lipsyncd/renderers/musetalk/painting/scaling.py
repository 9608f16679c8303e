"""Scale square arrays exactly like Pillow.

The published networks and masks were made with Pillow's resize, whose filters get wider when shrinking and whose
weights are integers of 22 bits. OpenCV has no such filter, and torch's differs in single pixels, which is visible as a
seam at the edge of a mask.

Owns the filters. Source: Pillow's documentation, https://pillow.readthedocs.io/en/stable/handbook/concepts.html#filters.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float64]

_ONE = 1 << 22
_ROWS_AT_ONCE = 256


def bilinear(t: Weights) -> Weights:
    """A triangle of two pixels' width."""
    return np.clip(1 - np.abs(t), 0, None)


def bicubic(t: Weights) -> Weights:
    """Keys' cubic with slope -0.5, four pixels wide."""
    t = np.abs(t)
    near, far = (1.5 * t - 2.5) * t * t + 1, ((-0.5 * t + 2.5) * t - 4) * t + 2
    return np.where(t < 1, near, np.where(t < 2, far, 0.0))


_REACH: dict[Callable[[Weights], Weights], float] = {bilinear: 1.0, bicubic: 2.0}


def resize(square: NDArray[np.uint8], side: int, method: Callable[[Weights], Weights]) -> NDArray[np.uint8]:
    """A square scaled to another size: first the columns, then the rows, rounded to bytes in between.

    Squares only: which axis comes first changes the rounding, and Pillow chooses by the picture's shape.

    square   (S, S) or (S, S, C) uint8
    method   `bilinear` or `bicubic`
    returns  (side, side) or (side, side, C) uint8
    """
    narrowed = _along_rows(square, side, method)
    return np.ascontiguousarray(_along_rows(narrowed.swapaxes(0, 1), side, method).swapaxes(0, 1))


def _along_rows(pixels: NDArray[np.uint8], size: int, method: Callable[[Weights], Weights]) -> NDArray[np.uint8]:
    """The second axis scaled to `size`. Integers below 2**53 are exact in float64, and BLAS is fast with it."""
    if pixels.shape[1] == size:
        return pixels
    weights = _weights(pixels.shape[1], size, method)
    scaled = np.empty((len(pixels), size, *pixels.shape[2:]), np.uint8)
    for first in range(0, len(pixels), _ROWS_AT_ONCE):
        rows = np.moveaxis(pixels[first : first + _ROWS_AT_ONCE], 1, -1)
        flat = rows.reshape(-1, pixels.shape[1]).astype(np.float64)  # a single matrix product is fastest
        total = np.floor((flat @ weights + _ONE // 2) / _ONE).clip(0, 255)
        scaled[first : first + _ROWS_AT_ONCE] = np.moveaxis(total.reshape(*rows.shape[:-1], size), -1, 1)
    return scaled


def _weights(size_in: int, size_out: int, method: Callable[[Weights], Weights]) -> Weights:
    """The weight of each input pixel for each output pixel: (size_in, size_out), integers in units of 1 / 2**22."""
    scale = size_in / size_out
    stretch = max(scale, 1.0)
    middle = (np.arange(size_out) + 0.5) * scale
    reach = _REACH[method] * stretch
    first = np.maximum(np.trunc(middle - reach + 0.5), 0)
    last = np.minimum(np.trunc(middle + reach + 0.5), size_in)
    place = np.arange(size_in)[:, None]
    weights = np.where((place >= first) & (place < last), method((place - middle + 0.5) * (1.0 / stretch)), 0.0)
    share = weights / weights.sum(axis=0)
    return np.trunc(share * _ONE + np.copysign(0.5, share))
