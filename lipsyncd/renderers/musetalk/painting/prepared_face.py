"""One face, prepared for painting: its latents, its position and its mask.

Owns the preparation of one picture; a still needs it once. Leaves the voice to `audio_features`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lipsyncd.errors import OutOfMemory, RenderError
from lipsyncd.renderers.framing import Box, RgbImage
from lipsyncd.renderers.musetalk.face.find_face import FaceFound
from lipsyncd.renderers.musetalk.gpu_memory import is_out_of_memory
from lipsyncd.renderers.musetalk.painting.bisenet import BiSeNet
from lipsyncd.renderers.musetalk.painting.blend import PasteBack
from lipsyncd.renderers.musetalk.painting.detail import Detail
from lipsyncd.renderers.musetalk.painting.job_painter import JobPainter
from lipsyncd.renderers.musetalk.painting.latents import crop_face, latents_of
from lipsyncd.renderers.musetalk.painting.masks import Labels, blend_square, mask_of, place
from lipsyncd.renderers.musetalk.painting.parsing import draw_labels, parse_face

Labeller = Callable[[RgbImage, Box, FaceFound], Labels]


@dataclass(frozen=True)
class PreparedFace:
    """A face as the pipeline needs it.

    latents  (1, 8, 32, 32), masked and reference, on the painter's device
    paste    where the painted face is pasted back
    detail   the fine texture that the painted face gets back; None: it stays as it is painted
    """

    latents: Tensor
    paste: PasteBack
    detail: Detail | None = None

    @property
    def nbytes(self) -> int:
        """Of the arrays in the memory of the CPU."""
        return self.paste.alpha.nbytes + (self.detail.nbytes if self.detail else 0)

    def blend(self, source: RgbImage, painted: RgbImage, target: RgbImage, *, weight: float) -> None:
        """Blend a painted area, scaled and cropped, over `source` into `target`; see `PasteBack.blend`."""
        self.paste.blend(source, self.detail.add(painted) if self.detail else painted, target, weight=weight)


def landmark_labels(_: RgbImage, square: Box, face: FaceFound) -> Labels:
    """Labels drawn from the landmarks."""
    return draw_labels(face.landmarks, square)


def parsed_labels(network: BiSeNet) -> Labeller:
    """Labels by the face parsing network."""
    return lambda picture, square, _: parse_face(network, picture, square)


def prepare_face(
    picture: RgbImage, face: FaceFound, painter: JobPainter, labels: Labeller, mode: str, detail: float = 0.0
) -> PreparedFace:
    """Prepare the face in a picture (H, W, 3) uint8 RGB.

    detail  how much of the source's fine texture the painted face gets back, 0 to 1

    Raises `OutOfMemory`, and `RenderError` when the latents are not finite, not even in float32.
    """
    square = blend_square(face.box)
    alpha = place(mask_of(labels(picture, square, face), mode), face.box, square)
    paste = PasteBack.from_mask(alpha, square, face.box, picture)
    latents = _finite_latents(painter, crop_face(picture, face.box))
    return PreparedFace(latents, paste, Detail.of(picture, paste, face.landmarks, detail))


def _finite_latents(painter: JobPainter, crop: RgbImage) -> Tensor:
    with torch.inference_mode():
        try:
            latents = latents_of(painter.now, crop)
            if not bool(torch.isfinite(latents).all()) and not painter.has_full_vae:
                painter.use_full_vae("the latents of the face were not finite")
                latents = latents_of(painter.now, crop)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise OutOfMemory(
                    "the picture of one face does not fit into the memory that the render may use"
                ) from None
            raise
    if not bool(torch.isfinite(latents).all()):
        raise RenderError(
            "the latents of the face are not finite", remedy="check the weights with `lipsyncd models verify`"
        )
    return latents
