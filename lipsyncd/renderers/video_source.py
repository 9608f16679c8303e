"""The frames of a job's source video, decoded as they are used.

A jailed ffmpeg writes raw frames into a pipe that the render child reads: no decoded frames are stored, and memory does
not grow with the length. To play a source backwards, it is read in short ranges, the last one first, each reversed in
memory.

Owns the running decoder. Leaves its command line and the order of frames to `lipsyncd.media.video_frames`.
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

HELD_BYTES = 256 << 20  # frames in memory: all of a short source, or a range of one that is played backwards

_PIPE_BYTES = 1 << 20  # the largest size for an ordinary user; the default of 64 KiB costs 90 context switches a frame
_SET_PIPE_SIZE = 1031
# The job's own deadline ends a long decode; these only stop an ffmpeg that runs wild. It writes no file but its
# messages, which a film with sound has always: its sound is on no list of ours here.
_LIMITS = ResourceLimits(cpu_s=24 * 3600, file_bytes=1 << 20)


class VideoSource:
    """See `lipsyncd.renderers.Source`.

    The decoder is killed when the thread that requests frames ends. Closing an iterator early kills it at once.
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
        """A source for the `video` in `folder`, scanned before. No decoder runs before the first frame is requested.

        on_frame  called for each frame that is read; an exception from it ends the reading
        """
        self._video = video
        self._file = folder / video.file
        self._ffmpeg = ffmpeg
        self._shape = (video.height, video.width, 3)
        self._on_frame = on_frame
        self._held = max(1, held_bytes // math.prod(self._shape))

    @property
    def frames(self) -> int:
        """How many different frames the job uses."""
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
        """The frames in the order of a result of `count` frames, each with its number in the source.

        The same array may come again: do not write into it.
        """
        kept: list[RgbImage] = []
        for stretch in video_frames.stretches(count, self.frames, self._video.mode):
            if len(kept) == self.frames:
                yield from ((number, kept[number]) for number in stretch)
                continue
            for number, picture in self._stretch(stretch):
                # Only in the first pass from start to end, and only when all frames fit.
                if number == len(kept) and self.frames <= self._held:
                    kept.append(picture)
                yield number, picture

    def _stretch(self, numbers: range) -> Iterator[tuple[int, RgbImage]]:
        if numbers.step > 0:
            with contextlib.closing(self._decode(numbers.start, len(numbers))) as pictures:
                yield from zip(numbers, pictures, strict=True)
            return
        for first in range(0, len(numbers), self._held):
            part = numbers[first : first + self._held]
            reversed_pictures = list(self._decode(part[-1], len(part)))
            while reversed_pictures:
                yield part[-len(reversed_pictures)], reversed_pictures.pop()

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
        log = os.memfd_create("ffmpeg-log")  # not a pipe, which could fill up while frames are read
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
