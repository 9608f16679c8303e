"""One face: its mesh in a picture, and the sizes and angles that follow from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers.face import points
from lipsyncd.renderers.face.networks import Mesh
from lipsyncd.renderers.framing import Box

# In a face that looks straight ahead the chin lies a little behind the forehead, as the mesh sees it.
_LEVEL_PITCH_DEG = 9.0


@dataclass(frozen=True, eq=False)
class Face:
    """A face that was found; equal only to itself.

    mesh      (468, 3) float32, in pixels of the picture; z grows away from the camera, in the same unit
    presence  0 to 1: how sure the mesh is that there is a face
    score     0 to 1: of the detector
    """

    mesh: Mesh
    presence: float
    score: float

    @cached_property
    def box(self) -> Box:
        """The smallest box around the face, from the hairline to the chin; it may reach outside the picture."""
        left, top = np.floor(self.mesh[:, :2].min(axis=0)).astype(int).tolist()
        right, bottom = np.ceil(self.mesh[:, :2].max(axis=0)).astype(int).tolist()
        return Box(left, top, max(right - left, 1), max(bottom - top, 1))

    @property
    def centre(self) -> tuple[float, float]:
        """The middle of the box."""
        return self.box.x + self.box.width / 2, self.box.y + self.box.height / 2

    @cached_property
    def width_px(self) -> float:
        """The width of the face across the cheeks as if it looked at the camera, in pixels."""
        return float(np.linalg.norm(self.mesh[454] - self.mesh[234]))

    @cached_property
    def eyes_px(self) -> float:
        """From the middle of one eye to that of the other, as if the face looked at the camera, in pixels."""
        right, left = (self.mesh[list(c)].mean(axis=0) for c in (points.RIGHT_EYE_CORNERS, points.LEFT_EYE_CORNERS))
        return float(np.linalg.norm(left - right))

    @cached_property
    def mouth(self) -> tuple[float, float]:
        """The middle of the mouth in the picture."""
        x, y = self.mesh[list(points.INNER_UPPER_LIP + points.INNER_LOWER_LIP), :2].mean(axis=0).tolist()
        return x, y

    @cached_property
    def roll_deg(self) -> float:
        """How far the head leans, clockwise positive, -180 to 180."""
        across = self._across
        return math.degrees(math.atan2(across[1], across[0]))

    @cached_property
    def yaw_deg(self) -> float:
        """How far the head is turned to the side, positive when the nose points to the picture's right."""
        across = self._across
        return math.degrees(math.atan2(across[2], math.hypot(across[0], across[1])))

    @cached_property
    def pitch_deg(self) -> float:
        """How far the head is lowered, positive when the nose points down."""
        down = self.mesh[points.CHIN] - self.mesh[points.FOREHEAD]
        return math.degrees(math.atan2(down[2], math.hypot(down[0], down[1]))) - _LEVEL_PITCH_DEG

    @cached_property
    def _across(self) -> NDArray[np.float64]:
        """From the person's right to the left: the mean of lines between points that mirror each other."""
        pairs = np.asarray(points.MIRRORED)
        lines = (self.mesh[pairs[:, 1]] - self.mesh[pairs[:, 0]]).astype(np.float64)
        across: NDArray[np.float64] = lines.sum(axis=0)
        return across
