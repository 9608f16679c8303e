"""Portraits for tests of faces: two photographs, three painted people, and what befalls pictures.

`grace_hopper.jpg` is the photograph of the United States Navy that Matplotlib carries as sample data; as a work of the
Federal Government it is in the public domain.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import skimage.data

from lipsyncd.renderers.face.face import Face
from lipsyncd.renderers.framing import RgbImage
from tests.kits.media.preview_people import PEOPLE, portrait

NAMES = ("astronaut", "hopper", *PEOPLE)


@cache
def picture(name: str) -> RgbImage:
    """One of `NAMES`, (H, W, 3) uint8 RGB, not to be changed."""
    if name == "astronaut":
        found = np.asarray(skimage.data.astronaut())
    elif name == "hopper":
        found = cv2.cvtColor(cv2.imread(str(Path(__file__).with_name("grace_hopper.jpg"))), cv2.COLOR_BGR2RGB)
    else:
        found = portrait(PEOPLE[name], 512)
    found.flags.writeable = False
    return cast(RgbImage, found)


def turned(face: Face, image: RgbImage, degrees: float) -> tuple[RgbImage, tuple[float, float]]:
    """The picture turned counter-clockwise around its face, on grey; and where its mouth lies then."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(face.centre, degrees, 1.0)
    moved = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_CUBIC, borderValue=(96, 96, 96))
    x, y = (matrix @ [*face.mouth, 1.0]).tolist()
    return cast(RgbImage, moved), (x, y)


def placed(face: Face, image: RgbImage, share: float, side: int = 1200) -> tuple[RgbImage, tuple[float, float]]:
    """The picture on a grey square, scaled so that the face's width is a share of its side; and its mouth there."""
    scale = share * side / face.width_px
    matrix = np.array(
        [[scale, 0, side * 0.5 - scale * face.centre[0]], [0, scale, side * 0.5 - scale * face.centre[1]]]
    )
    if scale < 1:  # warpAffine alone would alias
        size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
        image, matrix[:, :2] = cast(RgbImage, cv2.resize(image, size, interpolation=cv2.INTER_AREA)), np.eye(2)
    moved = cv2.warpAffine(image, matrix, (side, side), flags=cv2.INTER_CUBIC, borderValue=(96, 96, 96))
    x, y = face.mouth
    return cast(RgbImage, moved), (scale * x + matrix[0, 2], scale * y + matrix[1, 2])


def grey(image: RgbImage) -> RgbImage:
    return cast(RgbImage, cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB))


def brighter(image: RgbImage, factor: float) -> RgbImage:
    return cast(RgbImage, np.clip(image * factor, 0, 255).astype(np.uint8))


def masked(face: Face, image: RgbImage, colour: tuple[int, int, int] = (205, 220, 230)) -> RgbImage:
    """A surgical mask from the bridge of the nose to below the chin, with a few folds."""
    cover = image.copy()
    line = [227, 137, 177, 215, 138, 135, 169, 170, 140, 171, 175, 396, 369, 395, 394, 364, 367, 435, 401, 366, 447]
    outline = face.mesh[[*line, 419, 197, 196], :2]
    outline[line.index(140) : line.index(395)] += (0, 0.06 * face.width_px)
    mask = np.zeros(image.shape[:2], np.uint8)
    cv2.fillPoly(mask, [np.rint(outline).astype(np.int32)], 255)
    rows = np.arange(image.shape[0])[:, None, None]
    folds = 8 * np.sin(rows * (2 * np.pi / (0.13 * face.width_px)))
    cloth = np.clip(np.array(colour) + folds + np.zeros(image.shape), 0, 255)
    soft = cv2.GaussianBlur(mask, (0, 0), 0.006 * face.width_px)[..., None] / 255.0
    return cast(RgbImage, np.rint(cover * (1 - soft) + cloth * soft).astype(np.uint8))
