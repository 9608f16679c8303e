"""One run of the worker with a real child and a real encoder, with interference at the worst moments."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lipsyncd.errors import DeviceMissing, RenderCrashed, RendererNotInstalled
from lipsyncd.jobs.blocked import Obstacles
from lipsyncd.jobs.job import JobState, now_ms
from lipsyncd.ledger.view import LedgerView
from lipsyncd.media.mp4 import inspect
from lipsyncd.settings import Output
from lipsyncd.worker.child_process import LocalChild, RenderCancelled, Timeouts
from lipsyncd.worker.protocol import Batch, Next, Progress, Render, Result
from tests.kits.core_kit import Clock
from tests.kits.faults.faulty_renderers import NAMES
from tests.kits.installation import ROOT
from tests.kits.jobs_by_hand import JobsByHand
from tests.kits.webhook_receiver import until

Act = Callable[[], object]


class Interfered:
    """A real child; `before` and `after` happen around its render, and may raise in its place."""

    def __init__(self, *, before: Act = lambda: None, after: Act = lambda: None) -> None:
        self.child = LocalChild(
            "cpu", lambda: Timeouts(60.0, 60.0, 60.0), renderers=NAMES, environment=["TEST_RENDER_COUNT"]
        )
        self.before, self.after = before, after

    def start(self) -> None:
        self.child.start()

    def render(
        self,
        request: Render,
        *,
        progress: Callable[[Progress], None],
        stop: Callable[[], bool],
        batch: Callable[[Batch], None] = lambda _: None,
        upcoming: Callable[[], Next | None] = lambda: None,
    ) -> Result:
        self.before()
        result = self.child.render(request, progress=progress, stop=stop, batch=batch, upcoming=upcoming)
        self.after()
        return result

    def idle_s(self) -> float:
        return self.child.idle_s()

    def close(self) -> None:
        self.child.close()


@pytest.fixture
def by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobsByHand]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    by_hand = JobsByHand(tmp_path, output=Output(preset="ultrafast"))
    yield by_hand
    by_hand.close()


def work(by_hand: JobsByHand, executor: Interfered, *, cut_off: bool = False) -> bool:
    """One round; returns whether there was work."""
    worker = by_hand.worker(executor, cut_off=cut_off)
    try:
        return worker.run_once()
    finally:
        executor.close()


def raising(error: Exception) -> Act:
    def act() -> None:
        raise error

    return act


def test_a_job_is_rendered_proved_and_published(by_hand: JobsByHand) -> None:
    job_id = by_hand.queued()
    assert work(by_hand, Interfered())
    job = by_hand.job(job_id)
    assert (job.state, job.attempt, job.frames) == (JobState.DONE, 1, 5)
    assert inspect(by_hand.path("outbox") / "anna.mp4").video.frames == 5
    assert by_hand.sidecar("anna")["frames"] == 5
    assert by_hand.spool.ids() == []
    assert not work(by_hand, Interfered())


def test_what_a_renderer_did_otherwise_than_usual_is_in_the_jobs_history(
    by_hand: JobsByHand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It also shows that a child without a job rests once, and that a renderer may fail there."""
    rested = tmp_path / "rested"
    monkeypatch.setenv("TEST_RENDER_COUNT", str(rested))
    job_id, other = by_hand.queued(renderer="eventful"), by_hand.queued("berta", renderer="eventful")
    executor = Interfered()
    worker = by_hand.worker(executor)
    try:
        assert worker.run_once()
        pid = executor.child.pid
        until(lambda: rested.exists() and rested.read_text() == "rested", "the rest")
        assert worker.run_once()
        assert executor.child.pid == pid
    finally:
        executor.close()
    assert {by_hand.job(one).state for one in (job_id, other)} == {JobState.DONE}
    notes = [event.note for event in LedgerView(by_hand.ledger.path).events(job_id)]
    assert [note for note in notes if note in ("the lamp was replaced", "7")] == ["the lamp was replaced", "7"]
    assert by_hand.sidecar("anna")["notes"]["events"] == ["the lamp was replaced", 7]


@pytest.mark.parametrize(
    "error",
    [RenderCrashed("as asked"), RendererNotInstalled("as asked"), OSError("as asked"), TypeError("as asked")],
    ids=lambda e: type(e).__name__,
)
def test_a_cancel_that_comes_while_the_run_fails_by_itself_is_not_forgotten(
    by_hand: JobsByHand, error: Exception
) -> None:
    """A queued job with its cancel still open would never be claimed again, and never end."""
    job_id = by_hand.queued()

    def cancel_and_fail() -> None:
        assert by_hand.ledger.request_cancel(job_id)
        raise error

    work(by_hand, Interfered(before=cancel_and_fail))
    assert by_hand.job(job_id).state is JobState.CANCELLED
    assert by_hand.spool.ids() == []


def test_a_cancel_in_the_last_moment_of_a_render_leaves_no_video(by_hand: JobsByHand) -> None:
    job_id = by_hand.queued()
    work(by_hand, Interfered(after=lambda: by_hand.ledger.request_cancel(job_id)))
    assert by_hand.job(job_id).state is JobState.CANCELLED
    assert by_hand.shown() == []
    assert not by_hand.publisher.publish_due()
    assert by_hand.spool.ids() == []


