"""The options of this renderer, as its modules use them. `jobs.options` has their names and what is allowed.

Owns the defaults. Those of the moving head, `blink` and `sway`, are used by `renderers.motion`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lipsyncd.jobs.options import FaceChoice, check, read_choice


@dataclass(frozen=True)
class Options:
    """All options but those of the moving head."""

    strength: float = 1.0  # of the mouth's opening
    face: FaceChoice = None  # the one that speaks; None: the largest that can


def read(given: Mapping[str, Any]) -> Options:
    """Options from a manifest. Raises `BadOption` for an unknown name, a wrong type or a value out of range."""
    check("preview", given)
    return Options(float(given.get("strength", Options.strength)), read_choice(given.get("face")))
