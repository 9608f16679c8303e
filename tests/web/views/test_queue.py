"""Places in the queue and expected ends: absent rather than wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lipsyncd.jobs.job import Job, JobState, new_id
from lipsyncd.web.views.queue import Queue, Rendered, Size, frame_times_s

FLAT = Size("flat", stitch=False, resolution=256)


def job_of(seq: int, state: JobState = JobState.QUEUED, **more: Any) -> Job:
    values: dict[str, Any] = {"frames": 100, "priority": 0, "fraction": 0.0, **more}
    return Job(
        id=new_id(), seq=seq, name="a", state=state, stage="", attempt=0, max_attempts=3, out_name="a", renderer="flat",
        stitch=False, resolution=256, fps="25", accepted_ms=0, **values,
    )  # fmt: skip


def test_places_follow_the_priority_and_then_the_order() -> None:
    jobs = [job_of(1), job_of(2, priority=5), job_of(3, JobState.RUNNING), job_of(4), job_of(5, JobState.DONE)]
    queue = Queue(jobs, {}, devices=1)
    assert [queue.position(job) for job in jobs] == [2, 1, None, 3, None]
    assert [queue.eta_s(job) for job in jobs] == [None] * 5


def test_a_job_that_waits_for_something_else_has_no_place_and_holds_up_none() -> None:
    stuck = [job_of(1, reason_code="no-weights"), job_of(2, duplicate_of="x"), job_of(3, cancel_requested=True)]
    last = job_of(4)
    queue = Queue([*stuck, last], {FLAT: 0.1}, devices=1)
    assert [queue.position(job) for job in (*stuck, last)] == [None, None, None, 1]
    assert [queue.eta_s(job) for job in (*stuck, last)] == [None, None, None, 10]


def test_each_device_takes_the_next_job_when_it_is_free() -> None:
    jobs = [job_of(1, JobState.RUNNING, fraction=0.75), job_of(2), job_of(3, frames=40), job_of(4)]
    assert [Queue(jobs, {FLAT: 0.1}, devices=1).eta_s(job) for job in jobs] == [3, 13, 17, 27]
    assert [Queue(jobs, {FLAT: 0.1}, devices=2).eta_s(job) for job in jobs] == [3, 10, 7, 17]


@pytest.mark.parametrize("unknown", [{"frames": None}, {"renderer": "other"}, {"resolution": 512}])
def test_behind_a_job_of_which_too_little_is_known_nothing_is_promised(unknown: dict[str, Any]) -> None:
    first, second, third = (job_of(seq) for seq in (1, 2, 3))
    waits = [first, replace(second, **unknown), third]
    assert [Queue(waits, {FLAT: 0.1}, devices=1).eta_s(job) for job in waits] == [10, None, None]
    runs = [replace(waits[1], state=JobState.RUNNING), third]
    assert [Queue(runs, {FLAT: 0.1}, devices=1).eta_s(job) for job in runs] == [None, None]


def test_while_nothing_is_rendered_nothing_is_promised() -> None:
    job = job_of(1)
    queue = Queue([job], {FLAT: 0.1}, devices=1, paused=True)
    assert (queue.position(job), queue.eta_s(job)) == (1, None)


def test_a_time_needs_three_jobs_of_the_size_that_took_about_as_long() -> None:
    def jobs(*took_ms: int, resolution: int = 256, frames: int = 100) -> list[Rendered]:
        return [Rendered("flat", False, resolution, frames, took) for took in took_ms]

    assert frame_times_s(jobs(10_000, 12_000)) == {}
    assert frame_times_s(jobs(10_000, 12_000, 11_000)) == {FLAT: 0.11}
    assert frame_times_s(jobs(10_000, 12_000, 25_000)) == {}
    assert frame_times_s(jobs(*[10_000] * 9, 90_000)) == {FLAT: 0.1}  # one that was disturbed
    assert frame_times_s(jobs(*[10_000] * 20, *[90_000] * 200)) == {FLAT: 0.1}  # the newest ones count
    assert frame_times_s([*jobs(10_000, 10_000), *jobs(10_000, resolution=512)]) == {}
