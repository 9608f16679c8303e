"""GroupNorm, with SiLU or without, in Triton kernels for pictures whose channels come last.

torch's GroupNorm is slow in this layout, so that a decoder in it is slower than in the other one. Three kernels read
the picture twice and write it once: moments of each channel in chunks of rows; coefficients of each channel, from the
moments of its group; then the picture times the coefficients, and SiLU. Moments are combined as mean and sum of squared
differences, which loses no digits where the mean is far from zero (Chan, Golub and LeVeque, 1979).

Each shape has one configuration, nothing is tuned by trials, and nothing is added atomically: equal inputs give equal
outputs.

Owns the kernels. Only `group_norm` imports this module, since Triton comes with builds of torch for CUDA alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS, _CHANNELS = 64, 128  # of a tile
_MOST_CHUNKS = 64  # into which the rows of a picture are divided


@triton.jit
def _moments(
    x,
    means,
    squares,
    rows,
    channels,
    per_chunk,
    chunks,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Mean and sum of squared differences of each channel in one chunk of rows."""
    chunk, picture = tl.program_id(0), tl.program_id(1)
    channel = tl.program_id(2) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    known = channel < channels
    start = x + picture.to(tl.int64) * rows * channels
    end = tl.minimum((chunk + 1) * per_chunk, rows)
    count = tl.zeros([BLOCK_CHANNELS], tl.float32)
    mean = tl.zeros([BLOCK_CHANNELS], tl.float32)
    square = tl.zeros([BLOCK_CHANNELS], tl.float32)
    for first in range(0, per_chunk, BLOCK_ROWS):
        row = chunk * per_chunk + first + tl.arange(0, BLOCK_ROWS)
        inside = (row < end)[:, None] & known[None, :]
        tile = tl.load(start + row[:, None] * channels + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        more = tl.sum(inside.to(tl.float32), axis=0)
        tile_mean = tl.sum(tile, axis=0) / tl.maximum(more, 1.0)
        off = tl.where(inside, tile - tile_mean[None, :], 0.0)
        total = count + more
        part = more / tl.maximum(total, 1.0)
        delta = tile_mean - mean
        mean += delta * part
        square += tl.sum(off * off, axis=0) + delta * delta * count * part
        count = total
    place = (picture * chunks + chunk) * channels + channel
    tl.store(means + place, mean, mask=known)
    tl.store(squares + place, square, mask=known)


@triton.jit
def _coefficients(
    means,
    squares,
    weight,
    bias,
    scales,
    shifts,
    rows,
    channels,
    per_chunk,
    chunks,
    per_group,
    epsilon,
    BLOCK_CHUNKS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """What each channel of a group is multiplied with, and what is added."""
    group, picture = tl.program_id(0), tl.program_id(1)
    chunk, inner = tl.arange(0, BLOCK_CHUNKS), tl.arange(0, BLOCK_CHANNELS)
    channel = group * per_group + inner
    known = inner < per_group
    inside = (chunk < chunks)[:, None] & known[None, :]
    place = ((picture * chunks + chunk) * channels)[:, None] + channel[None, :]
    mean = tl.load(means + place, mask=inside, other=0.0)
    square = tl.load(squares + place, mask=inside, other=0.0)
    in_chunk = tl.minimum(rows - chunk * per_chunk, per_chunk).to(tl.float32)
    count = tl.where(inside, in_chunk[:, None], 0.0)
    total = (rows * per_group).to(tl.float32)
    middle = tl.sum(tl.sum(mean * count, axis=1), axis=0) / total
    off = mean - middle
    variance = tl.sum(tl.sum(square + off * off * count, axis=1), axis=0) / total
    scale = tl.load(weight + channel, mask=known, other=0.0).to(tl.float32) / tl.sqrt(variance + epsilon)
    shift = tl.load(bias + channel, mask=known, other=0.0).to(tl.float32) - middle * scale
    tl.store(scales + picture * channels + channel, scale, mask=known)
    tl.store(shifts + picture * channels + channel, shift, mask=known)


@triton.jit
def _apply(
    x,
    y,
    scales,
    shifts,
    rows,
    channels,
    SILU: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Multiply, add, and SiLU."""
    picture = tl.program_id(1)
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    channel = tl.program_id(2) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    known = channel < channels
    scale = tl.load(scales + picture * channels + channel, mask=known, other=0.0)
    shift = tl.load(shifts + picture * channels + channel, mask=known, other=0.0)
    inside = (row < rows)[:, None] & known[None, :]
    place = picture.to(tl.int64) * rows * channels + row[:, None] * channels + channel[None, :]
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) * scale[None, :] + shift[None, :]
    if SILU:
        value = value * tl.sigmoid(value)
    tl.store(y + place, value.to(y.dtype.element_ty), mask=inside)


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, epsilon: float, *, silu: bool) -> Tensor:
    """(B, C, h, w) whose channels come last, normalised in groups of channels, in the type and layout of `x`."""
    pictures, channels, height, width = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    rows = height * width
    per_chunk = _ROWS * triton.cdiv(rows, _ROWS * min(_MOST_CHUNKS, triton.cdiv(rows, _ROWS)))
    chunks, per_group = triton.cdiv(rows, per_chunk), channels // groups
    means, squares = (x.new_empty((pictures, chunks, channels), dtype=torch.float32) for _ in range(2))
    scales, shifts = (x.new_empty((pictures, channels), dtype=torch.float32) for _ in range(2))
    wide = min(_CHANNELS, triton.next_power_of_2(channels))
    blocks = triton.cdiv(channels, wide)
    _moments[(chunks, pictures, blocks)](
        x, means, squares, rows, channels, per_chunk, chunks, BLOCK_ROWS=_ROWS, BLOCK_CHANNELS=wide
    )
    tile = {"BLOCK_CHUNKS": triton.next_power_of_2(chunks), "BLOCK_CHANNELS": triton.next_power_of_2(per_group)}
    sizes = (rows, channels, per_chunk, chunks, per_group, epsilon)
    _coefficients[(groups, pictures)](means, squares, weight, bias, scales, shifts, *sizes, **tile)
    y = torch.empty_like(x)
    _apply[(triton.cdiv(rows, _ROWS), pictures, blocks)](
        x, y, scales, shifts, rows, channels, SILU=silu, BLOCK_ROWS=_ROWS, BLOCK_CHANNELS=wide
    )
    return y
