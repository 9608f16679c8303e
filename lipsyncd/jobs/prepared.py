"""A job's prepared inputs, and the facts of its finished video.

The jailed decoders turn the files of a client into a raw picture and raw sound. A render child reads only these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from lipsyncd.jobs.faces import Faces


@dataclass(frozen=True)
class Picture:
    """`file` in the job's folder: height x width x 3 bytes, RGB, upright and opaque. `notes` are for the sidecar.

    reduced  it was decoded at half its size, which is enough for the square around a face
    """

    file: str
    width: int
    height: int
    notes: tuple[str, ...] = ()
    reduced: bool = False


@dataclass(frozen=True)
class Video:
    """`file` in the job's folder: the video as it was dropped. The render child decodes it in the jail, frame by frame.

    kind           of `lipsyncd.media`: mp4 or webm
    width, height  after rotation, in square pixels
    fps, frames    the job's rate, and how many frames it has at that rate, or as many as the job needs
    mode           of `lipsyncd.media.video_frames`: what is shown when the sound is longer
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
    """Two raw files in the job's folder, both signed 16-bit little-endian: 16 kHz mono speech, and the MP4's sound.

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
        """The exact duration in seconds, from the decoded samples and never from a header."""
        return Fraction(self.samples, self.rate)


@dataclass(frozen=True)
class Prepared:
    """The jail's output for one job: raw files in the job's folder. A renderer reads nothing else.

    notes  about the whole; picture and sound have their own
    pad_s  seconds of silence appended to the sound
    video  used in place of the picture, which is then its first frame
    faces  of the picture; None where the renderer decides for itself, and for jobs of older versions
    voice  that spoke the text, as it decides whether two jobs are equal; "" where there was a sound
    """

    picture: Picture
    sound: Sound
    notes: tuple[str, ...] = ()
    pad_s: float = 0.0
    video: Video | None = None
    faces: Faces | None = None
    voice: str = ""

    @property
    def all_notes(self) -> tuple[str, ...]:
        """All notes for the sidecar, in the order in which the inputs were decoded."""
        return (*self.picture.notes, *self.sound.notes, *self.notes)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Prepared:
        """The reverse of `asdict`. Raises KeyError, TypeError or ValueError."""
        picture, sound, video = inputs_from_json(data)
        faces = Faces.from_json(data["faces"]) if data.get("faces") else None
        voice = str(data.get("voice", ""))
        return cls(picture, sound, tuple(data["notes"]), float(data["pad_s"]), video, faces, voice)


def inputs_from_json(data: Mapping[str, Any]) -> tuple[Picture, Sound, Video | None]:
    """Picture, sound and video of an object that holds them under these names. Raises KeyError or TypeError."""
    picture, sound = ({**data[name], "notes": tuple(data[name].get("notes", ()))} for name in ("picture", "sound"))
    video = data.get("video")
    return Picture(**picture), Sound(**sound), None if video is None else Video(**video)


@dataclass(frozen=True)
class Output:
    """The finished video of a job.

    notes         the renderer's notes, for the sidecar
    recipe        the settings that the video depends on (`recipe_of`)
    duplicate_of  the other job that it was rendered for, if any
    shown_as      path of that job's video in the outbox; this job then has a sidecar and no video of its own
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
        """The columns of the video in the ledger."""
        return {"sha256": self.sha256, "size": self.size, "frames": self.frames, "render_ms": self.render_ms}


def frame_count(duration: Fraction, fps: Fraction) -> int:
    """The number of frames that covers a sound, rounded up."""
    return max(1, math.ceil(duration * fps))
