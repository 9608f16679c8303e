"""Small videos, encoded and decoded with the real ffmpeg."""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipsyncd.media import ffmpeg
from lipsyncd.renderers.encoder import Encoder

FFMPEG = ffmpeg.find()
RATES = [Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(30), Fraction(60)]


@dataclass(frozen=True)
class Made:
    """An MP4 and its inputs; `samples` (N, channels) int16 at 48 kHz."""

    path: Path
    frames: int
    fps: Fraction
    duration: Fraction
    samples: NDArray[np.int16]


def chirp(samples: int, channels: int) -> NDArray[np.int16]:
    """(samples, channels) int16: a frequency sweep, which correlates at one lag only, and another one for channel 2."""
    seconds = np.arange(samples) / ffmpeg.SOUND_RATE
    sweeps = [np.sin(2 * np.pi * (200 + 90 * channel + 40 * seconds) * seconds) for channel in range(channels)]
    return np.round(np.stack(sweeps, axis=1) * 12_000).astype("<i2")


def drifting(frames: int, width: int, height: int) -> Iterator[NDArray[np.uint8]]:
    """`frames` pictures (height, width, 3): a grey edge that moves one pixel per frame, all in one reused buffer."""
    picture = np.full((height, width, 3), 60, np.uint8)
    for frame in range(frames):
        picture[:] = 60
        picture[:, : 1 + frame % width] = 180
        yield picture


def encoding(folder: Path, fps: Fraction, samples: NDArray[np.int16], width: int, height: int) -> ffmpeg.Encoding:
    """The settings of a test video, its sound written to `folder`."""
    sound = folder / "sound.s16"
    samples.tofile(sound)
    return ffmpeg.Encoding(width=width, height=height, fps=fps, sound=sound, channels=samples.shape[1])


def make(
    folder: Path,
    *,
    fps: Fraction = Fraction(25),
    samples: int = 48_000,
    channels: int = 1,
    width: int = 32,
    height: int = 32,
    name: str = "out.mp4",
) -> Made:
    """A complete MP4 of ceil(duration x fps) frames, encoded as the render child does it."""
    duration = Fraction(samples, ffmpeg.SOUND_RATE)
    frames = math.ceil(duration * fps)
    sweep = chirp(samples, channels)
    target = folder / name
    with Encoder(FFMPEG, encoding(folder, fps, sweep, width, height), target) as encoder:
        for picture in drifting(frames, width, height):
            encoder.write(picture)
        encoder.finish()
    return Made(target, frames, fps, duration, sweep)


def run_ffmpeg(*arguments: str, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run ffmpeg with these arguments; the caller checks the exit status."""
    return subprocess.run(
        [str(FFMPEG), "-hide_banner", "-nostdin", *arguments], input=data or b"", capture_output=True, timeout=120
    )


def decoded_frames(path: Path, width: int, height: int, *before_input: str) -> NDArray[np.uint8]:
    """(N, height, width, 3) uint8 RGB, converted with the matrix that the stream's tags name."""
    options = ["-loglevel", "error", *before_input, "-i", str(path), "-map", "0:v", "-fps_mode", "passthrough"]
    scale = "scale=flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp:out_range=pc"
    done = run_ffmpeg(*options, "-vf", scale, "-pix_fmt", "rgb24", "-f", "rawvideo", "-")
    assert done.returncode == 0, done.stderr
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 3)


def decoded_sound(path: Path, channels: int) -> NDArray[np.int16]:
    """(N, channels) int16 at 48 kHz, as a player plays it: after the edit list."""
    done = run_ffmpeg("-loglevel", "error", "-i", str(path), "-map", "0:a", "-f", "s16le", "-ac", str(channels), "-")
    assert done.returncode == 0, done.stderr
    return np.frombuffer(done.stdout, "<i2").reshape(-1, channels)


def packets(path: Path, stream: str) -> list[tuple[Fraction, Fraction]]:
    """When each packet is shown or heard, and for how long, in seconds and in this order."""
    listed = run_ffmpeg("-loglevel", "error", "-i", str(path), "-map", stream, "-c", "copy", "-f", "framecrc", "-")
    assert listed.returncode == 0, listed.stderr
    text = listed.stdout.decode()
    found = re.search(r"#tb 0: (\d+)/(\d+)", text)
    assert found is not None
    tick = Fraction(int(found[1]), int(found[2]))
    rows = [line.split(",") for line in text.splitlines() if not line.startswith("#")]
    return sorted((int(row[2]) * tick, int(row[3]) * tick) for row in rows)
