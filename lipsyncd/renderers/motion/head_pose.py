"""Where a head is in a picture, and which way it faces, from the mesh of its face.

Lengths of a head are measured in its size: from the top of the forehead to the chin, as if it faced the camera. The
head has its own axes in the picture: u from the person's right eye to the left one, v at a right angle down the face.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import atan2, cos, degrees, hypot, sin
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers.face.networks import Mesh
from lipsyncd.renderers.face.points import CHIN, FOREHEAD, LEFT_EYE_CORNERS, RIGHT_EYE_CORNERS

RIGHT_SIDE, LEFT_SIDE = 234, 454  # where the mesh ends, before the ears
LEVEL_PITCH_DEG = 9.0  # in a face that looks straight ahead the chin lies a little behind the forehead


@dataclass(frozen=True)
class HeadPose:
    """The position, size and direction of one head.

    x, y                  the middle of the face, in pixels
    size_px               from the top of the forehead to the chin
    roll_deg              the tilt; clockwise is positive
    yaw_deg, pitch_deg    how far it is turned to the right of the picture, and down
    axis_z                the depth of the axis about which it turns, between the ears, in the mesh's z
    """

    x: float
    y: float
    size_px: float
    roll_deg: float
    yaw_deg: float
    pitch_deg: float
    axis_z: float

    @classmethod
    def of(cls, mesh: Mesh) -> HeadPose:
        points = mesh.astype(np.float64)
        across = points[LEFT_SIDE] - points[RIGHT_SIDE]
        down = points[CHIN] - points[FOREHEAD]
        eyes = points[LEFT_EYE_CORNERS[0]] - points[RIGHT_EYE_CORNERS[0]]
        x, y = (points[:, :2].min(axis=0) + points[:, :2].max(axis=0)) / 2
        return cls(
            x=float(x),
            y=float(y),
            size_px=max(float(np.linalg.norm(down)), 1.0),
            roll_deg=degrees(atan2(eyes[1], eyes[0])),
            yaw_deg=degrees(atan2(across[2], hypot(across[0], across[1]))),
            pitch_deg=degrees(atan2(down[2], hypot(down[0], down[1]))) - LEVEL_PITCH_DEG,
            axis_z=float(points[[RIGHT_SIDE, LEFT_SIDE], 2].mean()),
        )

    @property
    def axes(self) -> NDArray[np.float64]:
        """(2, 2): the x and y of one pixel along u, and of one along v."""
        c, s = cos(np.radians(self.roll_deg)), sin(np.radians(self.roll_deg))
        return np.array([[c, s], [-s, c]])

    def own(self, x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """u and v of pixels, in sizes of the head from the middle of the face; x and y broadcast."""
        (c, s), _ = self.axes
        dx, dy = (x - self.x) / self.size_px, (y - self.y) / self.size_px
        return dx * c + dy * s, dy * c - dx * s
