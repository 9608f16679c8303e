"""Squares cut out of a picture, turned with the face, and the mesh in them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers.face import points
from lipsyncd.renderers.face.networks import MESH_SIDE, FaceNetworks, Mesh
from lipsyncd.renderers.framing import RgbImage

_REACH = 1.4  # side of the square around a face, in sizes of the face
_EYES = (points.RIGHT_EYE_CORNERS, points.LEFT_EYE_CORNERS)


@dataclass(frozen=True)
class Crop:
    """A turned square of a picture: its middle and side in pixels, and the angle of its upper edge, clockwise."""

    centre: NDArray[np.floating]
    side: float
    angle: float

    def matrix(self, pixels: int) -> NDArray[np.float64]:
        """(2, 3): from the pixels of the square, scaled to `pixels` on each side, to those of the picture."""
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        axes = np.array([[cos, -sin], [sin, cos]]) * max(self.side, 8.0) / pixels
        return np.column_stack((axes, np.asarray(self.centre) - axes @ np.full(2, (pixels - 1) / 2)))


def crop_of(mesh: Mesh) -> Crop:
    """The square for the next pass over a face."""
    angle = angle_of(*(mesh[list(corners), :2].mean(axis=0) for corners in _EYES))
    low, high = mesh[:, :2].min(axis=0), mesh[:, :2].max(axis=0)
    return Crop((low + high) / 2, _REACH * _extent(mesh, angle), angle)


def mesh_in(picture: RgbImage, nets: FaceNetworks, crop: Crop) -> tuple[Mesh, float]:
    """The mesh in a square of a picture, in pixels of the picture; and its presence, 0 to 1."""
    matrix = crop.matrix(MESH_SIDE)
    mesh, presence = nets.mesh(cut(picture, matrix, MESH_SIDE))
    placed = mesh.astype(np.float64)
    placed[:, :2] = placed[:, :2] @ matrix[:, :2].T + matrix[:, 2]
    placed[:, 2] *= crop.side / MESH_SIDE
    return placed.astype(np.float32), presence


def cut(picture: RgbImage, matrix: NDArray[np.float64], pixels: int) -> RgbImage:
    """A turned square, (pixels, pixels, 3). A large one is scaled down first: bilinear sampling alone would alias."""
    corners = np.array([[0, 0, 1], [pixels, 0, 1], [0, pixels, 1], [pixels, pixels, 1]]) @ matrix.T
    height, width = picture.shape[:2]
    left, top = np.clip(np.floor(corners.min(axis=0)).astype(int) - 2, 0, (width - 1, height - 1)).tolist()
    right, bottom = np.clip(np.ceil(corners.max(axis=0)).astype(int) + 2, (left + 1, top + 1), (width, height)).tolist()
    part, shrink = picture[top:bottom, left:right], float(np.hypot(*matrix[:, 0]))
    if shrink > 1:
        size = max(1, round(part.shape[1] / shrink)), max(1, round(part.shape[0] / shrink))
        part = cast(RgbImage, cv2.resize(part, size, interpolation=cv2.INTER_AREA))
    factors = np.array([[part.shape[1] / (right - left)], [part.shape[0] / (bottom - top)]])
    moved = (matrix - [[0, 0, left], [0, 0, top]]) * factors
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cast(RgbImage, cv2.warpAffine(part, moved, (pixels, pixels), flags=flags, borderMode=cv2.BORDER_REPLICATE))


def angle_of(right_eye: NDArray[np.floating], left_eye: NDArray[np.floating]) -> float:
    across, down = (left_eye - right_eye).tolist()
    return math.atan2(down, across)


def _extent(mesh: Mesh, angle: float) -> float:
    """The longer side of the mesh's box, in the axes of a face that is turned by `angle`."""
    axes = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return float(np.ptp(mesh[:, :2] @ axes, axis=0).max())
