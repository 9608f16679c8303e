"""What a CUDA graph needs, held on a CPU: one thread, the same memory each time, and no wait or copy to the CPU inside.

A stand-in records: it keeps the work and repeats it into the memory of the first results, as a graph would.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from lipsyncd.renderers.musetalk.gpu_memory import BatchSize  # noqa: E402
from lipsyncd.renderers.musetalk.painting.fused.decoder import FusedDecoder  # noqa: E402
from lipsyncd.renderers.musetalk.painting.fused.gate import Gate  # noqa: E402
from lipsyncd.renderers.musetalk.painting.fused.graphs import WARM_UPS, Graphs, Work  # noqa: E402
from lipsyncd.renderers.musetalk.painting.fused.painter import FusedPainter  # noqa: E402
from lipsyncd.renderers.musetalk.painting.fused.unet import FusedUNet  # noqa: E402
from lipsyncd.renderers.musetalk.painting.job_painter import JobPainter  # noqa: E402
from lipsyncd.renderers.musetalk.painting.networks import Painted  # noqa: E402
from lipsyncd.renderers.musetalk.painting.pipeline import FrameInput, Pipeline  # noqa: E402
from tests.kits.media.musetalk_kit import tiny_painter  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(before)


class StandIn:
    """Records as a GPU does: the results of each replay are written over those of the recording."""

    def __init__(self) -> None:
        self.threads: set[int] = set()
        self.recorded: list[Painted] = []
        self.replayed = 0

    def __call__(self, work: Work) -> tuple[Callable[[], None], Painted]:
        for _ in range(WARM_UPS):
            work()
        self.threads.add(threading.get_ident())
        painted = work()
        self.recorded.append(painted)

        def replay() -> None:
            self.threads.add(threading.get_ident())
            self.replayed += 1
            again = work()
            for place, value in ((painted.latents, again.latents), (painted.pixels, again.pixels)):
                place.copy_(value)
            painted.finite.copy_(again.finite)

        return replay, painted


def fused(stand_in: StandIn | None) -> FusedPainter:
    """Both networks fused, as on a GPU."""
    plain = tiny_painter()
    return FusedPainter(plain, FusedUNet(plain.unet), FusedDecoder(plain.vae), stand_in)


def given(seed: int, frames: int = 2) -> tuple[Tensor, Tensor]:
    chance = torch.Generator().manual_seed(seed)
    return torch.randn(frames, 8, 32, 32, generator=chance), torch.randn(frames, 20, 384, generator=chance)


def addresses(painted: Painted) -> tuple[int, int, int]:
    return painted.latents.data_ptr(), painted.pixels.data_ptr(), painted.finite.data_ptr()


def test_every_batch_of_a_shape_is_one_recording_in_the_same_memory_on_one_thread() -> None:
    stand_in = StandIn()
    painter, eager = fused(stand_in), fused(None)
    places, seen = set(), []

    def paint(seed: int) -> None:
        with torch.inference_mode():
            painted = painter.paint(*given(seed))
            places.add(addresses(painted))
            seen.append((painted.pixels.clone(), eager.paint(*given(seed)).pixels))

    for seed in range(3):  # each job paints from a thread of its own
        thread = threading.Thread(target=paint, args=(seed,))
        thread.start()
        thread.join()

    assert len(seen) == 3 and all(torch.equal(got, wanted) for got, wanted in seen)
    assert len(stand_in.recorded) == len(places) == 1 and stand_in.replayed == 3
    assert len(stand_in.threads) == 1 and threading.get_ident() not in stand_in.threads
    assert painter.path == "fused UNet and decoder, channels last, CUDA graph, float32"


def test_recordings_of_the_two_latest_shapes_are_kept_and_forgotten_on_request() -> None:
    stand_in = StandIn()
    painter = fused(stand_in)
    for frames in (1, 2, 1, 3, 1, 2):
        painter.paint(*given(0, frames))
    assert len(stand_in.recorded) == 4, "of 1 frame, 2, 3, and again of 2"
    painter.forget()
    painter.paint(*given(0, 2))
    assert len(stand_in.recorded) == 5


def test_latents_that_repeat_one_picture_get_memory_of_their_own() -> None:
    latents, tokens = given(4)
    still = latents[:1].expand(2, -1, -1, -1)
    painter = fused(StandIn())
    wanted = fused(None).paint(still, tokens)
    assert torch.equal(painter.paint(still, tokens).pixels, wanted.pixels)
    assert torch.equal(painter.paint(latents, tokens).pixels, fused(None).paint(latents, tokens).pixels)


def test_a_job_gives_the_same_frames_with_recordings_as_without() -> None:
    chance = torch.Generator().manual_seed(6)
    latents = torch.randn(1, 8, 32, 32, generator=chance)
    inputs = [FrameInput(latents, torch.randn(20, 384, generator=chance), None) for _ in range(5)]

    def frames(stand_in: StandIn | None) -> np.ndarray:
        painter = fused(stand_in)
        job = JobPainter(painter.plain, gate=Gate(painter, {}))
        return np.array(list(Pipeline(job, BatchSize(CPU, 14), 2).patches(inputs)))

    stand_in = StandIn()
    assert np.array_equal(frames(stand_in), frames(None))
    assert len(stand_in.recorded) == 2, "of whole batches, and of the last one"


def test_a_batch_that_does_not_fit_drops_the_recordings_before_a_smaller_one_is_tried() -> None:
    stand_in, sizes = StandIn(), list[int]()
    painter = fused(stand_in)

    def narrow(work: Work) -> tuple[Callable[[], None], Painted]:
        replay, painted = stand_in(work)
        sizes.append(len(painted.pixels))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return replay, painted

    painter._graphs = Graphs(painter.compute, narrow, CPU)
    gate = Gate(painter, {})
    gate.judge(painter.plain, *given(0, 1))
    latents, tokens = given(7, 4)
    inputs = [FrameInput(latents[n : n + 1], tokens[n], None) for n in range(4)]
    frames = list(Pipeline(JobPainter(painter.plain, gate=gate), BatchSize(CPU, 14), 4).patches(inputs))
    assert len(frames) == 4 and sizes == [1, 4, 2]


class NoReads(TorchDispatchMode):
    """Refuses what would make a device wait for the CPU, or give results of a size that depends on their values."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not any(name in str(func) for name in self.WAITS), f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


