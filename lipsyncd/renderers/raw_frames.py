"""Hand the frames of one video on as they are, through a pipe to the process that asked for them.

Stands in the place of `Encoder`. The pipe holds a few frames at most, so the renderer waits for its reader.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

from lipsyncd.renderers.framing import RgbImage
from lipsyncd.worker.protocol import FRAMES_HEAD


class RawFrames:
    """The writing end of a named pipe that exists. `write` blocks while the pipe is full."""

    described = ""  # no encoder

    def __init__(self, pipe: Path, width: int, height: int) -> None:
        self._shape = (height, width, 3)
        self._pipe = pipe.open("wb", buffering=0)
        self._put(FRAMES_HEAD.pack(width, height))

    def write(self, picture: RgbImage) -> None:
        """Send one frame (height, width, 3) uint8 RGB. Raises OSError when its reader has gone."""
        if picture.shape != self._shape:
            raise ValueError(f"a frame of {picture.shape}; the video needs {self._shape}")
        self._put(picture.tobytes())

    def _put(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._pipe.write(rest) :]

    def finish(self) -> None:
        """Nothing is left to do: each frame was sent at once."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
