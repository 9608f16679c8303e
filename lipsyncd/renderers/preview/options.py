"""The options of this renderer in a manifest, validated.

Owns names, ranges and defaults. Leaves their effect to the modules that use them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lipsyncd.errors import BadOption


@dataclass(frozen=True)
class Options:
    """All options."""

    blink: bool = True
    sway_percent: float = 0.0  # of the picture's shorter side; 0 keeps the head still
    strength: float = 1.0  # of the mouth's opening


RANGES = {"sway": (0.0, 1.0), "strength": (0.5, 1.5)}


def read(given: Mapping[str, object]) -> Options:
    """Options from a manifest. Raises `BadOption` for an unknown name, a wrong type or a value out of range."""
    for name in given:
        if name != "blink" and name not in RANGES:
            known = ", ".join(["blink", *RANGES])
            raise BadOption(f"the renderer preview has no option {name!r}", remedy=f"it has these: {known}")
    blink = given.get("blink", Options.blink)
    if not isinstance(blink, bool):
        raise BadOption(f"option blink is {blink!r}", remedy="it must be true or false")
    sway = _number(given, "sway", Options.sway_percent)
    return Options(blink=blink, sway_percent=sway, strength=_number(given, "strength", Options.strength))


def _number(given: Mapping[str, object], name: str, default: float) -> float:
    value, (low, high) = given.get(name, default), RANGES[name]
    # In Python a bool is an int; here `true` is not a number. The comparison also refuses NaN.
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise BadOption(f"option {name} is {value!r}", remedy=f"it must be a number from {low:g} to {high:g}")
    return float(value)
