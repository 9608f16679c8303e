"""Faces in a picture, by YuNet: their boxes and scores.

Owns OpenCV's face detector and the sizes at which it runs. Leaves the choice among the faces to `find_face`.
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

MIN_SCORE = 0.6  # of a detection that counts as a face

_MIN_CANDIDATE_SCORE = 0.2  # detections below are not even returned
_OVERLAP = 0.3  # of two boxes that are the same face
_MOST = 5000
# The network finds faces of 10 to 300 pixels. For most pictures the first size is enough; the second finds small faces
# in large pictures, the third a face that fills the picture. A picture is only ever scaled down.
_LONG_SIDES = (640, 1536, 256)


@dataclass(frozen=True)
class DetectedFace:
    """A face, or a candidate. `box` is in pixels of the picture and may reach outside."""

    box: Box
    score: float

    @property
    def is_face(self) -> bool:
        return self.score >= MIN_SCORE


class Detector:
    """The network `face_detection_yunet_2023mar.onnx`, run by OpenCV on the CPU."""

    def __init__(self, model: Path) -> None:
        self._net = cv2.FaceDetectorYN.create(os.fspath(model), "", (320, 320), _MIN_CANDIDATE_SCORE, _OVERLAP, _MOST)

    def passes(self, picture: RgbImage) -> Iterator[list[DetectedFace]]:
        """The detections at each size, the largest box first. A caller that has found its face stops the iteration.

        picture  (H, W, 3) uint8 RGB
        """
        long_side = max(picture.shape[:2])
        done = set()
        for limit in _LONG_SIDES:
            scale = min(1.0, limit / long_side)
            if scale not in done:
                done.add(scale)
                yield self._detect(picture, scale)

    def _detect(self, picture: RgbImage, scale: float) -> list[DetectedFace]:
        height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
        scaled = picture if scale == 1 else cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
        self._net.setInputSize((width, height))
        _, rows = self._net.detect(cv2.cvtColor(scaled, cv2.COLOR_RGB2BGR))
        if rows is None:
            return []
        across, down = picture.shape[1] / width, picture.shape[0] / height
        found = [_detected(row, across, down) for row in cast(list[list[float]], np.asarray(rows).tolist())]
        return sorted(found, key=lambda face: (-face.box.width * face.box.height, face.box.x, face.box.y))


def _detected(row: list[float], across: float, down: float) -> DetectedFace:
    """From a row of YuNet: x, y, width, height, five points, score."""
    left, top = round(row[0] * across), round(row[1] * down)
    right, bottom = round((row[0] + row[2]) * across), round((row[1] + row[3]) * down)
    return DetectedFace(Box(left, top, max(right - left, 1), max(bottom - top, 1)), row[14])
