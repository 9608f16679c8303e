"""The options of this renderer, as its modules use them. `jobs.options` has their names and what is allowed.

Owns the defaults. Leaves the effect of each option to the module that uses it: `blink` to `renderers.motion`,
`duration_mode` to the video source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from lipsyncd.jobs.options import FaceChoice, check, effective, read_choice
from lipsyncd.renderers.musetalk.face.find_face import MARGIN_PX


@dataclass(frozen=True)
class Options:
    """All options. With `batch` 0 the device determines the batch size."""

    face: FaceChoice = None
    silence: str = "source"
    mask: str = "landmarks"
    mode: str = "jaw"
    extra_margin: int = MARGIN_PX
    batch: int = 0
    detail: float = 0.8
    parity: bool = False


def read(given: Mapping[str, Any]) -> Options:
    """Options from a manifest. Raises `BadOption` for an unknown name, a wrong type or a value out of range."""
    check("musetalk", given)
    meant: Mapping[str, Any] = effective(given)
    ours = {item.name: meant[item.name] for item in fields(Options) if item.name in meant}
    detail = float(meant.get("detail", Options.detail))
    return Options(**{**ours, "detail": detail, "face": read_choice(meant.get("face"))})
