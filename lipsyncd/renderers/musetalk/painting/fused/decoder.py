"""The decoder of the VAE in one forward pass of our own: latents to pictures.

Owns the order of its layers. Leaves the layers themselves to `layers`.
Source: the decoder of diffusers' `AutoencoderKL`, with one block of attention in the middle.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional

from lipsyncd.renderers.musetalk.painting.fused.group_norm import norm_silu, normed
from lipsyncd.renderers.musetalk.painting.fused.layers import (
    Residual,
    Upsampling,
    expect,
    picture_of,
    tokens_of,
)


class MiddleAttention(nn.Module):
    """Attention of one head over the pixels of the lowest resolution: (B, C, h, w) to the same.

    The rows of a softmax sum to 1, so softmax(S) (x V + v) O + o = softmax(S) x (V O) + (v O + o): the projections of
    the values and of the output are one matrix.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        expect(layer.heads == 1 and layer.group_norm is not None, "the attention in the middle")
        expect(layer.spatial_norm is None and layer.norm_q is None and layer.norm_k is None, "norms of the attention")
        expect(layer.residual_connection and layer.rescale_output_factor == 1, "the end of the attention")
        self.norm, self.query, self.key = layer.group_norm, layer.to_q, layer.to_k
        value, out = layer.to_v, layer.to_out[0]
        weight, bias = out.weight.float() @ value.weight.float(), out.weight.float() @ value.bias.float()
        self.register_buffer("weight", weight.to(out.weight.dtype), persistent=False)
        self.register_buffer("bias", (bias + out.bias.float()).to(out.bias.dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        tokens = tokens_of(normed(x, self.norm))
        value = functional.linear(tokens, self.weight, self.bias)  # type: ignore[arg-type]
        seen = functional.scaled_dot_product_attention(
            self.query(tokens)[:, None], self.key(tokens)[:, None], value[:, None]
        )
        return x + picture_of(seen[:, 0], *x.shape[2:])


class FusedDecoder(nn.Module):
    """Latents (B, 4, h, w), as the UNet gives them, to pictures (B, 3, 8h, 8w), in about -1..1.

    It shares the weights of the VAE, and follows what is written into them; a copy in another type needs a new object.
    """

    def __init__(self, vae: AutoencoderKL) -> None:
        """Raises `NotFusable` when the VAE is built differently."""
        super().__init__()
        decoder, scale = vae.decoder, float(vae.config["scaling_factor"])
        expect(not vae.use_tiling and not vae.use_slicing, "it decodes in parts")
        expect(isinstance(decoder.conv_norm_out, nn.GroupNorm) and isinstance(decoder.conv_act, nn.SiLU), "its end")
        first, last = decoder.mid_block.resnets
        [attention] = decoder.mid_block.attentions
        self.unscale = self._unscaled(vae.post_quant_conv, scale)
        middle = [Residual(first), *([MiddleAttention(attention)] if attention is not None else []), Residual(last)]
        up = [
            layer
            for block in decoder.up_blocks
            for layer in (
                *(Residual(resnet) for resnet in block.resnets),
                *(Upsampling(upsampling) for upsampling in block.upsamplers or ()),
            )
        ]
        self.conv_in, self.layers = decoder.conv_in, nn.Sequential(*middle, *up)
        self.norm, self.conv_out = decoder.conv_norm_out, decoder.conv_out

    @staticmethod
    def _unscaled(conv: nn.Conv2d | None, scale: float) -> nn.Conv2d:
        """The convolution of 1x1 before the decoder, with the division by the scale of the latents in its weight."""
        expect(conv is not None and conv.kernel_size == (1, 1), "no convolution of 1x1 before the decoder")
        assert conv is not None and conv.bias is not None
        ours = nn.Conv2d(conv.in_channels, conv.out_channels, 1, device="meta")
        ours.weight = nn.Parameter((conv.weight.float() / scale).to(conv.weight.dtype), requires_grad=False)
        ours.bias = conv.bias
        return ours

    @property
    def dtype(self) -> torch.dtype:
        """That it computes in."""
        return self.conv_out.weight.dtype

    def forward(self, latents: Tensor) -> Tensor:
        x = self.unscale(latents).contiguous(memory_format=torch.channels_last)
        x = self.layers(self.conv_in(x))
        return self.conv_out(norm_silu(x, self.norm))
