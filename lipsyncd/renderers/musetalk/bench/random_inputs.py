"""What nobody has to bring to a bench: weights of random numbers, a picture and a voice of noise, a face.

Owns what is made up. Leaves its use to `bench`.
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
RESOLUTION = 256  # as a job without options has it
WIDTH, HEIGHT = 1280, 720
PLACE = Box(500, 180, 260, 300)  # of the face

# -- weights -----------------------------------------------------------------------------------------------------------


def published_configs() -> dict[str, dict[str, Any]]:
    """Of the real networks."""
    return {name: networks.published(name) for name in ("unet", "vae", "whisper")}


def small_configs() -> dict[str, dict[str, Any]]:
    """Networks of the same build in a size that a test can wait for."""
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
    """A folder of weights in the real layout and types, the same one each time."""
    draw = torch.Generator().manual_seed(0)
    for name, file, config, make, kept, prefix in (
        ("unet", renderer.UNET, renderer.UNET_CONFIG, networks.unet, torch.float16, ""),
        ("vae", renderer.VAE, renderer.VAE_CONFIG, networks.vae, torch.float32, ""),
        ("whisper", renderer.WHISPER, renderer.WHISPER_CONFIG, networks.whisper, torch.float32, "model.encoder."),
    ):
        (folder / file).parent.mkdir(parents=True)
        (folder / config).write_text(json.dumps(configs[name]))
        save_file({prefix + key: t.to(kept) for key, t in _random(make(configs[name]), draw)}, folder / file)


def _random(network: nn.Module, draw: torch.Generator) -> Iterator[tuple[str, torch.Tensor]]:
    """Numbers under which the answers stay finite in half precision: layers keep the size of what they get."""
    for name, tensor in network.state_dict().items():
        if tensor.ndim >= 2:
            most = math.sqrt(3 / math.prod(tensor.shape[1:]))
            yield name, torch.empty(tensor.shape).uniform_(-most, most, generator=draw)
        else:
            yield name, torch.ones(tensor.shape) if name.endswith("weight") else torch.zeros(tensor.shape)


# -- a scene -----------------------------------------------------------------------------------------------------------


def face() -> FaceFound:
    """A face that was found without looking."""
    return FaceFound(PLACE, np.zeros((68, 2), np.float32), 1.0, 0.0, PLACE, 1.0)


def labels_of(_: RgbImage, square: Box, face: FaceFound) -> Labels:
    """A face as an ellipse that fills its box."""
    labels = np.zeros((SIDE, SIDE), np.uint8)
    axes = (face.box.width * SIDE // (2 * square.width), face.box.height * SIDE // (2 * square.height))
    cv2.ellipse(labels, (SIDE // 2, SIDE // 2), axes, 0, 0, 360, FACE, -1)
    return labels


def scene_of(seconds: float) -> Scene:
    """Noise to see and to hear, as long as asked."""
    draw = np.random.default_rng(0)
    picture = draw.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    speech = draw.integers(-9000, 9000, max(round(seconds * SPEECH_RATE), 1), np.int16)
    frames = math.ceil(Fraction(len(speech), SPEECH_RATE) * FPS)
    return Scene(picture, speech, Fraction(FPS), frames, stitch=False, resolution=RESOLUTION)
