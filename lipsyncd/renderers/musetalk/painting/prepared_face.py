"""One face, ready to be painted: where it is, what the generator sees of it, and through which mask.

Owns the preparation of one picture, which a still needs once. Leaves what is heard to `features`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lipsyncd.errors import OutOfMemory, RenderError
from lipsyncd.renderers.framing import Box, RgbImage
from lipsyncd.renderers.musetalk.face.find_face import FaceFound
from lipsyncd.renderers.musetalk.gpu_memory import exhausted
from lipsyncd.renderers.musetalk.painting.bisenet import BiSeNet
from lipsyncd.renderers.musetalk.painting.blend import Paste
from lipsyncd.renderers.musetalk.painting.latents import crop_face, latents_of
from lipsyncd.renderers.musetalk.painting.masks import Labels, blend_square, mask_of, place
from lipsyncd.renderers.musetalk.painting.networks import Painter
from lipsyncd.renderers.musetalk.painting.parsing import drawn, parsed

Labeller = Callable[[RgbImage, Box, FaceFound], Labels]


@dataclass(frozen=True)
class Look:
    """A face as the generator needs it.

    latents  (1, 8, 32, 32), masked and reference, on the painter's device
    paste    where it goes
    """

    latents: Tensor
    paste: Paste


def by_points(_: RgbImage, square: Box, face: FaceFound) -> Labels:
    """Labels drawn from the landmarks."""
    return drawn(face.landmarks, square)


def by_parsing(network: BiSeNet) -> Labeller:
    """Labels by the network that parses faces."""
    return lambda picture, square, _: parsed(network, picture, square)


def look_at(picture: RgbImage, face: FaceFound, painter: Painter, labels: Labeller, mode: str) -> Look:
    """Prepare the face in a picture (H, W, 3) uint8 RGB.

    Raises `OutOfMemory`, and `RenderError` when the encoder's answer is not finite in full precision either.
    """
    square = blend_square(face.box)
    alpha = place(mask_of(labels(picture, square, face), mode), face.box, square)
    paste = Paste.through(alpha, square, face.box, picture)
    return Look(_finite_latents(painter, crop_face(picture, face.box)), paste)


def _finite_latents(painter: Painter, crop: RgbImage) -> Tensor:
    with torch.inference_mode():
        try:
            latents = latents_of(painter, crop)
            if not bool(torch.isfinite(latents).all()) and painter.dtype != torch.float32:
                painter.in_full()
                latents = latents_of(painter, crop)
        except RuntimeError as error:
            if exhausted(error):
                raise OutOfMemory(
                    "the picture of one face does not fit into the memory that the render may take"
                ) from None
            raise
    if not bool(torch.isfinite(latents).all()):
        raise RenderError(
            "the encoder's answer is not finite", remedy="check the weights with `lipsyncd models verify`"
        )
    return latents
