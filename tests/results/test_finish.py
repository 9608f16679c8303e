"""Ending jobs and retrying them: each path, and each step that something may block."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lipsyncd.errors import IllegalTransition, NoFaceFound, OutboxUnavailable, UnknownJob
from lipsyncd.jobs.job import JobState, new_id
from lipsyncd.jobs.prepared import Output as Finished
from lipsyncd.ledger.view import LedgerView
from lipsyncd.results.outbox import Outbox, Token
from lipsyncd.settings import Archive, Output
from tests.kits.jobs_by_hand import JobsByHand

NO_FACE = NoFaceFound("no face in the picture")


@pytest.fixture
def by_hand(tmp_path: Path) -> Iterator[JobsByHand]:
    by_hand = JobsByHand(tmp_path)
    yield by_hand
    by_hand.close()


def occupy(by_hand: JobsByHand, name: str) -> Path:
    path = by_hand.path("outbox") / name
    path.write_bytes(b"theirs")
    return path


# -- publishing --------------------------------------------------------------------------------------------------------


def test_a_published_job_leaves_a_video_a_sidecar_its_inputs_and_nothing_else(by_hand: JobsByHand) -> None:
    job_id = by_hand.published()
    job = by_hand.job(job_id)
    assert by_hand.shown() == ["anna.json", "anna.mp4"]
    assert by_hand.hidden() == []
    assert by_hand.spool.ids() == []
    assert (by_hand.sidecar("anna")["id"], by_hand.sidecar("anna")["video"]) == (job_id, "anna.mp4")
    assert (job.fraction, job.stage, job.reason_code) == (1.0, "done", None)
    assert job.kept is not None
    assert sorted(os.listdir(job.kept)) == ["anna.png", "anna.wav", "job.json"]


def test_inputs_may_be_deleted_instead_of_archived(tmp_path: Path) -> None:
    by_hand = JobsByHand(tmp_path, archive=Archive(mode="delete"))
    job_id = by_hand.published()
    assert (by_hand.shown("archive"), by_hand.spool.ids(), by_hand.job(job_id).kept) == ([], [], None)
    by_hand.close()


@pytest.mark.parametrize("suffix", ["mp4", "json"])
def test_a_taken_name_is_left_and_the_next_one_used(by_hand: JobsByHand, suffix: str) -> None:
    """Video and sidecar always go by one name, so one of the two is enough to be in the way."""
    theirs = [occupy(by_hand, f"anna.{suffix}"), occupy(by_hand, f"anna (2).{suffix}")]
    job_id = by_hand.published()
    assert {"anna (3).json", "anna (3).mp4"} <= set(by_hand.shown())
    assert by_hand.sidecar("anna (3)")["video"] == "anna (3).mp4"
    assert by_hand.job(job_id).out_name == "anna (3)"
    assert all(path.read_bytes() == b"theirs" for path in theirs)
    assert by_hand.hidden() == []


def test_the_history_names_the_name_that_a_result_got_and_not_those_that_were_taken(by_hand: JobsByHand) -> None:
    for name in ("anna", *(f"anna ({number})" for number in range(2, 10))):
        occupy(by_hand, f"{name}.mp4")
    job_id = by_hand.published()
    named = [event.note for event in LedgerView(by_hand.ledger.path).events(job_id) if "published as" in event.note]
    assert set(named) == {"published as anna (10)", "published as anna (10).mp4"}


def test_a_name_conflict_may_fail_the_job_and_leaves_no_hidden_files(tmp_path: Path) -> None:
    by_hand = JobsByHand(tmp_path, output=Output(on_name_conflict="fail"))
    theirs = occupy(by_hand, "anna.mp4")
    job = by_hand.try_publish(by_hand.rendered())
    assert (job.state, job.reason_code) == (JobState.FAILED, "name-taken")
    assert theirs.read_bytes() == b"theirs"
    assert by_hand.hidden() == []
    assert by_hand.spool.ids() == []
    theirs.unlink()
    by_hand.finisher.retry(job.id)
    assert by_hand.spool.output(job.id) is None
    assert by_hand.spool.staged_name(job.id) is None
    by_hand.close()


def test_a_retry_after_a_name_conflict_never_shows_the_old_video(tmp_path: Path) -> None:
    """The folder of failed jobs is away, so the spool folder stays, with everything that the first life left."""
    by_hand = JobsByHand(tmp_path, output=Output(on_name_conflict="fail"))
    theirs = occupy(by_hand, "anna.mp4")
    job_id = by_hand.rendered()
    by_hand.unmount("failed")
    by_hand.try_publish(job_id)
    assert by_hand.spool.ids() == [job_id]
    theirs.unlink()
    by_hand.finisher.retry(job_id)
    assert (by_hand.spool.output(job_id), by_hand.spool.staged_name(job_id), by_hand.spool.ending(job_id)) == (
        None,
        None,
        None,
    )
    assert not by_hand.spool.video(job_id).exists()
    assert by_hand.job(job_id).state is JobState.QUEUED
    by_hand.close()


def test_an_unmounted_outbox_costs_nothing_but_time(by_hand: JobsByHand) -> None:
    job_id = by_hand.rendered()
    by_hand.unmount("outbox")
    with pytest.raises(OutboxUnavailable):
        by_hand.publish(job_id)
    assert by_hand.shown() == []
    by_hand.try_publish(job_id)
    job = by_hand.job(job_id)
    assert (job.state, job.reason_code, job.attempt) == (JobState.PUBLISHING, "outbox-unavailable", 1)
    assert job.not_before_ms > 0
    assert not by_hand.publisher.publish_due()
    by_hand.mount("outbox")
    assert by_hand.publish(job_id).state is JobState.DONE


@pytest.mark.parametrize("stage", ["staged", "video shown"])
def test_an_outbox_that_is_unmounted_half_way_is_not_taken_for_an_empty_one(by_hand: JobsByHand, stage: str) -> None:
    """Without the outbox there are no tokens either: that must not read as "shown before"."""
    job_id = by_hand.rendered()
    work = by_hand.spool.open(by_hand.job(job_id))
    assert work.output is not None
    by_hand.publisher._stage(work, work.output, "anna")
    if stage == "video shown":
        by_hand.publisher._show_first(work, work.output, "anna")
    by_hand.unmount("outbox")
    with pytest.raises(OutboxUnavailable):
        by_hand.publish(job_id)
    assert by_hand.job(job_id).state is JobState.PUBLISHING
    by_hand.mount("outbox")
    by_hand.publish(job_id)
    assert by_hand.shown() == ["anna.json", "anna.mp4"]


def test_a_video_that_a_consumer_took_before_the_crash_is_not_shown_again(by_hand: JobsByHand) -> None:
    job_id = by_hand.rendered()
    work = by_hand.spool.open(by_hand.job(job_id))
    assert work.output is not None
    by_hand.publisher._stage(work, work.output, "anna")
    by_hand.publisher._show_first(work, work.output, "anna")
    (by_hand.path("outbox") / "anna.mp4").unlink()
    by_hand.restart()
    by_hand.publish(job_id)
    assert by_hand.shown() == ["anna.json"]
    assert by_hand.job(job_id).state is JobState.DONE


@pytest.mark.parametrize("spoil", ["cut", "changed", "gone"])
def test_a_video_that_spoils_in_the_spool_ends_its_job_and_no_other(by_hand: JobsByHand, spoil: str) -> None:
    bad = by_hand.rendered("bad")
    video = by_hand.spool.video(bad)
    if spoil == "cut":
        video.write_bytes(b"a vi")
    elif spoil == "changed":
        video.write_bytes(b"A video")
    else:
        video.unlink()
    good = by_hand.rendered("good")
    assert by_hand.publisher.publish_due()
    assert (by_hand.job(bad).state, by_hand.job(bad).reason_code) == (JobState.FAILED, "bad-result")
    assert by_hand.job(good).state is JobState.DONE
    assert by_hand.shown() == ["good.json", "good.mp4"]
    assert not by_hand.publisher.publish_due()


def test_a_job_whose_video_spoilt_is_rendered_again_by_a_retry(by_hand: JobsByHand) -> None:
    """The folder of failed jobs is away, so the spoilt video still lies in the spool: it must not be found there."""
    job_id = by_hand.rendered()
    by_hand.spool.video(job_id).write_bytes(b"A video")
    by_hand.unmount("failed")
    assert by_hand.try_publish(job_id).state is JobState.FAILED
    assert by_hand.spool.ids() == [job_id]
    by_hand.finisher.retry(job_id)
    by_hand.restart()
    assert by_hand.spool.output(job_id) is None
    assert by_hand.job(job_id).state is JobState.QUEUED


def test_a_job_that_is_tried_again_exists_once(by_hand: JobsByHand) -> None:
    """Its inputs were moved out, but the spool folder could not be removed: the copy under failed/ goes."""
    job_id = by_hand.rendered()
    folder = by_hand.spool.folder(job_id)
    kept_back = folder.with_name("kept-back")
    by_hand.spool.video(job_id).unlink()
    shutil.copytree(folder, kept_back)
    assert by_hand.try_publish(job_id).state is JobState.FAILED
    assert len(by_hand.shown("failed")) == 1
    kept_back.rename(folder)
    by_hand.finisher.retry(job_id)
    assert by_hand.shown("failed") == []


class Vanishing(Outbox):
    """An outbox that is unmounted in the moment in which we look for a token."""

    by_hand: JobsByHand

    def token(self, job_id: str, suffix: str, made: str) -> Token:
        self.by_hand.unmount("outbox")
        return super().token(job_id, suffix, made)


def test_an_outbox_that_goes_while_we_look_has_shown_nothing(by_hand: JobsByHand) -> None:
    job_id = by_hand.rendered()
    outbox = Vanishing(by_hand.outbox.shared, mode=0o644, group="")
    outbox.by_hand = by_hand
    by_hand.stores.outbox = outbox
    with pytest.raises(OutboxUnavailable):
        by_hand.publish(job_id)
    assert by_hand.job(job_id).state is JobState.PUBLISHING
    by_hand.stores.outbox = by_hand.outbox
    by_hand.mount("outbox")
    by_hand.publish(job_id)
    assert by_hand.shown() == ["anna.json", "anna.mp4"]


def test_publishing_twice_is_noticed(by_hand: JobsByHand) -> None:
    job_id = by_hand.rendered()
    work = by_hand.spool.open(by_hand.job(job_id))
    assert by_hand.publisher.publish(work).state is JobState.DONE
    with pytest.raises(IllegalTransition):
        by_hand.publisher.publish(work)
    assert by_hand.try_publish(job_id).state is JobState.DONE
    assert by_hand.shown() == ["anna.json", "anna.mp4"]


def test_a_sidecar_whose_name_is_taken_in_the_last_moment_goes_beside(by_hand: JobsByHand) -> None:
    job_id = by_hand.rendered()
    work = by_hand.spool.open(by_hand.job(job_id))
    assert work.output is not None
    by_hand.publisher._stage(work, work.output, "anna")
    by_hand.publisher._show_first(work, work.output, "anna")
    theirs = occupy(by_hand, "anna.json")
    by_hand.publish(job_id)
    assert theirs.read_bytes() == b"theirs"
    assert by_hand.sidecar(f"anna {job_id}")["video"] == "anna.mp4"


def test_a_staged_name_survives_the_loss_of_the_ledger(by_hand: JobsByHand) -> None:
    """ "anna" was taken, so the video was about to be shown as "anna (2)": it still is, and the new ledger knows."""
    occupy(by_hand, "anna.mp4")
    job_id = by_hand.rendered()
    work = by_hand.spool.open(by_hand.job(job_id))
    assert work.output is not None
    by_hand.publisher._stage(work, work.output, "anna")
    by_hand.spool.set_staged(job_id, "anna (2)", by_hand.spool.staged_in(job_id))
    by_hand.close()
    for path in by_hand.folders.state.glob("ledger.db*"):
        path.unlink()
    again = JobsByHand(by_hand.settings.paths.storage)
    again.restart()
    again.publish(job_id)
    assert again.job(job_id).out_name == "anna (2)"
    assert again.job(job_id).frames == 25
    assert "anna (2).mp4" in again.shown()
    again.close()


# -- failing and cancelling --------------------------------------------------------------------------------------------


def test_a_failed_job_leaves_its_inputs_with_the_reason(by_hand: JobsByHand) -> None:
    job_id = by_hand.running()
    job = by_hand.finisher.fail(job_id, NO_FACE)
    assert (job.state, job.reason_code, job.remedy) == (JobState.FAILED, "no-face", NO_FACE.remedy)
    [folder] = by_hand.path("failed").glob("2*-anna")
    assert sorted(os.listdir(folder)) == ["anna.png", "anna.wav", "job.json", "reason.json"]
    reason = json.loads((folder / "reason.json").read_text())
    assert {k: reason[k] for k in ("id", "state", "code", "attempts", "retry")} == {
        "id": job_id,
        "state": "failed",
        "code": "no-face",
        "attempts": 1,
        "retry": f"lipsyncd retry {job_id}",
    }
    assert by_hand.job(job_id).kept == str(folder)
    assert by_hand.spool.ids() == []


def test_inputs_that_cannot_be_moved_now_are_moved_later(by_hand: JobsByHand) -> None:
    job_id = by_hand.running()
    by_hand.unmount("failed")
    assert by_hand.finisher.fail(job_id, NO_FACE).state is JobState.FAILED
    assert by_hand.spool.ids() == [job_id]
    by_hand.finisher.tidy()
    assert by_hand.spool.ids() == [job_id]
    by_hand.mount("failed")
    by_hand.finisher.tidy()
    assert by_hand.spool.ids() == []
    [folder] = by_hand.path("failed").glob("2*-anna")
    assert json.loads((folder / "reason.json").read_text())["code"] == "no-face"


@pytest.mark.parametrize("make", ["queued", "running"])
def test_a_cancelled_job_goes_to_the_archive_and_leaves_no_video(by_hand: JobsByHand, make: str) -> None:
    job_id = getattr(by_hand, make)()
    assert by_hand.finisher.cancel(job_id).state is JobState.CANCELLED
    assert by_hand.job(job_id).kept is not None
    assert sorted(os.listdir(by_hand.job(job_id).kept or "")) == ["anna.png", "anna.wav", "job.json", "reason.json"]
    assert (by_hand.shown(), by_hand.shown("failed"), by_hand.spool.ids()) == ([], [], [])


@pytest.mark.parametrize("make", ["rendered", "published"])
def test_what_is_about_to_be_published_is_not_cancelled(by_hand: JobsByHand, make: str) -> None:
    """And the attempt leaves nothing that would cancel it at the next start."""
    job_id = getattr(by_hand, make)()
    before = by_hand.job(job_id)
    with pytest.raises(IllegalTransition):
        by_hand.finisher.cancel(job_id)
    assert by_hand.job(job_id) == before
    assert by_hand.spool.ending(job_id) is None
    by_hand.restart()
    if make == "rendered":
        by_hand.publish(job_id)
    assert by_hand.shown() == ["anna.json", "anna.mp4"]


def test_a_cancel_that_loses_against_a_claim_leaves_the_run_alone(by_hand: JobsByHand) -> None:
    """A worker takes the job between our look and our move: its folder must stay, and no ending lie in it."""
    job_id = by_hand.queued()
    by_hand.let_a_worker_claim_while_an_ending_is_written()
    with pytest.raises(IllegalTransition):
        by_hand.finisher.cancel(job_id, sources=[JobState.QUEUED])
    assert by_hand.job(job_id).state is JobState.RUNNING
    assert by_hand.spool.ending(job_id) is None
    assert by_hand.spool.ids() == [job_id]


def test_an_ending_that_no_longer_fits_is_no_reason_not_to_start(by_hand: JobsByHand) -> None:
    job_id = by_hand.rendered()
    by_hand.spool.set_ending(
        job_id, {"state": "cancelled", "code": "cancelled", "message": "", "remedy": "", "at_ms": 1}
    )
    by_hand.restart()
    by_hand.publish(job_id)
    assert by_hand.job(job_id).state is JobState.DONE


@pytest.mark.parametrize("state", [JobState.RUNNING, JobState.QUEUED])
def test_a_cancel_that_was_asked_for_before_a_crash_is_done_after_it(by_hand: JobsByHand, state: JobState) -> None:
    job_id = by_hand.running()
    by_hand.ledger.request_cancel(job_id)
    if state is JobState.QUEUED:
        by_hand.ledger.requeue(job_id, note="crashed", charge=True)
    by_hand.restart()
    assert by_hand.job(job_id).state is JobState.CANCELLED
    assert by_hand.spool.ids() == []


def test_a_finished_video_of_a_cancelled_run_is_not_published_after_a_crash(by_hand: JobsByHand) -> None:
    job_id = by_hand.running()
    partial = by_hand.spool.partial_render(job_id, "token")
    partial.write_bytes(b"a video")
    by_hand.spool.keep_output(job_id, partial, Finished("ab" * 32, 7, 25, 64, 64, 500, 1000, 1, {}))
    by_hand.ledger.request_cancel(job_id)
    by_hand.restart()
    assert by_hand.job(job_id).state is JobState.CANCELLED
    assert not by_hand.publisher.publish_due()
    assert by_hand.shown() == []


def test_ending_a_job_twice_keeps_the_first_end(by_hand: JobsByHand) -> None:
    job_id = by_hand.running()
    by_hand.finisher.fail(job_id, NO_FACE)
    for again in (lambda: by_hand.finisher.cancel(job_id), lambda: by_hand.finisher.fail(job_id, NO_FACE)):
        with pytest.raises(IllegalTransition, match=f"{job_id} is failed"):
            again()
    with pytest.raises(UnknownJob):
        by_hand.finisher.cancel(new_id())
    assert len(by_hand.shown("failed")) == 1
