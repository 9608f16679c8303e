"""The interface of a renderer, and the names of those that exist. This package runs only in the render child.

A renderer gets a `Scene`, decoded in the jail before, and returns a `Shot`: the size of its frames and an iterator over
them. Encoding, progress, cancelling and time limits are handled in `__main__`, not in a renderer.
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
    """One job's inputs, decoded.

    picture       (H, W, 3) uint8 RGB, upright, opaque
    speech        (N,) int16, mono, 16 kHz; may be a memory map
    fps           exact frame rate of the video
    frames        number of frames of the video: ceil(duration x fps)
    stitch        False: a square around the face; True: the whole picture
    resolution    side of that square in pixels, even; ignored with stitch
    options       the manifest's `lipsyncd` object, for this renderer
    video         a source video, whose first frame `picture` is then; None for a still picture
    max_batch     largest batch that may be tried, since a larger one did not fit into this device before; 0: unknown
    report_batch  to be called before a batch size is tried, with it and the size that did not fit before (0: none)
    """

    picture: NDArray[np.uint8]
    speech: NDArray[np.int16]
    fps: Fraction
    frames: int
    stitch: bool
    resolution: int
    options: Mapping[str, object] = field(default_factory=dict)
    video: Source | None = None
    max_batch: int = 0
    report_batch: Callable[[int, int], None] = field(default=lambda size, too_many: None, compare=False)


class Source(Protocol):
    """The frames of a job's source video; see `lipsyncd.renderers.video_source`."""

    @property
    def frames(self) -> int:
        """How many different frames the job uses."""
        ...

    def read(self, start: int = 0, count: int | None = None) -> Generator[NDArray[np.uint8]]:
        """`count` frames from number `start` on, each (H, W, 3) uint8 RGB of the size of `Scene.picture`."""
        ...

    def play(self, count: int) -> Generator[tuple[int, NDArray[np.uint8]]]:
        """The frames in the order of a result of `count` frames, each with its number in the source."""
        ...


class Shot(Protocol):
    """A scene whose face is found: yields its frames, once, in order."""

    @property
    def width(self) -> int: ...

    @property
    def height(self) -> int: ...

    @property
    def notes(self) -> Mapping[str, object]:
        """Facts for the sidecar about this render: face box, warnings. JSON values only."""
        ...

    def frames(self) -> Iterator[NDArray[np.uint8]]:
        """Exactly `Scene.frames` arrays (height, width, 3) uint8 RGB; width and height even.

        The renderer may reuse an array as soon as the next one is requested.
        """
        ...


@runtime_checkable
class Renderer(Protocol):
    """Created once in each child by calling its class with the device's name; used for many scenes.

    `open` raises `NoFaceFound` or `FaceTooSmall` when there is no face to animate, `BadOption` for an unknown option.
    """

    def open(self, scene: Scene) -> Shot: ...

    def close(self) -> None: ...


# name -> "module:class"; a manifest and render.renderer choose a renderer by this name.
NAMES: Mapping[str, str] = {
    "musetalk": "lipsyncd.renderers.musetalk.renderer:MuseTalk",
    "preview": "lipsyncd.renderers.preview:Preview",
}
