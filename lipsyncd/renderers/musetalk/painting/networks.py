"""The networks of MuseTalk 1.5: built from their configurations, with weights loaded directly from safetensors.

They are built without memory (on torch's meta device). Tensors are loaded one by one, directly as the type and onto the
device where they are needed: there is never a second copy, and never a pickle.

Owns building and loading, and the forward passes of UNet and VAE. Leaves the audio encoder's to `audio_features`, and
memory to `pipeline`.
Source: MuseTalk 1.5, arXiv:2410.10122; configurations as published (`configs/`).
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import safe_open
from torch import Tensor, nn
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from lipsyncd.renderers.musetalk.painting.bisenet import BiSeNet

Network = TypeVar("Network", bound=nn.Module)

PATCH = 256  # side of the square that the VAE sees, in pixels


def published_config(name: str) -> dict[str, Any]:
    """The published configuration of `unet`, `vae` or `whisper`."""
    text = Path(__file__).parents[1].joinpath("configs", f"{name}.json").read_text("utf-8")
    return cast(dict[str, Any], json.loads(text))


# -- building ----------------------------------------------------------------------------------------------------------
# Each returns a network without tensors, which `load_weights` adds.


def unet(config: Mapping[str, Any]) -> UNet2DConditionModel:
    """Latents (B, 8, h, w), masked and reference, with tokens (B, n, 384), to latents (B, 4, h, w)."""
    return _without_memory(lambda: cast(UNet2DConditionModel, UNet2DConditionModel.from_config(dict(config))))


def vae(config: Mapping[str, Any]) -> AutoencoderKL:
    """Pictures (B, 3, 8h, 8w) in -1..1 to latents (B, 4, h, w) and back."""
    return _without_memory(lambda: cast(AutoencoderKL, AutoencoderKL.from_config(dict(config))))


def whisper(config: Mapping[str, Any]) -> WhisperEncoder:
    """The encoder of Whisper; MuseTalk does not use its decoder."""
    return _without_memory(lambda: WhisperEncoder(WhisperConfig(**config)))


def bisenet() -> BiSeNet:
    """The face parsing network."""
    return _without_memory(BiSeNet)


def _without_memory(make: Callable[[], Network]) -> Network:
    with torch.device("meta"):
        network = make()
    return network.eval().requires_grad_(False)


# -- loading -----------------------------------------------------------------------------------------------------------


def unchanged(name: str) -> str | None:
    return name


def vae_name(name: str) -> str | None:
    """The current name of a tensor of the VAE: the published file is older than diffusers' names for attention."""
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        name = name.replace(f".attentions.0.{old}.", f".attentions.0.{new}.")
    return name


def whisper_name(name: str) -> str | None:
    """A tensor's name in the encoder; None for the decoder's tensors."""
    name = name.removeprefix("model.")
    return name.removeprefix("encoder.") if name.startswith("encoder.") else None


def load_weights(
    network: Network,
    file: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    rename: Callable[[str], str | None] = unchanged,
) -> Network:
    """Load the tensors of a safetensors file into `network`, floats as `dtype`, and return it.

    rename  maps a name in the file to the name in the network, or to None for a tensor that is not needed

    Raises `ValueError` when names or shapes differ, `OSError` and `SafetensorError` when the file cannot be read.
    """
    state = {}
    with safe_open(file, framework="pt", device=str(device)) as tensors:
        for name in tensors.keys():  # noqa: SIM118 (it is no mapping)
            wanted = rename(name)
            if wanted is not None:
                tensor = tensors.get_tensor(name)
                state[wanted] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    wanted_shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    mismatched = [
        name for name in wanted_shapes.keys() | state.keys() if _shape(state, name) != wanted_shapes.get(name)
    ]
    if mismatched:
        example = min(mismatched)
        raise ValueError(
            f"{file} does not match its configuration: {len(mismatched)} of {len(wanted_shapes)} tensors "
            f"differ, such as {example}: {_shape(state, example)} instead of {wanted_shapes.get(example)}"
        )
    network.load_state_dict(state, strict=True, assign=True)
    return network.requires_grad_(False)


