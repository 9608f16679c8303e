"""Make one MP4 of the parts of a video and its whole sound.

The parts are copied packet by packet, so each frame is the one that was drawn; the sound is encoded here, once. Before
that the parts are compared: a joined MP4 has one set of decoder parameters, which has to fit all of them.

Leaves drawing the parts to `drawing`, and the check of the joined video to `check_result`.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lipsyncd.errors import BadResult, EncodeFailed
from lipsyncd.log import printable
from lipsyncd.media.ffmpeg import Encoding, join_arguments, join_list
from lipsyncd.media.mp4 import inspect_part
from lipsyncd.media.mp4_boxes import Mp4Damaged
from lipsyncd.processes import exit_text, last_lines
from lipsyncd.sandbox.jail import end
from lipsyncd.worker.child_process import RenderCancelled
from lipsyncd.worker.encoder_process import popen_encoder

_TICK_S = 0.1
_LONGEST_S = 600.0  # ten minutes of sound take seconds; a machine may do much else


@dataclass(frozen=True)
class Part:
    """A file with some frames of a video, without sound."""

    path: Path
    frames: int


def join(
    parts: Sequence[Part], encoding: Encoding, target: Path, *, ffmpeg: Path, stop: Callable[[], bool] = lambda: False
) -> None:
    """Write `target`, a new file, of these parts in this order and the sound of the encoding.

    parts  all in the folder of the target
    stop   called several times a second; True ends it

    Raises `BadResult` when the parts do not fit together, `EncodeFailed`, `JailFailed`, `RenderCancelled`, OSError.
    """
    _compare(parts, encoding)
    names = target.with_name(f"{target.name}.parts")
    log = os.memfd_create("ffmpeg-log")
    try:
        names.write_text(join_list([part.path.name for part in parts]))
        target.touch(mode=0o600, exist_ok=False)
        command = join_arguments(ffmpeg, encoding, names, target)
        inputs = [names, *(part.path for part in parts)]
        process = popen_encoder(command, encoding, target, inputs=inputs, stdin=subprocess.DEVNULL, stderr=log)
        try:
            _wait(process, stop)
        finally:
            end(process)
        if process.returncode:
            output = printable(last_lines(log)) or "it printed no error"
            how = exit_text(process.returncode)
            raise EncodeFailed(f"ffmpeg did not join the {len(parts)} parts of the video, it {how}: {output}")
    finally:
        os.close(log)
        names.unlink(missing_ok=True)


def _wait(process: subprocess.Popen[bytes], stop: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + _LONGEST_S
    while True:
        try:
            process.wait(_TICK_S)
        except subprocess.TimeoutExpired:
            if stop():
                raise RenderCancelled("joining") from None
            if time.monotonic() > deadline_s:
                raise EncodeFailed(f"ffmpeg did not join the parts of the video within {_LONGEST_S:g} s") from None
        else:
            return


def _compare(parts: Sequence[Part], encoding: Encoding) -> None:
    """Raise `BadResult` unless all parts have their frames, one rate and size, and the same decoder parameters."""
    first = b""
    for number, part in enumerate(parts, 1):
        try:
            found = inspect_part(part.path)
        except (Mp4Damaged, OSError) as error:
            raise BadResult(f"part {number} of the video is damaged: {error}") from error
        video = found.video
        seen = (video.frames, video.rate, video.width, video.height)
        if seen != (part.frames, encoding.fps, encoding.width, encoding.height):
            raise BadResult(
                f"part {number} of the video has {video.frames} frames of {video.width}x{video.height} at {video.rate}"
                f" a second, not {part.frames} of {encoding.width}x{encoding.height} at {encoding.fps}"
            )
        first = first or found.parameters
        if found.parameters != first:
            raise BadResult(f"part {number} of the video was encoded differently from the first one")
