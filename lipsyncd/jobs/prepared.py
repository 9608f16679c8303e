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
    """`file` in the job's folder: height x width x 3 bytes, RGB, upright and opaque. `notes` are for the sidecar."""

    file: str
    width: int
    height: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Video:
    """`file` in the job's folder: the video as it was dropped. The render child decodes it in the jail, frame by frame.

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
    """Two raw files in the job's folder, both signed 16 bit little endian: 16 kHz mono speech, and the MP4's sound.

    samples   of each channel of the MP4's sound, at `rate` a second
    channels  1 where the source was mono, else 2, interleaved
    """

    speech_file: str
    speech_samples: int
    file: str
    samples: int
    rate: int
    channels: int
    notes: tuple[str, ...] = ()

    @property
    def duration(self) -> Fraction:
        """Seconds, exactly: samples that were decoded, never what a header claims."""
        return Fraction(self.samples, self.rate)


@dataclass(frozen=True)
class Prepared:
    """The jail's output for one job: raw files in the job's folder, and nothing else for a renderer to read.

    notes  of the whole; picture and sound have their own
    pad_s  seconds of silence appended to the sound
    video  moves in place of the picture, which is then its first frame
    """

    picture: Picture
    sound: Sound
    notes: tuple[str, ...] = ()
    pad_s: float = 0.0
    video: Video | None = None

    @property
    def all_notes(self) -> tuple[str, ...]:
        """In the order in which the inputs were decoded, for the sidecar."""
        return (*self.picture.notes, *self.sound.notes, *self.notes)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Prepared:
        """What `asdict` made of one. Raises KeyError, TypeError or ValueError."""
        picture, sound, video = inputs_from_json(data)
        return cls(picture, sound, tuple(data["notes"]), float(data["pad_s"]), video)


def inputs_from_json(data: Mapping[str, Any]) -> tuple[Picture, Sound, Video | None]:
    """Picture, sound and video of an object that holds them under these names. Raises KeyError or TypeError."""
    picture, sound = ({**data[name], "notes": tuple(data[name].get("notes", ()))} for name in ("picture", "sound"))
    return Picture(**picture), Sound(**sound), Video(**data["video"]) if data.get("video") else None


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

    @property
    def facts(self) -> dict[str, Any]:
        """What the ledger records of the video."""
        return {"sha256": self.sha256, "size": self.size, "frames": self.frames, "render_ms": self.render_ms}


def frame_count(duration: Fraction, fps: Fraction) -> int:
    """How many pictures cover a sound: never fewer than it lasts."""
    return max(1, math.ceil(duration * fps))
