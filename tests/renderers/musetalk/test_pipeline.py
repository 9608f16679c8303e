"""Frames through the networks: order, batches, memory that runs out, precision that fails, and the thread ahead."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

from lipsyncd.errors import OutOfMemory, RenderError  # noqa: E402
from lipsyncd.renderers.framing import Box  # noqa: E402
from lipsyncd.renderers.musetalk.gpu_memory import BatchSize, is_out_of_memory  # noqa: E402
from lipsyncd.renderers.musetalk.painting.blend import PasteBack  # noqa: E402
from lipsyncd.renderers.musetalk.painting.networks import Painter  # noqa: E402
from lipsyncd.renderers.musetalk.painting.pipeline import FrameInput, Pipeline, Prefetcher, scaled  # noqa: E402
from tests.kits.media.musetalk_kit import tiny_painter  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def painter() -> Iterator[Painter]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tiny_painter()
    torch.set_num_threads(before)


def device_threads() -> int:
    return sum(thread.name == "device" for thread in threading.enumerate())


# -- batches and memory ------------------------------------------------------------------------------------------------


class Narrow(nn.Module):
    """A UNet on a device without room: a batch above `most` runs out of memory."""

    def __init__(self, unet: nn.Module, most: int) -> None:
        super().__init__()
        self.unet, self.most = unet, most
        self.tried: list[int] = []

    def forward(self, latents: Tensor, *given: Any, **more: Any) -> Any:
        self.tried.append(len(latents))
        if len(latents) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.unet(latents, *given, **more)


class Overflowing(nn.Module):
    """A UNet whose answer is not finite in half precision, or never."""

    def __init__(self, unet: nn.Module, *, always: bool = False) -> None:
        super().__init__()
        self.unet, self.always = unet, always

    def forward(self, latents: Tensor, *given: Any, **more: Any) -> Any:
        answer = self.unet(latents, *given, **more)
        if self.always or latents.dtype != torch.float32:
            answer.sample[-1, 0, 0, 0] = torch.inf
        return answer


def wanted(count: int, tokens: int = 20) -> list[FrameInput]:
    """`count` frames that all differ."""
    chance = torch.Generator().manual_seed(4)
    latents = torch.randn(1, 8, 32, 32, generator=chance)
    return [FrameInput(latents, torch.randn(tokens, 384, generator=chance), None) for _ in range(count)]


def through(painter: Painter, count: int, size: int) -> NDArray[np.uint8]:
    return np.array(list(Pipeline(painter, BatchSize(CPU, 14), size).patches(wanted(count))))


def test_frames_come_in_order_whatever_the_batch(painter: Painter) -> None:
    one = through(painter, 7, 1)

    assert one.shape == (7, 256, 256, 3) and len({frame.tobytes() for frame in one}) == 7
    for size in (2, 3, 7, 16):
        assert np.abs(through(painter, 7, size).astype(np.int16) - one).max() <= 1, size


def test_a_batch_that_does_not_fit_is_halved_repeated_and_remembered(painter: Painter) -> None:
    narrow = Narrow(painter.unet, most=2)
    small, batch = Painter(narrow, painter.vae), BatchSize(CPU, 14)

    frames = list(Pipeline(small, batch, 8).patches(wanted(11)))

    assert narrow.tried == [8, 4, 2, 2, 2, 2, 2, 1]
    assert np.abs(np.array(frames, np.int16) - through(painter, 11, 2)).max() <= 1
    narrow.tried.clear()
    list(Pipeline(small, batch, 8).patches(wanted(4)))  # the next job on this device
    assert narrow.tried == [2, 2]


def test_a_frame_that_does_not_fit_alone_ends_the_job(painter: Painter) -> None:
    cramped = Painter(Narrow(painter.unet, most=0), painter.vae)

    with pytest.raises(OutOfMemory, match="single frame"):
        list(Pipeline(cramped, BatchSize(CPU, 14), 4).patches(wanted(3)))


def test_other_errors_of_torch_are_no_lack_of_memory(painter: Painter) -> None:
    with pytest.raises(RuntimeError, match="must match the existing size"):
        list(
            Pipeline(painter, BatchSize(CPU, 14), 2).patches(
                [FrameInput(torch.zeros(1, 3, 8, 8), torch.zeros(1, 9), None)]
            )
        )


@pytest.mark.parametrize(
    ("said", "means"),
    [
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("CUDA error: device-side assert triggered", False),
    ],
)
def test_memory_that_runs_out_is_known_by_what_torch_says(said: str, means: bool) -> None:
    assert is_out_of_memory(RuntimeError(said)) is means


def test_the_cpus_allocator_is_understood_too() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(error.value)


def test_half_precision_that_overflows_is_left_for_full() -> None:
    full = tiny_painter()
    expected = through(full, 3, 2)
    half = Painter(Overflowing(full.unet.half()), full.vae.half())

    frames = through(half, 3, 2)

    assert half.dtype == torch.float32
    # The weights were cut to half precision once; what they compute is near, and finite.
    assert np.abs(frames.astype(np.int16) - expected).mean() < 2


def test_an_answer_that_is_never_finite_fails_the_job(painter: Painter) -> None:
    with pytest.raises(RenderError, match="not finite"):
        through(Painter(Overflowing(painter.unet, always=True), painter.vae), 2, 2)


@pytest.mark.parametrize("face", [Box(20, 10, 90, 110), Box(20, 10, 600, 700), Box(0, 0, 256, 256)], ids=str)
def test_scaling_on_the_device_is_opencvs_but_for_single_levels(face: Box) -> None:
    patches = np.random.default_rng(2).integers(0, 256, (3, 256, 256, 3), np.uint8)
    area = Box(face.x + 5, face.y + face.height // 2, face.width - 9, face.height // 3)
    paste = PasteBack(face, area, np.zeros((area.height, area.width, 1), np.uint16))

    ours = torch.cat(scaled(torch.from_numpy(patches).permute(0, 3, 1, 2), paste)).numpy()

    inside = np.s_[area.y - face.y : area.bottom - face.y, area.x - face.x : area.right - face.x]
    wanted = [cv2.resize(patch, (face.width, face.height), interpolation=cv2.INTER_LINEAR)[inside] for patch in patches]
    assert np.abs(ours.astype(np.int16) - wanted).max() <= 1


# -- the thread ahead --------------------------------------------------------------------------------------------------


def test_the_thread_ahead_goes_no_further_than_it_may() -> None:
    made = []

    def items() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    ahead = Prefetcher(items(), most=4)
    deadline = time.monotonic() + 10
    while len(made) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(made) == 5  # four wait, one is at the door
    assert list(ahead) == list(range(100))
    assert device_threads() == 0


def test_what_the_thread_raises_is_raised_where_it_is_waited_for() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OutOfMemory("no room")

    ahead = Prefetcher(items())
    assert next(ahead) == 1
    with pytest.raises(OutOfMemory, match="no room"):
        next(ahead)
    assert list(ahead) == []
    assert device_threads() == 0
