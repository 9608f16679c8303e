"""A ledger that is lost or old: how jobs ended is read from what they left behind, and nothing is done twice."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from lipsyncd.daemon.housekeeping import Housekeeper
from lipsyncd.daemon.offline import finisher_of
from lipsyncd.daemon.recovery import open_ledger
from lipsyncd.errors import NoFaceFound
from lipsyncd.inbox.accept import idempotency_key
from lipsyncd.jobs.job import Job, JobState, new_id
from lipsyncd.ledger import backups
from lipsyncd.results import archive
from lipsyncd.settings.sections import Archive
from lipsyncd.storage.files import write_json
from tests.kits.installation import ROOT, Home
from tests.kits.jobs_by_hand import Shop

NOT_TOLD = ("seq", "finished_ms", "stage", "fraction", "prepared", "inputs_released", "staged", "max_attempts")


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(tmp_path)
    yield shop
    shop.close()


def start_again(shop: Shop) -> None:
    """Open the ledger as a daemon does at its start, whatever lies there, and recover."""
    shop.ledger.close()
    shop.ledger = open_ledger(shop.folders.state / "ledger.db")
    shop.finisher = finisher_of(shop.settings, shop.folders, shop.ledger)
    shop.spool, shop.outbox = shop.finisher.spool, shop.finisher.outbox
    shop.restart()


def lose_the_ledger(shop: Shop) -> None:
    shop.ledger.close()
    for path in shop.folders.state.glob("ledger.db*"):
        path.unlink()


def put_back(shop: Shop, copy: Path) -> None:
    shop.ledger.close()
    for path in shop.folders.state.glob("ledger.db*"):
        path.unlink()
    shutil.copy(copy, shop.folders.state / "ledger.db")


def failed(shop: Shop, name: str) -> str:
    job_id = shop.queued(name)
    shop.finisher.fail(job_id, NoFaceFound("no face in it"))
    return job_id


def cancelled(shop: Shop, name: str) -> str:
    job_id = shop.queued(name)
    shop.finisher.cancel(job_id)
    return job_id


def told(job: Job) -> dict[str, Any]:
    """What its remains can tell of a job; of one without a video, not how long that would have been."""
    unknown = NOT_TOLD if job.state is JobState.DONE else (*NOT_TOLD, "frames", "duration_ms")
    return {name: value for name, value in asdict(job).items() if name not in unknown}


def jobs(shop: Shop) -> dict[str, Job]:
    return {job.id: job for job in shop.ledger.in_state(*JobState)}


# -- the ledger is gone ------------------------------------------------------------------------------------------------


def test_a_lost_ledger_is_made_again_with_its_history(shop: Shop) -> None:
    """Every column that matters comes back, for jobs that ended and for those that are under way."""
    asked = {
        "queue": "urgent",
        "priority": 7,
        "user_data": {"scene": 7},
        "rest": {"api": "talks", "persist": True},
        "resolution": 128,
    }
    shop.queued("asked", **asked)
    running = shop.ledger.claim("cpu", "token")
    assert running is not None
    shop.finish_render(running.id)
    shop.finisher.publish(running.id)
    ids = [running.id, shop.published("anna"), failed(shop, "bert"), cancelled(shop, "carl")]
    live = [shop.rendered("dora"), shop.queued("emil")]
    before = jobs(shop)
    keys = {job_id: shop.ledger.idem_key(job_id) for job_id in ids}
    hashes = {job_id: shop.ledger.source_hashes(job_id) for job_id in ids}
    shown = shop.shown()

    lose_the_ledger(shop)
    start_again(shop)

    after = jobs(shop)
    assert after.keys() == before.keys()
    assert {i: told(after[i]) for i in ids} == {i: told(before[i]) for i in ids}
    assert [after[i].state for i in live] == [JobState.PUBLISHING, JobState.QUEUED]
    assert {i: shop.ledger.source_hashes(i) for i in ids} == hashes
    assert all(keys[i] in (None, shop.ledger.idem_key(i)) for i in ids)
    assert shop.shown() == shown
    assert sorted(after, key=lambda i: after[i].seq)[-2:] == sorted(live)
    assert abs((after[ids[1]].finished_ms or 0) - (before[ids[1]].finished_ms or 0)) < 5000


def test_what_comes_back_can_be_worked_with(shop: Shop) -> None:
    done, bad, dropped = shop.published("anna"), failed(shop, "bert"), cancelled(shop, "carl")
    lose_the_ledger(shop)
    start_again(shop)
    assert shop.finisher.republish(done) == "anna (2)"
    for job_id in (bad, dropped):
        shop.finisher.retry(job_id)
        assert shop.job(job_id).state is JobState.QUEUED
        assert sorted(p.name for p in shop.spool.folder(job_id).iterdir()) == ["audio", "image", "job.json"]
    shop.finisher.delete(done)
    assert shop.ledger.find(done) is None


def test_one_place_is_enough_to_tell_of_a_video(tmp_path: Path) -> None:
    """A consumer took the videos, the results have had their time, the inputs were not archived."""
    shop = Shop(tmp_path, archive=Archive(mode="delete"))
    from_results, from_outbox = shop.published("anna"), shop.published("bert")
    in_queue = shop.queued("carl", queue="urgent")
    assert shop.ledger.claim("cpu", "token") is not None
    shop.finish_render(in_queue)
    shop.finisher.publish(in_queue)
    for path in shop.folders.shared["outbox"].glob("anna.*"):
        path.unlink()
    (shop.folders.shared["outbox"] / "bert.mp4").unlink()
    assert shop.job(in_queue).queue == "urgent"
    for path in shop.folders.results.glob(f"{from_outbox}.*"):
        path.unlink()
    before = jobs(shop)
    lose_the_ledger(shop)
    start_again(shop)
    after = jobs(shop)
    assert {i: told(job) for i, job in after.items()} == {i: told(job) for i, job in before.items()}
    assert shop.ledger.source_hashes(from_results).keys() == {"image", "audio"}
    assert _events(shop, from_outbox) == [("done", "its end was read from what it left behind")]
    shop.close()


def _events(shop: Shop, job_id: str) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(shop.ledger.path)) as connection:
        return connection.execute("SELECT state, note FROM job_event WHERE job_id=? ORDER BY id", (job_id,)).fetchall()


def test_a_redrop_comes_back_with_its_link(shop: Shop) -> None:
    first, second = shop.published("anna"), shop.published("bert")
    sidecar = shop.folders.results / f"{second}.json"
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), "duplicate_of": first}))
    lose_the_ledger(shop)
    start_again(shop)
    assert shop.job(second).duplicate_of == first
    for path in shop.folders.state.glob("ledger.db*"):
        path.unlink()
    for folder in (shop.folders.results, shop.folders.shared["outbox"]):
        for path in [*folder.glob(f"{first}.*"), *folder.glob("anna.*")]:
            path.unlink()
    start_again(shop)
    assert (shop.ledger.find(first), shop.job(second).duplicate_of) == (None, None)


def test_work_that_comes_back_is_known_as_the_same_work(shop: Shop) -> None:
    job_id = shop.published("anna")
    spec = json.loads(next(shop.folders.shared["archive"].glob("*/*/job.json")).read_text())
    lose_the_ledger(shop)
    start_again(shop)
    kept = shop.job(job_id).kept
    assert kept is not None
    assert spec["id"] == job_id
    order = archive.spec_of(Path(kept))
    assert order is not None
    assert shop.ledger.idem_key(job_id) == idempotency_key(order) is not None


def test_damaged_and_foreign_files_tell_nothing_and_stop_nothing(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    good = shop.published("good")
    spoilt = {name: shop.published(name) for name in ("no frames", "bad fps", "bad time", "a list")}
    changes = {"no frames": ("frames", None), "bad fps": ("fps", "1/0"), "bad time": ("accepted_at", "noon")}
    for name, job_id in spoilt.items():
        for sidecar in (shop.folders.results / f"{job_id}.json", shop.folders.shared["outbox"] / f"{name}.json"):
            facts = json.loads(sidecar.read_text())
            key, value = changes.get(name, ("inputs", 7))
            sidecar.write_text(json.dumps({**facts, key: value}))
    shutil.rmtree(next(shop.folders.shared["archive"].glob("*-*-*")))
    (shop.folders.shared["outbox"] / "family.json").write_text(json.dumps({"id": new_id(), "state": "done"}))
    lose_the_ledger(shop)
    start_again(shop)
    assert list(jobs(shop)) == [good]
    assert sum("tells nothing" in record.getMessage() for record in caplog.records) == 2 * len(spoilt)


def test_a_folder_that_cannot_be_read_now_is_read_at_a_later_start(shop: Shop) -> None:
    done, bad = shop.published("anna"), failed(shop, "bert")
    for path in shop.folders.results.iterdir():
        path.unlink()
    shop.unmount("outbox")
    lose_the_ledger(shop)
    start_again(shop)
    assert list(jobs(shop)) == [bad]
    start_again(shop)
    assert list(jobs(shop)) == [bad]
    shop.mount("outbox")
    start_again(shop)
    assert set(jobs(shop)) == {done, bad}
    assert not (shop.folders.state / "endings-due").exists()


def test_a_start_that_is_cut_off_reads_it_all_again(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = {shop.published("anna"), failed(shop, "bert")}
    lose_the_ledger(shop)
    shop.ledger = open_ledger(shop.ledger.path)  # and then the power is cut
    start_again(shop)
    assert set(jobs(shop)) == ids
    (shop.folders.state / "endings-due").touch()  # or it is cut after the rows and before the mark is gone
    before = jobs(shop)
    start_again(shop)
    assert jobs(shop) == before


def test_a_ledger_at_work_is_not_compared_with_the_folders(shop: Shop) -> None:
    """What somebody deleted, or retention took, must not come back with every start."""
    shop.ledger.close()
    shop.ledger = open_ledger(shop.ledger.path)
    job_id = shop.published("anna")
    shop.ledger.delete(job_id)
    start_again(shop)
    assert jobs(shop) == {}


def test_what_was_to_persist_persists_after_the_ledger_was_lost(shop: Shop) -> None:
    job_id = shop.queued("kept", rest={"api": "talks", "persist": True})
    assert shop.ledger.claim("cpu", "token") is not None
    shop.finish_render(job_id)
    shop.finisher.publish(job_id)
    shutil.rmtree(next(shop.folders.shared["archive"].glob("*-*-*")))
    lose_the_ledger(shop)
    start_again(shop)
    counts = Housekeeper(shop.finisher, wall=lambda: 4e9).prune()
    assert [count.goes for count in counts] == [0] * len(counts)
    assert shop.ledger.find(job_id) is not None


# -- an older copy was put back ----------------------------------------------------------------------------------------


def test_what_happened_after_the_copy_is_not_done_again(shop: Shop) -> None:
    """Each job was live in the copy, and has ended, moved on, or come since."""
    to_publishing, failed_before = shop.running("e"), failed(shop, "f")
    to_done, to_failed, to_cancelled, waits = (shop.queued(name) for name in "abcd")
    copy = backups.make(shop.ledger.path, shop.folders.state / "backups")

    shop.finisher.fail(to_failed, NoFaceFound("no face"))
    shop.finisher.cancel(to_cancelled)
    claimed = shop.ledger.claim("cuda:0", "token")
    assert claimed is not None
    assert claimed.id == to_done
    shop.finish_render(to_done, b"video a")
    shop.finisher.publish(to_done)
    shop.finish_render(to_publishing, b"video e")
    retried = failed_before
    shop.finisher.retry(retried)
    new = shop.queued("g")
    now = {job_id: job.state for job_id, job in jobs(shop).items()}
    consumed = sorted(path.name for path in shop.folders.shared["outbox"].glob("a.*"))

    put_back(shop, copy)
    assert shop.ledger.path.read_bytes()[18] == 1
    start_again(shop)

    assert {job_id: job.state for job_id, job in jobs(shop).items()} == now
    assert now[to_done] is JobState.DONE
    assert now[to_publishing] is JobState.PUBLISHING
    assert {now[waits], now[new], now[retried]} == {JobState.QUEUED}
    assert consumed == ["a.json", "a.mp4"] == shop.shown()
    assert shop.job(to_done).out_sha256 is not None
    assert [state for state, _ in _events(shop, to_done)][:2] == ["queued", "queued"]  # its older events are kept
    shop.ledger.check()
    assert shop.ledger.path.read_bytes()[18] == 2
    shop.finisher.publish(to_publishing)
    assert shop.shown() == ["a.json", "a.mp4", "e.json", "e.mp4"]


def test_the_log_of_another_ledger_beside_a_copy_does_no_harm(shop: Shop) -> None:
    """Somebody copies the file back and forgets ledger.db-wal; SQLite by itself would apply that to the copy."""
    for number in range(12):
        shop.queued(f"before {number}")
    copy = backups.make(shop.ledger.path, shop.folders.state / "backups")
    shop.ledger.upkeep.checkpoint()  # from here on it holds single pages, which fit no other file
    for number in range(12):
        shop.queued(f"after {number}")
    wal = shop.ledger.path.with_name("ledger.db-wal").read_bytes()
    assert len(wal) > 30_000
    put_back(shop, copy)
    shop.ledger.path.with_name("ledger.db-wal").write_bytes(wal)
    start_again(shop)
    shop.ledger.check()
    assert len(jobs(shop)) == 24  # the second half from the spool
    assert len(list(shop.folders.state.glob("ledger.db.corrupt-*-wal"))) == 1


def commands(heading: str) -> str:
    """The indented lines of a section of the README."""
    section = re.split(r"^## ", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    [found] = [part for part in section if part.startswith(heading)]
    return "\n".join(line.strip() for line in found.splitlines() if line.startswith("    "))


def test_the_readmes_way_to_put_a_copy_back(home: Home) -> None:
    with home.running():
        for number, name in enumerate(("anna", "bert")):
            home.drop_pair(name, seed=number)
        home.drop_manifest("bad", image="../bad.png", audio="bad.wav")
        before = {name: home.until_done(name).id for name in ("anna", "bert")}
        before["bad"] = home.until_failed("bad").id
        assert home.cli("backup").returncode == 0
        home.drop_pair("carl", seed=3)
        after = home.until_done("carl").id
        home.until(lambda: not list(home.path("spool").iterdir()), "an empty spool")
        home.kill()
    renders = home.renders
    [copy] = backups.made(home.path("state") / "backups")
    home.path("state").joinpath("ledger.db").write_bytes(b"lost to a bad disk" * 1000)
    script = commands("Backups").replace("ledger-20261122T033000.118Z.db", copy.name)
    assert copy.name in script
    lines = [line for line in script.splitlines() if not line.startswith(("systemctl", "lipsyncd"))]
    subprocess.run(["sh", "-eux", "-c", "\n".join(lines)], cwd=home.path("state"), check=True, timeout=30)
    write_json(home.path("state") / "nights.json", {"copied": 1.0, "pruned": 1.0})  # it was down at night, too
    with home.running():
        assert {job.name: job.id for job in home.view.jobs()} == {**before, "carl": after}
        assert {job.state for job in home.view.jobs()} == {JobState.DONE, JobState.FAILED}
        home.drop_pair("dora", seed=4)
        home.until_done("dora")
        assert home.cli("republish", after).returncode == 0
        assert (home.path("outbox") / "carl (2).mp4").exists()
        home.until(lambda: len(backups.made(home.path("state") / "backups")) == 2, "the copy of last night")
    assert home.renders == renders + 1
    assert home.path("state").joinpath("ledger.db").read_bytes()[18] == 2
