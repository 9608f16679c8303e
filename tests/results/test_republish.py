"""A finished video once more: one for each order, whatever cuts it off."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from lipsyncd.daemon.commands import carry_out
from lipsyncd.storage import control_files, failpoints
from lipsyncd.storage.control_files import Request
from lipsyncd.storage.files import write_json
from lipsyncd.storage.private_folder import HIDDEN
from tests.kits.jobs_by_hand import JobsByHand

POINTS = ("replace-written", "again-staged", "again-half-shown", "again-shown")
AGAIN = ["anna (2).json", "anna (2).mp4"]


@pytest.fixture
def by_hand(tmp_path: Path) -> Iterator[JobsByHand]:
    by_hand = JobsByHand(tmp_path / "storage")
    yield by_hand
    by_hand.close()


def ordered(by_hand: JobsByHand, job_id: str) -> Request:
    """An order as the daemon finds it: in its file, which is there until it is answered."""
    write_json(by_hand.folders.control / f"{'0f' * 16}.json", {"action": "republish", "job_id": job_id})
    [(_, request)] = control_files.pending(by_hand.folders.control)
    assert request is not None
    return request


def killed_at(point: str, by_hand: JobsByHand, request: Request) -> None:
    """Let another process carry out the order until it dies at a failpoint."""
    pid = os.fork()
    if pid == 0:
        other = JobsByHand(by_hand.settings.paths.storage)
        failpoints.arm(point)
        carry_out(request, other.stores, other.finisher)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def plans(by_hand: JobsByHand) -> list[str]:
    return [path.name for path in by_hand.folders.again.iterdir()]


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("taken", [False, True])
def test_an_order_that_was_cut_off_shows_one_video_all_the_same(by_hand: JobsByHand, point: str, taken: bool) -> None:
    job_id = by_hand.published()
    request = ordered(by_hand, job_id)
    killed_at(point, by_hand, request)
    came = {name for name in by_hand.shown() if name in AGAIN}
    if taken:
        for name in came:
            (by_hand.path("outbox") / name).unlink()
    by_hand.restart()
    answer = carry_out(request, by_hand.stores, by_hand.finisher)
    assert (answer.ok, answer.message) == (True, "published again as anna (2).mp4")
    assert sorted({*by_hand.shown(), *came}) == ["anna (2).json", "anna (2).mp4", "anna.json", "anna.mp4"]
    assert not taken or not came & set(by_hand.shown())
    assert by_hand.hidden() == []


def test_an_order_is_remembered_until_its_file_is_answered(by_hand: JobsByHand) -> None:
    job_id = by_hand.published()
    request = ordered(by_hand, job_id)
    for _ in range(3):
        assert carry_out(request, by_hand.stores, by_hand.finisher).message == "published again as anna (2).mp4"
        by_hand.finisher.tidy()
    assert plans(by_hand) == [f"{job_id}.json"]
    [(name, _)] = control_files.pending(by_hand.folders.control)
    control_files.answer(by_hand.folders.control, name, control_files.Answer(True, ""))
    by_hand.finisher.tidy()
    assert plans(by_hand) == []
    assert by_hand.finisher.republish(job_id) == "anna (3)"


def test_a_foreign_file_that_took_the_name_meanwhile_stays(by_hand: JobsByHand) -> None:
    job_id = by_hand.published()
    killed_at("again-staged", by_hand, ordered(by_hand, job_id))
    theirs = by_hand.path("outbox") / "anna (2).mp4"
    theirs.write_bytes(b"a user's file")
    by_hand.restart()
    assert by_hand.shown() == ["anna (2).mp4", "anna (3).json", "anna (3).mp4", "anna.json", "anna.mp4"]
    assert theirs.read_bytes() == b"a user's file"
    assert by_hand.sidecar("anna (3)")["video"] == "anna (3).mp4"


def test_a_sidecar_whose_name_was_taken_gets_a_longer_one(by_hand: JobsByHand) -> None:
    job_id = by_hand.published()
    killed_at("again-half-shown", by_hand, ordered(by_hand, job_id))
    (by_hand.path("outbox") / "anna (2).json").write_text("a user's file")
    by_hand.restart()
    assert by_hand.sidecar(f"anna (2) {job_id}")["video"] == "anna (2).mp4"


def test_what_the_loss_of_the_outbox_cut_off_is_shown_when_it_is_back(by_hand: JobsByHand) -> None:
    job_id = by_hand.published()
    request = ordered(by_hand, job_id)
    killed_at("again-staged", by_hand, request)
    by_hand.unmount("outbox")
    by_hand.restart()
    assert not carry_out(request, by_hand.stores, by_hand.finisher).ok
    assert by_hand.shown() == []
    by_hand.mount("outbox")
    by_hand.finisher.tidy()
    assert by_hand.shown() == [*AGAIN, "anna.json", "anna.mp4"]
    assert by_hand.hidden() == []


def test_a_start_goes_on_when_an_order_cannot_be_carried_out(by_hand: JobsByHand) -> None:
    job_id = by_hand.published()
    killed_at("again-staged", by_hand, ordered(by_hand, job_id))
    (by_hand.path("outbox") / "anna (2).mp4").write_bytes(b"in the way")
    token = by_hand.path("outbox") / HIDDEN / f"{job_id}.json.part"
    token.rename(token.with_name("aside"))
    token.mkdir()  # reading it to give it another name is an OSError
    by_hand.restart()
    assert plans(by_hand) == [f"{job_id}.json"]
    token.rmdir()
    token.with_name("aside").rename(token)
    by_hand.finisher.tidy()
    assert by_hand.shown() == ["anna (2).mp4", "anna (3).json", "anna (3).mp4", "anna.json", "anna.mp4"]


def test_deleting_the_job_forgets_the_order(by_hand: JobsByHand) -> None:
    job_id = by_hand.published()
    killed_at("again-staged", by_hand, ordered(by_hand, job_id))
    by_hand.finisher.delete(job_id)
    by_hand.restart()
    assert (by_hand.shown(), by_hand.hidden(), plans(by_hand)) == (["anna.json", "anna.mp4"], [], [])


def test_the_order_of_a_deleted_job_is_dropped(by_hand: JobsByHand) -> None:
    job_id = by_hand.published()
    killed_at("again-staged", by_hand, ordered(by_hand, job_id))
    by_hand.ledger.delete(job_id)
    by_hand.restart()
    assert (by_hand.hidden(), plans(by_hand)) == ([], [])
