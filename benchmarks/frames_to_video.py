"""Print how fast frames are drawn and encoded, each beside a reference from the same run.

    python -m benchmarks.frames_to_video [speed] [large] [drawing]

A whole job runs as the render child does it, once it is warm: opened, drawn, moved and encoded in the jail. The
reference of `large` is a plain ffmpeg that gets as many whole frames, all of them the still picture.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import product
from pathlib import Path

import cv2
import numpy as np

from lipsyncd.media.ffmpeg import SOUND_RATE, Encoding, find
from lipsyncd.renderers import SPEECH_RATE, Scene, Shot
from lipsyncd.renderers.encoder import Encoder
from lipsyncd.renderers.framing import RgbImage
from lipsyncd.renderers.motion.moving_shot import moving
from lipsyncd.renderers.preview import Preview
from tests.kits.media.portraits import picture
from tests.kits.media.preview_kit import voice

FPS = Fraction(25)
SENTENCE = "The quick brown fox jumps over the lazy dog, and nobody seems to mind."
SPEED_S, LARGE_S, DRAWN_S = 30.0, 4.0, 6.0
LARGE_PX = 3511
SIDES = (600, 1200, 2400)


def say(name: str, value: str) -> None:
    print(f"{name}: {value}", flush=True)


def scene_of(image: RgbImage, seconds: float, *, stitch: bool, motion: str) -> Scene:
    speech = np.resize(voice(SENTENCE), int(seconds * SPEECH_RATE))
    return Scene(image, speech, FPS, int(seconds * FPS), stitch, 512, motion, {})


def sound_of(scene: Scene, folder: Path) -> Path:
    sound = folder / "sound.s16"
    sound.write_bytes(np.repeat(scene.speech, 3).astype("<i2").tobytes())
    return sound


def opened(scene: Scene) -> Shot:
    return moving(Preview().open(scene), scene)


def job(scene: Scene, folder: Path) -> Shot:
    shot = opened(scene)
    encoding = Encoding(shot.width, shot.height, FPS, sound_of(scene, folder), 1)
    with Encoder(find(), encoding, folder / "video.mp4", still=getattr(shot, "still", None)) as encoder:
        for frame in shot.frames():
            encoder.write(frame)
        encoder.finish()
    return shot


def cpu_s() -> tuple[float, float]:
    """Of this process, and of its children."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    ours, theirs = (each.ru_utime + each.ru_stime for each in used)
    return ours, theirs


def speed() -> None:
    """Whole jobs of 30 s at 512x512 against real time. Two quiet cores are needed for the aims, 12 and 8."""
    with tempfile.TemporaryDirectory(prefix="lipsyncd-bench-") as folder:
        job(scene_of(picture("ada"), 1.0, stitch=True, motion="subtle"), Path(folder))
        for motion, name, stitch in product(("none", "subtle"), ("ada", "astronaut"), (True, False)):
            scene = scene_of(picture(name), SPEED_S, stitch=stitch, motion=motion)
            began, before = time.monotonic(), cpu_s()
            job(scene, Path(folder))
            took_s, after = time.monotonic() - began, cpu_s()
            ours, theirs = (1000 * (b - a) / scene.frames for a, b in zip(before, after, strict=True))
            framing = "whole picture" if stitch else "square"
            value = (
                f"{SPEED_S / took_s:.1f} times real time; a frame costs {ours:.1f} ms here, {theirs:.1f} ms in ffmpeg"
            )
            say(f"preview, {name}, {framing}, motion {motion}", value)


def plain_s(scene: Scene, folder: Path) -> float:
    """The time of a plain ffmpeg for the same number of whole frames in RGB, with the same options of the encoder."""
    height, width = (side + side % 2 for side in scene.picture.shape[:2])
    frame = np.pad(
        scene.picture, ((0, height - len(scene.picture)), (0, width - scene.picture.shape[1]), (0, 0)), "edge"
    )
    pixels = f"-f rawvideo -pixel_format rgb24 -video_size {width}x{height} -framerate {FPS} -i pipe:0"
    sound = ["-f", "s16le", "-ar", str(SOUND_RATE), "-ac", "1", "-i", str(sound_of(scene, folder))]
    colours = ["-vf", "scale=out_color_matrix=bt709:out_range=tv,format=yuv420p"]
    options = "-c:v libx264 -preset veryfast -crf 18 -threads 2 -g 50 -c:a aac -b:a 160k -aac_coder fast"
    begins = [str(find()), "-v", "error", "-nostdin", "-y"]
    command = [*begins, *pixels.split(), *sound, *colours, *options.split(), str(folder / "plain.mp4")]
    began = time.monotonic()
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        for _ in range(scene.frames):
            process.stdin.write(frame.data)
        process.stdin.close()
    return time.monotonic() - began


def large() -> None:
    """A picture of 3511x3511 with `stitch`, beside a plain ffmpeg."""
    image = cv2.resize(picture("astronaut"), (LARGE_PX, LARGE_PX), interpolation=cv2.INTER_CUBIC)
    with tempfile.TemporaryDirectory(prefix="lipsyncd-bench-") as folder:
        for motion in ("none", "subtle"):
            scene = scene_of(image, LARGE_S, stitch=True, motion=motion)
            began = time.monotonic()
            job(scene, Path(folder))
            took_s = time.monotonic() - began
            plain = plain_s(scene, Path(folder))
            value = f"{took_s / plain:.2f} of a plain ffmpeg's time, {took_s:.1f} / {plain:.1f} s"
            say(f"preview, {LARGE_PX}x{LARGE_PX}, motion {motion}", value)


def on_larger(image: RgbImage, side: int) -> RgbImage:
    """The picture in the middle of a grey one."""
    wide = np.full((side, side, 3), 90, np.uint8)
    top, left = ((side - length) // 2 for length in image.shape[:2])
    wide[top : top + image.shape[0], left : left + image.shape[1]] = image
    return wide


def drawing() -> None:
    """Frames of the same face in ever larger pictures, without pipe and encoder: processor time of a frame."""
    for motion in ("none", "subtle"):
        for side in SIDES:
            shot = opened(scene_of(on_larger(picture("ada"), side), DRAWN_S, stitch=True, motion=motion))
            changes = shot.still.changes  # type: ignore[attr-defined]
            began, frames = time.process_time(), 0
            for _ in shot.frames():
                frames += 1
            took_ms = 1000 * (time.process_time() - began) / frames
            box = f"{changes.width}x{changes.height} pixels change"
            say(f"drawing the same face at {side}x{side}, motion {motion}", f"{took_ms:.2f} ms a frame; {box}")


FIGURES: dict[str, Callable[[], None]] = {"speed": speed, "large": large, "drawing": drawing}


def main(wanted: Sequence[str]) -> None:
    for name in wanted or FIGURES:
        FIGURES[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
