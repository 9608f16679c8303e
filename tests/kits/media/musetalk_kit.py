"""Small networks with weights that depend only on names, and the inputs of the recorded values."""

from __future__ import annotations

import hashlib
import json
import zlib
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import skimage.data
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn
from transformers import WhisperConfig, WhisperModel

from lipsyncd.renderers import SPEECH_RATE, Scene
from lipsyncd.renderers.musetalk import renderer
from lipsyncd.renderers.musetalk.painting.bisenet import BiSeNet
from lipsyncd.renderers.musetalk.painting.networks import Painter
from tests.kits.media.face_kit import backdrop, draw_head, write_dwpose

Network = TypeVar("Network", bound=nn.Module)
Array = NDArray[np.float32]

GOLDENS = Path(__file__).parents[2] / "goldens"


def fill(network: Network) -> Network:
    """Set every tensor of a network to values that depend on its name and shape."""
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
    """The voice of the recorded values: (N,) float32, 16 kHz."""
    t = np.arange(int(seconds * SPEECH_RATE)) / SPEECH_RATE
    low = 0.4 * np.sin(2 * np.pi * (120 + 40 * np.sin(2 * np.pi * 0.7 * t)) * t)
    high = 0.2 * np.sin(2 * np.pi * (900 + 500 * np.sin(2 * np.pi * 1.3 * t)) * t)
    return (0.8 * (low + high) * 0.5 * (1 + np.sin(2 * np.pi * 3.1 * t))).astype(np.float32)


def furthest(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """The largest difference, in standard deviations of the expected values."""
    assert got.shape == expected.shape
    return float(np.abs(got - expected).max() / expected.std())


# -- a folder of weights -----------------------------------------------------------------------------------------------


def write_weights(folder: Path, *, parser: bool = False, vae_channels: int = 2) -> Path:
    """Write weights in the real layout, for networks small enough for a test. Returns the folder.

    parser        the network that parses faces as well; it has one size only, 53 MB
    vae_channels  a multiple of 2: the memory that a frame takes grows with it
    """
    configs = tiny_configs()
    configs["vae"]["block_out_channels"] = [vae_channels] * 4
    for name, file, config, make in (
        ("unet", renderer.UNET, renderer.UNET_CONFIG, UNet2DConditionModel.from_config),
        ("vae", renderer.VAE, renderer.VAE_CONFIG, AutoencoderKL.from_config),
        ("whisper", renderer.WHISPER, renderer.WHISPER_CONFIG, lambda given: WhisperModel(WhisperConfig(**given))),
    ):
        write_network(folder / file, fill(make(configs[name])))
        (folder / config).write_text(json.dumps(configs[name]))
    if parser:
        write_parser(folder)
    (folder / renderer.LANDMARKS).parent.mkdir(exist_ok=True)
    write_dwpose(folder / renderer.LANDMARKS)
    return folder


def write_parser(folder: Path) -> Path:
    """Write weights for the network that parses faces. Returns the file."""
    write_network(folder / renderer.PARSER, fill(BiSeNet()))
    return folder / renderer.PARSER


def write_lock(folder: Path) -> Path:
    """Write a lock list of the files in a folder of weights, into that folder. Returns its path."""
    entries = []
    for number, file in enumerate(sorted(file for file in folder.rglob("*.*") if file.is_file())):
        name = str(file.relative_to(folder))
        entry = {
            "name": f"weight-{number}",
            "repository": "tests/small",
            "revision": "0" * 40,
            "path": name,
            "file": name,
        }
        facts = {"size_bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        entries.append({**entry, **facts, "licence": "MIT", "purpose": "a test"})
    lock = folder / "lock.json"
    lock.write_text(json.dumps(entries))
    return lock


def tiny_configs() -> dict[str, dict[str, Any]]:
    """Configurations of a `unet`, a `vae` and a `whisper` that fit together and take 20 ms for a frame."""
    configs = small_configs()
    configs["unet"] |= {"block_out_channels": [8, 16], "norm_num_groups": 4, "attention_head_dim": 2}
    # Attention only at the lowest resolution.
    configs["unet"] |= {"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"]}
    configs["unet"] |= {"up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]}
    configs["vae"] |= {"block_out_channels": [2, 2, 2, 2], "norm_num_groups": 2}
    configs["whisper"] |= {"d_model": 384, "encoder_layers": 1, "encoder_ffn_dim": 64}
    return configs


def tiny_painter() -> Painter:
    """The UNet and VAE of `tiny_configs`, in memory."""
    configs = tiny_configs()
    unet = fill(UNet2DConditionModel.from_config(configs["unet"]))
    return Painter(unet, fill(AutoencoderKL.from_config(configs["vae"])))


def write_network(file: Path, network: nn.Module) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, file)


def portrait(width: int = 240, height: int = 220, size: float = 120) -> NDArray[np.uint8]:
    """A head that both networks find, before a noisy backdrop: (height, width, 3)."""
    picture = backdrop(width, height)
    picture[:, :, 2] += (np.indices((height, width)).sum(axis=0) % 40).astype(np.uint8)
    return draw_head(picture, width / 2, height / 2, size)


def speech(seconds: float = 0.32) -> NDArray[np.int16]:
    """The voice of the recorded values, as a job's sound is."""
    return (hum(seconds) * 24_000).astype(np.int16)


def scene(picture: NDArray[np.uint8] | None = None, voice: NDArray[np.int16] | None = None, **changed: Any) -> Scene:
    """A picture that speaks. What is no field of a scene is an option."""
    voice = speech() if voice is None else voice
    fps = changed.pop("fps", Fraction(25))
    frames = -(-len(voice) * fps.numerator // (16_000 * fps.denominator))
    shape = {"stitch": changed.pop("stitch", True), "resolution": changed.pop("resolution", 128)}
    return Scene(portrait() if picture is None else picture, voice, fps, frames, **shape, options=changed)
