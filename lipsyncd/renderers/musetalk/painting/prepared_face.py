"""One face, prepared for painting: its latents, its position and its mask.

Owns the preparation of one picture; a still needs it once. Leaves latents to `face_encoder`, and the voice to
`audio_features`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from lipsyncd.renderers.framing import Box, RgbImage
from lipsyncd.renderers.musetalk.face.find_face import FaceFound
from lipsyncd.renderers.musetalk.painting.bisenet import BiSeNet
from lipsyncd.renderers.musetalk.painting.blend import PasteBack
from lipsyncd.renderers.musetalk.painting.detail import Detail
from lipsyncd.renderers.musetalk.painting.face_encoder import FaceEncoder
from lipsyncd.renderers.musetalk.painting.job_painter import JobPainter
from lipsyncd.renderers.musetalk.painting.latents import crop_face, masked_and_whole
from lipsyncd.renderers.musetalk.painting.masks import Labels, blend_square, mask_of, place
from lipsyncd.renderers.musetalk.painting.parsing import draw_labels, parse_face

Labeller = Callable[[RgbImage, Box, FaceFound], Labels]


@dataclass(frozen=True)
class PlacedFace:
    """A face that is cut out and masked, but has no latents yet.

    pictures  (2, 3, 256, 256) float32 on the CPU, for the VAE
    """

    pictures: Tensor
    paste: PasteBack
    detail: Detail | None

    @property
    def nbytes(self) -> int:
        """Of the arrays that stay when the face is encoded."""
        return _nbytes(self.paste, self.detail)

    def with_latents(self, latents: Tensor) -> PreparedFace:
        return PreparedFace(latents, self.paste, self.detail)


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
        return _nbytes(self.paste, self.detail)

    def blend(self, source: RgbImage, painted: RgbImage, target: RgbImage, *, weight: float) -> None:
        """Blend a painted area, scaled and cropped, over `source` into `target`; see `PasteBack.blend`."""
        self.paste.blend(source, self.detail.add(painted) if self.detail else painted, target, weight=weight)


def _nbytes(paste: PasteBack, detail: Detail | None) -> int:
    return paste.alpha.nbytes + (detail.nbytes if detail else 0)


def landmark_labels(_: RgbImage, square: Box, face: FaceFound) -> Labels:
    """Labels drawn from the landmarks."""
    return draw_labels(face.landmarks, square)


def parsed_labels(network: BiSeNet) -> Labeller:
    """Labels by the face parsing network."""
    return lambda picture, square, _: parse_face(network, picture, square)


def place_face(picture: RgbImage, face: FaceFound, labels: Labeller, mode: str, detail: float = 0.0) -> PlacedFace:
    """Cut out and mask the face in a picture (H, W, 3) uint8 RGB. No network runs but that of `labels`.

    detail  how much of the source's fine texture the painted face gets back, 0 to 1
    """
    square = blend_square(face.box)
    alpha = place(mask_of(labels(picture, square, face), mode), face.box, square)
    paste = PasteBack.from_mask(alpha, square, face.box, picture)
    pictures = masked_and_whole(crop_face(picture, face.box))
    return PlacedFace(pictures, paste, Detail.of(picture, paste, face.landmarks, detail))


def prepare_face(
    picture: RgbImage, face: FaceFound, painter: JobPainter, labels: Labeller, mode: str, detail: float = 0.0
) -> PreparedFace:
    """`place_face`, and the latents. Raises `OutOfMemory`, and `RenderError` when they are never finite."""
    placed = place_face(picture, face, labels, mode, detail)
    [latents] = FaceEncoder(painter).encode([placed.pictures])
    return placed.with_latents(latents)
