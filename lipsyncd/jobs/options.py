"""The renderers of this package, and the options that each of them reads from a manifest's object `lipsyncd`.

Owns names and allowed values, so that a mistake is found before a job is dropped, without a renderer's libraries. A
renderer of the user's own (`render.renderers`) checks its options itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from lipsyncd.errors import BadOption, UnknownRenderer

PARITY_MASK = "parsing"
MAX_BATCH = 64  # frames that MuseTalk computes at a time
FaceChoice = int | tuple[float, float] | None


@dataclass(frozen=True)
class Option:
    """One option: does a value fit, and what is allowed, for people."""

    fits: Callable[[object], bool]
    allowed: str


def read_choice(value: object) -> FaceChoice:
    """The option `face`: 0 is the largest face, 1 the next; or "x,y", a point on it in pixels. Raises `BadOption`."""
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1000:
        return value
    if isinstance(value, str) and re.fullmatch(r"\s*\d{1,5}(\.\d{1,3})?\s*,\s*\d{1,5}(\.\d{1,3})?\s*", value):
        x, y = value.split(",")
        return float(x), float(y)
    raise BadOption(
        f"option face is {value!r}", remedy='it must be a number (0 is the largest face) or "x,y" in pixels'
    )


def check(renderer: str, given: Mapping[str, object], *, of_users: Collection[str] = ()) -> None:
    """Raise `UnknownRenderer`, or `BadOption` for an unknown name, a wrong type or a value out of range.

    of_users  names of the user's own renderers, whose options pass unchecked, whatever they are called
    """
    if renderer in of_users:
        return
    check_renderer(renderer, of_users=of_users)
    options = {**COMMON, **OPTIONS[renderer]}
    for name, value in given.items():
        if name not in options:
            own = ", ".join(sorted(OPTIONS[renderer]))
            raise BadOption(f"the renderer {renderer} has no option {name!r}", remedy=f"it has these: {own}")
        if not options[name].fits(value):
            raise BadOption(f"option {name} is {value!r}", remedy=f"it must be {options[name].allowed}")
    if given.get("parity") is True and given.get("mask", PARITY_MASK) != PARITY_MASK:
        raise BadOption(
            f"option mask is {given['mask']!r} with parity, and MuseTalk itself masks by {PARITY_MASK}",
            remedy="leave out mask, or parity",
        )


def effective(given: Mapping[str, object]) -> Mapping[str, object]:
    """The options with what follows from them: `parity` is the original's computation, whose masks are parsed."""
    return {**given, "mask": PARITY_MASK} if given.get("parity") is True else given


def check_renderer(name: str, *, of_users: Collection[str] = ()) -> None:
    """Raises `UnknownRenderer`."""
    known = sorted({*OPTIONS, *of_users})
    if name not in known:
        raise UnknownRenderer(f"there is no renderer {name!r}", remedy=f"choose one of: {', '.join(known)}")


def names_of(renderers: Collection[str]) -> list[str]:
    """The names in the setting `render.renderers`, whose entries are name=module:Class."""
    return [entry.partition("=")[0] for entry in renderers]


def _is_choice(value: object) -> bool:
    try:
        read_choice(value)
    except BadOption:
        return False
    return True


def _one_of(*choices: str) -> Option:
    return Option(lambda value: value in choices, f"one of: {', '.join(choices)}")


def _whole(low: int, high: int) -> Option:
    # In Python a bool is an int; here `true` is not a number.
    return Option(lambda value: type(value) is int and low <= value <= high, f"a whole number from {low} to {high}")


def _number(low: float, high: float) -> Option:
    """The comparison also refuses NaN."""

    def fits(value: object) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high

    return Option(fits, f"a number from {low:g} to {high:g}")


_FACE = Option(_is_choice, 'a number (0 is the largest face) or "x,y" in pixels')
_FLAG = Option(lambda value: isinstance(value, bool), "true or false")
# What a video does that is shorter than the sound (media.video_frames.MODES). It is read before a renderer is asked, so
# any job may have it.
COMMON: Mapping[str, Option] = {"duration_mode": _one_of("bounce", "loop", "cut")}
OPTIONS: Mapping[str, Mapping[str, Option]] = {
    "musetalk": {
        "face": _FACE,
        "silence": _one_of("source", "model"),  # what the mouth shows in a pause
        "mask": _one_of("landmarks", "parsing"),  # how the painted pixels are found
        "mode": _one_of("jaw", "raw", "neck"),  # which parts of the face are painted
        "extra_margin": _whole(0, 100),
        "batch": _whole(1, MAX_BATCH),
        "detail": _number(0, 1),
        "parity": _FLAG,
        "blink": _FLAG,
        **COMMON,
    },
    "preview": {
        "face": _FACE,
        "strength": _number(0.5, 1.5),
        "sway": _number(0, 1),
        "blink": _FLAG,
    },
}
