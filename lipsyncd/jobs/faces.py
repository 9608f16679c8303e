"""The faces of a still, as they were seen when the job was prepared or the picture was uploaded.

Only numbers and words: the mesh stays in the process that made it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class SeenFace:
    """A face, in pixels of the decoded picture.

    x, y, width, height  the box from the hairline to the chin; it may reach outside the picture
    mouth                x and y of the middle of the mouth
    confidence           0 to 1
    yaw_deg, roll_deg    how far the head is turned to the picture's right, and leans clockwise
    fault                why it cannot speak, as the end of a sentence; "" when it can, and where none was requested
    """

    x: int
    y: int
    width: int
    height: int
    mouth: tuple[float, float]
    confidence: float
    yaw_deg: float
    roll_deg: float
    fault: str = ""


@dataclass(frozen=True)
class Faces:
    """What was found in one picture.

    seen     the largest first; where the first one can speak, smaller ones may be missing
    chosen   the number of the face that speaks; None when there is none
    refusal  why there is none: the `reason` of an error; empty with a chosen face
    choice   the option `face` by which it was chosen; None for the largest
    """

    seen: tuple[SeenFace, ...]
    chosen: int | None
    refusal: Mapping[str, str] = field(default_factory=dict)
    choice: object = None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Faces:
        """The reverse of `asdict`. Raises KeyError, TypeError or ValueError."""
        seen = tuple(SeenFace(**{**face, "mouth": tuple(map(float, face["mouth"]))}) for face in data["seen"])
        refusal = {str(name): str(text) for name, text in data["refusal"].items()}
        return cls(seen, data["chosen"], refusal, data["choice"])
