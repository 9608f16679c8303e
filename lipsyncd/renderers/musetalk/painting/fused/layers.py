"""The layers that UNet and decoder share, with what is constant folded into their weights.

* "Nearest x2, then a 3x3 convolution" becomes one transposed convolution, since only four of the nine taps meet
  different pixels.
* The time is always 0, so what it adds to a residual block is a constant and goes into the bias of the block's first
  convolution.
* GroupNorm and SiLU are one step, see `group_norm`.
* Divisions by 1 and dropout are left out.

All of them work in both memory layouts, and give what they were given.

Owns these layers. Leaves their order to `decoder` and `unet`.
Source of the method: sums of weights, in float32, written out at each function.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lipsyncd.renderers.musetalk.painting.fused.group_norm import norm_silu


class NotFusable(ValueError):
    """The published forward pass has to be used: a network is built differently, or a device lacks something."""


def expect(condition: bool, what: str) -> None:
    """Raise `NotFusable` unless the condition holds."""
    if not condition:
        raise NotFusable(f"the network has another structure: {what}")


def folded_upsampling(weight: Tensor) -> Tensor:
    """The weight of a transposed convolution (kernel 4, stride 2, padding 1) for "nearest x2, then this convolution".

    weight   (out, in, 3, 3)
    returns  (in, out, 4, 4), summed in float32

    In one dimension, with taps a, b, c: after the doubling an even output sees its left neighbour once and its own
    pixel twice, a and b + c; an odd one sees its own pixel twice and its right neighbour once, a + b and c. A
    transposed convolution sends pixel i to the outputs 2i - 1 to 2i + 2: odd, even, odd, even: c, b + c, a + b, a.
    """
    wide = weight.float()
    for axis in (2, 3):
        a, b, c = wide.unbind(axis)
        wide = torch.stack((c, b + c, a + b, a), axis)
    return wide.transpose(0, 1).to(weight.dtype).contiguous()


class Upsampling(nn.Module):
    """diffusers' `Upsample2D` with a convolution: (B, C, h, w) to (B, D, 2h, 2w)."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        expect(layer.use_conv and not layer.use_conv_transpose and layer.norm is None, "how it doubles")
        conv = layer.conv if layer.name == "conv" else layer.Conv2d_0
        expect(conv.kernel_size == (3, 3) and conv.padding == (1, 1), "the convolution after doubling")
        self.register_buffer("weight", folded_upsampling(conv.weight), persistent=False)
        self.bias = conv.bias

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv_transpose2d(x, self.weight, self.bias, stride=2, padding=1)  # type: ignore[arg-type]


class Residual(nn.Module):
    """diffusers' `ResnetBlock2D`: (B, C, h, w) to (B, D, h, w).

    time  (E,) the embedding of the time 0; None where a network has no time
    """

    def __init__(self, block: Any, time: Tensor | None = None) -> None:
        super().__init__()
        expect(block.upsample is None and block.downsample is None, "a residual block that changes the size")
        expect(isinstance(block.nonlinearity, nn.SiLU) and block.output_scale_factor == 1, "a residual block")
        timed = block.time_emb_proj is not None
        expect(not timed or (block.time_embedding_norm == "default" and not block.skip_time_act), "how time is added")
        self.norm1, self.norm2, self.conv1, self.conv2 = block.norm1, block.norm2, block.conv1, block.conv2
        self.shortcut = block.conv_shortcut
        bias = block.conv1.bias
        if timed:
            expect(time is not None, "a block with a time in a network without one")
            assert time is not None
            wide = functional.linear(
                functional.silu(time.float()), block.time_emb_proj.weight.float(), block.time_emb_proj.bias.float()
            )
            bias = (bias.float() + wide).to(bias.dtype)
        self.register_buffer("bias1", bias, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = norm_silu(x, self.norm1)
        inner = functional.conv2d(inner, self.conv1.weight, self.bias1, padding=1)  # type: ignore[arg-type]
        inner = self.conv2(norm_silu(inner, self.norm2))
        return inner.add_(x if self.shortcut is None else self.shortcut(x))


def tokens_of(x: Tensor) -> Tensor:
    """(B, C, h, w) as (B, hw, C): a view if the channels come last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def picture_of(tokens: Tensor, height: int, width: int) -> Tensor:
    """(B, hw, C) as (B, C, h, w), whose channels come last."""
    return tokens.reshape(len(tokens), height, width, -1).permute(0, 3, 1, 2)
