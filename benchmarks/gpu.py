"""Print what MuseTalk reaches on this machine's GPU, as shares of the matrix product measured in the same run.

    python -m benchmarks.gpu [--dry-run]

It needs no weights: those of the networks are random and of the published sizes, and take as long as trained ones.
First what a render process waits for at its first start on a machine and at a later one; then the product; then UNet
and decoder in each form; then whole jobs as a render child does them; last what lies between two jobs.

With --dry-run every line runs on the CPU, with tiny networks and short sounds: its figures mean nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from lipsyncd.media import ffmpeg
from lipsyncd.media.ffmpeg import SOUND_RATE, Encoding
from lipsyncd.renderers import Scene, Shot
from lipsyncd.renderers.encoder import Encoder
from lipsyncd.renderers.face.finder import find_faces
from lipsyncd.renderers.framing import Box, RgbImage
from lipsyncd.renderers.motion.moving_shot import moving
from lipsyncd.renderers.musetalk.arithmetic import device_name
from lipsyncd.renderers.musetalk.bench import random_inputs
from lipsyncd.renderers.musetalk.bench.run import Networks
from lipsyncd.renderers.musetalk.bench.timing import TOKENS, Ceiling, Clock, ceiling_of, work_gflop
from lipsyncd.renderers.musetalk.painting.job_painter import JobPainter
from lipsyncd.renderers.musetalk.painting.networks import PATCH
from lipsyncd.renderers.musetalk.renderer import RendererSettings
from tests.kits.media.portraits import picture

BATCH, BATCHES, MOST_VRAM_GB = 16, (1, 8, 16), 60.0
FACE_SHARE = 0.4  # of the height of a picture
AIMS = {"stage": 55, "job": 45, "stitched": 35}  # percent of the product


@dataclass(frozen=True)
class Setup:
    """What is measured: the device, sizes and lengths."""

    device: torch.device
    small: bool

    @property
    def seconds(self) -> float:
        return 0.2 if self.small else 60.0

    @property
    def clock(self) -> Clock:
        return Clock(self.device, 0.05 if self.small else 4.0)

    @property
    def batches(self) -> tuple[int, ...]:
        return (1, 2) if self.small else BATCHES

    @property
    def pictures(self) -> dict[str, tuple[int, int]]:
        """Name to width and height."""
        return dict.fromkeys(("square", "stitched"), (640, 360) if self.small else (1920, 1080))


def say(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def heading(text: str, *columns: str) -> None:
    print(f"\n{text}\n")
    say(*columns)
    say(*["---"] * len(columns))


def percent(gflop: float, took_s: float, ceiling: Ceiling, aim: int | None = None) -> str:
    share = 100 * gflop / 1000 / took_s / ceiling.tflops
    return f"{share:.1f}" if aim is None else f"{share:.1f}, aim {aim}: {'met' if share >= aim else 'not met'}"


# -- loading -----------------------------------------------------------------------------------------------------------


def loads(setup: Setup, folder: Path, cache: Path) -> None:
    """What a process waits for: the first one on a machine, which compiles and compares, and a later one."""
    heading(
        "Start of a render process, seconds", "process", "Python and torch", "networks", "first batch", "second batch"
    )
    for name in ("first on this machine", "later"):
        request = json.dumps([str(setup.device), setup.small, str(folder), str(cache)])
        began = time.time()
        command = [sys.executable, "-m", "benchmarks.gpu", "--load", request]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        started, loaded, first, second = json.loads(done.stdout.splitlines()[-1])
        times = (started - began, loaded - started, first - loaded, second - first)
        say(name, *(f"{took_s:.2f}" for took_s in times))


def load(request: str) -> None:
    """A process of `loads`: prints when it had started, had loaded, and had painted a batch and another one."""
    name, small, folder, cache = json.loads(request)
    setup = Setup(torch.device(name), small)
    times = [time.time()]
    networks = networks_of(setup, Path(folder), Path(cache))
    times.append(time.time())
    painter = JobPainter(networks.painter, gate=networks.gate)
    for _ in range(2):
        with torch.inference_mode():
            painter.paint(*inputs_of(setup, networks, setup.batches[-1])).pixels.cpu()
        times.append(time.time())
    print(json.dumps(times))


def networks_of(setup: Setup, folder: Path, cache: Path) -> Networks:
    networks = Networks(setup.device)
    if setup.small:
        torch.set_num_threads(1)  # on a busy machine two threads wait for each other
    networks.load(RendererSettings(folder, MOST_VRAM_GB, cache=cache))
    return networks


def inputs_of(setup: Setup, networks: Networks, frames: int) -> tuple[Tensor, Tensor]:
    """Latents (B, 8, 32, 32) and tokens (B, 50, 384) of different frames, on the device."""
    chance = torch.Generator().manual_seed(0)
    latents = torch.randn(frames, 8, PATCH // 8, PATCH // 8, generator=chance)
    tokens = torch.randn(frames, TOKENS, 384, generator=chance)
    return latents.to(setup.device, networks.painter.dtype), tokens.to(setup.device)


# -- the networks ------------------------------------------------------------------------------------------------------


def stage(setup: Setup, networks: Networks, gflop: dict[str, float], ceiling: Ceiling) -> None:
    """UNet and decoder in each form and batch, each form in turn; shares are of the published work, 800 GFLOP."""
    heading("UNet and decoder", "form", "batch", "ms a frame", "frames/s", "% of the product")
    each, fused = gflop["unet"] + gflop["decoder"], networks.gate.fused if networks.gate else None
    assert fused is not None, "the published networks of this package can be fused"
    for size in setup.batches:
        latents, tokens = inputs_of(setup, networks, size)
        forms: dict[str, Callable[[], object]] = {
            "published": partial(networks.painter.paint, latents, tokens),
            "fused, each kernel by itself": partial(fused.compute, latents, tokens),
            f"as jobs use it: {fused.path}": partial(fused.paint, latents, tokens),
        }
        with torch.inference_mode():
            times = setup.clock.in_turn(list(forms.values()))
        for name, took_s in zip(forms, times, strict=True):
            aim = AIMS["stage"] if name.startswith("as jobs") and size == setup.batches[-1] else None
            rate = size / took_s
            say(name, str(size), f"{1000 / rate:.3g}", f"{rate:.3g}", percent(each * size, took_s, ceiling, aim))
    parts(setup, networks, gflop, ceiling)


def parts(setup: Setup, networks: Networks, gflop: dict[str, float], ceiling: Ceiling) -> None:
    """Each network by itself, without graphs; and what the choice of kernels by trial would bring to the published."""
    size = setup.batches[-1]
    heading(f"Each network by itself, batch {size}", "network", "ms a frame", "GFLOP", "% of the product")
    latents, tokens = inputs_of(setup, networks, size)
    plain, fused = networks.painter, networks.gate.fused if networks.gate else None
    assert fused is not None
    with torch.inference_mode():
        painted = plain.predict(latents, tokens).clone()
        for name, work, calls in (
            ("UNet", "unet", (lambda: plain.predict(latents, tokens), lambda: fused.predict(latents, tokens))),
            ("decoder", "decoder", (lambda: plain.decode(painted), lambda: fused.decode(painted))),
        ):
            published_s, fused_s = setup.clock.in_turn(calls)
            with by_trial():
                (tried_s,) = setup.clock.in_turn(calls[:1])
            for form, took_s, count in (
                ("published", published_s, gflop[work]),
                ("published, kernels by trial (not used)", tried_s, gflop[work]),
                ("fused", fused_s, gflop[work if work == "unet" and fused.unet is None else f"fused {work}"]),
            ):
                share = percent(count * size, took_s, ceiling)
                say(f"{name}, {form}", f"{1000 * took_s / size:.3g}", f"{count:.3g}", share)


@contextmanager
def by_trial() -> Iterator[None]:
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = False


# -- jobs --------------------------------------------------------------------------------------------------------------


def person(width: int, height: int) -> tuple[RgbImage, Box]:
    """A photograph of that size, and the box of its face."""
    source = picture("hopper")
    face = find_faces(source)[0]
    scale = FACE_SHARE * height / face.box.height
    x, y = face.centre
    matrix = np.array([[scale, 0, width / 2 - scale * x], [0, scale, 0.46 * height - scale * y]])
    canvas = cv2.warpAffine(source, matrix, (width, height), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT)
    pixels = np.ascontiguousarray(canvas, np.uint8)
    return pixels, find_faces(pixels)[0].box


def jobs(setup: Setup, networks: Networks, gflop: dict[str, float], ceiling: Ceiling, folder: Path) -> None:
    """Whole jobs: opened, painted, moved and encoded."""
    heading(
        f"A job of {setup.seconds:g} s of sound, as a render child does it",
        "video",
        "motion",
        "times real time",
        "frames/s",
        "% of the product",
    )
    each = gflop["unet"] + gflop["decoder"]
    for kind, (width, height) in setup.pictures.items():
        canvas, box = person(width, height)
        for motion in ("none", "subtle"):
            scene = replace(
                random_inputs.scene_of(setup.seconds), picture=canvas, stitch=kind == "stitched", motion=motion
            )
            took_s = setup.clock.once(partial(render, setup, networks, scene, box, folder))
            aim = AIMS["stitched" if kind == "stitched" else "job"] if motion == "none" else None
            say(
                f"{kind}, {width}x{height}" if kind == "stitched" else f"{kind}, {scene.resolution}x{scene.resolution}",
                motion,
                f"{setup.seconds / took_s:.1f}",
                f"{scene.frames / took_s:.3g}",
                percent(each * scene.frames, took_s, ceiling, aim),
            )


def opened(setup: Setup, networks: Networks, scene: Scene, box: Box) -> Shot:
    return moving(networks.shot(scene, setup.batches[-1], box), scene)


def render(setup: Setup, networks: Networks, scene: Scene, box: Box, folder: Path) -> None:
    shot = opened(setup, networks, scene, box)
    sound = folder / "sound.s16"
    sound.write_bytes(bytes(2 * round(setup.seconds * SOUND_RATE)))
    encoding = Encoding(width=shot.width, height=shot.height, fps=Fraction(random_inputs.FPS), sound=sound, channels=1)
    target = folder / "out.mp4"
    target.unlink(missing_ok=True)
    with Encoder(ffmpeg.find(""), encoding, target, still=getattr(shot, "still", None)) as encoder:
        for frame in shot.frames():
            encoder.write(frame)
        encoder.finish()


def between_jobs(setup: Setup, networks: Networks) -> None:
    """From the last frame of a job to the first one of the next, which is prepared in between."""
    heading(
        "Between two jobs, each with its own picture", "from the last frame to the next job's first", "milliseconds"
    )
    canvas, box = person(*setup.pictures["square"])
    gaps = []
    last: float | None = None
    for number in range(4):
        scene = replace(random_inputs.scene_of(0.2 if setup.small else 2.0), picture=np.roll(canvas, number, axis=1))
        for frame in opened(setup, networks, replace(scene, motion="subtle"), box).frames():
            if last is not None:
                gaps.append(1000 * (time.perf_counter() - last))
                last = None
            assert frame.ndim == 3
        last = time.perf_counter()
    say("least and most of three", f"{min(gaps):.0f} to {max(gaps):.0f}, aim 100")


# -- the program -------------------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--load"]:
        load(arguments[1])
        return 0
    small = "--dry-run" in arguments
    if not small and not torch.cuda.is_available():
        print(
            f"torch {torch.__version__} finds no GPU on this machine, so nothing was measured. "
            "`python -m benchmarks.gpu --dry-run` runs every line on the CPU."
        )
        return 0
    setup = Setup(torch.device("cpu" if small else "cuda:0"), small)
    configs = random_inputs.small_configs() if small else random_inputs.published_configs()
    print(f"{device_name(setup.device)}, torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}")
    if small:
        print("A dry run: these figures mean nothing.")
    with tempfile.TemporaryDirectory(prefix="lipsyncd-gpu-") as scratch:
        folder, cache = Path(scratch) / "weights", Path(scratch) / "cache"
        random_inputs.write_weights(folder, configs)
        gflop = work_gflop(configs)
        loads(setup, folder, cache)
        networks = networks_of(setup, folder, cache)
        ceiling = ceiling_of(setup.clock, setup.device, networks.painter.dtype)
        print(f"\nProduct: {ceiling.tflops:.3g} TFLOP/s in {ceiling.of}, {networks.painter.dtype}")
        with torch.inference_mode():
            networks.compare(*inputs_of(setup, networks, setup.batches[-1]))
        verdict = networks.gate.verdict if networks.gate else None
        print(f"The fused networks {'pass' if verdict and verdict.passed else f'do not pass: {verdict}'}")
        stage(setup, networks, gflop, ceiling)
        jobs(setup, networks, gflop, ceiling, Path(scratch))
        between_jobs(setup, networks)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
