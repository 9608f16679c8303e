"""Which videos are drawn in parts, which ranges they have, and what counts of what several slots bring."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lipsyncd.errors import BadResult, RenderCrashed, RendererNotInstalled, RenderTimeout
from lipsyncd.jobs.job import JobState
from lipsyncd.jobs.prepared import Picture, Sound, Video
from lipsyncd.media.ffmpeg import find, keyframe_interval
from lipsyncd.media.mp4 import inspect
from lipsyncd.settings.cluster import Split
from lipsyncd.weights import AutoPull, store_of
from lipsyncd.worker.batch_limits import BatchLimits
from lipsyncd.worker.child_process import LocalChild, RenderCancelled
from lipsyncd.worker.device import Device
from lipsyncd.worker.protocol import Progress, Render, Result
from lipsyncd.worker.split.drawing import draw_in_parts, help_with_a_part, split_of
from lipsyncd.worker.split.shared_video import Range, SharedVideo, SharedVideos, ranges_of
from tests.kits.faults.faulty_renderers import NAMES
from tests.kits.installation import ROOT
from tests.kits.jobs_by_hand import JobsByHand, raw_inputs
from tests.worker.test_child_process import PATIENT

SPLIT = Split(mode="auto", min_frames=100, segment_frames=50)


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[JobsByHand]:
    one = JobsByHand(tmp_path, executor_split=SPLIT)
    yield one
    one.close()


class Slots:
    """Slots of one daemon, each with a child that is started when it is used."""

    def __init__(self, jobs: JobsByHand, *names: str, renderers: tuple[str, ...] = NAMES) -> None:
        self.shared = SharedVideos()
        self.devices = [self._slot(jobs, name, renderers) for name in names]

    def _slot(self, jobs: JobsByHand, name: str, renderers: tuple[str, ...]) -> Device:
        weights, limits = AutoPull(store_of(jobs.settings), allowed=False), BatchLimits(jobs.folders.state / "limits")
        child = LocalChild(name, lambda: PATIENT, renderers=renderers)
        device = Device(name, child, find(), weights, limits, shared=self.shared)
        self.shared.enter(name, device.fingerprint, threading.Event())
        return device

    def close(self) -> None:
        for device in self.devices:
            device.executor.close()


def request_in(folder: Path, *, seconds: float = 6.0, renderer: str = "flat") -> Render:
    folder.mkdir(parents=True, exist_ok=True)
    prepared = raw_inputs(folder, seconds=seconds)
    encode = {"ffmpeg": str(find()), "crf": 30, "preset": "ultrafast", "audio_kbps": 64}
    return Render(
        "job",
        renderer,
        str(folder),
        ".out.token.mp4",
        prepared.picture,
        prepared.sound,
        "25",
        round(seconds * 25),
        False,
        64,
        encode=encode,
    )


def planned(request: Render, device: Device, jobs: JobsByHand, **changes: Any) -> SharedVideo | None:
    terms: dict[str, Any] = {"attempt": 1, "stop": lambda: False, "on_fraction": lambda _: None}
    return split_of(request, device, jobs.stores, **{**terms, **changes})


# -- whether, and where ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [2, 49, 50, 51, 99, 125, 226, 3000, 15_000, 15_001])
@pytest.mark.parametrize("length", [1, 50, 100, 1500])
@pytest.mark.parametrize("fps", [Fraction(25), Fraction(30000, 1001), Fraction(1)], ids=str)
def test_ranges_cover_the_video_begin_where_key_frames_are_and_are_about_equal(
    frames: int, length: int, fps: Fraction
) -> None:
    ranges, interval = ranges_of(frames, length, fps), keyframe_interval(fps)
    assert [part.number for part in ranges] == list(range(1, len(ranges) + 1))
    assert (ranges[0].start, ranges[-1].stop) == (0, frames)
    assert all(one.stop == other.start for one, other in pairwise(ranges))
    assert all(part.start < part.stop and part.start % interval == 0 for part in ranges)
    lengths = [part.stop - part.start for part in ranges]
    assert max(lengths) - min(lengths) <= 2 * interval
    assert len(ranges) == min(max(round(frames / length), 1), -(-frames // interval))


def test_a_long_video_is_split_where_a_slot_that_is_alike_is_free(jobs: JobsByHand, tmp_path: Path) -> None:
    slots = Slots(jobs, "cuda:6", "cuda:7", "cpu")
    first, request = slots.devices[0], request_in(tmp_path / "inputs")
    video = planned(request, first, jobs)
    assert video is not None
    assert (len(video.ranges), video.others) == (3, 1)

    film = Video("film", "mp4", 64, 64, "25", 150, "loop")
    assert planned(replace(request, frames=99), first, jobs) is None
    assert planned(replace(request, video=film), first, jobs) is None
    assert planned(replace(request, fps="1000000/1001"), first, jobs) is None
    assert planned(request, first, jobs, attempt=2) is None
    assert planned(request, slots.devices[2], jobs) is None, "the slots that are alike are GPUs"
    assert planned(replace(request, renderer="preview"), slots.devices[2], jobs) is not None, "it uses no GPU"
    with slots.shared.busy("cuda:7"):
        assert planned(request, first, jobs) is None
    slots.shared.leave("cuda:7")
    assert planned(request, first, jobs) is None


def test_a_job_that_waits_keeps_its_slot(jobs: JobsByHand, tmp_path: Path) -> None:
    first, request = Slots(jobs, "cuda:6", "cuda:7").devices[0], request_in(tmp_path / "inputs")
    waiting = jobs.queued()
    assert planned(request, first, jobs) is None
    jobs.finisher.cancel(waiting)
    assert planned(request, first, jobs) is not None


def test_it_is_off_unless_it_is_wanted(tmp_path: Path) -> None:
    assert Split().mode == "off"
    jobs = JobsByHand(tmp_path, executor_split=replace(SPLIT, mode="off"))
    assert planned(request_in(tmp_path / "inputs"), Slots(jobs, "cuda:6", "cuda:7").devices[0], jobs) is None
    jobs.close()


# -- what several slots bring ------------------------------------------------------------------------------------------


def shared_video(frames: int = 150, **changes: Any) -> SharedVideo:
    sound = Sound("speech", 1, "sound", 1, 48_000, 1)
    request = Render("job", "flat", "/", ".out.token.mp4", Picture("p", 2, 2), sound, "25", frames, False, 64)
    terms: dict[str, Any] = {
        "others": 1,
        "stop": lambda: False,
        "deadline_s": lambda: 60.0,
        "on_fraction": lambda _: None,
    }
    return SharedVideo(request, ranges_of(frames, 50, Fraction(25)), "alike", **{**terms, **changes})


def test_each_range_has_a_file_of_its_own_beside_the_whole() -> None:
    video = shared_video()
    asked = [video.request_for(part) for part in video.ranges]
    assert [one.out_file for one in asked] == [f".out.token.{number}.mp4" for number in (1, 2, 3)]
    assert [list(one.drawn) for one in asked] == [list(range(n, n + 50)) for n in (0, 50, 100)]
    assert video.request.drawn == range(150)


def test_progress_is_the_sum_over_all_slots() -> None:
    on_fraction: list[float] = []
    video = shared_video(on_fraction=on_fraction.append)
    first, second = video.take("a"), video.take("b")
    assert first is not None and second is not None
    assert not video.has_frames
    video.progress(first, Progress("job", "rendering", 20, 50))
    video.progress(second, Progress("job", "rendering", 10, 50))
    assert video.has_frames
    video.finish(first, Result("job", 50, 64, 64, 1.0))
    assert on_fraction == pytest.approx([20 / 150, 30 / 150, 60 / 150])
    video.give_back(second, "b", refused=False)
    assert video.take("b") == second, "what was not drawn is drawn by the next slot that asks"


def test_a_slot_that_cannot_draw_it_is_not_asked_again_and_others_are() -> None:
    shared, video = SharedVideos(), shared_video()
    with shared.offered(video):
        found = shared.find("a", lambda _: "alike")
        assert found is not None
        video.give_back(found[1], "a", refused=True)
        assert shared.find("a", lambda _: "alike") is None
        assert shared.find("b", lambda _: "different") is None
        assert shared.find("b", lambda _: "alike") == (video, Range(1, 0, 50))
    assert shared.find("c", lambda _: "alike") is None, "it is over"


def test_after_the_end_of_an_attempt_nothing_is_taken_and_nothing_counts() -> None:
    on_fraction: list[float] = []
    video = shared_video(on_fraction=on_fraction.append)
    late = video.take("a")
    assert late is not None
    closing = threading.Thread(target=video.close)
    closing.start()
    while not video.over():
        pass
    assert closing.is_alive(), "the attempt waits for its slots"
    video.progress(late, Progress("job", "rendering", 50, 50))
    video.finish(late, Result("job", 50, 64, 64, 1.0))
    closing.join(30)
    assert not closing.is_alive()
    assert on_fraction == []
    assert video.take("b") is None


def test_the_first_error_ends_all_parts_and_so_does_the_time_limit() -> None:
    video = shared_video()
    part = video.take("a")
    error = RenderCrashed("one")
    video.fail(error, part)
    video.fail(RenderCrashed("two"))
    assert video.error is error
    assert video.over()
    assert video.take("b") is None
    limited = shared_video(deadline_s=lambda: -1.0)
    part = limited.take("a")
    assert part is not None
    assert not limited.over(), "no child has begun, it may wait for its GPU"
    limited.progress(part, Progress("job", "loading", 0, 50))
    assert limited.over()
    assert isinstance(limited.error, RenderTimeout)


# -- real children -----------------------------------------------------------------------------------------------------


@pytest.fixture
def where_children_find_their_renderers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def drawn(video: SharedVideo, slots: Slots, jobs: JobsByHand) -> Result:
    """The first slot's answer, while the second one helps."""
    first, second = slots.devices
    ended = threading.Event()

    def help_until_the_end() -> None:
        while not ended.is_set():
            help_with_a_part(second, jobs.stores) or ended.wait(0.05)

    helper = threading.Thread(target=help_until_the_end)
    helper.start()
    try:
        return draw_in_parts(video, first, jobs.stores, stage=lambda _: None, waits=lambda _: None)
    finally:
        ended.set()
        helper.join()
        slots.close()


