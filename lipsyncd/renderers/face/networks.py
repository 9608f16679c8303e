"""The two networks that see faces: one finds them in a square, one lays a mesh of 468 points over a face.

Both are small enough for the package and run in OpenCV on one core: 5 and 7 ms. Owns their inputs and outputs. Leaves
the choice of squares and crops to `finder`.

Source: BlazeFace (Bazarevsky et al., arXiv:1907.05047) and the face mesh (Kartynnik et al., arXiv:1907.06724).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers.face.points import POINTS
from lipsyncd.renderers.framing import RgbImage

DETECTOR_SIDE, MESH_SIDE = 128, 192  # pixels of the square that each network sees
MODELS = Path(__file__).resolve().parent / "models"
DETECTOR_FILE, MESH_FILE = "face_detection_short_range.tflite", "face_landmark.tflite"

_GRIDS = ((16, 2), (8, 6))  # cells on each side, anchors in each cell
_OVERLAP = 0.3  # of two boxes that are the same face

Mesh = NDArray[np.float32]  # (468, 3)


@dataclass(frozen=True)
class Candidate:
    """A face that the detector proposes, in parts of its square: 0 is the left or upper edge, 1 the right or lower.

    score   0 to 1
    centre  (2,) float32 of the box around brows, cheeks and chin
    side    of that box, which is a square
    eyes    (2, 2) float32: the right eye and the left eye of the person
    """

    score: float
    centre: NDArray[np.float32]
    side: float
    eyes: NDArray[np.float32]


class FaceNetworks:
    """Both networks. Not for several threads at once."""

    def __init__(self, folder: Path = MODELS) -> None:
        self._detector = cv2.dnn.readNetFromTFLite(os.fspath(folder / DETECTOR_FILE))
        self._mesh = cv2.dnn.readNetFromTFLite(os.fspath(folder / MESH_FILE))
        self._anchors = _anchors()

    def detect(self, square: RgbImage, least_score: float) -> list[Candidate]:
        """The faces in a picture of 128 x 128 pixels, the best first."""
        self._detector.setInput(cv2.dnn.blobFromImage(square, 1 / 127.5, mean=(127.5, 127.5, 127.5)))
        # OpenCV 5 gives one output for each call only, so both versions are asked twice.
        scores = _sigmoid(self._detector.forward("classificators").reshape(-1))
        numbers = np.flatnonzero(scores >= least_score)
        if not len(numbers):
            return []
        rows = self._detector.forward("regressors").reshape(-1, 16)[numbers] / DETECTOR_SIDE
        anchors = self._anchors[numbers]
        found = [
            Candidate(float(score), row[:2] + anchor, float(row[2:4].max()), row[4:8].reshape(2, 2) + anchor)
            for score, row, anchor in zip(scores[numbers], rows, anchors, strict=True)
        ]
        return _distinct(sorted(found, key=lambda one: -one.score))

    def mesh(self, crop: RgbImage) -> tuple[Mesh, float]:
        """The mesh in a picture of 192 x 192 pixels of one upright face, and how sure it is that there is a face.

        returns  (468, 3) float32 in pixels of the crop, z away from the camera; presence, 0 to 1
        """
        self._mesh.setInput(cv2.dnn.blobFromImage(crop, 1 / 255))
        presence = _sigmoid(self._mesh.forward("conv2d_31").reshape(-1))[0]
        return self._mesh.forward("conv2d_21").reshape(POINTS, 3).astype(np.float32), float(presence)


@cache
def networks() -> FaceNetworks:
    """The networks of this process, loaded at the first call."""
    return FaceNetworks()


def _anchors() -> NDArray[np.float32]:
    """The centre of each of the 896 anchors, (896, 2) float32, row by row."""
    centres = []
    for cells, each in _GRIDS:
        y, x = np.mgrid[0:cells, 0:cells]
        centres.append(np.repeat(np.stack((x, y), axis=-1).reshape(-1, 2), each, axis=0) / cells + 0.5 / cells)
    return np.concatenate(centres).astype(np.float32)


def _distinct(candidates: list[Candidate]) -> list[Candidate]:
    """One candidate for each face: the first of those whose boxes overlap."""
    kept: list[Candidate] = []
    for one in candidates:
        if all(_overlap(one, other) < _OVERLAP for other in kept):
            kept.append(one)
    return kept


def _overlap(one: Candidate, other: Candidate) -> float:
    across, down = (one.side + other.side) / 2 - np.abs(one.centre - other.centre)
    if across <= 0 or down <= 0:
        return 0.0
    shared = min(across, one.side, other.side) * min(down, one.side, other.side)
    return float(shared / (one.side**2 + other.side**2 - shared))


def _sigmoid(logits: NDArray[Any]) -> NDArray[np.float32]:
    odds: NDArray[np.float32] = (1 / (1 + np.exp(-np.clip(logits, -80, 80)))).astype(np.float32)
    return odds
