"""A video in place of a picture: how ffmpeg reads it, and which of its frames is shown when.

A job has one frame rate. Whatever rate the source has, constant or not, its frames are resampled to the job's rate by
their timestamps: frame n is the one shown at n / fps. Any range of frames can be read again and gives the same frames;
playing a source backwards depends on that.

Owns the command line that decodes a video, and the order of its frames when the sound is longer. Runs nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path

from lipsyncd.errors import BadOption

BOUNCE, LOOP, CUT = "bounce", "loop", "cut"
MODES = (BOUNCE, LOOP, CUT)  # what happens when the sound is longer; the first is the default
OPTION = "duration_mode"
MAX_MEGAPIXELS = 9.0  # of a frame: 4K UHD has 8.3

_SIDE_DIGITS = 10  # fewer digits than this has any side in a report

# For each kind of `lipsyncd.media` the only demuxer that may open it.
_DEMUXERS = {"mp4": "mov", "webm": "matroska"}
# The codecs of phones, cameras and editors. Both native and library names, since builds of ffmpeg differ.
_CODECS = "h264,hevc,mpeg4,mjpeg,prores,vp8,libvpx,vp9,libvpx-vp9,av1,libdav1d"
# A container's index has decoding times, a little before the frame is shown. ffmpeg seeks to a key frame before the
# requested time, so this margin only has to cover the reordering.
_BEFORE_S = 1


def read_mode(options: Mapping[str, object]) -> str:
    """A job's option `duration_mode`. Raises `BadOption`."""
    mode = options.get(OPTION, MODES[0])
    if mode not in MODES:
        raise BadOption(f"option {OPTION} is {mode!r}", remedy=f"it must be one of: {', '.join(MODES)}")
    return str(mode)


def source_index(number: int, frames: int, mode: str) -> int:
    """Which of the source's `frames` frames is shown as frame `number` of the video.

    A source that bounces does not show the first and the last frame twice in a row.
    """
    if mode == LOOP:
        return number % frames
    if mode == CUT or frames == 1:
        return min(number, frames - 1)
    place = number % (2 * frames - 2)
    return min(place, 2 * frames - 2 - place)


def stretches(count: int, frames: int, mode: str) -> Iterator[range]:
    """The first `count` values of `source_index` as ranges of source frames, forwards and backwards in turn."""
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
    """Decode at most the first `frames` frames: a line for each goes into `report`, the first one into `picture`.

    report   in the format of ffmpeg's `framecrc`; see `read_report`
    picture  raw rgb24
    """
    clock = f"{_clock(fps)},{_SQUARE}"
    return [
        *_input_arguments(ffmpeg, source, kind),
        "-map", "0:V:0", "-an", "-sn", "-dn", "-vf", clock, "-frames:v", str(frames),
        "-f", "framecrc", f"file:{report}",
        "-map", "0:V:0", "-an", "-sn", "-dn", "-vf", f"{clock},format=rgb24", "-frames:v", "1",
        "-f", "rawvideo", f"file:{picture}",
    ]  # fmt: skip


def read_report(text: str) -> tuple[int, int, int]:
    """Width, height and number of frames from a report; 0 for each value that is missing."""
    width = height = frames = 0
    for line in text.splitlines():
        if line.startswith("#dimensions 0:"):
            sides = line.rpartition(":")[2].strip().split("x")
            if len(sides) == 2 and all(side.isdecimal() and len(side) < _SIDE_DIGITS for side in sides):
                width, height = int(sides[0]), int(sides[1])
        elif line and not line.startswith("#"):
            frames += 1
    return width, height, frames


def frames_command(
    ffmpeg: Path, source: Path, kind: str, *, fps: Fraction, start: int, count: int, width: int, height: int
) -> list[str]:
    """Decode `count` frames from number `start` on as raw rgb24 of `width` x `height` to stdout.

    The size is that of the scan. Frames of a source that changes its size midway are scaled to it.
    """
    seek: list[str] = []
    if start / fps > _BEFORE_S:
        # Not accurate: everything from the key frame on is decoded, and the fps filter selects the same frames as ever.
        seek = ["-noaccurate_seek", "-ss", f"{float(start / fps - _BEFORE_S):.6f}"]
    chain = f"{_clock(fps)},trim=start_frame={start}:end_frame={start + count},setpts=N/FRAME_RATE/TB"
    scaled = f"scale={width}:{height}:flags={_FLAGS},format=rgb24"
    return [
        *_input_arguments(ffmpeg, source, kind, seek),
        "-map", "0:V:0", "-an", "-sn", "-dn", "-vf", f"{chain},{scaled}", "-frames:v", str(count),
        "-f", "rawvideo", "pipe:1",
    ]  # fmt: skip


# Full chroma keeps the edges of lips; exact rounding would take four times as long for one level of 256.
_FLAGS = "bicubic+full_chroma_int"
# Pixels that are not square are stretched to squares. The factor is bounded, since a file may claim anything.
_SQUARE = f"scale='max(2,round(iw*clip(sar,0.25,4)))':ih:flags={_FLAGS},setsar=1"


def _clock(fps: Fraction) -> str:
    """The filter that resamples frames to the job's rate, from the start of the source on."""
    return f"fps=fps={fps.numerator}/{fps.denominator}:start_time=0"


def _input_arguments(ffmpeg: Path, source: Path, kind: str, seek: list[str] | None = None) -> list[str]:
    demuxer = _DEMUXERS[kind]
    return [
        os.fspath(ffmpeg), "-nostdin", "-hide_banner", "-loglevel", "error", "-y", "-threads", "2",
        "-copyts", "-start_at_zero", *(seek or []), "-max_pixels", str(int(MAX_MEGAPIXELS * 1_000_000)),
        "-protocol_whitelist", "file,pipe", "-format_whitelist", demuxer, "-codec_whitelist", _CODECS,
        "-f", demuxer, "-i", f"file:{source}",
    ]  # fmt: skip
