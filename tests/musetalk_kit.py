"""Small networks with weights that depend on names alone, and the inputs that the recorded numbers were made from."""

from __future__ import annotations

import json
import zlib
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import skimage.data
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from numpy.typing import NDArray
from torch import nn
from transformers import WhisperConfig, WhisperModel

from lipsyncd.renderers import SPEECH_RATE

Network = TypeVar("Network", bound=nn.Module)
Array = NDArray[np.float32]

GOLDENS = Path(__file__).parent / "goldens"


def fill(network: Network) -> Network:
    """Give every tensor of a network the values that its name and shape stand for."""
    state = {}
    for name, tensor in network.state_dict().items():
        draw = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(tensor.shape))
        state[name] = torch.from_numpy(np.asarray(_value(name, draw), np.float32)).to(tensor.dtype)
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


def _value(name: str, draw: NDArray[np.float64]) -> Any:
    if name.endswith("num_batches_tracked"):
        return 0
    if name.endswith("running_var"):
        return 1 + 0.1 * np.abs(draw)
    if name.endswith("running_mean"):
        return 0.1 * draw
    if draw.ndim >= 2:
        return draw / np.sqrt(np.prod(draw.shape[1:]))
    return 1 + 0.1 * draw if name.endswith("weight") else 0.02 * draw


def small_configs() -> dict[str, dict[str, Any]]:
    """Configurations of a small `unet`, `vae` and `whisper`; the last is too narrow for that UNet."""
    configs: dict[str, dict[str, Any]] = json.loads((GOLDENS / "small_model_configs.json").read_text())
    return {**configs, "whisper": json.loads((GOLDENS / "whisper_tiny_test_config.json").read_text())}


def small_unet() -> UNet2DConditionModel:
    return fill(UNet2DConditionModel.from_config(small_configs()["unet"]))


def small_vae() -> AutoencoderKL:
    return fill(AutoencoderKL.from_config(small_configs()["vae"]))


def small_whisper(**changed: Any) -> WhisperModel:
    return fill(WhisperModel(WhisperConfig(**{**small_configs()["whisper"], **changed})))


def golden(name: str) -> dict[str, Any]:
    return dict(np.load(GOLDENS / f"{name}.npz"))


@cache
def astronaut() -> NDArray[np.uint8]:
    """(512, 512, 3) RGB; NASA, public domain."""
    pixels: NDArray[np.uint8] = np.ascontiguousarray(skimage.data.astronaut())
    return pixels


def hum(seconds: float) -> Array:
    """The voice of the recorded numbers: (N,) float32, 16 kHz."""
    t = np.arange(int(seconds * SPEECH_RATE)) / SPEECH_RATE
    low = 0.4 * np.sin(2 * np.pi * (120 + 40 * np.sin(2 * np.pi * 0.7 * t)) * t)
    high = 0.2 * np.sin(2 * np.pi * (900 + 500 * np.sin(2 * np.pi * 1.3 * t)) * t)
    return (0.8 * (low + high) * 0.5 * (1 + np.sin(2 * np.pi * 3.1 * t))).astype(np.float32)


def furthest(got: NDArray[Any], wanted: NDArray[Any]) -> float:
    """The largest difference, in deviations of what is wanted."""
    assert got.shape == wanted.shape
    return float(np.abs(got - wanted).max() / wanted.std())
