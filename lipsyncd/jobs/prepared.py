"""A job's prepared inputs, and the facts of its finished video.

The decoders in the jail make a raw picture and raw sound of what people bring; a render child reads only these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any


@dataclass(frozen=True)
class Picture:
    """`file` in the job's folder: raw RGB, height x width x 3 bytes."""

    file: str
    width: int
    height: int


@dataclass(frozen=True)
class Video:
    """`file` in the job's folder: still as it was dropped, to be decoded in the jail as it is shown.

    kind           of `lipsyncd.media`: mp4 or webm
    width, height  upright, in square pixels
    fps, frames    the job's rate, and how many frames it has at that rate, or as many as the job needs
    mode           of `lipsyncd.media.video_frames`: what happens when the sound is longer
    """

    file: str
    kind: str
    width: int
    height: int
    fps: str
    frames: int
    mode: str


@dataclass(frozen=True)
class Sound:
    """Two raw files in the job's folder, both signed 16 bit little endian: 16 kHz mono, and what goes into the MP4."""

    speech_file: str
    speech_samples: int
    file: str
    samples: int
    rate: int
    channels: int


@dataclass(frozen=True)
class Prepared:
    """What the jail made of the inputs: raw files in the job's folder, nothing else for a renderer to read.

    pad_s  seconds of silence that the sound got behind it
    video  what moves in place of the picture, which is then its first frame
    """

    picture: Picture
    sound: Sound
    notes: tuple[str, ...] = ()
    pad_s: float = 0.0
    video: Video | None = None


@dataclass(frozen=True)
class Output:
    """The finished video of a job.

    notes         the renderer's own, for the sidecar
    recipe        the settings that shaped it (`recipe_of`)
    duplicate_of  the job that it was rendered for, when that was another one
    shown_as      where in the outbox that job's video lies; this job then has a sidecar and no video of its own
    """

    sha256: str
    size: int
    frames: int
    width: int
    height: int
    render_ms: int
    duration_ms: int
    attempt: int
    notes: Mapping[str, Any]
    recipe: str = ""
    duplicate_of: str | None = None
    shown_as: str | None = None


def frame_count(duration: Fraction, fps: Fraction) -> int:
    """How many pictures cover a sound: never fewer than it lasts."""
    return max(1, math.ceil(duration * fps))
