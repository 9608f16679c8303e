"""Members exchange what lies in outbox, failed and archive: a video comes out once, nothing of others is touched."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lipsyncd.errors import InputsLost, NoFaceFound
from lipsyncd.jobs.job import JobState, new_id
from lipsyncd.results import archive
from lipsyncd.results.outbox import Outbox, Token
from lipsyncd.storage.private_folder import HIDDEN
from tests.kits.jobs_by_hand import JobsByHand

SECRET = "../../../state/ledger.db"


@pytest.fixture
def by_hand(tmp_path: Path) -> Iterator[JobsByHand]:
    by_hand = JobsByHand(tmp_path / "storage")
    yield by_hand
    by_hand.close()


def take_hidden_folder(by_hand: JobsByHand) -> None:
    """A member moves the daemon's own folder in the outbox away, with the videos that are staged in it."""
    outbox = by_hand.path("outbox")
    (outbox / HIDDEN).rename(outbox.with_name(f"taken-{len(os.listdir(outbox.parent))}"))


class Taken(Outbox):
    """An outbox whose hidden folder a member moves away at one step of a publication."""

    by_hand: JobsByHand
    at: int
    steps = 0

    def token(self, job_id: str, suffix: str, made: str) -> Token:
        Taken.steps += 1
        if Taken.steps == self.at:
            take_hidden_folder(self.by_hand)
        return super().token(job_id, suffix, made)

    def of_queue(self, queue: str) -> Outbox:
        return self


# -- our folder in the outbox ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 2])
def test_a_video_comes_out_once_when_its_hidden_copies_are_taken_away_while_it_is_published(
    by_hand: JobsByHand, at: int
) -> None:
    """Before the video is shown, and before its sidecar is."""
    job_id = by_hand.rendered()
    outbox = Taken(by_hand.outbox.shared, mode=0o644, group="")
    outbox.by_hand, outbox.at, Taken.steps = by_hand, at, 0
    by_hand.stores.outbox = outbox
    by_hand.publish(job_id)
    assert Taken.steps >= at
    assert by_hand.job(job_id).state is JobState.DONE
    assert by_hand.shown() == ["anna.json", "anna.mp4"]
    assert by_hand.sidecar("anna")["video"] == "anna.mp4"
    assert by_hand.hidden() == []


@pytest.mark.parametrize("shown", [False, True])
def test_a_video_comes_out_once_when_its_hidden_copies_are_taken_away_before_a_restart(
    by_hand: JobsByHand, shown: bool
) -> None:
    job_id = by_hand.rendered()
    work = by_hand.spool.open(by_hand.job(job_id))
    assert work.output is not None
    by_hand.publisher._stage(work, work.output, "anna")
    if shown:
        by_hand.publisher._show_first(work, work.output, "anna")
    take_hidden_folder(by_hand)
    by_hand.restart()
    for _ in range(2):
        if by_hand.job(job_id).state is not JobState.DONE:
            by_hand.publish(job_id)
    assert by_hand.shown() == ["anna.json", "anna.mp4"]
    assert by_hand.sidecar("anna")["id"] == job_id


