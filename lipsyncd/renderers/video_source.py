"""The frames of a video that a job brings, decoded while they are shown.

A jailed ffmpeg writes raw frames into a pipe that the render child reads: nothing of the video is stored, and memory
does not grow with its length. A source that runs backwards is read in short stretches, the last one first, each turned
round in memory.

Owns the running decoder. Leaves its command line and the order of frames to `lipsyncd.media.video_frames`, the walls to
`lipsyncd.sandbox.jail`.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import math
import os
import subprocess
from collections.abc import Callable, Generator, Iterator
from fractions import Fraction
from pathlib import Path
from typing import cast

import numpy as np

from lipsyncd.errors import RenderCrashed
from lipsyncd.jobs.prepared import Video
from lipsyncd.log import printable
from lipsyncd.media import video_frames
from lipsyncd.processes import last_lines
from lipsyncd.renderers.framing import RgbImage
from lipsyncd.sandbox.jail import ResourceLimits, end, popen_jailed

HELD_BYTES = 256 << 20  # frames in memory: a short source as a whole, or a stretch of one that runs backwards

_PIPE_BYTES = 1 << 20  # the largest that every user may have; the usual 64 KiB switch processes 90 times a frame
_SET_PIPE_SIZE = 1031
# The job's own deadline ends a long decode; these only stop an ffmpeg that has gone wild. It writes no file.
_LIMITS = ResourceLimits(cpu_s=24 * 3600, file_bytes=0)


class VideoSource:
    """See `lipsyncd.renderers.Source`.

    The thread that asks for frames has to outlive the asking: the decoder ends with it. Closing an iterator early ends
    the decoder at once.
    """

    def __init__(
        self,
        video: Video,
        folder: Path,
        ffmpeg: Path,
        *,
        held_bytes: int = HELD_BYTES,
        on_frame: Callable[[], None] = lambda: None,
    ) -> None:
        """A source for what `lipsyncd.prepare.decode_video.screen` has found in `folder`. Nothing runs before the first
        frame.

        on_frame  called for each frame that is read; what it raises ends the reading
        """
        self._video = video
        self._file = folder / video.file
        self._ffmpeg = ffmpeg
        self._shape = (video.height, video.width, 3)
        self._on_frame = on_frame
        self._held = max(1, held_bytes // math.prod(self._shape))

    @property
    def frames(self) -> int:
        """How many different ones the job shows."""
        return self._video.frames

    def read(self, start: int = 0, count: int | None = None) -> Generator[RgbImage]:
        """`count` frames from number `start` on, (H, W, 3) uint8 RGB each, in memory of their own.

        Raises `RenderCrashed` when the decoder gives fewer.
        """
        count = self.frames - start if count is None else count
        if not 0 <= start <= start + count <= self.frames:
            raise ValueError(f"frames {start} to {start + count} of a source of {self.frames}")
        return self._decode(start, count)

    def play(self, count: int) -> Generator[tuple[int, RgbImage]]:
        """The frames of a video of `count` frames, each with its number in the source.

        Pictures may come again; whoever writes into one writes into a copy.
        """
        kept: list[RgbImage] = []
        for stretch in video_frames.stretches(count, self.frames, self._video.mode):
            if len(kept) == self.frames:
                yield from ((number, kept[number]) for number in stretch)
                continue
            for number, picture in self._stretch(stretch):
                # Only a first pass from the start to the end, and only where all of it fits.
                if number == len(kept) and self.frames <= self._held:
                    kept.append(picture)
                yield number, picture

    def _stretch(self, numbers: range) -> Iterator[tuple[int, RgbImage]]:
        if numbers.step > 0:
            with contextlib.closing(self._decode(numbers.start, len(numbers))) as pictures:
                yield from zip(numbers, pictures, strict=True)
            return
        for behind in range(0, len(numbers), self._held):
            part = numbers[behind : behind + self._held]
            pictures_back = list(self._decode(part[-1], len(part)))
            while pictures_back:
                yield part[-len(pictures_back)], pictures_back.pop()

    def _decode(self, start: int, count: int) -> Generator[RgbImage]:
        if not count:
            return
        video = self._video
        command = video_frames.frames_command(
            self._ffmpeg,
            self._file,
            video.kind,
            fps=Fraction(video.fps),
            start=start,
            count=count,
            width=video.width,
            height=video.height,
        )
        log = os.memfd_create("ffmpeg-log")  # no pipe: nobody would read it while frames are read
        try:
            process = popen_jailed(
                command,
                readable=[self._file],
                limits=_LIMITS,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
            try:
                pipe = cast(io.BufferedReader, process.stdout)
                with contextlib.suppress(OSError):
                    fcntl.fcntl(pipe, _SET_PIPE_SIZE, _PIPE_BYTES)
                for number in range(count):
                    picture = np.empty(self._shape, np.uint8)
                    if pipe.readinto(picture.data.cast("B")) != picture.nbytes:
                        output = printable(last_lines(log)) or "it printed no error"
                        raise RenderCrashed(
                            f"the video's decoder gave {number} of {count} frames, from number {start} on: {output}"
                        )
                    self._on_frame()
                    yield picture
            finally:
                end(process)
        finally:
            os.close(log)
