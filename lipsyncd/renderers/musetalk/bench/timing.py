"""The measurements of a benchmark: operations, time, and the device's peak rate.

Owns counting, the clock and the peak rate, called ceiling. Leaves the timed work to `run`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import torch
from torch.utils.flop_counter import FlopCounterMode

from lipsyncd.renderers.musetalk.audio_features import BLOCK_STEPS
from lipsyncd.renderers.musetalk.bench.random_inputs import Configs
from lipsyncd.renderers.musetalk.painting import networks
from lipsyncd.renderers.musetalk.painting.networks import PATCH

TOKENS = 50  # of one frame: ten steps of five states
ROUNDS_S = 6.0  # about how long one stage is measured

_CEILING_SIDES = {"cuda": (2048, 4096, 8192), "cpu": (512, 1024, 2048)}
_CEILING_RUNS = 3  # the best one counts: the ceiling is the peak rate, not the average


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

    returns  `unet` and `decoder` for a frame, `encoder` for both crops of a picture, `whisper` for a block of 30 s
    """
    unet, vae = networks.unet(configs["unet"]), networks.vae(configs["vae"])
    whisper = networks.whisper(configs["whisper"])
    side = PATCH // 8
    time_step = torch.zeros((), dtype=torch.long, device="meta")
    width, mels = configs["unet"]["cross_attention_dim"], configs["whisper"]["num_mel_bins"]
    return {
        "unet": _counted(lambda: unet(_nothing(1, 8, side, side), time_step, _nothing(1, TOKENS, width))),
        "decoder": _counted(lambda: vae.decode(_nothing(1, 4, side, side))),
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
        self._device, self._rounds_s = device, rounds_s

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
        return self.once(call, max(min(int(self._rounds_s / max(probe, 1e-6)), most), 1))

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def ceiling_tflops(clock: Clock, device: torch.device, dtype: torch.dtype) -> float:
    """The rate of the fastest product of two square matrices, which no layer exceeds by much."""
    best = 0.0
    for side in _CEILING_SIDES[device.type]:
        a, b = (torch.rand(side, side, device=device, dtype=dtype) for _ in range(2))
        times = max(int(1e11 / side**3), 1) if device.type == "cuda" else 1

        def product(a: torch.Tensor = a, b: torch.Tensor = b) -> torch.Tensor:
            return torch.mm(a, b)

        product()
        fastest = min(clock.once(product, times) for _ in range(_CEILING_RUNS))
        best = max(best, 2 * side**3 / fastest / 1e12)
    return best