def test_a_copy_that_was_cut_off_is_not_shown(by_hand: JobsByHand, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full while a taken copy is made anew: only a whole copy is a token."""
    job_id = by_hand.rendered(content=b"a video" * 100_000)
    work = by_hand.spool.open(by_hand.job(job_id))
    assert work.output is not None
    by_hand.publisher._stage(work, work.output, "anna")
    take_hidden_folder(by_hand)

    def full(source: int, target: int) -> tuple[int, str]:
        os.write(target, os.pread(source, 1000, 0))
        os.close(target)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("lipsyncd.results.outbox.copy_into", full)
        assert by_hand.try_publish(job_id).reason_code == "outbox-unavailable"
    assert by_hand.shown() == []
    by_hand.publish(job_id)
    assert (by_hand.path("outbox") / "anna.mp4").read_bytes() == b"a video" * 100_000
    assert by_hand.hidden() == []


@pytest.mark.parametrize("at", [1, 2])
def test_a_video_is_published_again_once_when_its_hidden_copies_are_taken_away(by_hand: JobsByHand, at: int) -> None:
    job_id = by_hand.published()
    outbox = Taken(by_hand.outbox.shared, mode=0o644, group="")
    outbox.by_hand, outbox.at, Taken.steps = by_hand, at, 0
    by_hand.finisher.republisher.outbox = outbox
    assert by_hand.finisher.republish(job_id) == "anna (2)"
    assert Taken.steps >= at
    assert by_hand.shown() == ["anna (2).json", "anna (2).mp4", "anna.json", "anna.mp4"]
    assert by_hand.sidecar("anna (2)")["video"] == "anna (2).mp4"


# -- a queue's folder --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_queues_folder_that_is_a_link_blocks_its_jobs_and_nothing_is_written_behind_it(
    by_hand: JobsByHand, tmp_path: Path, kind: str
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    night = by_hand.path("outbox") / "night"
    if kind == "link":
        night.symlink_to(elsewhere)
    else:
        night.touch()
    job_id = by_hand.queued(queue="night")
    assert by_hand.ledger.claim("cpu", "token") is not None
    by_hand.finish_render(job_id)
    job = by_hand.try_publish(job_id)
    assert (job.state, job.reason_code, job.remedy) == (JobState.PUBLISHING, "outbox-unavailable", "remove it")
    assert f"{night} is a link or a file, and no folder" in (job.reason or "")
    assert os.listdir(elsewhere) == []
    night.unlink()
    by_hand.publish(job_id)
    assert sorted(os.listdir(night)) == ["anna.json", "anna.mp4"]


def test_a_result_is_withdrawn_only_while_it_is_that_jobs(by_hand: JobsByHand) -> None:
    job_id = by_hand.published()
    video = by_hand.path("outbox") / "anna.mp4"
    video.write_bytes(b"another video")
    by_hand.outbox.withdraw(job_id, "anna")
    assert by_hand.shown() == ["anna.mp4"]
    assert video.read_bytes() == b"another video"
    by_hand.outbox.withdraw(job_id, "anna")
    assert by_hand.shown() == ["anna.mp4"]


# -- kept inputs -------------------------------------------------------------------------------------------------------


def failed(by_hand: JobsByHand, name: str = "anna") -> tuple[str, Path]:
    job_id = by_hand.queued(name)
    by_hand.finisher.fail(job_id, NoFaceFound("no face"))
    return job_id, Path(by_hand.job(job_id).kept or "")


def as_a_link(kept: Path) -> None:
    """The folder itself is moved away, and a link to it takes its place."""
    kept.rename(kept.with_name("moved"))
    kept.symlink_to("moved")


def of_another_job(kept: Path) -> None:
    spec = json.loads((kept / "job.json").read_text())
    (kept / "job.json").write_text(json.dumps({**spec, "id": new_id()}))


def with_a_link_for_a_file(kept: Path) -> None:
    (kept / "anna.png").unlink()
    (kept / "anna.png").symlink_to("/etc/passwd")


def with_a_fifo_for_a_file(kept: Path) -> None:
    (kept / "anna.png").unlink()
    os.mkfifo(kept / "anna.png")


def with_a_fifo_for_its_record(kept: Path) -> None:
    (kept / "job.json").unlink()
    os.mkfifo(kept / "job.json")


def with_names_outside(kept: Path) -> None:
    spec = json.loads((kept / "job.json").read_text())
    spec["sources"][0]["name"] = SECRET
    (kept / "job.json").write_text(json.dumps(spec))


def with_roles_outside(kept: Path) -> None:
    spec = json.loads((kept / "job.json").read_text())
    spec["sources"][0]["role"] = SECRET
    (kept / "job.json").write_text(json.dumps(spec))


CHANGES: tuple[Callable[[Path], None], ...] = (
    as_a_link,
    of_another_job,
    with_a_link_for_a_file,
    with_a_fifo_for_a_file,
    with_a_fifo_for_its_record,
    with_names_outside,
    with_roles_outside,
)


@pytest.mark.parametrize("change", CHANGES)
def test_kept_inputs_that_a_member_has_changed_are_lost_and_lead_nowhere(
    by_hand: JobsByHand, change: Callable[[Path], None]
) -> None:
    job_id, kept = failed(by_hand)
    change(kept)
    with pytest.raises(InputsLost, match="are no longer in"):
        by_hand.finisher.retry(job_id)
    assert by_hand.job(job_id).state is JobState.FAILED
    assert by_hand.spool.ids() == []
    assert (by_hand.folders.state / "ledger.db").exists()


def test_what_a_retried_job_is_and_whom_it_calls_is_not_taken_from_a_folder_of_members(by_hand: JobsByHand) -> None:
    job_id, kept = failed(by_hand)
    spec = json.loads((kept / "job.json").read_text())
    forged = {**spec, "webhook": "http://127.0.0.1/", "rest": {"persist": True, "tenant": "another"}}
    (kept / "job.json").write_text(json.dumps(forged))
    by_hand.finisher.retry(job_id)
    again = by_hand.spool.spec(job_id)
    assert again is not None
    assert (again.webhook, again.rest) == (None, None)


def test_the_removal_of_kept_inputs_through_an_exchanged_day_removes_nothing_of_others(
    by_hand: JobsByHand, tmp_path: Path
) -> None:
    """A folder of the archive is a link to a place where a folder of that name lies, with a record that names files."""
    job_id = by_hand.queued()
    by_hand.finisher.cancel(job_id)
    kept = Path(by_hand.job(job_id).kept or "")
    shutil.copytree(kept, tmp_path / "theirs" / job_id)
    kept.parent.rename(tmp_path / "moved")
    kept.parent.symlink_to(tmp_path / "theirs")
    shared = by_hand.folders.shared["archive"]
    assert not archive.remove(shared, (kept.parent.name, job_id), job_id)
    assert sorted(os.listdir(tmp_path / "theirs" / job_id)) == ["anna.png", "anna.wav", "job.json", "reason.json"]
    kept.parent.unlink()
    (tmp_path / "moved").rename(kept.parent)
    assert archive.remove(shared, (kept.parent.name, job_id), job_id)
    assert by_hand.shown("archive") == []


def test_a_folder_with_a_note_of_a_member_stays_and_ours_go(by_hand: JobsByHand) -> None:
    job_id, kept = failed(by_hand)
    (kept / "a note").write_text("theirs")
    (kept / "sub").mkdir()
    assert archive.remove(by_hand.folders.shared["failed"], [kept.name], job_id)
    assert sorted(os.listdir(kept)) == ["a note", "sub"]


def test_the_folder_of_another_job_under_that_name_stays_whole(by_hand: JobsByHand) -> None:
    """Exchanged after the ledger has noted it."""
    first, kept = failed(by_hand, "anna")
    _, other = failed(by_hand, "bert")
    shutil.rmtree(kept)
    other.rename(kept)
    assert not archive.remove(by_hand.folders.shared["failed"], [kept.name], first)
    assert sorted(os.listdir(kept)) == ["bert.png", "bert.wav", "job.json", "reason.json"]