def test_an_unexpected_error_costs_an_attempt_and_leaves_no_job_running(by_hand: JobsByHand) -> None:
    """A fault of ours, or a ledger on a failing disk: the job goes back, with the fault for its reason."""
    job_id = by_hand.queued()
    work(by_hand, Interfered(before=raising(TypeError("a fault of ours"))))
    job = by_hand.job(job_id)
    assert (job.state, job.attempt, job.reason_code) == (JobState.QUEUED, 1, "internal-error")
    assert "a fault of ours" in (job.reason or "")


@pytest.mark.parametrize(
    ("error", "attempt", "code"),
    [
        (RenderCrashed("as asked"), 1, "render-crashed"),
        (RendererNotInstalled("as asked"), 0, "renderer-not-installed"),
        (OSError("disk full"), 1, "render-crashed"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_a_failure_that_may_pass_is_tried_again_later(
    by_hand: JobsByHand, error: Exception, attempt: int, code: str
) -> None:
    job_id = by_hand.queued()
    before_ms = time.time() * 1000
    work(by_hand, Interfered(before=raising(error)))
    job = by_hand.job(job_id)
    assert (job.state, job.attempt, job.reason_code) == (JobState.QUEUED, attempt, code)
    assert before_ms + 4000 < job.not_before_ms < before_ms + 60_000
    assert not work(by_hand, Interfered())


def test_each_attempt_waits_longer_than_the_one_before(by_hand: JobsByHand) -> None:
    job_id, waits_s = by_hand.queued(max_attempts=5), []
    for _ in range(4):
        before_ms = now_ms()
        assert work(by_hand, Interfered(before=raising(RenderCrashed("as asked"))))
        waits_s.append((by_hand.job(job_id).not_before_ms - before_ms) // 1000)
        assert not work(by_hand, Interfered()), "it waits"
        assert by_hand.ledger.release("render-crashed") == 1
    assert [min((5, 30, 180), key=lambda due: abs(due - wait)) for wait in waits_s] == [5, 30, 180, 180]


def test_a_device_that_is_absent_is_looked_for_once_for_all_its_jobs(by_hand: JobsByHand) -> None:
    clock = Clock()
    by_hand.stores.obstacles = Obstacles(clock)
    jobs = [by_hand.queued(name) for name in ("anna", "bert", "carl")]
    looked: list[str] = []

    def look() -> None:
        looked.append("once more")
        raise DeviceMissing("no such device")

    worker_waits = []
    for _ in range(3):
        for _ in jobs:
            assert work(by_hand, Interfered(before=look))
        assert {(by_hand.job(i).state, by_hand.job(i).attempt, by_hand.job(i).reason_code) for i in jobs} == {
            (JobState.QUEUED, 0, "device-missing")
        }
        worker_waits.append(max(by_hand.job(i).not_before_ms for i in jobs) - now_ms())
        clock.wait(300)
        by_hand.ledger.release("device-missing")
    assert len(looked) == 3
    assert worker_waits[0] < worker_waits[1] < worker_waits[2]
    for _ in jobs:
        assert work(by_hand, Interfered())
    assert {by_hand.job(i).state for i in jobs} == {JobState.DONE}


def test_the_last_attempt_ends_the_job(by_hand: JobsByHand) -> None:
    job_id = by_hand.queued()
    for _ in range(3):
        by_hand.ledger.set_blocked(job_id, RenderCrashed("").reason(), delay_ms=-1)
        assert work(by_hand, Interfered(before=raising(RenderCrashed("as asked"))))
    job = by_hand.job(job_id)
    assert (job.state, job.attempt, job.reason_code) == (JobState.FAILED, 3, "render-crashed")
    assert by_hand.spool.ids() == []


def test_a_daemon_that_goes_down_gives_the_attempt_back(by_hand: JobsByHand) -> None:
    job_id = by_hand.queued()
    work(by_hand, Interfered(before=raising(RenderCancelled(job_id))), cut_off=True)
    assert (by_hand.job(job_id).state, by_hand.job(job_id).attempt) == (JobState.QUEUED, 0)


def test_a_daemon_that_goes_down_carries_out_a_requested_cancel(by_hand: JobsByHand) -> None:
    job_id = by_hand.queued()

    def act() -> None:
        by_hand.ledger.request_cancel(job_id)
        raise RenderCancelled(job_id)

    work(by_hand, Interfered(before=act), cut_off=True)
    assert by_hand.job(job_id).state is JobState.CANCELLED


def test_a_spool_folder_that_is_gone_ends_its_job_and_not_the_worker(by_hand: JobsByHand) -> None:
    job_id = by_hand.queued()
    by_hand.spool.remove(job_id)
    assert work(by_hand, Interfered())
    assert (by_hand.job(job_id).state, by_hand.job(job_id).reason_code) == (JobState.FAILED, "inputs-lost")


def test_an_unmounted_outbox_keeps_the_rendered_video(by_hand: JobsByHand) -> None:
    job_id = by_hand.queued()
    by_hand.unmount("outbox")
    assert work(by_hand, Interfered())
    job = by_hand.job(job_id)
    assert (job.state, job.reason_code) == (JobState.PUBLISHING, "outbox-unavailable")
    by_hand.mount("outbox")
    by_hand.publish(job_id)
    assert by_hand.job(job_id).attempt == 1
    assert by_hand.shown() == ["anna.json", "anna.mp4"]
