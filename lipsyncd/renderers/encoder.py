"""Encode the frames of one video with a running ffmpeg.

Owns the running encoder. Leaves ffmpeg's arguments to `lipsyncd.media.ffmpeg`, and judging the result to
`lipsyncd.worker.check_result`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import subprocess
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from lipsyncd.errors import EncodeFailed
from lipsyncd.log import printable
from lipsyncd.media.ffmpeg import ChangingPart, Encoding, encode_arguments
from lipsyncd.processes import exit_text, last_lines
from lipsyncd.renderers import Still
from lipsyncd.renderers.framing import RgbImage
from lipsyncd.renderers.i420 import I420
from lipsyncd.sandbox.jail import end
from lipsyncd.worker.encoder_process import popen_encoder

Planes = NDArray[np.uint8]

_RING_FRAMES = 6  # fewer where a frame is so large that they would need more than
_RING_BYTES = 64 << 20
_PIPE_BYTES = 1 << 20  # the largest size for an ordinary user; the default of 64 KiB costs many switches for each frame
_EXIT_S = 5.0  # how long an ffmpeg that has closed its input may take to end


class Encoder:
    """A running ffmpeg that takes the frames of one video, in order, and writes an MP4 to `target`.

    Frames are converted into a small ring of buffers, which a thread of its own writes to ffmpeg: the next frame is
    rendered while the last one is encoded, and memory does not grow with the length.

        with Encoder(ffmpeg, encoding, target) as encoder:
            for picture in shot.frames():
                encoder.write(picture)
            encoder.finish()

    Leaving the block without `finish` kills ffmpeg; the file at `target` is then incomplete. ffmpeg runs in the jail,
    where it may read the sound and fill `target`, which is made here. The thread that creates an `Encoder` has to
    outlive it.

    Where only a part of the frames changes, ffmpeg gets the whole picture once and then that part alone: no step but
    H.264 itself costs more for a larger picture. The bytes of the video are the same.
    """

    def __init__(
        self, ffmpeg: Path, encoding: Encoding, target: Path, *, still: Still | None = None, stall_s: float = 120.0
    ) -> None:
        """Start ffmpeg. It counts as hung when it has taken no frame from a full ring for `stall_s`.

        still  of the shot, which says where its frames change; None: anywhere

        Raises `JailFailed` when ffmpeg does not start.
        """
        self._shape = (encoding.height, encoding.width, 3)
        encoding, self._place = _with_part(encoding, still)
        self.described = encoding.described
        self._stall_s = stall_s
        self._changed = threading.Condition()
        self._colours = I420(*encoding.sent)
        places = min(max(_RING_BYTES // self._colours.size_bytes, 2), _RING_FRAMES)
        self._free = deque(np.empty(self._colours.size_bytes, np.uint8) for _ in range(places))
        self._full: deque[Planes] = deque()
        self._ended = False  # no more frames come
        self._broken = False  # ffmpeg takes no more frames
        # In memory: a full disk loses no error message, and ffmpeg never blocks on a full pipe.
        self._log = os.memfd_create("ffmpeg-log")
        try:
            _make(target)
            with _in_memory(still.canvas if still and encoding.changing else None) as picture:
                self._process = popen_encoder(
                    encode_arguments(ffmpeg, encoding, target, *picture),
                    encoding,
                    target,
                    stderr=self._log,
                    descriptors=picture,
                )
        except BaseException:
            os.close(self._log)
            raise
        self._writer = threading.Thread(target=self._feed, name="encoder", daemon=True)
        self._writer.start()

    @property
    def pid(self) -> int:
        """The process id of ffmpeg, which leads a process group of its own."""
        return self._process.pid

    def write(self, picture: RgbImage) -> None:
        """Queue one frame (height, width, 3) uint8 RGB; it is converted, the caller may reuse its buffer at once.

        Raises `EncodeFailed` when ffmpeg has ended or has taken nothing for `stall_s` seconds.
        """
        if picture.shape != self._shape or picture.dtype != np.uint8:
            raise ValueError(f"a frame of {picture.shape} {picture.dtype}; the video needs {self._shape} uint8")
        if self._ended and not self._broken:
            raise ValueError("a frame after `finish`")
        with self._changed:
            in_time = self._changed.wait_for(lambda: self._free or self._broken, self._stall_s)
            buffer = self._free.popleft() if in_time and not self._broken else None
        if buffer is None:
            raise self._failure("ended early" if in_time else f"took no frame for {self._stall_s:g} s")
        self._colours.convert(picture[self._place], buffer)
        with self._changed:
            self._full.append(buffer)
            self._changed.notify_all()

    def finish(self) -> None:
        """Wait until the MP4 is complete. Raises `EncodeFailed`, with ffmpeg's last lines."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        try:
            status = self._process.wait(self._stall_s)
        except subprocess.TimeoutExpired:
            raise self._failure(f"did not end within {self._stall_s:g} s of its last frame") from None
        if status != 0 or self._broken:
            raise self._failure("failed")
        self._close()

    def abort(self) -> None:
        """Kill ffmpeg and discard the frames. Harmless after `finish` and when called twice."""
        with self._changed:
            self._ended = self._broken = True
            self._changed.notify_all()
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def _feed(self) -> None:
        """The writer thread: writes frames to ffmpeg's stdin until there are no more, or until ffmpeg has ended."""
        pipe = self._process.stdin
        assert pipe is not None
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        try:
            while (planes := self._next()) is not None:
                pipe.write(planes.data)
                with self._changed:
                    self._free.append(planes)
                    self._changed.notify_all()
        except (OSError, ValueError):  # ValueError: `abort` has closed the pipe already
            self._broken = True
        with contextlib.suppress(OSError):
            pipe.close()
        with self._changed:
            self._changed.notify_all()

    def _next(self) -> Planes | None:
        with self._changed:
            self._changed.wait_for(lambda: self._full or self._ended)
            return self._full.popleft() if self._full and not self._broken else None

    def _failure(self, what: str) -> EncodeFailed:
        if self._log < 0:
            return EncodeFailed("ffmpeg was stopped already")
        # An ffmpeg that has closed its input is about to end by itself; killing it would hide its exit status.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_EXIT_S if self._broken else 0)
        status = self._process.poll()
        output = printable(last_lines(self._log))
        self.abort()
        how = "" if status is None else f" and {exit_text(status)}"
        return EncodeFailed(f"ffmpeg {what}{how}: {output or 'it printed no error'}")

    def _close(self) -> None:
        if self._log < 0:
            return
        end(self._process)
        self._writer.join()
        os.close(self._log)
        self._log = -1


