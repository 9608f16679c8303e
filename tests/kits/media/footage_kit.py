"""Videos whose frames carry their own number, and renderers that only show them."""

from __future__ import annotations

import functools
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np

from lipsyncd.media import Kind
from lipsyncd.prepare.decode_video import Footage, screen
from lipsyncd.renderers import Scene
from lipsyncd.renderers.framing import RgbImage
from tests.kits.media.media_kit import converted, ffmpeg

WIDTH, HEIGHT = 160, 96
_BITS = 8
H264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-preset", "veryfast", "-g", "30", "-bf", "3")
VP8 = ("-c:v", "libvpx", "-b:v", "1M", "-g", "20")
REPLAY = "replay=tests.kits.media.footage_kit:Replay"
SLOW_READER = "slow-reader=tests.kits.media.footage_kit:SlowReader"


def numbered(number: int, width: int = WIDTH, height: int = HEIGHT) -> RgbImage:
    """A grey picture with a bar for each binary digit of `number` in its middle rows; the left edge is red."""
    picture = np.full((height, width, 3), 90, np.uint8)
    for bit in range(_BITS):
        left, right = (round(width * (0.1 + 0.1 * (bit + part))) for part in (0, 0.7))
        picture[height // 3 : 2 * height // 3, left:right] = 240 if number >> bit & 1 else 10
    picture[:, : width // 20] = (220, 30, 30)
    return picture


def number_of(picture: RgbImage) -> int:
    """The number that `numbered` has drawn into a picture of any size."""
    height, width = picture.shape[:2]
    return sum(
        int(picture[height // 2, round(width * (0.135 + 0.1 * bit))].mean() > 128) << bit for bit in range(_BITS)
    )


@functools.cache
def film(suffix: str, frames: int, *options: str, rate: str = "25", width: int = WIDTH, height: int = HEIGHT) -> bytes:
    """A video file with numbered frames, encoded by ffmpeg with these options."""
    return written(suffix, [numbered(number, width, height) for number in range(frames)], *options, rate=rate)


def written(suffix: str, pictures: Sequence[RgbImage], *options: str, rate: str = "25") -> bytes:
    """A video file with these frames."""
    height, width = pictures[0].shape[:2]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "film" + suffix)
        source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", rate, "-i", "pipe:0"]
        command = [str(ffmpeg()), "-nostdin", "-v", "error", *source, *options, str(target)]
        subprocess.run(command, input=b"".join(picture.tobytes() for picture in pictures), check=True)
        return target.read_bytes()


def film_with_voice(suffix: str, *options: str) -> bytes:
    """1.5 s of a grey picture and a tone, as phones record."""
    source = ("-f", "lavfi", "-i", "color=c=gray:s=96x72:r=25", "-map", "0", "-map", "1", "-shortest")
    return converted(suffix, *source, *options, seconds=1.5)


def changed(data: bytes, suffix: str, before: tuple[str, ...] = (), after: tuple[str, ...] = ()) -> bytes:
    """The same streams in another container, with options before and after the input."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in" + suffix), Path(folder, "out" + suffix)
        source.write_bytes(data)
        command = [str(ffmpeg()), "-nostdin", "-v", "error", *before, "-i", str(source), "-c", "copy", *after]
        subprocess.run([*command, str(target)], check=True)
        return target.read_bytes()


def screened(folder: Path, data: bytes, *, fps: str = "25", frames: int = 1000, **options: float) -> Footage:
    """A video written to `folder/image` and scanned there."""
    file = folder / "image"
    file.write_bytes(data)
    kind = Kind.WEBM if data.startswith(b"\x1a\x45") else Kind.MP4
    return screen(file, kind, folder, ffmpeg=ffmpeg(), fps=Fraction(fps), frames=frames, **options)


@dataclass
class ReplayShot:
    """The frames of the source, unchanged."""

    scene: Scene
    notes: Mapping[str, object] = field(default_factory=lambda: {"made_by": "replay"})

    @property
    def width(self) -> int:
        return self.scene.picture.shape[1] // 2 * 2

    @property
    def height(self) -> int:
        return self.scene.picture.shape[0] // 2 * 2

    def frames(self) -> Iterator[RgbImage]:
        assert self.scene.video is not None
        for _, picture in self.scene.video.play(self.scene.frames):
            yield np.ascontiguousarray(picture[: self.height, : self.width])


class SlowReader:
    """Reads every frame first, a tenth of a second for each, and then shows the video as it is."""

    def __init__(self, device: str) -> None:
        self.device = device

    def open(self, scene: Scene) -> ReplayShot:
        assert scene.video is not None
        for _ in scene.video.read():
            time.sleep(0.1)
        return ReplayShot(scene)

    def close(self) -> None:
        """Nothing is held."""


class Replay:
    """Shows the video of a scene unchanged."""

    def __init__(self, device: str) -> None:
        self.device = device

    def open(self, scene: Scene) -> ReplayShot:
        return ReplayShot(scene)

    def close(self) -> None:
        """Nothing is held."""
