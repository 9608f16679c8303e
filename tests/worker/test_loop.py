"""One run of the worker with a real child and a real encoder, and with somebody who interferes at the worst moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lipsyncd.errors import DeviceMissing, RenderCrashed, RendererNotInstalled
from lipsyncd.jobs.blocked import Obstacles
from lipsyncd.jobs.job import JobState, now_ms
from lipsyncd.media.ffmpeg import find
from lipsyncd.media.mp4 import inspect
from lipsyncd.settings import Output
from lipsyncd.weights import AutoPull, store_of
from lipsyncd.worker.batch_limits import Ceilings
from lipsyncd.worker.child_process import Limits, LocalChild, RenderCancelled
from lipsyncd.worker.loop import Worker
from lipsyncd.worker.protocol import Batch, Progress, Render, Result
from tests.kits.core_kit import Clock
from tests.kits.faults.faulty_renderers import NAMES
from tests.kits.installation import ROOT
from tests.kits.jobs_by_hand import Shop

Act = Callable[[], object]


class Interfered:
    """A real child; `before` and `after` happen around its render, and may raise in its place."""

    def __init__(self, *, before: Act = lambda: None, after: Act = lambda: None) -> None:
        self.child = LocalChild("cpu", Limits(60.0, 60.0, 60.0), renderers=NAMES)
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
    ) -> Result:
        self.before()
        result = self.child.render(request, progress=progress, stop=stop, batch=batch)
        self.after()
        return result

    def idle_s(self) -> float:
        return self.child.idle_s()

    def close(self) -> None:
        self.child.close()


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    shop = Shop(tmp_path, output=Output(preset="ultrafast"))
    yield shop
    shop.close()


def work(shop: Shop, executor: Interfered, *, cut_off: bool = False) -> bool:
    """One round; says whether there was anything to do."""
    worker = Worker(
        "cpu",
        shop.settings,
        shop.finisher,
        executor,
        find(),
        AutoPull(store_of(shop.settings), allowed=False),
        Ceilings(shop.folders.state / "ceilings.json"),
        stopping=lambda: False,
        cut_off=lambda: cut_off,
    )
    try:
        return worker.run_once()
    finally:
        executor.close()


def raising(error: Exception) -> Act:
    def act() -> None:
        raise error

    return act


def test_a_job_is_rendered_proved_and_published(shop: Shop) -> None:
    job_id = shop.queued()
    assert work(shop, Interfered())
    job = shop.job(job_id)
    assert (job.state, job.attempt, job.frames) == (JobState.DONE, 1, 5)
    assert inspect(shop.folders.shared["outbox"] / "anna.mp4").video.frames == 5
    assert shop.sidecar("anna")["frames"] == 5
    assert shop.spool.ids() == []
    assert not work(shop, Interfered())


@pytest.mark.parametrize(
    "error",
    [RenderCrashed("as asked"), RendererNotInstalled("as asked"), OSError("as asked"), TypeError("as asked")],
    ids=lambda e: type(e).__name__,
)
def test_a_cancel_that_comes_while_the_run_fails_by_itself_is_not_forgotten(shop: Shop, error: Exception) -> None:
    """A queued job with its cancel still open would never be claimed again, and never end."""
    job_id = shop.queued()

    def cancel_and_fail() -> None:
        assert shop.ledger.request_cancel(job_id)
        raise error

    work(shop, Interfered(before=cancel_and_fail))
    assert shop.job(job_id).state is JobState.CANCELLED
    assert shop.spool.ids() == []


def test_a_cancel_in_the_last_moment_of_a_render_leaves_no_video(shop: Shop) -> None:
    job_id = shop.queued()
    work(shop, Interfered(after=lambda: shop.ledger.request_cancel(job_id)))
    assert shop.job(job_id).state is JobState.CANCELLED
    assert shop.shown() == []
    assert not shop.finisher.publish_due()
    assert shop.spool.ids() == []


def test_what_nobody_thought_of_costs_an_attempt_and_leaves_no_job_running(shop: Shop) -> None:
    """A fault of ours, or a ledger on a failing disk: the job goes back, with the fault for its reason."""
    job_id = shop.queued()
    work(shop, Interfered(before=raising(TypeError("a fault of ours"))))
    job = shop.job(job_id)
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
def test_a_failure_that_may_pass_is_tried_again_later(shop: Shop, error: Exception, attempt: int, code: str) -> None:
    job_id = shop.queued()
    before_ms = time.time() * 1000
    work(shop, Interfered(before=raising(error)))
    job = shop.job(job_id)
    assert (job.state, job.attempt, job.reason_code) == (JobState.QUEUED, attempt, code)
    assert before_ms + 4000 < job.not_before_ms < before_ms + 60_000
    assert not work(shop, Interfered())


def test_each_attempt_waits_longer_than_the_one_before(shop: Shop) -> None:
    job_id, waits_s = shop.queued(max_attempts=5), []
    for _ in range(4):
        before_ms = now_ms()
        assert work(shop, Interfered(before=raising(RenderCrashed("as asked"))))
        waits_s.append((shop.job(job_id).not_before_ms - before_ms) // 1000)
        assert not work(shop, Interfered()), "it waits"
        assert shop.ledger.release("render-crashed") == 1
    assert [min((5, 30, 180), key=lambda due: abs(due - wait)) for wait in waits_s] == [5, 30, 180, 180]


def test_a_device_that_is_absent_is_looked_for_once_by_all_who_want_it(shop: Shop) -> None:
    clock = Clock()
    shop.finisher.obstacles = Obstacles(clock)
    jobs = [shop.queued(name) for name in ("anna", "bert", "carl")]
    looked: list[str] = []

    def look() -> None:
        looked.append("once more")
        raise DeviceMissing("no such device")

    worker_waits = []
    for _ in range(3):
        for _ in jobs:
            assert work(shop, Interfered(before=look))
        assert {(shop.job(i).state, shop.job(i).attempt, shop.job(i).reason_code) for i in jobs} == {
            (JobState.QUEUED, 0, "device-missing")
        }
        worker_waits.append(max(shop.job(i).not_before_ms for i in jobs) - now_ms())
        clock.wait(300)
        shop.ledger.release("device-missing")
    assert len(looked) == 3
    assert worker_waits[0] < worker_waits[1] < worker_waits[2]
    for _ in jobs:
        assert work(shop, Interfered())
    assert {shop.job(i).state for i in jobs} == {JobState.DONE}


def test_the_last_attempt_ends_the_job(shop: Shop) -> None:
    job_id = shop.queued()
    for _ in range(3):
        shop.ledger.set_blocked(job_id, RenderCrashed("").reason(), delay_ms=-1)
        assert work(shop, Interfered(before=raising(RenderCrashed("as asked"))))
    job = shop.job(job_id)
    assert (job.state, job.attempt, job.reason_code) == (JobState.FAILED, 3, "render-crashed")
    assert shop.spool.ids() == []


def test_a_daemon_that_goes_down_gives_the_attempt_back(shop: Shop) -> None:
    job_id = shop.queued()
    work(shop, Interfered(before=raising(RenderCancelled(job_id))), cut_off=True)
    assert (shop.job(job_id).state, shop.job(job_id).attempt) == (JobState.QUEUED, 0)


def test_a_daemon_that_goes_down_cancels_what_somebody_wants_cancelled(shop: Shop) -> None:
    job_id = shop.queued()

    def act() -> None:
        shop.ledger.request_cancel(job_id)
        raise RenderCancelled(job_id)

    work(shop, Interfered(before=act), cut_off=True)
    assert shop.job(job_id).state is JobState.CANCELLED


def test_a_spool_folder_that_is_gone_ends_its_job_and_not_the_worker(shop: Shop) -> None:
    job_id = shop.queued()
    shop.spool.remove(job_id)
    assert work(shop, Interfered())
    assert (shop.job(job_id).state, shop.job(job_id).reason_code) == (JobState.FAILED, "inputs-lost")


def test_an_unmounted_outbox_keeps_the_rendered_video(shop: Shop) -> None:
    job_id = shop.queued()
    shop.unmount("outbox")
    assert work(shop, Interfered())
    job = shop.job(job_id)
    assert (job.state, job.reason_code) == (JobState.PUBLISHING, "outbox-unavailable")
    shop.mount("outbox")
    shop.finisher.publish(job_id)
    assert shop.job(job_id).attempt == 1
    assert shop.shown() == ["anna.json", "anna.mp4"]
