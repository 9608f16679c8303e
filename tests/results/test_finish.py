"""How jobs end, and how they come back: each path, each place where something may be in the way."""

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
from lipsyncd.results.outbox import Outbox
from lipsyncd.settings import Archive, Output
from tests.kits.jobs_by_hand import Shop

NO_FACE = NoFaceFound("no face in the picture")


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(tmp_path)
    yield shop
    shop.close()


def occupy(shop: Shop, name: str) -> Path:
    path = shop.folders.shared["outbox"] / name
    path.write_bytes(b"theirs")
    return path


# -- publishing --------------------------------------------------------------------------------------------------------


def test_a_published_job_leaves_a_video_a_sidecar_its_inputs_and_nothing_else(shop: Shop) -> None:
    job_id = shop.published()
    job = shop.job(job_id)
    assert shop.shown() == ["anna.json", "anna.mp4"]
    assert shop.hidden() == []
    assert shop.spool.ids() == []
    assert (shop.sidecar("anna")["id"], shop.sidecar("anna")["video"]) == (job_id, "anna.mp4")
    assert (job.fraction, job.stage, job.reason_code) == (1.0, "done", None)
    assert job.kept is not None
    assert sorted(os.listdir(job.kept)) == ["anna.png", "anna.wav", "job.json"]


def test_inputs_may_be_deleted_instead_of_archived(tmp_path: Path) -> None:
    shop = Shop(tmp_path, archive=Archive(mode="delete"))
    job_id = shop.published()
    assert (shop.shown("archive"), shop.spool.ids(), shop.job(job_id).kept) == ([], [], None)
    shop.close()


@pytest.mark.parametrize("suffix", ["mp4", "json"])
def test_a_name_that_somebody_has_is_left_and_the_next_one_taken(shop: Shop, suffix: str) -> None:
    """Video and sidecar always go by one name, so one of the two is enough to be in the way."""
    theirs = [occupy(shop, f"anna.{suffix}"), occupy(shop, f"anna (2).{suffix}")]
    job_id = shop.published()
    assert {"anna (3).json", "anna (3).mp4"} <= set(shop.shown())
    assert shop.sidecar("anna (3)")["video"] == "anna (3).mp4"
    assert shop.job(job_id).out_name == "anna (3)"
    assert all(path.read_bytes() == b"theirs" for path in theirs)
    assert shop.hidden() == []


def test_a_name_conflict_may_fail_the_job_and_leaves_no_hidden_files(tmp_path: Path) -> None:
    shop = Shop(tmp_path, output=Output(on_name_conflict="fail"))
    theirs = occupy(shop, "anna.mp4")
    job = shop.finisher.publish(shop.rendered())
    assert (job.state, job.reason_code) == (JobState.FAILED, "name-taken")
    assert theirs.read_bytes() == b"theirs"
    assert shop.hidden() == []
    assert shop.spool.ids() == []
    theirs.unlink()
    shop.finisher.retry(job.id)
    assert shop.spool.output(job.id) is None
    assert shop.spool.staged_name(job.id) is None
    shop.close()


def test_a_retry_after_a_name_conflict_never_shows_the_old_video(tmp_path: Path) -> None:
    """The folder of failed jobs is away, so the spool folder stays, with everything that the first life left."""
    shop = Shop(tmp_path, output=Output(on_name_conflict="fail"))
    theirs = occupy(shop, "anna.mp4")
    job_id = shop.rendered()
    shop.unmount("failed")
    shop.finisher.publish(job_id)
    assert shop.spool.ids() == [job_id]
    theirs.unlink()
    shop.finisher.retry(job_id)
    assert (shop.spool.output(job_id), shop.spool.staged_name(job_id), shop.spool.ending(job_id)) == (None, None, None)
    assert not shop.spool.video(job_id).exists()
    assert shop.job(job_id).state is JobState.QUEUED
    shop.close()


