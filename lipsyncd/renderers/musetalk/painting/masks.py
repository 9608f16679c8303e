"""Which pixels of a face are repainted: from a label map to a mask in the picture.

The label map of the square around the face comes from `parsing`: from a network, or from the 68 landmarks alone, which
need no weights of unclear licence. `mask_of` selects and grows the labels, `place` scales the mask to the picture,
keeps its lower half and blurs its edge.

Owns masks. Leaves blending through them to `blend`.
Source: MuseTalk 1.5, arXiv:2410.10122, with exactly its integer arithmetic.
"""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers.framing import Box, RgbImage
from lipsyncd.renderers.musetalk.painting.scaling import bicubic, resize

Labels = NDArray[np.uint8]  # (512, 512), one class for each pixel of the blend square
Mask = NDArray[np.uint8]  # 255: repainted, 0: as in the source

SIDE = 512  # of label maps
FACE, NOSE, MOUTH, UPPER_LIP, LOWER_LIP, NECK = 1, 10, 11, 12, 13, 14
MODES = ("jaw", "raw", "neck")
EXPAND = 1.5  # side of the blend square, as a multiple of the face box's longer side
UPPER_PART = 0.5  # the upper part of the blend square that stays as in the source
SOFT_RIM = 0.05  # width of the blur, as a part of the blend square's side
WIDE_RIM = 0.1  # the same in the original's code for prepared avatars


def blend_square(face: Box) -> Box:
    """The square around the face box in which its mask is computed; it may reach beyond the picture."""
    half = int(max(face.width, face.height) // 2 * EXPAND)
    x, y = (face.x + face.right) // 2, (face.y + face.bottom) // 2
    return Box(x - half, y - half, 2 * half, 2 * half)


def cut_square(picture: RgbImage, square: Box) -> RgbImage:
    """The pixels in `square`, black outside the picture: (side, side, 3) uint8."""
    height, width = picture.shape[:2]
    left, top = max(square.x, 0), max(square.y, 0)
    right, bottom = min(square.right, width), min(square.bottom, height)
    cut = np.zeros((square.height, square.width, 3), np.uint8)
    inside = np.s_[top - square.y : bottom - square.y, left - square.x : right - square.x]
    cut[inside] = picture[top:bottom, left:right]
    return cut


def mask_of(labels: Labels, mode: str = "jaw", *, cheeks: tuple[int, int] = (90, 90)) -> Mask:
    """The part of a label map that is repainted, 0 or 255.

    mode    `raw`: face, mouth and lips; `neck`: also the neck; `jaw`: the face dilated over the chin, eroded at the
            cheeks, without the nose
    cheeks  how far the middle part, which is not eroded, reaches left and right of the centre line, in pixels
    """
    mouth = np.isin(labels, (MOUTH, UPPER_LIP, LOWER_LIP))
    if mode == "jaw":
        chosen = (_jaw(labels, cheeks) & (labels != NOSE)) | mouth
    else:
        chosen = np.isin(labels, (FACE, NECK) if mode == "neck" else (FACE,)) | mouth
    return np.where(chosen, np.uint8(255), np.uint8(0))


def _jaw(labels: Labels, cheeks: tuple[int, int]) -> NDArray[np.bool_]:
    face = (labels == FACE).astype(np.uint8)
    dilated = cv2.dilate(face, _cone())
    eroded = cv2.erode(dilated, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (35, 3)), iterations=2)
    column = np.arange(SIDE)
    at_the_side = (column <= SIDE // 2 - cheeks[0]) | (column >= SIDE // 2 + cheeks[1])
    jaw: NDArray[np.bool_] = np.where(at_the_side, eroded, dilated) > 0
    return jaw


def _cone() -> NDArray[np.uint8]:
    """A kernel that dilates by up to 16 pixels, more downwards than upwards: over the chin, but not over the hair."""
    kernel = np.zeros((33, 33), np.uint8)
    for row in range(10, 21):
        kernel[row, 16 - (row - 10) : 16 + (row - 10) + 1] = 1
    kernel[21:, 6:27] = 1
    return kernel


def place(mask: Mask, face: Box, square: Box, *, rim: float = SOFT_RIM, upper: float = UPPER_PART) -> Mask:
    """A mask of the label map's size as the alpha of the blend square: (side, side) uint8.

    Only the part in the face box and below `upper` of the square is kept; then its edge is blurred.
    """
    side = square.width
    scaled = resize(mask, side, bicubic)
    kept = np.zeros((side, side), np.uint8)
    left, top = max(face.x - square.x, 0), max(face.y - square.y, int(side * upper))
    inside = np.s_[top : max(face.bottom - square.y, top), left : max(face.right - square.x, left)]
    kept[inside] = scaled[inside]
    kernel = int(rim * side // 2 * 2) + 1
    return cast(Mask, cv2.GaussianBlur(kept, (kernel, kernel), 0))
