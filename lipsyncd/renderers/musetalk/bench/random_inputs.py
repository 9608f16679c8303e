"""Generated inputs for a benchmark: random weights, a picture and a voice of noise, a face.

Owns the generated data. Leaves its use to `run`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from lipsyncd.renderers import SPEECH_RATE, Scene
from lipsyncd.renderers.framing import Box, RgbImage
from lipsyncd.renderers.musetalk import renderer
from lipsyncd.renderers.musetalk.face.find_face import FaceFound
from lipsyncd.renderers.musetalk.painting import networks
from lipsyncd.renderers.musetalk.painting.masks import FACE, SIDE, Labels

Configs = Mapping[str, Mapping[str, Any]]  # of `unet`, `vae`, `whisper`

FPS = 25
RESOLUTION = 256  # the default of a job
WIDTH, HEIGHT = 1280, 720
FACE_BOX = Box(500, 180, 260, 300)  # of the face

# -- weights -----------------------------------------------------------------------------------------------------------


def published_configs() -> dict[str, dict[str, Any]]:
    """The configurations of the real networks."""
    return {name: networks.published_config(name) for name in ("unet", "vae", "whisper")}


def small_configs() -> dict[str, dict[str, Any]]:
    """Configurations of the same kind of networks, small enough for tests."""
    configs = published_configs()
    configs["unet"] |= {
        "block_out_channels": [8, 16],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": 2,
        "layers_per_block": 1,
        "norm_num_groups": 4,
    }
    configs["vae"] |= {"block_out_channels": [4, 4, 4, 4], "layers_per_block": 1, "norm_num_groups": 2}
    configs["whisper"] |= {"encoder_ffn_dim": 64, "encoder_attention_heads": 2}
    return configs


def write_weights(folder: Path, configs: Configs) -> None:
    """Write weights in the real layout and types, with the same values each time."""
    rng = torch.Generator().manual_seed(0)
    for name, file, config, make, kept, prefix in (
        ("unet", renderer.UNET, renderer.UNET_CONFIG, networks.unet, torch.float16, ""),
        ("vae", renderer.VAE, renderer.VAE_CONFIG, networks.vae, torch.float32, ""),
        ("whisper", renderer.WHISPER, renderer.WHISPER_CONFIG, networks.whisper, torch.float32, "model.encoder."),
    ):
        (folder / file).parent.mkdir(parents=True)
        (folder / config).write_text(json.dumps(configs[name]))
        save_file({prefix + key: t.to(kept) for key, t in _random(make(configs[name]), rng)}, folder / file)


def _random(network: nn.Module, rng: torch.Generator) -> Iterator[tuple[str, torch.Tensor]]:
    """Values with which the output stays finite in half precision: layers keep the magnitude of their input."""
    for name, tensor in network.state_dict().items():
        if tensor.ndim >= 2:
            most = math.sqrt(3 / math.prod(tensor.shape[1:]))
            yield name, torch.empty(tensor.shape).uniform_(-most, most, generator=rng)
        else:
            yield name, torch.ones(tensor.shape) if name.endswith("weight") else torch.zeros(tensor.shape)


# -- a scene -----------------------------------------------------------------------------------------------------------


def face() -> FaceFound:
    """A face at a known place, which needs no search."""
    return face_at(FACE_BOX)


def face_at(box: Box) -> FaceFound:
    """A face in that box; its landmarks are no use."""
    return FaceFound(box, np.zeros((68, 2), np.float32), 1.0, 0.0, box, 1.0)


def labels_of(_: RgbImage, square: Box, face: FaceFound) -> Labels:
    """A face as an ellipse that fills its box."""
    labels = np.zeros((SIDE, SIDE), np.uint8)
    axes = (face.box.width * SIDE // (2 * square.width), face.box.height * SIDE // (2 * square.height))
    cv2.ellipse(labels, (SIDE // 2, SIDE // 2), axes, 0, 0, 360, FACE, -1)
    return labels


def scene_of(seconds: float) -> Scene:
    """A picture and a voice of noise, of the given length."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    speech = rng.integers(-9000, 9000, max(round(seconds * SPEECH_RATE), 1), np.int16)
    frames = math.ceil(Fraction(len(speech), SPEECH_RATE) * FPS)
    return Scene(picture, speech, Fraction(FPS), frames, stitch=False, resolution=RESOLUTION)
