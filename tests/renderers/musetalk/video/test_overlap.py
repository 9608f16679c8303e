"""The steps of a video's frames overlap, wait for no group to end, hold few frames, and end together."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from torch import Tensor  # noqa: E402

from lipsyncd.renderers import Scene  # noqa: E402
from lipsyncd.renderers.framing import Box, RgbImage  # noqa: E402
from lipsyncd.renderers.musetalk.audio_features import BLOCK_STEPS, AudioFeatures  # noqa: E402
from lipsyncd.renderers.musetalk.bench import random_inputs  # noqa: E402
from lipsyncd.renderers.musetalk.face.find_face import FaceFound  # noqa: E402
from lipsyncd.renderers.musetalk.face.track import FaceTrack  # noqa: E402
from lipsyncd.renderers.musetalk.gpu_memory import BatchSize  # noqa: E402
from lipsyncd.renderers.musetalk.painting.face_encoder import FaceEncoder  # noqa: E402
from lipsyncd.renderers.musetalk.painting.job_painter import JobPainter  # noqa: E402
from lipsyncd.renderers.musetalk.painting.networks import Painted  # noqa: E402
from lipsyncd.renderers.musetalk.painting.pipeline import Pipeline  # noqa: E402
from lipsyncd.renderers.musetalk.painting.prepared_face import PlacedFace, place_face  # noqa: E402
from lipsyncd.renderers.musetalk.still_shot import Voice  # noqa: E402
from lipsyncd.renderers.musetalk.video_shot import VideoShot  # noqa: E402
from lipsyncd.renderers.prefetcher import Prefetcher  # noqa: E402

LONG_S = 60.0
FACE = Box(20, 10, 60, 70)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class StandIn:
    """Source, networks and placing of a set rate: each step sleeps, notes how long, and can fail at a frame."""

    device, dtype, vae_dtype = torch.device("cpu"), torch.float32, torch.float32

    def __init__(self, frames: int, *, pace_s: float = 0.0, fails: str = "", at: int = 5) -> None:
        self.frames, self._pace_s, self._fails, self._at = frames, pace_s, fails, at
        self.spent_s, self.done = Counter[str](), Counter[str]()
        self.batches: list[int] = []
        self.closed = False
        self._placed: PlacedFace | None = None

    def work(self, step: str) -> None:
        began = time.monotonic()
        time.sleep(self._pace_s)
        self.spent_s[step] += time.monotonic() - began
        self.done[step] += 1
        if step == self._fails and self.done[step] > self._at:
            raise ValueError(f"{step} fails")

    def read(self, start: int = 0, count: int | None = None) -> Iterator[RgbImage]:
        raise NotImplementedError

    def play(self, count: int) -> Iterator[tuple[int, RgbImage]]:
        try:
            for number in range(count):
                self.work("decode")
                yield number, np.full((100, 120, 3), number % 200, np.uint8)
        finally:
            self.closed = True

    def place(self, picture: RgbImage, face: FaceFound) -> PlacedFace:
        self.work("place")
        if self._placed is None:
            self._placed = place_face(picture, face, random_inputs.labels_of, "jaw")
        return self._placed

    def encode(self, pictures: Tensor) -> Tensor:
        self.work("encode")
        return torch.zeros(len(pictures), 4, 32, 32)

    def paint(self, latents: Tensor, tokens: Tensor) -> Painted:
        self.work("paint")
        self.batches.append(len(latents))
        level = tokens[:, 0, 0].to(torch.uint8)  # the number of the frame
        pixels = level[:, None, None, None].expand(-1, 3, 256, 256)
        return Painted(latents, pixels, torch.ones(2, dtype=torch.bool))


class Numbers:
    """Features that are the number of the frame."""

    def window(self, frame: int) -> Tensor:
        return torch.full((10, 4), float(frame))

    def ahead(self, frames: object) -> Prefetcher[int]:
        return Idle(iter(()))


class Idle(Prefetcher[int]):
    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.close()


def shot_of(stand_in: StandIn, *, batch: int = 1, weights: NDArray[np.float32] | None = None) -> VideoShot:
    frames = stand_in.frames
    weights = np.ones(frames, np.float32) if weights is None else weights
    picture = np.zeros((100, 120, 3), np.uint8)
    scene = Scene(picture, np.zeros(640 * frames, np.int16), Fraction(25), frames, True, 64)
    track = FaceTrack((random_inputs.face_at(FACE),) * frames, np.ones(frames, np.float32))
    painter = JobPainter(stand_in)  # type: ignore[arg-type]
    return VideoShot(
        scene,
        stand_in,  # type: ignore[arg-type]
        track,
        stand_in.place,
        FaceEncoder(painter),
        Voice(Numbers(), weights),  # type: ignore[arg-type]
        Pipeline(painter, BatchSize(torch.device("cpu"), 14), batch),
        parity=False,
        notes={},
        done=lambda _: None,
    )


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name in ("prefetcher", "sound")]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def test_the_steps_of_a_video_overlap() -> None:
    list(shot_of(StandIn(3)).frames())  # the libraries take their time for the first one
    # Encoding and painting share the device, so 0.4 is the least; one after the other it is 1.
    assert any(share_of_all_steps() < 0.75 for _ in range(3)), "no two steps ran at the same time"


def share_of_all_steps() -> float:
    """The time of 25 frames, as a part of the time of all their steps together."""
    stand_in = StandIn(25, pace_s=0.015)
    began = time.monotonic()
    for _ in shot_of(stand_in).frames():
        stand_in.work("to the encoder")
    took_s = time.monotonic() - began
    assert set(stand_in.done.values()) == {25} and len(stand_in.done) == 5
    return took_s / stand_in.spent_s.total()


def test_batches_are_full_to_the_last_one_and_frames_keep_their_patches() -> None:
    weights = np.ones(70, np.float32)
    weights[::7] = 0  # 60 are painted
    stand_in = StandIn(70)
    frames = [frame.copy() for frame in shot_of(stand_in, batch=8, weights=weights).frames()]

    assert stand_in.batches == [8] * 7 + [4]
    mouth = FACE.y + 60, FACE.x + 30
    for number, frame in enumerate(frames):
        assert frame[0, 0, 0] == number  # of the source
        assert frame[mouth][0] == number, "of the patch, where there is one"


def test_a_pause_does_not_hold_back_the_frames_before_it() -> None:
    weights = np.zeros(400, np.float32)
    weights[:3] = 1
    stand_in = StandIn(400)
    frames = shot_of(stand_in, batch=8, weights=weights).frames()
    next(frames)
    until(lambda: stand_in.batches == [3])
    held, before = -1, -2
    while held != before:  # until all queues are full
        before, held = held, stand_in.done["decode"]
        time.sleep(0.1)
    assert held < 80, "frames that wait in memory"
    assert len(list(frames)) == 399


@pytest.mark.parametrize("step", ["decode", "place", "encode", "paint"])
def test_an_error_of_any_step_reaches_the_caller_and_ends_all_threads(step: str) -> None:
    stand_in = StandIn(10_000, fails=step)
    with pytest.raises(ValueError, match=f"{step} fails"):
        list(shot_of(stand_in).frames())
    assert threads() == []
    assert stand_in.closed
    assert stand_in.done["decode"] < 80


def test_closing_in_the_middle_ends_every_step() -> None:
    stand_in = StandIn(10_000, pace_s=0.001)
    frames = shot_of(stand_in).frames()
    for _ in range(5):
        next(frames)
    assert len(threads()) >= 4
    frames.close()  # type: ignore[attr-defined]
    assert threads() == []
    assert stand_in.closed


def test_an_error_overtakes_what_lies_between_two_steps_and_not_what_is_finished() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        yield from range(3)
        until(lambda: bool(taken))
        raise ValueError("no more")

    def step(given: Iterator[int]) -> Iterator[int]:
        for item in given:
            taken.append(item)
            until(lambda: len(made) > 0 and made[0]._error is not None)
            yield item

    made: list[Prefetcher[int]] = []
    made.append(Prefetcher.through(items(), step, most=(4, 4)))
    with pytest.raises(ValueError, match="no more"):
        list(made[0])
    assert taken == [0]  # two more waited
    assert threads() == []

    done = Prefetcher.through(items(), most=(4,))  # the first one was taken above
    until(lambda: done._error is not None)
    assert [next(done), next(done), next(done)] == [0, 1, 2]
    with pytest.raises(ValueError, match="no more"):
        next(done)


# -- the sound ---------------------------------------------------------------------------------------------------------


class Listener:
    """An encoder of sound that notes which thread it runs in."""

    def __init__(self, fails_at: int = 99) -> None:
        self.callers: list[str] = []
        self._fails_at = fails_at

    def encode(self, samples: NDArray[np.float32]) -> Tensor:
        self.callers.append(threading.current_thread().name)
        if len(self.callers) > self._fails_at:
            raise ValueError("the sound fails")
        return torch.full((BLOCK_STEPS, 1, 4), float(samples[0]))


def features(listener: Listener) -> AudioFeatures:
    """Of 200 s: 8 blocks, each with its number in its first sample."""
    speech = np.repeat(np.arange(200, dtype=np.float32), 16_000)
    return AudioFeatures(listener, speech, Fraction(5))  # type: ignore[arg-type]


def test_blocks_of_sound_are_encoded_ahead_by_two_at_most_and_stay_the_same() -> None:
    plain, listener = features(Listener()), Listener()
    ahead = features(listener)
    with ahead.ahead(range(1000)):
        for frame in range(1000):
            assert torch.equal(ahead.window(frame), plain.window(frame))
            if frame in (0, 100):  # of the first block
                until(lambda: len(listener.callers) == 3)
                time.sleep(0.05)
                assert len(listener.callers) == 3  # one waits behind the one in the queue
    assert set(listener.callers) == {"sound"}
    assert len(listener.callers) == 8
    assert threads() == []


def test_blocks_that_no_frame_needs_are_not_encoded() -> None:
    listener = Listener()
    frames = [0, 1, 900, 901]
    ahead = features(listener)
    ahead.window(0)  # before the thread begins
    with ahead.ahead(frames):
        for frame in frames:
            ahead.window(frame)
    assert listener.callers == [threading.current_thread().name, "sound"]


def test_an_error_of_the_sounds_thread_is_raised_where_its_block_is_needed() -> None:
    ahead = features(Listener(fails_at=1))
    with pytest.raises(ValueError, match="the sound fails"), ahead.ahead(range(1000)):
        for frame in range(1000):
            ahead.window(frame)
    assert threads() == []
