"""What a manifest may say to this renderer, checked.

Owns names, ranges and defaults. Leaves what they do to the modules that are given them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lipsyncd.errors import BadOption
from lipsyncd.media import video_frames
from lipsyncd.renderers.musetalk.face.find_face import MARGIN_PX, Choice, read_choice
from lipsyncd.renderers.musetalk.gpu_memory import MOST

CHOICES: Mapping[str, tuple[str, ...]] = {
    "silence": ("source", "model"),  # what the mouth does in a pause
    "mask": ("landmarks", "parsing"),  # what says which pixels are painted
    "mode": ("jaw", "raw", "neck"),  # which parts of the face these are
}
RANGES: Mapping[str, tuple[int, int]] = {"extra_margin": (0, 100), "batch": (1, MOST)}


@dataclass(frozen=True)
class Options:
    """Everything that can be chosen. `batch` 0 leaves the batch size to the device."""

    face: Choice = None
    silence: str = "source"
    mask: str = "landmarks"
    mode: str = "jaw"
    extra_margin: int = MARGIN_PX
    batch: int = 0
    parity: bool = False


def read(given: Mapping[str, object]) -> Options:
    """Options from a manifest. Raises `BadOption` for an unknown name, a wrong type or a value out of range."""
    video_frames.read_mode(given)  # what it says is the source's business; here it only has to be right
    known = ("face", *CHOICES, *RANGES, "parity", video_frames.OPTION)
    for name in given:
        if name not in known:
            raise BadOption(
                f"the renderer musetalk has no option {name!r}", remedy=f"it has these: {', '.join(sorted(known))}"
            )
    parity = given.get("parity", Options.parity)
    if not isinstance(parity, bool):
        raise BadOption(f"option parity is {parity!r}", remedy="it must be true or false")
    return Options(
        face=read_choice(given.get("face")),
        silence=_chosen(given, "silence", Options.silence),
        mask=_chosen(given, "mask", Options.mask),
        mode=_chosen(given, "mode", Options.mode),
        extra_margin=_number(given, "extra_margin", Options.extra_margin),
        batch=_number(given, "batch", Options.batch),
        parity=parity,
    )


def _chosen(given: Mapping[str, object], name: str, default: str) -> str:
    value = given.get(name, default)
    if value not in CHOICES[name]:
        raise BadOption(f"option {name} is {value!r}", remedy=f"it must be one of: {', '.join(CHOICES[name])}")
    return str(value)


def _number(given: Mapping[str, object], name: str, default: int) -> int:
    if name not in given:
        return default
    value, (low, high) = given[name], RANGES[name]
    # bool is an int in Python; `true` is no number here.
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadOption(f"option {name} is {value!r}", remedy=f"it must be a whole number from {low} to {high}")
    return value
