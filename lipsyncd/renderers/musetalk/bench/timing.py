"""The measurements of a benchmark: operations, time, and the device's peak rate.

Owns counting, the clock and the peak rate, called ceiling. Leaves the timed work to `run`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from lipsyncd.renderers.musetalk.audio_features import BLOCK_STEPS
from lipsyncd.renderers.musetalk.bench.random_inputs import Configs
from lipsyncd.renderers.musetalk.painting import networks
from lipsyncd.renderers.musetalk.painting.fused.decoder import FusedDecoder
from lipsyncd.renderers.musetalk.painting.fused.unet import FusedUNet
from lipsyncd.renderers.musetalk.painting.networks import PATCH

TOKENS = 50  # of one frame: ten steps of five states
ROUNDS_S = 6.0  # about how long one stage is measured

# Rows, depth and columns of matrix products: squares, and a linear layer of the UNet for a few frames.
_PRODUCTS = {
    "cuda": ((2048,) * 3, (4096,) * 3, (8192,) * 3, (16384, 1280, 5120)),
    "cpu": ((512,) * 3, (1024,) * 3, (2048,) * 3, (1024, 1280, 5120)),
}
# Channels and side of convolutions, as the decoder has them at a quarter of their size. On a CPU torch computes them
# by another library than products, which may be the faster one.
_CONVOLUTIONS = ((512, 32), (256, 64), (128, 128))
_CEILING_RUNS = 3  # at least; the best one counts: the ceiling is the peak rate, not the average


@dataclass(frozen=True)
class Stage:
    """One row of the result: the time of a stage for each unit `per`.

    gflop  of one unit, a multiply-add as 2; None where operations are not counted
    """

    stage: str
    per: str
    ms: float
    gflop: float | None
    ceiling_tflops: float = field(repr=False)

    @property
    def per_s(self) -> float:
        return 1000 / self.ms

    @property
    def tflops(self) -> float | None:
        return None if self.gflop is None else self.gflop / self.ms

    @property
    def percent(self) -> float | None:
        """The rate as a part of the ceiling."""
        return None if self.tflops is None else 100 * self.tflops / self.ceiling_tflops

    def as_json(self) -> dict[str, object]:
        fields = {k: v for k, v in asdict(self).items() if k != "ceiling_tflops"}
        return {**fields, "per_s": self.per_s, "tflops": self.tflops, "percent_of_ceiling": self.percent}


# -- work --------------------------------------------------------------------------------------------------------------


def work_gflop(configs: Configs) -> dict[str, float]:
    """GFLOP of each network for one frame, picture or block of sound, counted by torch without computing anything.

    returns  `unet` and `decoder` for a frame, as published and fused; `encoder` for both crops of a picture; `whisper`
             for a block of 30 s
    """
    unet, vae = networks.unet(configs["unet"]), networks.vae(configs["vae"])
    whisper = networks.whisper(configs["whisper"])
    side = PATCH // 8
    time_step = torch.zeros((), dtype=torch.long, device="meta")
    width, mels = configs["unet"]["cross_attention_dim"], configs["whisper"]["num_mel_bins"]
    return {
        "unet": _counted(lambda: unet(_nothing(1, 8, side, side), time_step, _nothing(1, TOKENS, width))),
        "decoder": _counted(lambda: vae.decode(_nothing(1, 4, side, side))),
        "fused unet": _counted(lambda: FusedUNet(unet)(_nothing(1, 8, side, side), _nothing(1, TOKENS, width))),
        "fused decoder": _counted(lambda: FusedDecoder(vae)(_nothing(1, 4, side, side))),
        "encoder": _counted(lambda: vae.encode(_nothing(2, 3, PATCH, PATCH))),
        "whisper": _counted(lambda: whisper(_nothing(1, mels, 2 * BLOCK_STEPS))),
    }


def _nothing(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


def _counted(call: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return counter.get_total_flops() / 1e9


# -- time --------------------------------------------------------------------------------------------------------------


class Clock:
    """Times work on one device, which may continue after the call that started it returns."""

    def __init__(self, device: torch.device, rounds_s: float = ROUNDS_S) -> None:
        self._device, self.rounds_s = device, rounds_s

    def once(self, call: Callable[[], object], times: int = 1) -> float:
        """Seconds for each of `times` calls, until the device has finished them all."""
        self._wait()
        started = time.perf_counter()
        for _ in range(times):
            call()
        self._wait()
        return (time.perf_counter() - started) / times

    def mean(self, call: Callable[[], object], most: int = 1_000_000) -> float:
        """Seconds for one call: the mean of as many as fit into a few seconds, up to `most`, after a warm-up."""
        if self._device.type == "cuda":
            call()  # the first call selects kernels
        probe = self.once(call)
        return self.once(call, max(min(int(self.rounds_s / max(probe, 1e-6)), most), 1))

    def in_turn(self, calls: Sequence[Callable[[], object]], most: int = 20) -> list[float]:
        """Seconds for one call of each: the least of some rounds in which each has its turn, after a warm-up.

        For ratios: other work on the machine then slows all of them alike.
        """
        for call in calls:
            call()
        times: list[list[float]] = [[] for _ in calls]
        started = time.perf_counter()
        while len(times[0]) < most and (not times[0] or time.perf_counter() - started < self.rounds_s * len(calls)):
            for call, took in zip(calls, times, strict=True):
                took.append(self.once(call))
        return [min(took) for took in times]

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


@dataclass(frozen=True)
class Ceiling:
    """The fastest that a device did in this run: TFLOP/s, and in which operation."""

    tflops: float
    of: str


def ceiling_of(clock: Clock, device: torch.device, dtype: torch.dtype) -> Ceiling:
    """The best rate of some matrix products, and on a CPU of some convolutions: no layer exceeds it by much.

    On a GPU it is that of products alone, the reference of the aims in `benchmarks/README.md`.
    """
    seen = []
    for shape in _PRODUCTS[device.type]:
        rows, depth, columns = shape
        a, b = (torch.rand(*sides, device=device, dtype=dtype) for sides in ((rows, depth), (depth, columns)))
        flop = 2 * rows * depth * columns
        seen.append(Ceiling(_best(clock, partial(torch.mm, a, b), flop, device), f"torch.mm, {rows}x{depth}x{columns}"))
    for channels, side in _CONVOLUTIONS if device.type == "cpu" else ():
        x = torch.rand(1, channels, side, side, dtype=dtype).contiguous(memory_format=torch.channels_last)
        weight = torch.rand(channels, channels, 3, 3, dtype=dtype)
        flop = 2 * 9 * channels**2 * side**2
        best = _best(clock, partial(functional.conv2d, x, weight, padding=1), flop, device)
        seen.append(Ceiling(best, f"a convolution of 3x3, {channels} channels, {side}x{side}"))
    return max(seen, key=lambda one: one.tflops)


def _best(clock: Clock, call: Callable[[], object], flop: int, device: torch.device) -> float:
    """TFLOP/s of the fastest run; other work on the machine leaves some of a second's runs alone."""
    times = max(int(2e11 / flop), 1) if device.type == "cuda" else 1
    with torch.inference_mode():
        call()
        took_s, started = list[float](), time.perf_counter()
        while len(took_s) < _CEILING_RUNS or time.perf_counter() - started < clock.rounds_s / 5:
            took_s.append(clock.once(call, times))
    return flop / min(took_s) / 1e12