def test_a_pass_never_waits_for_the_device() -> None:
    painter = fused(None)
    painter.compute(*given(1))  # keeps the positional encoding
    with NoReads():
        painter.compute(*given(1))
        with pytest.raises(AssertionError, match="waits for the device"):
            bool(torch.ones(1).sum() > 0)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton comes with builds of torch for CUDA")
def test_tritons_group_norm_gives_what_torchs_does(tmp_path: Path) -> None:
    """In Triton's interpreter, in a process of its own, since it is switched on before Triton is imported."""
    program = """
import torch
from torch.nn import functional
from lipsyncd.renderers.musetalk.painting.fused.triton_norm import group_norm
for shape, groups, mean in (((2, 32, 4, 4), 8, 0), ((1, 128, 40, 40), 32, 0), ((3, 320, 9, 7), 32, 100)):
    for silu in (True, False):
        x = (torch.randn(shape) + mean).contiguous(memory_format=torch.channels_last)
        weight, bias = torch.randn(shape[1]), torch.randn(shape[1])
        wanted = functional.group_norm(x.double(), groups, weight.double(), bias.double(), 1e-6)
        wanted = functional.silu(wanted) if silu else wanted
        got = group_norm(x, groups, weight, bias, 1e-6, silu=silu)
        assert got.is_contiguous(memory_format=torch.channels_last)
        assert (got - wanted).abs().max() < 1e-4, (shape, silu)
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