@pytest.mark.usefixtures("where_children_find_their_renderers")
def test_two_children_draw_one_video(jobs: JobsByHand, tmp_path: Path) -> None:
    slots, request = Slots(jobs, "cuda:6", "cuda:7"), request_in(tmp_path / "inputs", seconds=12.0)
    video = planned(request, slots.devices[0], jobs)
    assert video is not None
    result = drawn(video, slots, jobs)
    assert (result.frames, result.notes["segments"], result.notes["made_by"]) == (300, 6, "flat")
    target = Path(request.folder, request.out_file)
    assert inspect(target).video.frames == 300
    assert [path.name for path in target.parent.glob(".out.*")] == [target.name], "the parts are gone"


@pytest.mark.usefixtures("where_children_find_their_renderers")
def test_a_slot_takes_a_job_rather_than_a_part_and_a_part_rather_than_nothing(jobs: JobsByHand, tmp_path: Path) -> None:
    child = LocalChild("cpu", lambda: PATIENT, renderers=NAMES)
    worker = jobs.worker(child)
    shared, request = worker.device.shared, request_in(tmp_path / "inputs")
    shared.enter("cpu:1", lambda _: "cpu", threading.Event())
    video = planned(request, worker.device, jobs)
    assert video is not None
    job_id = jobs.queued()
    try:
        with shared.offered(video):
            assert worker.round()
            assert jobs.job(job_id).state is JobState.DONE
            assert not video.has_frames
            for number in (1, 2, 3):
                assert worker.round()
                assert Path(request.folder, f".out.token.{number}.mp4").exists()
            assert not worker.round()
        assert not video.wait(), "all of it is drawn"
    finally:
        child.close()


