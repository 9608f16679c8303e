"""The UNet in one forward pass of our own, for the time 0: latents and audio to latents.

Owns the order of its layers, and the blocks of attention. Leaves the layers that it shares to `layers`.
Source: diffusers' `UNet2DConditionModel`, in the form of Stable Diffusion 1, which MuseTalk uses.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel
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


class Attention(nn.Module):
    """diffusers' `Attention` without norms of its own: (B, n, C) and what it looks at, (B, m, D), to (B, n, C)."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        expect(layer.group_norm is None and layer.spatial_norm is None and not layer.norm_cross, "norms of attention")
        expect(layer.norm_q is None and layer.norm_k is None, "norms of queries")
        expect(not layer.residual_connection and layer.rescale_output_factor == 1, "the end of attention")
        self.heads, self.query, self.key, self.value = layer.heads, layer.to_q, layer.to_k, layer.to_v
        self.out = layer.to_out[0]

    def forward(self, tokens: Tensor, seen: Tensor) -> Tensor:
        query, key, value = (
            projected.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for projected in (self.query(tokens), self.key(seen), self.value(seen))
        )
        answer = functional.scaled_dot_product_attention(query, key, value)
        return self.out(answer.transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    """diffusers' `Transformer2DModel`: pictures (B, C, h, w) and audio (B, n, D) to pictures.

    Its two convolutions of 1x1 are products of the tokens, so that nothing is copied between them.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        expect(layer.is_input_continuous, "a transformer of pictures")
        self.norm, self.into, self.out = layer.norm, layer.proj_in, layer.proj_out
        for end in (self.into, self.out):
            expect(isinstance(end, nn.Linear) or end.kernel_size == (1, 1), "the ends of a transformer")
        self.blocks = nn.ModuleList(TransformerBlock(block) for block in layer.transformer_blocks)

    def forward(self, x: Tensor, audio: Tensor) -> Tensor:
        tokens = _product(tokens_of(normed(x, self.norm)), self.into)
        for block in self.blocks:
            tokens = block(tokens, audio)
        return x + picture_of(_product(tokens, self.out), *x.shape[2:])


class TransformerBlock(nn.Module):
    """diffusers' `BasicTransformerBlock` with layer norms and a gated feed-forward layer: (B, n, C) to the same."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        expect(block.norm_type == "layer_norm" and block.pos_embed is None, "a block of a transformer")
        expect(block.attn2 is not None and not block.only_cross_attention, "what a block looks at")
        gate, _, self.shrink = block.ff.net
        expect(type(gate).__name__ == "GEGLU", "the feed-forward layer")
        self.itself, self.audio, self.grow = Attention(block.attn1), Attention(block.attn2), gate.proj
        self.norm1, self.norm2, self.norm3 = block.norm1, block.norm2, block.norm3

    def forward(self, tokens: Tensor, audio: Tensor) -> Tensor:
        normed = self.norm1(tokens)
        tokens = self.itself(normed, normed).add_(tokens)
        tokens = self.audio(self.norm2(tokens), audio).add_(tokens)
        value, gate = self.grow(self.norm3(tokens)).chunk(2, dim=-1)
        return self.shrink(value * functional.gelu(gate)).add_(tokens)


def _product(tokens: Tensor, layer: nn.Linear | nn.Conv2d) -> Tensor:
    """A convolution of 1x1 or a linear layer, applied to tokens."""
    return functional.linear(tokens, layer.weight.flatten(1), layer.bias)


class Level(nn.Module):
    """The layers of one block that come together: a residual block, and a transformer or none."""

    def __init__(self, residual: Residual, transformer: Transformer | None) -> None:
        super().__init__()
        self.residual, self.transformer = residual, transformer

    def forward(self, x: Tensor, audio: Tensor) -> Tensor:
        x = self.residual(x)
        return x if self.transformer is None else self.transformer(x, audio)


class FusedUNet(nn.Module):
    """Latents (B, 8, h, w), masked and reference, with tokens (B, n, 384), to latents (B, 4, h, w), at the time 0.

    It shares the weights of the UNet. h and w are multiples of 2 to the power of its number of halvings.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        """Raises `NotFusable` when the UNet is built differently."""
        super().__init__()
        expect(not unet.config["center_input_sample"] and unet.encoder_hid_proj is None, "its inputs")
        expect(unet.class_embedding is None and unet.time_embed_act is None, "its embeddings")
        expect(isinstance(unet.conv_act, nn.SiLU) and isinstance(unet.conv_norm_out, nn.GroupNorm), "its end")
        time = _time_embedding(unet)
        self.conv_in, self.norm, self.conv_out = unet.conv_in, unet.conv_norm_out, unet.conv_out
        self.down = nn.ModuleList(_levels(block, time) for block in unet.down_blocks)
        self.halvings = nn.ModuleList(_halving(block) for block in unet.down_blocks)
        first, last = unet.mid_block.resnets
        [transformer] = unet.mid_block.attentions
        self.middle = nn.ModuleList(
            (Level(Residual(first, time), Transformer(transformer)), Level(Residual(last, time), None))
        )
        self.up = nn.ModuleList(_levels(block, time) for block in unet.up_blocks)
        self.doublings = nn.ModuleList(
            nn.Sequential(*(Upsampling(layer) for layer in block.upsamplers or ())) for block in unet.up_blocks
        )

    def forward(self, latents: Tensor, audio: Tensor) -> Tensor:
        x = self.conv_in(latents.contiguous(memory_format=torch.channels_last))
        skipped = [x]
        for levels, halving in zip(self.down, self.halvings, strict=True):
            for level in levels:  # type: ignore[attr-defined]
                x = level(x, audio)
                skipped.append(x)
            if len(halving):  # type: ignore[arg-type]
                x = halving(x)
                skipped.append(x)
        for level in self.middle:
            x = level(x, audio)
        for levels, doubling in zip(self.up, self.doublings, strict=True):
            for level in levels:  # type: ignore[attr-defined]
                x = level(torch.cat((x, skipped.pop()), dim=1), audio)
            x = doubling(x)
        return self.conv_out(norm_silu(x, self.norm))


def _time_embedding(unet: UNet2DConditionModel) -> Tensor:
    """(E,) float32: what the UNet makes of the time 0."""
    sines = unet.time_proj(torch.zeros(1, device=unet.conv_in.weight.device))
    one, act, two = (unet.time_embedding.linear_1, unet.time_embedding.act, unet.time_embedding.linear_2)
    expect(unet.time_embedding.cond_proj is None and unet.time_embedding.post_act is None, "how it embeds the time")
    inner = act(functional.linear(sines.float(), one.weight.float(), one.bias.float()))
    return functional.linear(inner, two.weight.float(), two.bias.float())[0]


def _levels(block: Any, time: Tensor) -> nn.ModuleList:
    attentions = getattr(block, "attentions", None) or [None] * len(block.resnets)
    return nn.ModuleList(
        Level(Residual(resnet, time), None if attention is None else Transformer(attention))
        for resnet, attention in zip(block.resnets, attentions, strict=True)
    )


def _halving(block: Any) -> nn.Sequential:
    layers = block.downsamplers or ()
    for layer in layers:
        expect(layer.use_conv and layer.padding == 1 and layer.norm is None, "how it halves")
    return nn.Sequential(*(layer.conv for layer in layers))