def test_an_unmounted_outbox_costs_nothing_but_time(shop: Shop) -> None:
    job_id = shop.rendered()
    shop.unmount("outbox")
    with pytest.raises(OutboxUnavailable):
        shop.finisher.publish(job_id)
    assert shop.shown() == []
    shop.finisher.try_publish(shop.job(job_id))
    job = shop.job(job_id)
    assert (job.state, job.reason_code, job.attempt) == (JobState.PUBLISHING, "outbox-unavailable", 1)
    assert job.not_before_ms > 0
    assert not shop.finisher.publish_due()
    shop.mount("outbox")
    assert shop.finisher.publish(job_id).state is JobState.DONE


@pytest.mark.parametrize("stage", ["staged", "video shown"])
def test_an_outbox_that_is_unmounted_half_way_is_not_taken_for_an_empty_one(shop: Shop, stage: str) -> None:
    """Without the outbox there are no tokens either: that must not read as "shown before"."""
    job_id = shop.rendered()
    spec, output = shop.spool.spec(job_id), shop.spool.output(job_id)
    assert spec is not None
    assert output is not None
    shop.finisher._stage(job_id, spec, output)
    if stage == "video shown":
        shop.finisher._show_first(job_id, spec, output, "anna")
    shop.unmount("outbox")
    with pytest.raises(OutboxUnavailable):
        shop.finisher.publish(job_id)
    assert shop.job(job_id).state is JobState.PUBLISHING
    shop.mount("outbox")
    shop.finisher.publish(job_id)
    assert shop.shown() == ["anna.json", "anna.mp4"]


def test_a_video_that_a_consumer_took_before_the_crash_is_not_shown_again(shop: Shop) -> None:
    job_id = shop.rendered()
    spec, output = shop.spool.spec(job_id), shop.spool.output(job_id)
    assert spec is not None
    assert output is not None
    shop.finisher._stage(job_id, spec, output)
    shop.finisher._show_first(job_id, spec, output, "anna")
    (shop.folders.shared["outbox"] / "anna.mp4").unlink()
    shop.restart()
    shop.finisher.publish(job_id)
    assert shop.shown() == ["anna.json"]
    assert shop.job(job_id).state is JobState.DONE


@pytest.mark.parametrize("spoil", ["cut", "changed", "gone"])
def test_a_video_that_spoils_in_the_spool_ends_its_job_and_nobody_elses(shop: Shop, spoil: str) -> None:
    bad = shop.rendered("bad")
    video = shop.spool.video(bad)
    if spoil == "cut":
        video.write_bytes(b"a vi")
    elif spoil == "changed":
        video.write_bytes(b"A video")
    else:
        video.unlink()
    good = shop.rendered("good")
    assert shop.finisher.publish_due()
    assert (shop.job(bad).state, shop.job(bad).reason_code) == (JobState.FAILED, "bad-result")
    assert shop.job(good).state is JobState.DONE
    assert shop.shown() == ["good.json", "good.mp4"]
    assert not shop.finisher.publish_due()


def test_a_job_whose_video_spoilt_is_rendered_again_by_a_retry(shop: Shop) -> None:
    """The folder of failed jobs is away, so the spoilt video still lies in the spool: it must not be found there."""
    job_id = shop.rendered()
    shop.spool.video(job_id).write_bytes(b"A video")
    shop.unmount("failed")
    assert shop.finisher.publish(job_id).state is JobState.FAILED
    assert shop.spool.ids() == [job_id]
    shop.finisher.retry(job_id)
    shop.restart()
    assert shop.spool.output(job_id) is None
    assert shop.job(job_id).state is JobState.QUEUED


def test_a_job_that_is_tried_again_exists_once(shop: Shop) -> None:
    """Its inputs were moved out, but the spool folder could not be removed: the copy under failed/ goes."""
    job_id = shop.rendered()
    folder = shop.spool.folder(job_id)
    kept_back = folder.with_name("kept-back")
    shop.spool.video(job_id).unlink()
    shutil.copytree(folder, kept_back)
    assert shop.finisher.publish(job_id).state is JobState.FAILED
    assert len(shop.shown("failed")) == 1
    kept_back.rename(folder)
    shop.finisher.retry(job_id)
    assert shop.shown("failed") == []