@pytest.mark.slow
@pytest.mark.usefixtures("where_children_find_their_renderers")
def test_an_error_of_one_slot_is_the_error_of_the_whole(jobs: JobsByHand, tmp_path: Path) -> None:
    slots, request = Slots(jobs, "cuda:6", "cuda:7"), request_in(tmp_path / "inputs", renderer="raises")
    video = planned(request, slots.devices[0], jobs)
    assert video is not None
    with pytest.raises(RenderCrashed, match="as asked"):
        drawn(video, slots, jobs)
    assert video.over()


@pytest.mark.usefixtures("where_children_find_their_renderers")
def test_parts_that_were_drawn_differently_are_no_video(jobs: JobsByHand, tmp_path: Path) -> None:
    """Fewer frames at a time can change single levels, which would show at a joint."""
    slots, request = Slots(jobs, "cuda:6", "cuda:7"), request_in(tmp_path / "inputs", seconds=4.0)
    video = planned(request, slots.devices[0], jobs)
    assert video is not None
    for batch in (8, 4):
        part = video.take("a")
        assert part is not None
        video.finish(part, Result("job", 50, 64, 64, 1.0, {"batch": batch}))
    with pytest.raises(BadResult, match="batch 4, the first one with 8"):
        drawn(video, slots, jobs)


@pytest.mark.slow
@pytest.mark.usefixtures("where_children_find_their_renderers")
def test_what_keeps_a_slot_from_drawing_concerns_the_job_only_where_it_is_the_claimer(
    jobs: JobsByHand, tmp_path: Path
) -> None:
    slots, request = Slots(jobs, "cuda:6", "cuda:7"), request_in(tmp_path / "inputs", seconds=12.0)
    hindered = LocalChild("cuda:7", lambda: PATIENT, renderers=["flat=tests.no_such_module:Nothing"])
    slots.devices[1] = replace(slots.devices[1], executor=hindered)
    video = planned(request, slots.devices[0], jobs)
    assert video is not None
    assert drawn(video, slots, jobs).notes["segments"] == 6

    slots.devices.reverse()
    Path(request.folder, request.out_file).unlink()
    video = planned(request, slots.devices[0], jobs)
    assert video is not None
    with pytest.raises(RendererNotInstalled):
        drawn(video, slots, jobs)


@pytest.mark.slow
@pytest.mark.usefixtures("where_children_find_their_renderers")
def test_a_stop_ends_both_slots(jobs: JobsByHand, tmp_path: Path) -> None:
    slots, request = Slots(jobs, "cuda:6", "cuda:7"), request_in(tmp_path / "inputs", renderer="slow")
    stop = threading.Event()
    video = planned(request, slots.devices[0], jobs, stop=stop.is_set, on_fraction=lambda _: stop.set())
    assert video is not None
    with pytest.raises(RenderCancelled):
        drawn(video, slots, jobs)
    assert not Path(request.folder, request.out_file).exists()
