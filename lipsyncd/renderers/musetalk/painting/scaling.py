"""Scale square arrays exactly like Pillow.

The published networks and masks were made with Pillow's resize, whose filters get wider when shrinking and whose
weights are integers of 22 bits. OpenCV has no such filter, and torch's differs in single pixels, which is visible as a
seam at the edge of a mask.

Owns the filters. Source: Pillow's documentation, https://pillow.readthedocs.io/en/stable/handbook/concepts.html#filters.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float64]

Tap = tuple[NDArray[np.int64], NDArray[np.int32]]  # (size,) and (size, 1)

_BITS = 22
_ONE = 1 << _BITS


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
    narrowed = _along_columns(square.swapaxes(0, 1), side, method)
    return _along_columns(narrowed.swapaxes(0, 1), side, method)


def _along_columns(pixels: NDArray[np.uint8], size: int, method: Callable[[Weights], Weights]) -> NDArray[np.uint8]:
    """The first axis scaled to `size`.

    The sum of a pixel's positive weights is below 1.3, so it stays below 255 x 1.3 x 2**22, which fits into 31 bits.
    """
    if len(pixels) == size:
        return np.ascontiguousarray(pixels)
    rows = np.ascontiguousarray(pixels, np.int32).reshape(len(pixels), -1)
    total = np.full((size, rows.shape[1]), _ONE // 2, np.int32)
    for places, weights in _taps(len(pixels), size, method):
        total += rows[places] * weights
    return (total >> _BITS).clip(0, 255).astype(np.uint8).reshape(size, *pixels.shape[1:])


@lru_cache(maxsize=32)  # the faces of a video have few sizes
def _taps(size_in: int, size_out: int, method: Callable[[Weights], Weights]) -> list[Tap]:
    """Input pixels and their weights, one for each output pixel; the sum of all taps is the scaled picture."""
    weights = _weights(size_in, size_out, method).astype(np.int32)
    first, columns = (weights != 0).argmax(axis=0), np.arange(size_out)
    taps: list[Tap] = []
    left = weights.copy()
    while left.any():
        place = np.minimum(first + len(taps), size_in - 1)
        taps.append((place, left[place, columns][:, None]))
        left[place, columns] = 0
    return taps


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
