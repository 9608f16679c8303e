"""A finished video of this machine, as a Python program or a notebook gets it."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from lipsyncd.media.mp4 import inspect

_MOST_EMBEDDED_BYTES = 20_000_000  # a notebook stores what its cells show
_SHOWN_WIDTH = 512  # pixels, at most


@dataclass(frozen=True)
class Video:
    """An MP4 and what is known of it. In a notebook it shows itself.

    path           of the file
    frames, fps    exact
    width, height  in pixels
    duration_s     of the picture
    size_bytes     of the file
    renderer       which made it; "" where that is not known
    render_s       how long its frames took; None where that is not known
    notes          the renderer's, such as the face box and warnings, as in a sidecar
    """

    path: Path
    frames: int
    fps: Fraction
    width: int
    height: int
    duration_s: float
    size_bytes: int
    renderer: str = ""
    render_s: float | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, **known: Any) -> Self:
        """The video at a path; `known` are the fields that its file does not tell. Raises OSError, `Mp4Damaged`."""
        track = inspect(path).video
        rate = track.rate or Fraction(track.frames) / track.duration
        size = (track.width, track.height)
        return cls(path, track.frames, rate, *size, float(track.duration), path.stat().st_size, **known)

    def to_json(self) -> dict[str, Any]:
        """Its facts as JSON values."""
        return {
            "path": str(self.path),
            "frames": self.frames,
            "fps": str(self.fps),
            "width": self.width,
            "height": self.height,
            "duration_s": round(self.duration_s, 3),
            "bytes": self.size_bytes,
            "renderer": self.renderer,
            "render_s": self.render_s,
            "notes": dict(self.notes),
        }

    def __fspath__(self) -> str:
        return str(self.path)

    def _repr_html_(self) -> str:
        """A player with the video itself in it; of a large one, or of one that is gone, a link."""
        width = min(self.width, _SHOWN_WIDTH)
        try:
            embed = self.path.stat().st_size <= _MOST_EMBEDDED_BYTES
            data = base64.b64encode(self.path.read_bytes()).decode() if embed else ""
        except OSError:
            return f"<code>{html.escape(str(self.path))}</code> is gone"
        source = f"data:video/mp4;base64,{data}" if data else html.escape(quote(str(self.path)))
        shown = html.escape(f"{self.path.name}, {self.duration_s:.2f} s, {self.width} x {self.height}")
        return f'<video controls loop width="{width}" src="{source}"></video><br><small>{shown}</small>'
