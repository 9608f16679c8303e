"""The interface of a renderer, and the names of those that exist. This package runs only in the render child.

A renderer gets a `Scene`, decoded in the jail before, and returns a `Shot`: the size of its frames and an iterator over
them. Encoding, progress, cancelling and time limits are handled in `__main__`, not in a renderer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from lipsyncd.renderers.framing import Box  # needs OpenCV, which the voices do without

# onnxruntime reports its use to Microsoft from version 1.32 on, unless this is set before its first import. lipsyncd
# reports to no one what a machine does.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

SPEECH_RATE = 16_000  # samples per second of `Scene.speech`


@dataclass(frozen=True)
class Scene:
    """One job's inputs, decoded.

    picture       (H, W, 3) uint8 RGB, upright, opaque
    speech        (N,) int16, mono, 16 kHz, as the picture has to follow it; may be a memory map. With `av_offset_ms` it
                  is shifted against the sound of the video, so a renderer need not know of it
    fps           exact frame rate of the video
    frames        number of frames of the video: ceil(duration x fps)
    stitch        False: a square around the face; True: the whole picture
    resolution    side of that square in pixels, even; ignored with stitch
    motion        how much the head of a still moves: none, subtle or lively; laid over the frames afterwards
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
    motion: str = "none"
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


@dataclass(frozen=True)
class Still:
    """What the moving head of a still, and its encoder, need to know of it.

    canvas   (height, width, 3) uint8 RGB of the shot's size: the frame in which nothing moves
    mesh     (468, 3) float32, the points of the face in pixels of the canvas (`face.points`); None: it is looked for
    changes  the box inside the canvas beyond which every frame equals it, so that no time is spent there; None: any
             pixel may change
    """

    canvas: NDArray[np.uint8]
    mesh: NDArray[np.float32] | None = None
    changes: Box | None = None


class Shot(Protocol):
    """A scene whose face is found: yields its frames, once, in order.

    A shot that also has the attribute `still: Still` gets a moving head (`motion.moving_shot`), and only the part that
    changes is encoded anew in each frame.

    A shot that also has the method `span` can begin at any frame, and more than once; see `lipsyncd.renderers.span`.
    """

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

    A renderer with the attribute `opens_aside = True` can open a scene in another thread while a shot of an earlier one
    is drawn; the next job is then opened ahead.

    A renderer may also have a method `rest()`: it is called once when no job has come for a second, and is the time for
    work that would delay a job, such as returning memory.
    """

    def open(self, scene: Scene) -> Shot: ...

    def close(self) -> None: ...


# name -> "module:class"; a manifest and render.renderer choose a renderer by this name.
NAMES: Mapping[str, str] = {
    "musetalk": "lipsyncd.renderers.musetalk.renderer:MuseTalk",
    "preview": "lipsyncd.renderers.preview:Preview",
}
