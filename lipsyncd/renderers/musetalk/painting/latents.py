"""The UNet's input of a face: the latents of its crop, once with the lower half masked, once whole.

Owns the crop and its latents. Leaves the networks to `networks`.
Source: MuseTalk 1.5, arXiv:2410.10122.
"""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np
import torch
from torch import Tensor

from lipsyncd.renderers.framing import Box, RgbImage
from lipsyncd.renderers.musetalk.painting.networks import PATCH, Painter

# By numpy, since torch would start threads for it, which the networks' own threads would wait for.
_LEVELS = ((np.arange(256, dtype=np.float32) / np.float32(255)) - np.float32(0.5)) / np.float32(0.5)


def crop_face(picture: RgbImage, face: Box) -> RgbImage:
    """The pixels of a face box inside the picture, scaled to (256, 256, 3) uint8 RGB."""
    cut = picture[face.y : face.bottom, face.x : face.right]
    return cast(RgbImage, cv2.resize(cut, (PATCH, PATCH), interpolation=cv2.INTER_LANCZOS4))


def latents_of(painter: Painter, crop: RgbImage) -> Tensor:
    """(1, 8, 32, 32) on the painter's device: the crop without its lower half, then the whole crop as reference."""
    return encoded(painter, masked_and_whole(crop))


def masked_and_whole(crop: RgbImage) -> Tensor:
    """The VAE's pictures of a crop: (2, 3, 256, 256) float32 in -1..1."""
    both = np.empty((2, 3, PATCH, PATCH), np.float32)
    both[:] = _LEVELS[crop].transpose(2, 0, 1)
    both[0, :, PATCH // 2 :] = _LEVELS[0]  # before normalisation: masked pixels are black, then -1
    return torch.from_numpy(both)


def encoded(painter: Painter, pictures: Tensor) -> Tensor:
    """The latents (n, 8, 32, 32) of n crops, whose pictures (2 n, 3, 256, 256) lie one behind the other."""
    latents = painter.encode(pictures)
    return latents.reshape(len(pictures) // 2, -1, *latents.shape[2:])
