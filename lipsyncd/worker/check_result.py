"""Check that a rendered MP4 is what the job asked for.

A result is accepted only after `validate`: an encoder that ran out of disk, was killed or was handed too few frames
can leave a file that looks fine from its size and name.

Leaves the reading of boxes to `lipsyncd.media.mp4` and the pixels to a jailed ffmpeg, which decodes the last second.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from lipsyncd.errors import BadResult
from lipsyncd.media.mp4 import BT709, Mp4Facts, inspect
from lipsyncd.media.mp4_boxes import Mp4Damaged
from lipsyncd.processes import exit_text
from lipsyncd.sandbox.jail import run_jailed

_DECODE_TIMEOUT_S = 60.0
_AAC_PACKET_S = Fraction(1024, 48_000)  # an encoder may pad the end of the sound to a whole packet


def validate(
    path: Path, *, frames: int, fps: Fraction, width: int, height: int, duration: Fraction, ffmpeg: Path
) -> None:
    """Compare the MP4 at `path` with what was requested, then decode its last second.

    frames, fps, width, height   of the video; the frames are counted, their common length is exact
    duration                     seconds of sound that went in: the sound has to be whole
    ffmpeg                       decodes the last second: a cut or overwritten file is damaged there first

    Raises `BadResult` that names the first thing that differs. Takes about 0.1 s, whatever the length.
    """
    try:
        facts = inspect(path)
    except Mp4Damaged as error:
        raise BadResult(f"the MP4 is damaged: {error}") from error
    except OSError as error:
        raise BadResult(f"the MP4 cannot be read: {error.strerror or error}") from error
    if fault := next(_faults(facts, frames, fps, (width, height), duration), None):
        raise BadResult(f"the MP4 is wrong: {fault}")
    _decode_last_second(path, ffmpeg)


def _faults(facts: Mp4Facts, frames: int, fps: Fraction, size: tuple[int, int], duration: Fraction) -> Iterator[str]:
    video, audio = facts.video, facts.audio
    if facts.truncated:
        yield "it ends before its boxes do"
    if not facts.moov_first:
        yield "its index comes after its media, so it does not play from the first byte"
    if (video.codec, audio.codec) != ("avc1", "mp4a"):
        yield f"it holds {video.codec} and {audio.codec}, not avc1 and mp4a"
    if video.colour != BT709:
        yield f"its colour tags are {video.colour}, not bt709 in the limited range"
    if (video.width, video.height) != size:
        yield f"its frames are {video.width}x{video.height}, not {size[0]}x{size[1]}"
    if video.frames != frames:
        yield f"it has {video.frames} frames, not {frames}"
    if video.rate != fps or video.duration != frames / fps:
        yield f"its {frames} frames last {float(video.duration):.6f} s at {video.rate} a second, not {fps}"
    if video.start_s or audio.start_s:
        yield f"its picture starts at {float(video.start_s):.4f} s and its sound at {float(audio.start_s):.4f} s"
    if abs(audio.duration - duration) >= _AAC_PACKET_S:
        yield f"its sound lasts {float(audio.duration):.4f} s, not {float(duration):.4f} s"
    if abs(video.duration - audio.duration) >= 1 / fps:
        yield f"its picture lasts {float(video.duration):.4f} s and its sound {float(audio.duration):.4f} s"


def _decode_last_second(path: Path, ffmpeg: Path) -> None:
    options = ["-hide_banner", "-nostdin", "-loglevel", "error", "-xerror", "-err_detect", "explode", "-sseof", "-1"]
    command = [os.fspath(ffmpeg), *options, "-f", "mov", "-i", f"file:{path.absolute()}"]
    command += ["-map", "0:v:0", "-map", "0:a:0", "-f", "null", "-"]
    done = run_jailed(command, readable=[path.absolute()], timeout_s=_DECODE_TIMEOUT_S)
    if done.timed_out:
        raise BadResult(f"the MP4's last second does not decode within {_DECODE_TIMEOUT_S:g} s")
    errors = " | ".join(done.stderr_tail.split("\n")).strip(" |")
    if done.returncode != 0 or errors:
        raise BadResult(
            f"the MP4 does not decode to its end: {errors[-300:] or f'ffmpeg {exit_text(done.returncode)}'}"
        )
