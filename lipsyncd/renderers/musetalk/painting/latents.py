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


def crop_face(picture: RgbImage, face: Box) -> RgbImage:
    """The pixels of a face box inside the picture, scaled to (256, 256, 3) uint8 RGB."""
    cut = picture[face.y : face.bottom, face.x : face.right]
    return cast(RgbImage, cv2.resize(cut, (PATCH, PATCH), interpolation=cv2.INTER_LANCZOS4))


def latents_of(painter: Painter, crop: RgbImage) -> Tensor:
    """(1, 8, 32, 32) on the painter's device: the crop without its lower half, then the whole crop as reference."""
    whole = torch.from_numpy(np.ascontiguousarray(crop)).permute(2, 0, 1).float() / 255
    masked = whole.clone()
    masked[:, PATCH // 2 :] = 0  # before normalisation: masked pixels are black, then -1
    both = (torch.stack((masked, whole)) - 0.5) / 0.5
    return painter.encode(both).flatten(0, 1)[None]
