"""Frames through the networks: order, batches, too little memory, precision that overflows, and prefetching."""

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


def prefetchers() -> int:
    return sum(thread.name == "prefetcher" for thread in threading.enumerate())


# -- batches and memory ------------------------------------------------------------------------------------------------


class Narrow(nn.Module):
    """A UNet on a device with little memory: a batch above `most` runs out of it."""

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
    """A UNet whose output is not finite in half precision, or never finite."""

    def __init__(self, unet: nn.Module, *, always: bool = False) -> None:
        super().__init__()
        self.unet, self.always = unet, always

    def forward(self, latents: Tensor, *given: Any, **more: Any) -> Any:
        answer = self.unet(latents, *given, **more)
        if self.always or latents.dtype != torch.float32:
            answer.sample[-1, 0, 0, 0] = torch.inf
        return answer


def inputs_of(count: int, tokens: int = 20) -> list[FrameInput]:
    """The inputs of `count` different frames."""
    chance = torch.Generator().manual_seed(4)
    latents = torch.randn(1, 8, 32, 32, generator=chance)
    return [FrameInput(latents, torch.randn(tokens, 384, generator=chance), None) for _ in range(count)]


def painted(painter: Painter, count: int, size: int) -> NDArray[np.uint8]:
    return np.array(list(Pipeline(painter, BatchSize(CPU, 14), size).patches(inputs_of(count))))


def test_frames_come_in_order_whatever_the_batch(painter: Painter) -> None:
    one = painted(painter, 7, 1)

    assert one.shape == (7, 256, 256, 3) and len({frame.tobytes() for frame in one}) == 7
    for size in (2, 3, 7, 16):
        assert np.abs(painted(painter, 7, size).astype(np.int16) - one).max() <= 1, size


def test_a_batch_that_does_not_fit_is_halved_repeated_and_remembered(painter: Painter) -> None:
    narrow = Narrow(painter.unet, most=2)
    small, batch = Painter(narrow, painter.vae), BatchSize(CPU, 14)

    frames = list(Pipeline(small, batch, 8).patches(inputs_of(11)))

    assert narrow.tried == [8, 4, 2, 2, 2, 2, 2, 1]
    assert np.abs(np.array(frames, np.int16) - painted(painter, 11, 2)).max() <= 1
    narrow.tried.clear()
    list(Pipeline(small, batch, 8).patches(inputs_of(4)))  # the next job on this device
    assert narrow.tried == [2, 2]


def test_a_frame_that_does_not_fit_alone_ends_the_job(painter: Painter) -> None:
    cramped = Painter(Narrow(painter.unet, most=0), painter.vae)

    with pytest.raises(OutOfMemory, match="single frame"):
        list(Pipeline(cramped, BatchSize(CPU, 14), 4).patches(inputs_of(3)))


def test_other_errors_of_torch_are_no_lack_of_memory(painter: Painter) -> None:
    with pytest.raises(RuntimeError, match="must match the existing size"):
        list(
            Pipeline(painter, BatchSize(CPU, 14), 2).patches(
                [FrameInput(torch.zeros(1, 3, 8, 8), torch.zeros(1, 9), None)]
            )
        )


@pytest.mark.parametrize(
    ("message", "out_of_memory"),
    [
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("CUDA error: device-side assert triggered", False),
    ],
)
def test_out_of_memory_is_recognised_by_torchs_message(message: str, out_of_memory: bool) -> None:
    assert is_out_of_memory(RuntimeError(message)) is out_of_memory


def test_out_of_memory_on_the_cpu_is_recognised() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(error.value)


def test_half_precision_that_overflows_is_replaced_by_full() -> None:
    full = tiny_painter()
    expected = painted(full, 3, 2)
    half = Painter(Overflowing(full.unet.half()), full.vae.half())

    frames = painted(half, 3, 2)

    assert half.dtype == torch.float32
    # The weights were rounded to half precision once, so the result is close, and finite.
    assert np.abs(frames.astype(np.int16) - expected).mean() < 2


def test_an_output_that_is_never_finite_fails_the_job(painter: Painter) -> None:
    with pytest.raises(RenderError, match="not finite"):
        painted(Painter(Overflowing(painter.unet, always=True), painter.vae), 2, 2)


@pytest.mark.parametrize("face", [Box(20, 10, 90, 110), Box(20, 10, 600, 700), Box(0, 0, 256, 256)], ids=str)
def test_scaling_on_the_device_equals_opencvs_except_for_single_levels(face: Box) -> None:
    patches = np.random.default_rng(2).integers(0, 256, (3, 256, 256, 3), np.uint8)
    area = Box(face.x + 5, face.y + face.height // 2, face.width - 9, face.height // 3)
    paste = PasteBack(face, area, np.zeros((area.height, area.width, 1), np.uint16))

    ours = torch.cat(scaled(torch.from_numpy(patches).permute(0, 3, 1, 2), paste)).numpy()

    inside = np.s_[area.y - face.y : area.bottom - face.y, area.x - face.x : area.right - face.x]
    wanted = [cv2.resize(patch, (face.width, face.height), interpolation=cv2.INTER_LINEAR)[inside] for patch in patches]
    assert np.abs(ours.astype(np.int16) - wanted).max() <= 1


# -- prefetching -------------------------------------------------------------------------------------------------------


def test_the_prefetcher_computes_no_more_than_its_queue_holds() -> None:
    computed = []

    def items() -> Iterator[int]:
        for number in range(100):
            computed.append(number)
            yield number

    prefetcher = Prefetcher(items(), most=4)
    deadline = time.monotonic() + 10
    while len(computed) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(computed) == 5  # four in the queue, one waits for a place
    assert list(prefetcher) == list(range(100))
    assert prefetchers() == 0


def test_an_exception_of_the_prefetcher_is_raised_in_the_consumer() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OutOfMemory("no room")

    prefetcher = Prefetcher(items())
    assert next(prefetcher) == 1
    with pytest.raises(OutOfMemory, match="no room"):
        next(prefetcher)
    assert list(prefetcher) == []
    assert prefetchers() == 0