def _with_part(encoding: Encoding, still: Still | None) -> tuple[Encoding, tuple[slice, slice]]:
    """The encoding that is sent only what changes, and the rows and columns of that in a frame."""
    box = still and still.changes
    part = box and ChangingPart.around((box.x, box.y, box.right, box.bottom), encoding.width, encoding.height)
    if not part:
        return encoding, (slice(None), slice(None))
    return replace(encoding, changing=part), (slice(part.top, part.bottom), slice(part.left, part.right))


@contextlib.contextmanager
def _in_memory(picture: RgbImage | None) -> Iterator[tuple[int, ...]]:
    """A descriptor from which a child process reads the picture's planes; none without one."""
    if picture is None:
        yield ()
        return
    with os.fdopen(os.memfd_create("still"), "wb", buffering=0) as file:
        height, width = picture.shape[:2]
        colours = I420(width, height)
        planes = np.empty(colours.size_bytes, np.uint8)
        colours.convert(picture, planes)
        rest = planes.data
        while rest:
            rest = rest[file.write(rest) :]
        file.seek(0)
        yield (file.fileno(),)


def _make(target: Path) -> None:
    """Make an empty file for ffmpeg to fill: a right on its folder would cover all that lies in there."""
    with contextlib.suppress(FileExistsError):
        os.mknod(target, stat.S_IFREG | 0o600)
