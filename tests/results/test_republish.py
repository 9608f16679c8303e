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
from tests.kits.jobs_by_hand import Shop

POINTS = ("replace-written", "again-staged", "again-half-shown", "again-shown")
AGAIN = ["anna (2).json", "anna (2).mp4"]


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(tmp_path / "storage")
    yield shop
    shop.close()


def ordered(shop: Shop, job_id: str) -> Request:
    """An order as the daemon finds it: in its file, which is there until it is answered."""
    control_files.write_json(shop.folders.control / f"{'0f' * 16}.json", {"action": "republish", "job_id": job_id})
    [(_, request)] = control_files.pending(shop.folders.control)
    assert request is not None
    return request


def killed_at(point: str, shop: Shop, request: Request) -> None:
    """Have another process carry out the order until it dies at a failpoint."""
    pid = os.fork()
    if pid == 0:
        other = Shop(shop.settings.paths.storage)
        failpoints.arm(point)
        carry_out(request, other.finisher)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def plans(shop: Shop) -> list[str]:
    return [path.name for path in shop.folders.again.iterdir()]


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("taken", [False, True])
def test_an_order_that_was_cut_off_shows_one_video_all_the_same(shop: Shop, point: str, taken: bool) -> None:
    job_id = shop.published()
    request = ordered(shop, job_id)
    killed_at(point, shop, request)
    came = {name for name in shop.shown() if name in AGAIN}
    if taken:
        for name in came:
            (shop.folders.shared["outbox"] / name).unlink()
    shop.restart()
    answer = carry_out(request, shop.finisher)
    assert (answer.ok, answer.message) == (True, "published again as anna (2).mp4")
    assert sorted({*shop.shown(), *came}) == ["anna (2).json", "anna (2).mp4", "anna.json", "anna.mp4"]
    assert not taken or not came & set(shop.shown())
    assert shop.hidden() == []


def test_an_order_is_remembered_until_its_file_is_answered(shop: Shop) -> None:
    job_id = shop.published()
    request = ordered(shop, job_id)
    for _ in range(3):
        assert carry_out(request, shop.finisher).message == "published again as anna (2).mp4"
        shop.finisher.tidy()
    assert plans(shop) == [f"{job_id}.json"]
    [(path, _)] = control_files.pending(shop.folders.control)
    control_files.answer(path, control_files.Answer(True, ""))
    shop.finisher.tidy()
    assert plans(shop) == []
    assert shop.finisher.republish(job_id) == "anna (3)"


def test_a_name_that_somebody_took_meanwhile_stays_his(shop: Shop) -> None:
    job_id = shop.published()
    killed_at("again-staged", shop, ordered(shop, job_id))
    theirs = shop.folders.shared["outbox"] / "anna (2).mp4"
    theirs.write_bytes(b"somebody's")
    shop.restart()
    assert shop.shown() == ["anna (2).mp4", "anna (3).json", "anna (3).mp4", "anna.json", "anna.mp4"]
    assert theirs.read_bytes() == b"somebody's"
    assert shop.sidecar("anna (3)")["video"] == "anna (3).mp4"


def test_a_sidecar_whose_name_somebody_took_gets_a_longer_one(shop: Shop) -> None:
    job_id = shop.published()
    killed_at("again-half-shown", shop, ordered(shop, job_id))
    (shop.folders.shared["outbox"] / "anna (2).json").write_text("somebody's")
    shop.restart()
    assert shop.sidecar(f"anna (2) {job_id}")["video"] == "anna (2).mp4"


def test_what_the_loss_of_the_outbox_cut_off_is_shown_when_it_is_back(shop: Shop) -> None:
    job_id = shop.published()
    request = ordered(shop, job_id)
    killed_at("again-staged", shop, request)
    shop.unmount("outbox")
    shop.restart()
    assert not carry_out(request, shop.finisher).ok
    assert shop.shown() == []
    shop.mount("outbox")
    shop.finisher.tidy()
    assert shop.shown() == [*AGAIN, "anna.json", "anna.mp4"]
    assert shop.hidden() == []


def test_a_start_goes_on_when_an_order_cannot_be_carried_out(shop: Shop) -> None:
    job_id = shop.published()
    killed_at("again-staged", shop, ordered(shop, job_id))
    (shop.folders.shared["outbox"] / "anna (2).mp4").write_bytes(b"in the way")
    token = shop.outbox.token(job_id, "json")
    token.rename(token.with_name("aside"))
    token.mkdir()  # reading it to give it another name is an OSError
    shop.restart()
    assert plans(shop) == [f"{job_id}.json"]
    token.rmdir()
    token.with_name("aside").rename(token)
    shop.finisher.tidy()
    assert shop.shown() == ["anna (2).mp4", "anna (3).json", "anna (3).mp4", "anna.json", "anna.mp4"]


def test_deleting_the_job_forgets_the_order(shop: Shop) -> None:
    job_id = shop.published()
    killed_at("again-staged", shop, ordered(shop, job_id))
    shop.finisher.delete(job_id)
    shop.restart()
    assert (shop.shown(), shop.hidden(), plans(shop)) == (["anna.json", "anna.mp4"], [], [])


def test_an_order_for_a_job_that_is_forgotten_is_forgotten(shop: Shop) -> None:
    job_id = shop.published()
    killed_at("again-staged", shop, ordered(shop, job_id))
    shop.ledger.delete(job_id)
    shop.restart()
    assert (shop.hidden(), plans(shop)) == ([], [])
