"""Frames through the networks: order, batches, too little memory, precision that overflows, and prefetching."""

from __future__ import annotations

import copy
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
from lipsyncd.renderers.musetalk.bench import random_inputs  # noqa: E402
from lipsyncd.renderers.musetalk.gpu_memory import BatchSize, is_out_of_memory  # noqa: E402
from lipsyncd.renderers.musetalk.painting.blend import PasteBack  # noqa: E402
from lipsyncd.renderers.musetalk.painting.job_painter import JobPainter  # noqa: E402
from lipsyncd.renderers.musetalk.painting.networks import Painter  # noqa: E402
from lipsyncd.renderers.musetalk.painting.pipeline import FrameInput, Pipeline, scaled  # noqa: E402
from lipsyncd.renderers.musetalk.painting.prepared_face import prepare_face  # noqa: E402
from lipsyncd.renderers.prefetcher import Prefetcher  # noqa: E402
from tests.kits.media.musetalk_kit import portrait, tiny_painter  # noqa: E402

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


class Broken(nn.Module):
    """A UNet whose output is not finite."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, latents: Tensor, *given: Any, **more: Any) -> Any:
        answer = self.unet(latents, *given, **more)
        answer.sample[-1, 0, 0, 0] = torch.nan
        return answer


def loud(painter: Painter, factor: float, part: str = "decoder") -> Painter:
    """The same networks in half precision, but the first values of the VAE's decoder or encoder are larger by `factor`.

    The layers behind them take the size out again, so that in float32 pictures stay what they are.
    """
    vae = copy.deepcopy(painter.vae)
    for parameter in vae.get_submodule(part).conv_in.parameters():
        parameter.mul_(factor)
    return Painter(copy.deepcopy(painter.unet).half(), vae.half())


def overflows(painter: Painter, one: FrameInput) -> bool:
    return not bool(torch.isfinite(painter.decode(painter.predict(one.latents, one.tokens[None]))).all())


def barely_too_loud(painter: Painter, one: FrameInput) -> Painter:
    """Networks whose decoder just overflows in half precision for that frame."""
    fits, too_much = 1_000.0, 4_000.0
    with torch.inference_mode():
        assert not overflows(loud(painter, fits), one) and overflows(loud(painter, too_much), one)
        for _ in range(3):
            middle = (fits * too_much) ** 0.5
            fits, too_much = (fits, middle) if overflows(loud(painter, middle), one) else (middle, too_much)
    return loud(painter, too_much)


def inputs_of(count: int, tokens: int = 20) -> list[FrameInput]:
    """The inputs of `count` different frames."""
    chance = torch.Generator().manual_seed(4)
    latents = torch.randn(1, 8, 32, 32, generator=chance)
    return [FrameInput(latents, torch.randn(tokens, 384, generator=chance), None) for _ in range(count)]


def painted(painter: Painter, count: int, size: int) -> NDArray[np.uint8]:
    return np.array(list(Pipeline(JobPainter(painter), BatchSize(CPU, 14), size).patches(inputs_of(count))))


def test_frames_come_in_order_whatever_the_batch(painter: Painter) -> None:
    one = painted(painter, 7, 1)

    assert one.shape == (7, 256, 256, 3) and len({frame.tobytes() for frame in one}) == 7
    for size in (2, 3, 7, 16):
        assert np.abs(painted(painter, 7, size).astype(np.int16) - one).max() <= 1, size


def test_a_batch_that_does_not_fit_is_halved_repeated_and_remembered(painter: Painter) -> None:
    narrow = Narrow(painter.unet, most=2)
    small, batch = Painter(narrow, painter.vae), BatchSize(CPU, 14)

    frames = list(Pipeline(JobPainter(small), batch, 8).patches(inputs_of(11)))

    assert narrow.tried == [8, 4, 2, 2, 2, 2, 2, 1]
    assert np.abs(np.array(frames, np.int16) - painted(painter, 11, 2)).max() <= 1
    narrow.tried.clear()
    list(Pipeline(JobPainter(small), batch, 8).patches(inputs_of(4)))  # the next job on this device
    assert narrow.tried == [2, 2]


def test_a_frame_that_does_not_fit_alone_ends_the_job(painter: Painter) -> None:
    cramped = Painter(Narrow(painter.unet, most=0), painter.vae)

    with pytest.raises(OutOfMemory, match="single frame"):
        list(Pipeline(JobPainter(cramped), BatchSize(CPU, 14), 4).patches(inputs_of(3)))


def test_other_errors_of_torch_are_no_lack_of_memory(painter: Painter) -> None:
    with pytest.raises(RuntimeError, match="must match the existing size"):
        list(
            Pipeline(JobPainter(painter), BatchSize(CPU, 14), 2).patches(
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


def test_an_overflow_of_the_vae_costs_its_job_alone_a_vae_in_float32(painter: Painter) -> None:
    [given] = inputs_of(1)
    # The UNet gives this one's latents a larger peak, as seen at the first layers of the decoder: 16 to 11.
    shrill = [FrameInput(given.latents * 0.01, given.tokens * 0.01, None)]
    quiet = [FrameInput(given.latents * 10, given.tokens * 10, None)]
    half = barely_too_loud(painter, shrill[0])
    events: list[str] = []

    def job(given: list[FrameInput]) -> tuple[NDArray[np.uint8], JobPainter]:
        events.clear()
        of_job = JobPainter(half, report=events.append)
        return np.array(list(Pipeline(of_job, BatchSize(CPU, 14), 1).patches(given))), of_job

    before, _ = job(quiet)
    assert events == []
    rescued, of_job = job([*shrill, *quiet, *quiet])
    [event] = events
    assert event.startswith("decoded frames were not finite in half precision: the VAE computes in float32")
    assert of_job.precision == "float16, VAE float32"
    assert {parameter.dtype for parameter in of_job.now.unet.parameters()} == {torch.float16}
    after, of_job = job(quiet)

    assert np.array_equal(before, after), "pixels depend on an earlier job"
    assert of_job.precision == "float16" and events == []
    assert {parameter.dtype for parameter in half.vae.parameters()} == {torch.float16}
    full = Painter(copy.deepcopy(half.unet).float(), copy.deepcopy(half.vae).float())
    expected = np.array(list(Pipeline(JobPainter(full), BatchSize(CPU, 14), 1).patches(shrill)))
    assert np.abs(rescued[:1].astype(np.int16) - expected).mean() < 2


def test_a_face_whose_latents_overflow_is_encoded_in_float32_for_its_job_alone(painter: Painter) -> None:
    half, events = loud(painter, 1e5, "encoder"), list[str]()
    of_job = JobPainter(half, report=events.append)

    prepared = prepare_face(
        portrait(), random_inputs.face_at(Box(60, 50, 120, 140)), of_job, random_inputs.labels_of, "jaw"
    )

    assert torch.isfinite(prepared.latents).all()
    assert [event.partition(":")[0] for event in events] == [
        "the latents of the face were not finite in half precision"
    ]
    assert (of_job.precision, JobPainter(half).precision) == ("float16, VAE float32", "float16")


def test_an_output_that_is_never_finite_fails_the_job(painter: Painter) -> None:
    with pytest.raises(RenderError, match="the output of the UNet is not finite"):
        painted(Painter(Broken(painter.unet), painter.vae), 2, 2)
    damaged = copy.deepcopy(painter.vae)
    damaged.decoder.conv_in.bias.fill_(torch.inf)
    with pytest.raises(RenderError, match="the output of the VAE is not finite"):
        painted(Painter(painter.unet, damaged), 2, 2)


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
    deadline = time.monotonic() + 60
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