class Vanishing(Outbox):
    """An outbox that is unmounted in the moment in which we look for a token."""

    shop: Shop

    def is_staged(self, job_id: str, suffix: str) -> bool:
        self.shop.unmount("outbox")
        return super().is_staged(job_id, suffix)


def test_an_outbox_that_goes_while_we_look_has_shown_nothing(shop: Shop) -> None:
    job_id = shop.rendered()
    outbox = Vanishing(shop.outbox.root, mode=0o644, group="")
    outbox.shop = shop
    shop.finisher.outbox = outbox
    with pytest.raises(OutboxUnavailable):
        shop.finisher.publish(job_id)
    assert shop.job(job_id).state is JobState.PUBLISHING
    shop.finisher.outbox = shop.outbox
    shop.mount("outbox")
    shop.finisher.publish(job_id)
    assert shop.shown() == ["anna.json", "anna.mp4"]


def test_publishing_twice_is_noticed(shop: Shop) -> None:
    job_id = shop.published()
    with pytest.raises(IllegalTransition):
        shop.finisher.publish(job_id)
    assert shop.job(job_id).state is JobState.DONE
    assert shop.shown() == ["anna.json", "anna.mp4"]


def test_a_sidecar_whose_name_is_taken_in_the_last_moment_goes_beside(shop: Shop) -> None:
    job_id = shop.rendered()
    spec, output = shop.spool.spec(job_id), shop.spool.output(job_id)
    assert spec is not None
    assert output is not None
    shop.finisher._stage(job_id, spec, output)
    shop.finisher._show_first(job_id, spec, output, "anna")
    theirs = occupy(shop, "anna.json")
    shop.finisher.publish(job_id)
    assert theirs.read_bytes() == b"theirs"
    assert shop.sidecar(f"anna {job_id}")["video"] == "anna.mp4"


def test_a_staged_name_survives_the_loss_of_the_ledger(shop: Shop) -> None:
    """ "anna" was taken, so the video was about to be shown as "anna (2)": it still is, and the new ledger knows."""
    occupy(shop, "anna.mp4")
    job_id = shop.rendered()
    spec, output = shop.spool.spec(job_id), shop.spool.output(job_id)
    assert spec is not None
    assert output is not None
    shop.finisher._stage(job_id, spec, output)
    shop.spool.set_staged(job_id, "anna (2)")
    shop.close()
    for path in shop.folders.state.glob("ledger.db*"):
        path.unlink()
    again = Shop(shop.settings.paths.storage)
    again.restart()
    again.finisher.publish(job_id)
    assert again.job(job_id).out_name == "anna (2)"
    assert again.job(job_id).frames == 25
    assert "anna (2).mp4" in again.shown()
    again.close()


# -- failing and cancelling --------------------------------------------------------------------------------------------


def test_a_failed_job_leaves_its_inputs_with_the_reason(shop: Shop) -> None:
    job_id = shop.running()
    job = shop.finisher.fail(job_id, NO_FACE)
    assert (job.state, job.reason_code, job.remedy) == (JobState.FAILED, "no-face", NO_FACE.remedy)
    [folder] = shop.folders.shared["failed"].glob("2*-anna")
    assert sorted(os.listdir(folder)) == ["anna.png", "anna.wav", "job.json", "reason.json"]
    reason = json.loads((folder / "reason.json").read_text())
    assert {k: reason[k] for k in ("id", "state", "code", "attempts", "retry")} == {
        "id": job_id,
        "state": "failed",
        "code": "no-face",
        "attempts": 1,
        "retry": f"lipsyncd retry {job_id}",
    }
    assert shop.job(job_id).kept == str(folder)
    assert shop.spool.ids() == []


def test_inputs_that_cannot_be_moved_now_are_moved_later(shop: Shop) -> None:
    job_id = shop.running()
    shop.unmount("failed")
    assert shop.finisher.fail(job_id, NO_FACE).state is JobState.FAILED
    assert shop.spool.ids() == [job_id]
    shop.finisher.tidy()
    assert shop.spool.ids() == [job_id]
    shop.mount("failed")
    shop.finisher.tidy()
    assert shop.spool.ids() == []
    [folder] = shop.folders.shared["failed"].glob("2*-anna")
    assert json.loads((folder / "reason.json").read_text())["code"] == "no-face"


