"""Print how fast a video speaks beside a still of the same size: MuseTalk with small random networks on a CPU.

    python -m benchmarks.video_source [--rounds 5] [--seconds 4]

Still and video get the same voice, which has no pause, and are opened, painted and encoded as the render child does it.
The still is the first frame of the video. `drawn` counts from the request for the first frame on, `job` from the
opening on, in which the face of a video is looked for in each of its frames.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from benchmarks.frames_to_video import sound_of
from lipsyncd.jobs.prepared import Video
from lipsyncd.media.ffmpeg import Encoding, find
from lipsyncd.media.video_frames import BOUNCE
from lipsyncd.renderers import SPEECH_RATE, Scene
from lipsyncd.renderers.encoder import Encoder
from lipsyncd.renderers.framing import RgbImage
from lipsyncd.renderers.musetalk.renderer import MuseTalk, RendererSettings
from lipsyncd.renderers.video_source import VideoSource
from tests.kits.media.face_kit import backdrop, draw_head
from tests.kits.media.footage_kit import written
from tests.kits.media.musetalk_kit import hum, write_weights

FPS = Fraction(25)
SIZES = ((512, 512, 260), (1280, 720, 300))  # width, height, face
LOSSLESS = ("-c:v", "libx264rgb", "-qp", "0", "-preset", "ultrafast", "-g", "10")


def scene_of(folder: Path, width: int, height: int, face: float, seconds: float, *, stitch: bool) -> Scene:
    """A head that moves to and fro before a still backdrop."""
    speech = (hum(seconds) * 24_000).astype(np.int16)
    frames = math.ceil(Fraction(len(speech), SPEECH_RATE) * FPS)
    pictures: list[RgbImage] = []
    for number in range(frames):
        middle = width / 2 + 0.05 * width * math.sin(number / 12)
        pictures.append(draw_head(backdrop(width, height), middle, height / 2, face))
    (folder / "image").write_bytes(written(".mp4", pictures, *LOSSLESS))
    source = VideoSource(Video("image", "mp4", width, height, str(FPS), frames, BOUNCE), folder, find())
    return Scene(next(source.read(0, 1)), speech, FPS, frames, stitch, 256, video=source)


def rates(renderer: MuseTalk, scene: Scene, folder: Path) -> tuple[float, float]:
    """Frames per second: drawn, and of the whole job."""
    began = time.monotonic()
    shot = renderer.open(scene)
    opened = time.monotonic()
    encoding = Encoding(shot.width, shot.height, FPS, sound_of(scene, folder), 1)
    with Encoder(find(), encoding, folder / "video.mp4", still=getattr(shot, "still", None)) as encoder:
        for frame in shot.frames():
            encoder.write(frame)
        encoder.finish()
    ended = time.monotonic()
    return scene.frames / (ended - opened), scene.frames / (ended - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lipsyncd-bench-") as name:
        folder = Path(name)
        renderer = MuseTalk("cpu", RendererSettings(write_weights(folder)))
        for (width, height, face), stitch in ((size, stitch) for size in SIZES for stitch in (False, True)):
            moving = scene_of(folder, width, height, face, given.seconds, stitch=stitch)
            still = replace(moving, video=None)
            rates(renderer, still, folder)  # warm
            measured = [(rates(renderer, still, folder), rates(renderer, moving, folder)) for _ in range(given.rounds)]
            for number, what in enumerate(("drawn", "job")):
                of_still, of_video = ([pair[which][number] for pair in measured] for which in (0, 1))
                ratio = statistics.median(video / still for still, video in zip(of_still, of_video, strict=True))
                shown = f"{width}x{height}, {'whole picture' if stitch else 'square'}, {what}"
                print(
                    f"{shown}: video {max(of_video):.1f}, still {max(of_still):.1f} frames/s at best, "
                    f"{max(of_video) / max(of_still):.2f}; median of the rounds {ratio:.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