def is_rounded(file: Path) -> bool:
    """Were the tensors of a safetensors file rounded to half precision? Reads its header only."""
    with safe_open(file, framework="pt") as tensors:
        return any(tensors.get_slice(name).get_dtype() in ("F16", "BF16") for name in tensors.keys())  # noqa: SIM118


def _shape(state: Mapping[str, Tensor], name: str) -> torch.Size | None:
    return state[name].shape if name in state else None


# -- running -----------------------------------------------------------------------------------------------------------


@cache
def positional_encoding(tokens: int, width: int, device: torch.device | None = None) -> Tensor:
    """Sines and cosines that encode the position of a token: (tokens, width) float32, computed on the CPU."""
    place = torch.arange(tokens, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-math.log(10_000.0) / width))
    table = torch.empty(tokens, width)
    table[:, 0::2] = torch.sin(place * rate)
    table[:, 1::2] = torch.cos(place * rate)
    return table.to(device)


@dataclass(frozen=True)
class Painted:
    """Painted faces, on their device. The next batch may be written over them.

    latents  (B, 4, h, w) as the UNet gives them
    pixels   (B, 3, 8h, 8w) uint8
    finite   (2,) bool: the output of the UNet, and that of the VAE
    """

    latents: Tensor
    pixels: Tensor
    finite: Tensor


def finished(latents: Tensor, pictures: Tensor) -> Painted:
    """A batch of latents and of decoded pictures in -1..1."""
    finite = torch.stack([torch.isfinite(output).all() for output in (latents, pictures)])
    return Painted(latents, to_uint8(pictures), finite)


@dataclass(frozen=True)
class Painter:
    """UNet and VAE: from a picture and audio features to the pixels of a painted face."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the UNet."""
        return next(self.unet.parameters()).dtype

    @property
    def vae_dtype(self) -> torch.dtype:
        return next(self.vae.parameters()).dtype

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in -1..1 as latents (B, 4, H/8, W/8): the mode of the posterior, never a sample.

        So the same picture gives the same video, and latents can be kept.
        """
        posterior = self.vae.encode(pictures.to(self.device, self.vae_dtype)).latent_dist
        return cast(Tensor, posterior.mode() * self._scale)

    def predict(self, latents: Tensor, tokens: Tensor) -> Tensor:
        """The painted face as latents.

        latents  (B, 8, h, w): masked, then reference
        tokens   (B, n, 384) float32: a window of audio features for each, without positional encoding
        returns  (B, 4, h, w)
        """
        audio = tokens.to(self.device) + positional_encoding(tokens.shape[1], tokens.shape[2], self.device)
        # MuseTalk works in one step, so its time is always 0. Created on the device, which avoids a copy.
        time = torch.zeros((), dtype=torch.long, device=self.device)
        given = latents.to(self.device, self.dtype)
        return cast(Tensor, self.unet(given, time, encoder_hidden_states=audio.to(self.dtype)).sample)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, 4, h, w) as pictures (B, 3, 8h, 8w), in about -1..1, of the VAE's type."""
        return cast(Tensor, self.vae.decode(latents.to(self.vae_dtype) / self._scale).sample)

    def paint(self, latents: Tensor, tokens: Tensor) -> Painted:
        """`predict`, then `decode`, as pixels."""
        painted = self.predict(latents, tokens)
        return finished(painted, self.decode(painted))

    @property
    def _scale(self) -> float:
        return float(cast(Any, self.vae.config).scaling_factor)

    def with_full_vae(self) -> Painter:
        """The same UNet with a copy of the VAE in float32; this painter stays as it is."""
        with torch.inference_mode(False):
            return Painter(self.unet, copy.deepcopy(self.vae).float())


def to_uint8(pictures: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in -1..1 as (B, 3, H, W) uint8, on their device."""
    return ((pictures.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