@pytest.mark.parametrize("make", ["queued", "running"])
def test_a_cancelled_job_goes_to_the_archive_and_leaves_no_video(shop: Shop, make: str) -> None:
    job_id = getattr(shop, make)()
    assert shop.finisher.cancel(job_id).state is JobState.CANCELLED
    assert shop.job(job_id).kept is not None
    assert sorted(os.listdir(shop.job(job_id).kept or "")) == ["anna.png", "anna.wav", "job.json", "reason.json"]
    assert (shop.shown(), shop.shown("failed"), shop.spool.ids()) == ([], [], [])


@pytest.mark.parametrize("make", ["rendered", "published"])
def test_what_is_about_to_be_published_is_not_cancelled(shop: Shop, make: str) -> None:
    """And the attempt leaves nothing that would cancel it at the next start."""
    job_id = getattr(shop, make)()
    before = shop.job(job_id)
    with pytest.raises(IllegalTransition):
        shop.finisher.cancel(job_id)
    assert shop.job(job_id) == before
    assert shop.spool.ending(job_id) is None
    shop.restart()
    if make == "rendered":
        shop.finisher.publish(job_id)
    assert shop.shown() == ["anna.json", "anna.mp4"]


def test_a_cancel_that_loses_against_a_claim_leaves_the_run_alone(shop: Shop) -> None:
    """A worker takes the job between our look and our move: its folder must stay, and no ending lie in it."""
    job_id = shop.queued()
    shop.let_a_worker_claim_while_an_ending_is_written()
    with pytest.raises(IllegalTransition):
        shop.finisher.cancel(job_id, sources=[JobState.QUEUED])
    assert shop.job(job_id).state is JobState.RUNNING
    assert shop.spool.ending(job_id) is None
    assert shop.spool.ids() == [job_id]


def test_an_ending_that_no_longer_fits_is_no_reason_not_to_start(shop: Shop) -> None:
    job_id = shop.rendered()
    shop.spool.set_ending(job_id, {"state": "cancelled", "code": "cancelled", "message": "", "remedy": "", "at_ms": 1})
    shop.restart()
    shop.finisher.publish(job_id)
    assert shop.job(job_id).state is JobState.DONE


@pytest.mark.parametrize("state", [JobState.RUNNING, JobState.QUEUED])
def test_a_cancel_that_was_asked_for_before_a_crash_is_done_after_it(shop: Shop, state: JobState) -> None:
    job_id = shop.running()
    shop.ledger.request_cancel(job_id)
    if state is JobState.QUEUED:
        shop.ledger.requeue(job_id, note="crashed", charge=True)
    shop.restart()
    assert shop.job(job_id).state is JobState.CANCELLED
    assert shop.spool.ids() == []


def test_a_finished_video_of_a_cancelled_run_is_not_published_after_a_crash(shop: Shop) -> None:
    job_id = shop.running()
    partial = shop.spool.partial_render(job_id, "token")
    partial.write_bytes(b"a video")
    shop.spool.keep_output(job_id, partial, Finished("ab" * 32, 7, 25, 64, 64, 500, 1000, 1, {}))
    shop.ledger.request_cancel(job_id)
    shop.restart()
    assert shop.job(job_id).state is JobState.CANCELLED
    assert not shop.finisher.publish_due()
    assert shop.shown() == []


def test_ending_a_job_twice_keeps_the_first_end(shop: Shop) -> None:
    job_id = shop.running()
    shop.finisher.fail(job_id, NO_FACE)
    for again in (lambda: shop.finisher.cancel(job_id), lambda: shop.finisher.fail(job_id, NO_FACE)):
        with pytest.raises(IllegalTransition, match=f"{job_id} is failed"):
            again()
    with pytest.raises(UnknownJob):
        shop.finisher.cancel(new_id())
    assert len(shop.shown("failed")) == 1
