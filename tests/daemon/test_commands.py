"""What can be asked of a job by hand, and what becomes of it: cancel, retry, priority, republish."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from lipsyncd.daemon.commands import carry_out
from lipsyncd.daemon.housekeeping import Housekeeper
from lipsyncd.errors import IllegalTransition, InputsLost, NoFaceFound, OutboxUnavailable, ResultGone
from lipsyncd.jobs.job import JobState, new_id
from lipsyncd.ledger.ledger import Ledger
from lipsyncd.storage.control_files import Request
from tests.kits.jobs_by_hand import JobsByHand

NO_FACE = NoFaceFound("no face in the picture")


@pytest.fixture
def by_hand(tmp_path: Path) -> Iterator[JobsByHand]:
    by_hand = JobsByHand(tmp_path)
    yield by_hand
    by_hand.close()


# -- once more ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["fail", "cancel"])
def test_a_retry_brings_the_inputs_back_byte_for_byte(by_hand: JobsByHand, end: str) -> None:
    job_id = by_hand.running()
    by_hand.finisher.fail(job_id, NO_FACE) if end == "fail" else by_hand.finisher.cancel(job_id)
    kept = Path(by_hand.job(job_id).kept or "")
    before = {p.name: p.read_bytes() for p in kept.iterdir()}
    job = by_hand.finisher.retry(job_id)
    assert (job.state, job.attempt, job.kept) == (JobState.QUEUED, 0, None)
    folder = by_hand.spool.folder(job_id)
    assert (folder / "image").read_bytes() == before["anna.png"]
    assert (folder / "audio").read_bytes() == before["anna.wav"]
    assert not kept.exists()


def test_a_retried_job_forgets_why_it_was_refused(by_hand: JobsByHand) -> None:
    job_id = by_hand.queued(refusal=NO_FACE.reason())
    by_hand.finisher.fail(job_id, NO_FACE)
    by_hand.finisher.retry(job_id)
    spec = by_hand.spool.spec(job_id)
    assert spec is not None
    assert spec.refusal is None


def test_a_retry_without_inputs_says_so_and_changes_nothing(by_hand: JobsByHand) -> None:
    job_id = by_hand.running()
    by_hand.finisher.fail(job_id, NO_FACE)
    kept = Path(by_hand.job(job_id).kept or "")
    kept.rename(kept.with_name("taken away"))
    with pytest.raises(InputsLost, match=str(kept)):
        by_hand.finisher.retry(job_id)
    assert by_hand.job(job_id).state is JobState.FAILED
    assert by_hand.spool.ids() == []


@pytest.mark.parametrize("make", ["queued", "running", "rendered", "published"])
def test_only_failed_and_cancelled_jobs_are_retried(by_hand: JobsByHand, make: str) -> None:
    job_id = getattr(by_hand, make)()
    before = by_hand.job(job_id)
    with pytest.raises(IllegalTransition, match="only failed and cancelled ones"):
        by_hand.finisher.retry(job_id)
    assert by_hand.job(job_id) == before


def test_a_retry_whose_name_a_live_job_has_taken_gets_the_next_one(by_hand: JobsByHand) -> None:
    first = by_hand.queued("anna")
    by_hand.finisher.cancel(first)
    second = by_hand.queued("anna")
    assert by_hand.job(second).out_name == "anna"
    answer = carry_out(Request("retry", first), by_hand.stores, by_hand.finisher)
    assert (answer.ok, answer.message) == (True, "queued again")
    assert by_hand.job(first).out_name == "anna (2)"


def test_a_result_is_published_again_under_the_next_free_name(by_hand: JobsByHand) -> None:
    job_id = by_hand.published()
    assert by_hand.finisher.republish(job_id) == "anna (2)"
    for name in ("anna.mp4", "anna.json"):
        (by_hand.path("outbox") / name).unlink()
    assert by_hand.finisher.republish(job_id) == "anna"
    assert by_hand.shown() == ["anna (2).json", "anna (2).mp4", "anna.json", "anna.mp4"]
    assert (by_hand.path("outbox") / "anna (2).mp4").read_bytes() == b"a video"
    assert by_hand.sidecar("anna (2)")["video"] == "anna (2).mp4"
    assert by_hand.sidecar("anna (2)")["sha256"] == by_hand.job(job_id).out_sha256
    assert by_hand.hidden() == []


def test_only_what_is_kept_and_finished_is_published_again(by_hand: JobsByHand) -> None:
    running = by_hand.running("bert")
    with pytest.raises(IllegalTransition, match="only finished ones"):
        by_hand.finisher.republish(running)
    by_hand.finisher.cancel(running)
    job_id = by_hand.published()
    by_hand.unmount("outbox")
    with pytest.raises(OutboxUnavailable):
        by_hand.finisher.republish(job_id)
    by_hand.mount("outbox")
    assert by_hand.finisher.republish(job_id) == "anna (2)"
    for path in by_hand.folders.results.iterdir():
        os.utime(path, (time.time() - 25 * 3600,) * 2)
    Housekeeper(by_hand.stores, by_hand.finisher).prune()
    assert list(by_hand.folders.results.iterdir()) == []
    with pytest.raises(ResultGone):
        by_hand.finisher.republish(job_id)


# -- what can be asked for by hand -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "answer", "state"),
    [
        ("queued", "cancelled", JobState.CANCELLED),
        ("running", "is being cancelled", JobState.RUNNING),
        ("rendered", "is finished and about to be published; it is left as it is", JobState.PUBLISHING),
        ("published", "has ended already (done); it is left as it is", JobState.DONE),
    ],
)
def test_a_cancel_answers_what_becomes_of_the_job(by_hand: JobsByHand, make: str, answer: str, state: JobState) -> None:
    job_id = getattr(by_hand, make)()
    reply = carry_out(Request("cancel", job_id), by_hand.stores, by_hand.finisher)
    assert (reply.ok, reply.message) == (True, answer)
    assert by_hand.job(job_id).state is state
    assert by_hand.job(job_id).cancel_requested is (make == "running")


def test_a_cancel_that_meets_a_claim_reaches_the_run(by_hand: JobsByHand) -> None:
    job_id = by_hand.queued()
    by_hand.let_a_worker_claim_while_an_ending_is_written()
    assert carry_out(Request("cancel", job_id), by_hand.stores, by_hand.finisher).message == "is being cancelled"
    assert (by_hand.job(job_id).state, by_hand.job(job_id).cancel_requested) == (JobState.RUNNING, True)


class PuttingBack(Ledger):
    """A worker puts the job back just before each request to end its run."""

    def request_cancel(self, job_id: str) -> bool:
        self.requeue(job_id, note="waits for a device", charge=False)
        return super().request_cancel(job_id)


def test_a_cancel_that_meets_a_run_being_put_back_finds_the_job_in_the_queue(by_hand: JobsByHand) -> None:
    job_id = by_hand.running()
    with closing(PuttingBack(by_hand.ledger.path)) as ledger:
        by_hand.stores.ledger = ledger
        assert carry_out(Request("cancel", job_id), by_hand.stores, by_hand.finisher).message == "cancelled"
    assert by_hand.job(job_id).state is JobState.CANCELLED


@pytest.mark.parametrize(("asked", "given"), [(5, 5), (-100, -100), (1000, 100), (-(10**30), -100)])
def test_a_priority_is_kept_in_its_bounds(by_hand: JobsByHand, asked: int, given: int) -> None:
    job_id = by_hand.queued()
    assert (
        carry_out(Request("priority", job_id, asked), by_hand.stores, by_hand.finisher).message
        == f"has priority {given}"
    )
    assert by_hand.job(job_id).priority == given


@pytest.mark.parametrize("action", ["cancel", "retry", "priority", "republish"])
def test_an_unknown_job_is_an_answer_and_no_accident(by_hand: JobsByHand, action: str) -> None:
    answer = carry_out(Request(action, new_id()), by_hand.stores, by_hand.finisher)
    assert not answer.ok
    assert "no job" in answer.message


def test_a_job_that_runs_has_no_priority_any_more(by_hand: JobsByHand) -> None:
    answer = carry_out(Request("priority", by_hand.running(), 5), by_hand.stores, by_hand.finisher)
    assert "only waiting jobs" in answer.message
