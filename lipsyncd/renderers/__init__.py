"""What a renderer is, and which ones there are. Everything below this folder runs only in the render child.

A renderer gets a `Scene` (decoded already, by the jail) and answers with a `Shot`: the size of its pictures and an
iterator over them. Encoding, progress, cancelling and time limits are the child's business (`__main__`), not its own.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

SPEECH_RATE = 16_000  # samples per second of `Scene.speech`


@dataclass(frozen=True)
class Scene:
    """One job's inputs, as the jail wrote them.

    picture     (H, W, 3) uint8 RGB, upright, opaque
    speech      (N,) int16, mono, 16 kHz; may be a memory map
    fps         exact frame rate of the video
    frames      how many frames the video has: ceil(duration x fps)
    stitch      False: a square around the face; True: the whole picture
    resolution  side of that square in pixels, even; ignored with stitch
    options     what the manifest's `lipsyncd` object says for this renderer
    video       what moves in place of the picture, which is then its first frame; None for a still
    most        frames at a time that may be tried: more did not fit into this device before; 0 when nothing is known
    tell_batch  to be called before frames are tried so many at a time, and with how many did not fit (0: none failed)
    """

    picture: NDArray[np.uint8]
    speech: NDArray[np.int16]
    fps: Fraction
    frames: int
    stitch: bool
    resolution: int
    options: Mapping[str, object] = field(default_factory=dict)
    video: Source | None = None
    most: int = 0
    tell_batch: Callable[[int, int], None] = field(default=lambda size, too_many: None, compare=False)


class Source(Protocol):
    """The frames of a video that a job brings; see `lipsyncd.renderers.video_source`."""

    @property
    def frames(self) -> int:
        """How many different ones the job shows."""
        ...

    def read(self, start: int = 0, count: int | None = None) -> Generator[NDArray[np.uint8]]:
        """`count` of them in their own order, each (H, W, 3) uint8 RGB of the size of `Scene.picture`."""
        ...

    def play(self, count: int) -> Generator[tuple[int, NDArray[np.uint8]]]:
        """As they show in a video of `count` frames, each with its number in the source."""
        ...


class Shot(Protocol):
    """A scene with its face found: ready to give its frames, once, in order."""

    @property
    def width(self) -> int: ...

    @property
    def height(self) -> int: ...

    @property
    def notes(self) -> Mapping[str, object]:
        """What the sidecar should say about this render: face box, warnings. JSON values only."""
        ...

    def frames(self) -> Iterator[NDArray[np.uint8]]:
        """Exactly `Scene.frames` pictures (height, width, 3) uint8 RGB; width and height even.

        A picture belongs to the renderer again as soon as the next one is asked for.
        """
        ...


@runtime_checkable
class Renderer(Protocol):
    """Made once for each child by calling its class with the device's name; used for many scenes.

    `open` raises `NoFaceFound` or `FaceTooSmall` when there is nothing to animate, `BadOption` for options that it
    does not know.
    """

    def open(self, scene: Scene) -> Shot: ...

    def close(self) -> None: ...


# name -> "module:class". Another renderer is named in a manifest or in render.renderer by this name.
NAMES: Mapping[str, str] = {
    "musetalk": "lipsyncd.renderers.musetalk.renderer:MuseTalk",
    "preview": "lipsyncd.renderers.preview:Preview",
}
