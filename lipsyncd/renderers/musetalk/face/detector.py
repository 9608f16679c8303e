"""Faces in a picture, by YuNet: where they are and how sure the network is.

Owns OpenCV's face detector and the sizes at which it looks. Leaves which of the faces is meant to `faces`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import cv2
import numpy as np

from lipsyncd.renderers.framing import Box, RgbImage

SURE = 0.6  # score from which something counts as a face

_GUESS = 0.2  # lower ones are not even told
_OVERLAP = 0.3  # of two boxes that mean the same face
_MOST = 5000
# The network knows faces of 10 to 300 pixels. Most pictures are settled by the first size; the second finds small faces
# in large pictures, the third a face that fills the picture, and all three only bring a picture to that size or below.
_LONG_SIDES = (640, 1536, 256)


@dataclass(frozen=True)
class Detected:
    """A face, or what may be one. `box` is in pixels of the picture and may reach outside."""

    box: Box
    score: float

    @property
    def sure(self) -> bool:
        return self.score >= SURE


class Detector:
    """The network `face_detection_yunet_2023mar.onnx`, in OpenCV's own arithmetic on the CPU."""

    def __init__(self, model: Path) -> None:
        self._net = cv2.FaceDetectorYN.create(os.fspath(model), "", (320, 320), _GUESS, _OVERLAP, _MOST)

    def passes(self, picture: RgbImage) -> Iterator[list[Detected]]:
        """What each way of looking finds, the largest box first; whoever is content stops and pays for no more.

        picture  (H, W, 3) uint8 RGB
        """
        long_side = max(picture.shape[:2])
        seen = set()
        for limit in _LONG_SIDES:
            scale = min(1.0, limit / long_side)
            if scale not in seen:
                seen.add(scale)
                yield self._look(picture, scale)

    def _look(self, picture: RgbImage, scale: float) -> list[Detected]:
        height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
        shown = picture if scale == 1 else cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
        self._net.setInputSize((width, height))
        _, rows = self._net.detect(cv2.cvtColor(shown, cv2.COLOR_RGB2BGR))
        if rows is None:
            return []
        across, down = picture.shape[1] / width, picture.shape[0] / height
        found = [_detected(row, across, down) for row in cast(list[list[float]], np.asarray(rows).tolist())]
        return sorted(found, key=lambda face: (-face.box.width * face.box.height, face.box.x, face.box.y))


def _detected(row: list[float], across: float, down: float) -> Detected:
    """A row of YuNet: x, y, width, height, five points, score."""
    left, top = round(row[0] * across), round(row[1] * down)
    right, bottom = round((row[0] + row[2]) * across), round((row[1] + row[3]) * down)
    return Detected(Box(left, top, max(right - left, 1), max(bottom - top, 1)), row[14])
