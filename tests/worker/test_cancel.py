"""A cancel in each state that a job can be in, asked of a real daemon; afterwards the next job is done."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lipsyncd.jobs.job import Job, JobState
from lipsyncd.storage.control_files import Request, ask
from tests.kits.core_kit import is_soon
from tests.kits.installation import Installation, picture, put, sound

# Speaks a text once the gate is open, which a test decides.
SPEAKER = """
import pathlib, sys, time
while not pathlib.Path(sys.argv[1]).exists():
    time.sleep(0.02)
sys.stdout.buffer.write(pathlib.Path(sys.argv[2]).read_bytes())
"""


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """One daemon for all states, since none of them may leave anything behind."""
    root = tmp_path_factory.mktemp("busy")
    (root / "voice.wav").write_bytes(sound())
    (root / "speaker.py").write_text(SPEAKER)
    command = [sys.executable, str(root / "speaker.py"), str(root / "gate"), str(root / "voice.wav")]
    installation = Installation(root, changes={"speech": {"command": command}})
    with installation.running():
        yield installation
    assert list(installation.path("spool").iterdir()) == []


def drop(installation: Installation, name: str, *, seed: int, seconds: float = 0.3, **fields: Any) -> None:
    installation.drop_pair(f"{name}-in", seed=seed, seconds=seconds)
    installation.drop_manifest(name, image=f"{name}-in.png", audio=f"{name}-in.wav", out_name=name, **fields)


def cancel(installation: Installation, job: Job) -> str:
    """What the daemon answers."""
    answer = ask(installation.folders.control, Request("cancel", job.id), timeout_s=30)
    assert answer is not None
    assert answer.ok, answer.message
    return answer.message


def job_of(installation: Installation, name: str) -> Job:
    job = installation.job(name)
    assert job is not None
    return job


def check_cancelled(installation: Installation, job: Job) -> None:
    """It has ended without a video, and its inputs lie in the archive."""
    assert installation.until_state(job.name, JobState.CANCELLED).id == job.id
    installation.until(lambda: not (installation.path("spool") / job.id).exists(), "an empty place in the spool")
    kept = installation.view.get(job.id).kept
    assert kept is not None
    assert Path(kept).is_relative_to(installation.path("archive"))
    assert not (installation.path("outbox") / f"{job.out_name}.mp4").exists()


def check_that_work_goes_on(installation: Installation, seed: int) -> None:
    drop(installation, f"next-{seed}", seed=seed)
    installation.until_done(f"next-{seed}")


def test_preparing(busy: Installation) -> None:
    put(busy.path("inbox"), "spoken.png", picture(1))
    busy.drop_manifest("spoken", image="spoken.png", text="good evening", out_name="spoken")
    busy.until(lambda: (j := busy.job("spoken")) and j.stage == "preparing", "the speaker at work")
    assert cancel(busy, job_of(busy, "spoken")) == "cancelled"
    (busy.root / "gate").touch()
    check_cancelled(busy, job_of(busy, "spoken"))
    check_that_work_goes_on(busy, 2)


def cancelled_s(installation: Installation, name: str) -> float:
    """How long a running job goes on after it was cancelled, by the ledger."""
    job = job_of(installation, name)
    assert job.state is JobState.RUNNING
    assert cancel(installation, job) == "is being cancelled"
    check_cancelled(installation, job)
    asked_ms = next(event.at_ms for event in installation.view.events(job.id) if event.note == "cancel requested")
    return ((job_of(installation, name).finished_ms or 0) - asked_ms) / 1000


def test_queued_and_running(busy: Installation) -> None:
    drop(busy, "long", seed=3, seconds=20, renderer="slow")
    busy.until(lambda: (j := busy.job("long")) and j.stage == "rendering", "the first frames")
    drop(busy, "behind", seed=4)
    busy.until(lambda: (j := busy.job("behind")) and j.prepared and j, "a prepared job")
    renders = busy.renders
    assert cancel(busy, job_of(busy, "behind")) == "cancelled"
    check_cancelled(busy, job_of(busy, "behind"))

    took_s = cancelled_s(busy, "long")
    assert busy.renders == renders, "what was cancelled in the queue was never rendered"

    def took_again_s() -> float:
        drop(busy, "again", seed=20, seconds=20, renderer="slow")
        busy.until(
            lambda: (j := busy.job("again")) and not j.state.ended and j.stage == "rendering", "the first frames"
        )
        return cancelled_s(busy, "again")

    assert took_s < 1.0 or is_soon(took_again_s, 1.0)
    check_that_work_goes_on(busy, 5)


def test_blocked(busy: Installation) -> None:
    drop(busy, "blocked", seed=6, renderer="missing")
    busy.until(lambda: (j := busy.job("blocked")) and j.reason_code == "renderer-not-installed", "the reason")
    assert cancel(busy, job_of(busy, "blocked")) == "cancelled"
    check_cancelled(busy, job_of(busy, "blocked"))
    check_that_work_goes_on(busy, 7)


def test_backed_off_after_a_failed_attempt(busy: Installation) -> None:
    drop(busy, "crashed", seed=8, renderer="abort")
    busy.until(lambda: (j := busy.job("crashed")) and j.reason_code == "render-crashed", "the first attempt's end")
    assert cancel(busy, job_of(busy, "crashed")) == "cancelled"
    check_cancelled(busy, job_of(busy, "crashed"))


def test_publishing(busy: Installation) -> None:
    """A cancel would throw away a video that is already finished."""
    away = busy.root / "away"
    busy.path("outbox").rename(away)
    drop(busy, "finished", seed=9)
    job = busy.until_state("finished", JobState.PUBLISHING)
    assert "about to be published" in cancel(busy, job)
    assert job_of(busy, "finished").state is JobState.PUBLISHING
    away.rename(busy.path("outbox"))
    busy.until_done("finished")
    assert (busy.path("outbox") / "finished.mp4").exists()


def test_done(busy: Installation) -> None:
    drop(busy, "shown", seed=10)
    job = busy.until_done("shown")
    assert cancel(busy, job) == "has ended already (done); it is left as it is"
    assert job_of(busy, "shown").state is JobState.DONE
    assert (busy.path("outbox") / "shown.mp4").exists()


def test_failed_and_cancelled(busy: Installation) -> None:
    drop(busy, "wrong", seed=11, renderer="nosuch")
    job = busy.until_failed("wrong")
    assert cancel(busy, job) == "has ended already (failed); it is left as it is"
    assert job_of(busy, "wrong") == job
    drop(busy, "unwanted", seed=12, renderer="missing")
    job = busy.until(lambda: (j := busy.job("unwanted")) and j.reason_code and j, "a waiting job")
    cancel(busy, job)
    assert cancel(busy, job) == "has ended already (cancelled); it is left as it is"
