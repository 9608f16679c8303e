"""A video in place of a picture: how ffmpeg reads it, and which of its frames shows when.

A job has one clock, its own frame rate. Whatever rate a source has, constant or not, its frames are put on that clock
by their timestamps: number n is the one that shows at n / fps. Any stretch of numbers can be read again and gives the
same frames, which a source that runs backwards needs.

Owns the command line that decodes a video, and the order of its frames when a sound is longer. Pure: runs nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path

from lipsyncd.errors import BadOption

BOUNCE, LOOP, CUT = "bounce", "loop", "cut"
MODES = (BOUNCE, LOOP, CUT)  # what happens when the sound is longer; the first one unless a job says otherwise
OPTION = "duration_mode"
MAX_MEGAPIXELS = 9.0  # of a frame: 4K UHD has 8.3

# For each kind of `lipsyncd.media` the one demuxer that may open it.
_DEMUXERS = {"mp4": "mov", "webm": "matroska"}
# What phones, cameras and editors put into them. Both native and library names, since builds of ffmpeg differ.
_CODECS = "h264,hevc,mpeg4,mjpeg,prores,vp8,libvpx,vp9,libvpx-vp9,av1,libdav1d"
# A container's index counts in decoding order, a little before the frame is shown. ffmpeg goes to a key frame before
# the place that it is told, so this only has to cover the reordering.
_BEFORE_S = 1


def read_mode(options: Mapping[str, object]) -> str:
    """What a job's option `duration_mode` says. Raises `BadOption`."""
    mode = options.get(OPTION, MODES[0])
    if mode not in MODES:
        raise BadOption(f"option {OPTION} is {mode!r}", remedy=f"it must be one of: {', '.join(MODES)}")
    return str(mode)


def source_index(number: int, frames: int, mode: str) -> int:
    """Which of `frames` frames of the source shows as number `number` of the video.

    A source that bounces turns without showing the frame of the turn twice.
    """
    if mode == LOOP:
        return number % frames
    if mode == CUT or frames == 1:
        return min(number, frames - 1)
    place = number % (2 * frames - 2)
    return min(place, 2 * frames - 2 - place)


def stretches(count: int, frames: int, mode: str) -> Iterator[range]:
    """The first `count` places of `source_index` as ranges of the source, forwards and backwards in turn."""
    number = 0
    while number < count:
        start = source_index(number, frames, mode)
        back = mode == BOUNCE and source_index(number + 1, frames, mode) < start
        length = min(count - number, start + 1 if back else frames - start)
        yield range(start, start - length, -1) if back else range(start, start + length)
        number += length


def scan_command(
    ffmpeg: Path, source: Path, kind: str, *, fps: Fraction, frames: int, report: Path, picture: Path
) -> list[str]:
    """Decode at most the first `frames` frames: a line for each into `report`, and the first one into `picture`.

    report   as ffmpeg's `framecrc` writes it; `read_report` reads it
    picture  raw rgb24
    """
    clock = f"{_clock(fps)},{_SQUARE}"
    return [
        *_opening(ffmpeg, source, kind),
        "-map", "0:V:0", "-an", "-sn", "-dn", "-vf", clock, "-frames:v", str(frames),
        "-f", "framecrc", f"file:{report}",
        "-map", "0:V:0", "-an", "-sn", "-dn", "-vf", f"{clock},format=rgb24", "-frames:v", "1",
        "-f", "rawvideo", f"file:{picture}",
    ]  # fmt: skip


def read_report(text: str) -> tuple[int, int, int]:
    """Width, height and number of frames out of a report; zeros for what it does not say."""
    width = height = frames = 0
    for line in text.splitlines():
        if line.startswith("#dimensions 0:"):
            sides = line.rpartition(":")[2].strip().split("x")
            if len(sides) == 2 and all(side.isdecimal() for side in sides):
                width, height = int(sides[0]), int(sides[1])
        elif line and not line.startswith("#"):
            frames += 1
    return width, height, frames


def frames_command(
    ffmpeg: Path, source: Path, kind: str, *, fps: Fraction, start: int, count: int, width: int, height: int
) -> list[str]:
    """Decode `count` frames from number `start` on as raw rgb24 of `width` x `height` to stdout.

    The size is that of the scan. A source that changes its own in the middle is scaled, or frames would be torn.
    """
    seek: list[str] = []
    if start / fps > _BEFORE_S:
        # Not accurate: everything from the key frame on is decoded, and the clock picks the same frames as ever.
        seek = ["-noaccurate_seek", "-ss", f"{float(start / fps - _BEFORE_S):.6f}"]
    chain = f"{_clock(fps)},trim=start_frame={start}:end_frame={start + count},setpts=N/FRAME_RATE/TB"
    scaled = f"scale={width}:{height}:flags={_FLAGS},format=rgb24"
    return [
        *_opening(ffmpeg, source, kind, seek),
        "-map", "0:V:0", "-an", "-sn", "-dn", "-vf", f"{chain},{scaled}", "-frames:v", str(count),
        "-f", "rawvideo", "pipe:1",
    ]  # fmt: skip


# Chroma in full keeps the edges of lips; exact rounding would make this four times as slow for one level of 256.
_FLAGS = "bicubic+full_chroma_int"
# Pixels that are not square become so. The factor is bounded: a file may say anything.
_SQUARE = f"scale='max(2,round(iw*clip(sar,0.25,4)))':ih:flags={_FLAGS},setsar=1"


def _clock(fps: Fraction) -> str:
    """Frames on the job's clock, counted from the moment when the source starts."""
    return f"fps=fps={fps.numerator}/{fps.denominator}:start_time=0"


def _opening(ffmpeg: Path, source: Path, kind: str, seek: list[str] | None = None) -> list[str]:
    demuxer = _DEMUXERS[kind]
    return [
        os.fspath(ffmpeg), "-nostdin", "-hide_banner", "-loglevel", "error", "-y", "-threads", "2",
        "-copyts", "-start_at_zero", *(seek or []), "-max_pixels", str(int(MAX_MEGAPIXELS * 1_000_000)),
        "-protocol_whitelist", "file,pipe", "-format_whitelist", demuxer, "-codec_whitelist", _CODECS,
        "-f", demuxer, "-i", f"file:{source}",
    ]  # fmt: skip
