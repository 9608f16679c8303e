"""The options of this renderer in a manifest, validated.

Owns names, ranges and defaults. Leaves their effect to the modules that use them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lipsyncd.errors import BadOption
from lipsyncd.media import video_frames
from lipsyncd.renderers.musetalk.face.find_face import MARGIN_PX, FaceChoice, read_choice
from lipsyncd.renderers.musetalk.gpu_memory import MAX_BATCH

CHOICES: Mapping[str, tuple[str, ...]] = {
    "silence": ("source", "model"),  # what the mouth shows in a pause
    "mask": ("landmarks", "parsing"),  # how the painted pixels are found
    "mode": ("jaw", "raw", "neck"),  # which parts of the face are painted
}
RANGES: Mapping[str, tuple[int, int]] = {"extra_margin": (0, 100), "batch": (1, MAX_BATCH)}


@dataclass(frozen=True)
class Options:
    """All options. With `batch` 0 the device determines the batch size."""

    face: FaceChoice = None
    silence: str = "source"
    mask: str = "landmarks"
    mode: str = "jaw"
    extra_margin: int = MARGIN_PX
    batch: int = 0
    parity: bool = False


def read(given: Mapping[str, object]) -> Options:
    """Options from a manifest. Raises `BadOption` for an unknown name, a wrong type or a value out of range."""
    video_frames.read_mode(given)  # only validated here; the video source uses it
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
    # In Python a bool is an int; here `true` is not a number.
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadOption(f"option {name} is {value!r}", remedy=f"it must be a whole number from {low} to {high}")
    return value
