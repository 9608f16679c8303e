"""The messages between the daemon and a render child: one JSON object a line, over a socketpair.

    daemon                     child
                               Ready      once, when it can take work
    Render ───────────────────►
    Next ─────────────────────►           a hint at the Render that most likely follows; the child may open it
                               Progress   while it works; about once a second
                               Batch      before the batch size changes, from renderers that work in batches
    Cancel ───────────────────►           the child ends the render and answers Failure("cancelled")
                               Result     or Failure
    (closes its end) ─────────►           the child ends

Messages carry paths, never file contents: both sides see the same spool folder.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from lipsyncd.jobs.prepared import Picture, Sound, Video, inputs_from_json

CANCELLED = "cancelled"  # the code of the Failure that answers a Cancel
MAX_LINE_BYTES = 256 * 1024


class ProtocolError(ValueError):
    """A line that is none of the messages below."""


LOADING = "loading"  # the stage in which a child gets a renderer ready for its first job
FRAMES_HEAD = struct.Struct("<2I")  # width and height of raw frames, in pixels


@dataclass(frozen=True)
class Render:
    """Render one job. `folder` holds the inputs; the MP4 is written as `out_file` inside it.

    With `raw` in `encode`, `out_file` is a pipe that exists, and gets the frames as they are: `FRAMES_HEAD`, then
    height x width x 3 bytes of RGB for each.

    With a `stop`, only the frames from `start` up to and not including `stop` are drawn, into a video without sound:
    each of them as in the whole video, whose frames are `frames`.

    Where there is a `video`, `picture` is its first frame. `most` frames at a time may be tried, since more did not fit
    into the device before; 0 when nothing is known.
    """

    job_id: str
    renderer: str
    folder: str
    out_file: str
    picture: Picture
    sound: Sound
    fps: str
    frames: int
    stitch: bool
    resolution: int
    motion: str = "none"
    av_offset_ms: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    encode: Mapping[str, Any] = field(default_factory=dict)
    video: Video | None = None
    most: int = 0
    start: int = 0
    stop: int = 0

    @property
    def is_part(self) -> bool:
        """Only some of the frames are drawn."""
        return self.stop > 0

    @property
    def drawn(self) -> range:
        """The numbers of the frames that are drawn."""
        return range(self.start, self.stop) if self.is_part else range(self.frames)


@dataclass(frozen=True)
class Next(Render):
    """The job that most likely comes next, with the fields of its `Render`, but for `out_file`.

    Only a hint: it may be cancelled, overtaken or changed. It counts for nothing unless an equal `Render` follows.
    """

    def is_meant_by(self, request: Render) -> bool:
        return self == Next(**{**vars(request), "out_file": self.out_file})


@dataclass(frozen=True)
class Cancel:
    job_id: str


@dataclass(frozen=True)
class Ready:
    pid: int


@dataclass(frozen=True)
class Progress:
    job_id: str
    stage: str
    done: int
    total: int


@dataclass(frozen=True)
class Batch:
    """`size` frames at a time from now on. `too_many` at a time did not fit into memory; 0 when nothing failed."""

    job_id: str
    size: int
    too_many: int = 0


@dataclass(frozen=True)
class Result:
    """`notes` goes into the sidecar as it is; the texts in its list `events` go into the job's history, too."""

    job_id: str
    frames: int
    width: int
    height: int
    took_s: float
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    job_id: str
    code: str
    message: str
    remedy: str


Message = Render | Next | Cancel | Ready | Progress | Batch | Result | Failure
_KINDS: Mapping[str, type[Any]] = {
    c.__name__.lower(): c for c in (Render, Next, Cancel, Ready, Progress, Batch, Result, Failure)
}


def to_line(message: Message) -> bytes:
    body = {"type": type(message).__name__.lower(), **asdict(message)}
    return json.dumps(body, separators=(",", ":")).encode() + b"\n"


def from_line(line: bytes) -> Message:
    """The message that `to_line` wrote. Raises `ProtocolError` for anything else."""
    try:
        body = json.loads(line)
        kind = _KINDS[body.pop("type")]
        if issubclass(kind, Render):
            body["picture"], body["sound"], body["video"] = inputs_from_json(body)
        message: Message = kind(**body)
        _check_types(message)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ProtocolError(f"not a message: {line[:80]!r} ({error})") from error
    return message


_TYPES: Mapping[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}


def _check_types(message: Any) -> None:
    """A child may be a program of the operator: text in place of a number would fail later, far from here."""
    for one in fields(message):
        value, allowed = getattr(message, one.name), _TYPES.get(str(one.type), (Mapping, Picture, Sound, Video))
        if value is None and one.default is None:
            continue
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            raise TypeError(f"{one.name} is {type(value).__name__}")
