"""Label maps of a face, by the face parsing network or drawn from the 68 landmarks.

Owns both. Leaves masks made from the labels to `masks`.
Source of the first: MuseTalk 1.5, arXiv:2410.10122. The second is ours: it needs no further weights and licence.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from lipsyncd.renderers.framing import Box, RgbImage
from lipsyncd.renderers.musetalk.arithmetic import true_float32
from lipsyncd.renderers.musetalk.painting.bisenet import BiSeNet
from lipsyncd.renderers.musetalk.painting.masks import FACE, NOSE, SIDE, UPPER_LIP, Labels, cut_square
from lipsyncd.renderers.musetalk.painting.scaling import bilinear, resize

Points = NDArray[np.float32]  # (68, 2) x, y in pixels of the picture

_MEAN = (0.485, 0.456, 0.406)  # of ImageNet, RGB
_DEVIATION = (0.229, 0.224, 0.225)
# Of the 68 points: the outline from ear to ear and back over the brows, the nose, the outer rim of the lips.
_OUTLINE = [*range(17), *range(26, 16, -1)]
_BRIDGE, _WINGS, _LIPS = 27, slice(31, 36), slice(48, 60)
_WING_SIZE = 0.35  # the points lie under the nose; its wings reach further out by this part of their distance


def parse_face(network: BiSeNet, picture: RgbImage, square: Box) -> Labels:
    """The labels of the pixels in `square`, which may reach beyond the picture: (512, 512) uint8, 19 classes."""
    scaled = resize(cut_square(picture, square), SIDE, bilinear)
    parameter = next(network.parameters())
    pixels = torch.from_numpy(scaled).to(parameter.device).permute(2, 0, 1)[None].float() / 255
    mean, deviation = (pixels.new_tensor(values)[:, None, None] for values in (_MEAN, _DEVIATION))
    with torch.inference_mode(), true_float32():
        labels = network(((pixels - mean) / deviation).to(parameter.dtype))[0].argmax(dim=0)
    return labels.to(torch.uint8).cpu().numpy()


def draw_labels(points: Points, square: Box) -> Labels:
    """The labels of `square` by the 68 landmarks: face, nose and lips, (512, 512) uint8.

    Hair or a hand is not distinguished from skin: everything inside the outline counts as face.
    """
    at = (points - (square.x, square.y)) * (SIDE / square.width)
    wings = at[_WINGS] + _WING_SIZE * (at[_WINGS] - at[_WINGS].mean(axis=0))
    labels = np.zeros((SIDE, SIDE), np.uint8)
    for label, outline in (
        (FACE, at[_OUTLINE]),
        (NOSE, np.concatenate((at[_BRIDGE : _BRIDGE + 1], wings))),
        (UPPER_LIP, at[_LIPS]),
    ):
        cv2.fillPoly(labels, [np.rint(outline).astype(np.int32)], label)
    return labels
