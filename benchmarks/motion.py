"""Print what a frame costs, beside one plain `cv2.remap` of the same size in the same run.

    python -m benchmarks.motion

First the moving head alone, over frames whose mouth changes each time, with every blink of the video; then whole frames
of the renderer `preview`, mouth and head. Times are those of the processor, on one thread. Other programs slow them by
half when they empty its caches, so the quieter half of the run counts, and ratios say more than times.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from itertools import islice

import cv2
import numpy as np

from lipsyncd.renderers import SPEECH_RATE, Shot
from lipsyncd.renderers.face.finder import find_faces
from lipsyncd.renderers.framing import RgbImage
from lipsyncd.renderers.motion.moving_shot import moving
from lipsyncd.renderers.motion.still import StillMotion
from lipsyncd.renderers.preview import Preview
from tests.kits.media.portraits import picture
from tests.kits.media.preview_kit import scene, voice

FRAMES = 150
SENTENCE = "The quick brown fox jumps over the lazy dog, and nobody seems to mind."
SOUND_S = 16.0
BATCH = 20  # frames between two remaps


def wide(share: float) -> RgbImage:
    """A picture of 1920x1080 whose face takes this share of its height."""
    face = find_faces(picture("hopper"))[0]
    scale = share * 1080 / face.box.height
    x, y = face.centre
    matrix = np.array([[scale, 0, 960 - scale * x], [0, scale, 500 - scale * y]])
    return np.asarray(
        cv2.warpAffine(picture("hopper"), matrix, (1920, 1080), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    )


def milliseconds(work: Callable[[int], object]) -> float:
    times = []
    for number in range(FRAMES):
        began = time.thread_time()
        work(number)
        times.append(time.thread_time() - began)
    return 1e3 * statistics.fmean(times[FRAMES // 10 :])


def measure(name: str, canvas: RgbImage) -> None:
    face = find_faces(canvas)[0]
    began = time.thread_time()
    motion = StillMotion(canvas, face.mesh, kind="subtle", at_s=np.arange(FRAMES + 50) / 25, seed=5)
    prepared_ms = 1e3 * (time.thread_time() - began)
    lips = face.mesh[[61, 291, 0, 152], :2].astype(int)
    mouth = np.s_[lips[2, 1] : lips[3, 1], lips[0, 0] : lips[1, 0]]
    frames = [canvas.copy(), canvas.copy()]
    frames[1][mouth] //= 2
    y, x = np.mgrid[: canvas.shape[0], : canvas.shape[1]].astype(np.float32) + np.float32(0.4)

    ours = milliseconds(lambda number: motion.apply(frames[number % 2], number + 20))
    plain = milliseconds(lambda number: cv2.remap(frames[number % 2], x, y, cv2.INTER_LINEAR))
    box, blinks = motion.field.box, motion.notes["blinks"]
    print(
        f"| {name} | {box.width}x{box.height} | {ours / plain:.2f} ({ours:.2f} / {plain:.2f} ms) | "
        f"{prepared_ms:.0f} ms | {blinks} |"
    )


def quiet_ms(times_s: list[float]) -> float:
    """The mean of the faster half."""
    return 1e3 * statistics.fmean(sorted(times_s)[: max(len(times_s) // 2, 1)])


def whole_frames(shot: Shot) -> tuple[float, float]:
    """The cost of a frame of a shot and of one remap of its size, in milliseconds."""
    y, x = np.mgrid[: shot.height, : shot.width].astype(np.float32) + np.float32(0.4)
    ours, plain = [], []
    frames: Iterator[RgbImage] = iter(shot.frames())
    while True:
        began = time.thread_time()
        drawn = list(islice(frames, BATCH))
        if len(drawn) < BATCH:
            return quiet_ms(ours), quiet_ms(plain)
        ours.append((time.thread_time() - began) / BATCH)
        for _ in range(3):
            began = time.thread_time()
            cv2.remap(drawn[0], x, y, cv2.INTER_LINEAR)
            plain.append(time.thread_time() - began)


def measure_preview(name: str, canvas: RgbImage, **framing: object) -> None:
    speech = np.resize(voice(SENTENCE), round(SOUND_S * SPEECH_RATE))
    cells = []
    for motion in ("none", "subtle", "lively"):
        still = scene(canvas, speech, motion=motion, **framing)
        ours, plain = whole_frames(moving(Preview().open(still), still))
        cells.append(f"{ours:.1f} ms ({ours / plain:.1f})")
    print(f"| {name} | {plain:.2f} ms | {' | '.join(cells)} |", flush=True)


def main() -> None:
    cv2.setNumThreads(1)
    print("| picture | box that moves | of one remap | once | blinks |\n|---|---|---|---|---|")
    measure("512x512, face of 250 px", picture("ada"))
    measure("512x512, face of 100 px", picture("astronaut"))
    measure("1920x1080, face of a third of the height", wide(0.33))
    measure("1920x1080, face of two thirds", wide(0.67))
    print("\n| preview | one remap | `none` | `subtle` | `lively` |\n|---|---|---|---|---|")
    for name in ("astronaut", "ada"):
        measure_preview(f"{name}, the whole picture, 512x512", picture(name))
        measure_preview(f"{name}, the square around the face, 512x512", picture(name), stitch=False, resolution=512)
    measure_preview("Grace Hopper, 1920x1080, face of a third of the height", wide(0.33))
    measure_preview("Grace Hopper, 1920x1080, face of two thirds", wide(0.67))


if __name__ == "__main__":
    main()
