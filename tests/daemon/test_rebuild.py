"""A ledger that is lost or old: how jobs ended is read from what they left behind, and nothing is done twice."""

from __future__ import annotations

import json
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
from lipsyncd.daemon.recovery import open_ledger
from lipsyncd.errors import NoFaceFound
from lipsyncd.jobs.job import Job, JobState, idempotency_key, new_id
from lipsyncd.ledger import backups
from lipsyncd.results import archive
from lipsyncd.settings.sections import Archive
from lipsyncd.storage.files import write_json
from lipsyncd.storage.open_folder import OpenFolder
from tests.kits import doc_pages
from tests.kits.installation import Installation
from tests.kits.jobs_by_hand import JobsByHand

NOT_TOLD = ("seq", "finished_ms", "stage", "fraction", "prepared", "inputs_released", "staged", "max_attempts")


@pytest.fixture
def by_hand(tmp_path: Path) -> Iterator[JobsByHand]:
    by_hand = JobsByHand(tmp_path)
    yield by_hand
    by_hand.close()


def start_again(by_hand: JobsByHand) -> None:
    """Open the ledger as a daemon does at its start, whatever lies there, and recover."""
    by_hand.ledger.close()
    by_hand.ledger = open_ledger(by_hand.folders.state / "ledger.db")
    by_hand.open_stores()
    by_hand.restart()


def lose_the_ledger(by_hand: JobsByHand) -> None:
    by_hand.ledger.close()
    for path in by_hand.folders.state.glob("ledger.db*"):
        path.unlink()


def put_back(by_hand: JobsByHand, copy: Path) -> None:
    by_hand.ledger.close()
    for path in by_hand.folders.state.glob("ledger.db*"):
        path.unlink()
    shutil.copy(copy, by_hand.folders.state / "ledger.db")


def failed(by_hand: JobsByHand, name: str) -> str:
    job_id = by_hand.queued(name)
    by_hand.finisher.fail(job_id, NoFaceFound("no face in it"))
    return job_id


def cancelled(by_hand: JobsByHand, name: str) -> str:
    job_id = by_hand.queued(name)
    by_hand.finisher.cancel(job_id)
    return job_id


def restored(job: Job) -> dict[str, Any]:
    """What its remains can tell of a job; of one without a video, not how long that would have been."""
    unknown = NOT_TOLD if job.state is JobState.DONE else (*NOT_TOLD, "frames", "duration_ms")
    return {name: value for name, value in asdict(job).items() if name not in unknown}


def jobs(by_hand: JobsByHand) -> dict[str, Job]:
    return {job.id: job for job in by_hand.ledger.in_state(*JobState)}


# -- the ledger is gone ------------------------------------------------------------------------------------------------


def test_a_lost_ledger_is_made_again_with_its_history(by_hand: JobsByHand) -> None:
    """Every column that matters comes back, for jobs that ended and for those that are under way."""
    asked = {
        "queue": "urgent",
        "priority": 7,
        "user_data": {"scene": 7},
        "rest": {"api": "talks", "persist": True},
        "resolution": 128,
    }
    by_hand.queued("asked", **asked)
    running = by_hand.ledger.claim("cpu", "token")
    assert running is not None
    by_hand.finish_render(running.id)
    by_hand.publish(running.id)
    ids = [running.id, by_hand.published("anna"), failed(by_hand, "bert"), cancelled(by_hand, "carl")]
    live = [by_hand.rendered("dora"), by_hand.queued("emil")]
    before = jobs(by_hand)
    keys = {job_id: by_hand.ledger.idem_key(job_id) for job_id in ids}
    hashes = {job_id: by_hand.ledger.source_hashes(job_id) for job_id in ids}
    shown = by_hand.shown()

    lose_the_ledger(by_hand)
    start_again(by_hand)

    after = jobs(by_hand)
    assert after.keys() == before.keys()
    assert {i: restored(after[i]) for i in ids} == {i: restored(before[i]) for i in ids}
    assert [after[i].state for i in live] == [JobState.PUBLISHING, JobState.QUEUED]
    assert {i: by_hand.ledger.source_hashes(i) for i in ids} == hashes
    assert all(keys[i] in (None, by_hand.ledger.idem_key(i)) for i in ids)
    assert by_hand.shown() == shown
    assert sorted(after, key=lambda i: after[i].seq)[-2:] == sorted(live)
    assert abs((after[ids[1]].finished_ms or 0) - (before[ids[1]].finished_ms or 0)) < 5000


def test_what_comes_back_can_be_worked_with(by_hand: JobsByHand) -> None:
    done, bad, dropped = by_hand.published("anna"), failed(by_hand, "bert"), cancelled(by_hand, "carl")
    lose_the_ledger(by_hand)
    start_again(by_hand)
    assert by_hand.finisher.republish(done) == "anna (2)"
    for job_id in (bad, dropped):
        by_hand.finisher.retry(job_id)
        assert by_hand.job(job_id).state is JobState.QUEUED
        assert sorted(p.name for p in by_hand.spool.folder(job_id).iterdir()) == ["audio", "image", "job.json"]
    by_hand.finisher.delete(done)
    assert by_hand.ledger.find(done) is None


def test_one_place_is_enough_to_tell_of_a_video(tmp_path: Path) -> None:
    """A consumer took the videos, the results have had their time, the inputs were not archived."""
    by_hand = JobsByHand(tmp_path, archive=Archive(mode="delete"))
    from_results, from_outbox = by_hand.published("anna"), by_hand.published("bert")
    in_queue = by_hand.queued("carl", queue="urgent")
    assert by_hand.ledger.claim("cpu", "token") is not None
    by_hand.finish_render(in_queue)
    by_hand.publish(in_queue)
    for path in by_hand.path("outbox").glob("anna.*"):
        path.unlink()
    (by_hand.path("outbox") / "bert.mp4").unlink()
    assert by_hand.job(in_queue).queue == "urgent"
    for path in by_hand.folders.results.glob(f"{from_outbox}.*"):
        path.unlink()
    before = jobs(by_hand)
    lose_the_ledger(by_hand)
    start_again(by_hand)
    after = jobs(by_hand)
    assert {i: restored(job) for i, job in after.items()} == {i: restored(job) for i, job in before.items()}
    assert by_hand.ledger.source_hashes(from_results).keys() == {"image", "audio"}
    assert _events(by_hand, from_outbox) == [("done", "its end was read from the files that it left")]
    by_hand.close()


def _events(by_hand: JobsByHand, job_id: str) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(by_hand.ledger.path)) as connection:
        return connection.execute("SELECT state, note FROM job_event WHERE job_id=? ORDER BY id", (job_id,)).fetchall()


def test_a_redrop_comes_back_with_its_link(by_hand: JobsByHand) -> None:
    first, second = by_hand.published("anna"), by_hand.published("bert")
    sidecar = by_hand.folders.results / f"{second}.json"
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), "duplicate_of": first}))
    lose_the_ledger(by_hand)
    start_again(by_hand)
    assert by_hand.job(second).duplicate_of == first
    for path in by_hand.folders.state.glob("ledger.db*"):
        path.unlink()
    for folder in (by_hand.folders.results, by_hand.path("outbox")):
        for path in [*folder.glob(f"{first}.*"), *folder.glob("anna.*")]:
            path.unlink()
    start_again(by_hand)
    assert (by_hand.ledger.find(first), by_hand.job(second).duplicate_of) == (None, None)


def test_work_that_comes_back_is_known_as_the_same_work(by_hand: JobsByHand) -> None:
    job_id = by_hand.published("anna")
    spec = json.loads(next(by_hand.path("archive").glob("*/*/job.json")).read_text())
    lose_the_ledger(by_hand)
    start_again(by_hand)
    kept = by_hand.job(job_id).kept
    assert kept is not None
    assert spec["id"] == job_id
    with OpenFolder.at(Path(kept)) as folder:
        order = archive.spec_of(folder)
    assert order is not None
    assert by_hand.ledger.idem_key(job_id) == idempotency_key(order) is not None


def test_damaged_and_foreign_files_are_passed_over_and_stop_nothing(
    by_hand: JobsByHand, caplog: pytest.LogCaptureFixture
) -> None:
    good = by_hand.published("good")
    spoilt = {name: by_hand.published(name) for name in ("no frames", "bad fps", "bad time", "a list")}
    changes = {"no frames": ("frames", None), "bad fps": ("fps", "1/0"), "bad time": ("accepted_at", "noon")}
    for name, job_id in spoilt.items():
        for sidecar in (by_hand.folders.results / f"{job_id}.json", by_hand.path("outbox") / f"{name}.json"):
            facts = json.loads(sidecar.read_text())
            key, value = changes.get(name, ("inputs", 7))
            sidecar.write_text(json.dumps({**facts, key: value}))
    shutil.rmtree(next(by_hand.path("archive").glob("*-*-*")))
    (by_hand.path("outbox") / "family.json").write_text(json.dumps({"id": new_id(), "state": "done"}))
    lose_the_ledger(by_hand)
    start_again(by_hand)
    assert list(jobs(by_hand)) == [good]
    assert sum("cannot be read" in record.getMessage() for record in caplog.records) == 2 * len(spoilt)


def test_a_folder_that_cannot_be_read_now_is_read_at_a_later_start(by_hand: JobsByHand) -> None:
    done, bad = by_hand.published("anna"), failed(by_hand, "bert")
    for path in by_hand.folders.results.iterdir():
        path.unlink()
    by_hand.unmount("outbox")
    lose_the_ledger(by_hand)
    start_again(by_hand)
    assert list(jobs(by_hand)) == [bad]
    start_again(by_hand)
    assert list(jobs(by_hand)) == [bad]
    by_hand.mount("outbox")
    start_again(by_hand)
    assert set(jobs(by_hand)) == {done, bad}
    assert not (by_hand.folders.state / "endings-due").exists()


def test_a_start_that_is_cut_off_reads_it_all_again(by_hand: JobsByHand, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = {by_hand.published("anna"), failed(by_hand, "bert")}
    lose_the_ledger(by_hand)
    by_hand.ledger = open_ledger(by_hand.ledger.path)  # and then the power is cut
    start_again(by_hand)
    assert set(jobs(by_hand)) == ids
    (by_hand.folders.state / "endings-due").touch()  # or it is cut after the rows and before the mark is gone
    before = jobs(by_hand)
    start_again(by_hand)
    assert jobs(by_hand) == before


def test_a_ledger_at_work_is_not_compared_with_the_folders(by_hand: JobsByHand) -> None:
    """What was deleted, or pruned, must not come back with every start."""
    by_hand.ledger.close()
    by_hand.ledger = open_ledger(by_hand.ledger.path)
    job_id = by_hand.published("anna")
    by_hand.ledger.delete(job_id)
    start_again(by_hand)
    assert jobs(by_hand) == {}


def test_what_was_to_persist_persists_after_the_ledger_was_lost(by_hand: JobsByHand) -> None:
    job_id = by_hand.queued("kept", rest={"api": "talks", "persist": True})
    assert by_hand.ledger.claim("cpu", "token") is not None
    by_hand.finish_render(job_id)
    by_hand.publish(job_id)
    shutil.rmtree(next(by_hand.path("archive").glob("*-*-*")))
    lose_the_ledger(by_hand)
    start_again(by_hand)
    counts = Housekeeper(by_hand.stores, by_hand.finisher, wall=lambda: 4e9).prune()
    assert [count.goes for count in counts] == [0] * len(counts)
    assert by_hand.ledger.find(job_id) is not None


# -- an older copy was put back ----------------------------------------------------------------------------------------


def test_what_happened_after_the_copy_is_not_done_again(by_hand: JobsByHand) -> None:
    """Each job was live in the copy, and has ended, moved on, or come since."""
    to_publishing, failed_before = by_hand.running("e"), failed(by_hand, "f")
    to_done, to_failed, to_cancelled, waits = (by_hand.queued(name) for name in "abcd")
    copy = backups.make(by_hand.ledger.path, by_hand.folders.state / "backups")

    by_hand.finisher.fail(to_failed, NoFaceFound("no face"))
    by_hand.finisher.cancel(to_cancelled)
    claimed = by_hand.ledger.claim("cuda:0", "token")
    assert claimed is not None
    assert claimed.id == to_done
    by_hand.finish_render(to_done, b"video a")
    by_hand.publish(to_done)
    by_hand.finish_render(to_publishing, b"video e")
    retried = failed_before
    by_hand.finisher.retry(retried)
    new = by_hand.queued("g")
    now = {job_id: job.state for job_id, job in jobs(by_hand).items()}
    consumed = sorted(path.name for path in by_hand.path("outbox").glob("a.*"))

    put_back(by_hand, copy)
    assert by_hand.ledger.path.read_bytes()[18] == 1
    start_again(by_hand)

    assert {job_id: job.state for job_id, job in jobs(by_hand).items()} == now
    assert now[to_done] is JobState.DONE
    assert now[to_publishing] is JobState.PUBLISHING
    assert {now[waits], now[new], now[retried]} == {JobState.QUEUED}
    assert consumed == ["a.json", "a.mp4"] == by_hand.shown()
    assert by_hand.job(to_done).out_sha256 is not None
    assert [state for state, _ in _events(by_hand, to_done)][:2] == ["queued", "queued"]  # its older events are kept
    by_hand.ledger.check()
    assert by_hand.ledger.path.read_bytes()[18] == 2
    by_hand.publish(to_publishing)
    assert by_hand.shown() == ["a.json", "a.mp4", "e.json", "e.mp4"]


def test_the_log_of_another_ledger_beside_a_copy_does_no_harm(by_hand: JobsByHand) -> None:
    """An older file is copied back but not ledger.db-wal; SQLite by itself would apply that to the copy."""
    for number in range(12):
        by_hand.queued(f"before {number}")
    copy = backups.make(by_hand.ledger.path, by_hand.folders.state / "backups")
    by_hand.ledger.upkeep.checkpoint()  # from here on it holds single pages, which fit no other file
    for number in range(12):
        by_hand.queued(f"after {number}")
    wal = by_hand.ledger.path.with_name("ledger.db-wal").read_bytes()
    assert len(wal) > 30_000
    put_back(by_hand, copy)
    by_hand.ledger.path.with_name("ledger.db-wal").write_bytes(wal)
    start_again(by_hand)
    by_hand.ledger.check()
    assert len(jobs(by_hand)) == 24  # the second half from the spool
    assert len(list(by_hand.folders.state.glob("ledger.db.corrupt-*-wal"))) == 1


def test_the_documented_way_to_put_a_copy_back(installation: Installation) -> None:
    with installation.running():
        for number, name in enumerate(("anna", "bert")):
            installation.drop_pair(name, seed=number)
        installation.drop_manifest("bad", image="../bad.png", audio="bad.wav")
        before = {name: installation.until_done(name).id for name in ("anna", "bert")}
        before["bad"] = installation.until_failed("bad").id
        assert installation.cli("backup").returncode == 0
        installation.drop_pair("carl", seed=3)
        after = installation.until_done("carl").id
        installation.until(lambda: not list(installation.path("spool").iterdir()), "an empty spool")
        installation.kill()
    renders = installation.renders
    [copy] = backups.copies(installation.path("state") / "backups")
    installation.path("state").joinpath("ledger.db").write_bytes(b"lost to a bad disk" * 1000)
    script = doc_pages.commands("docs/operate.md", "Backups").replace("ledger-20261122T033000.118Z.db", copy.name)
    assert copy.name in script
    lines = [line for line in script.splitlines() if not line.lstrip().startswith(("systemctl", "lipsyncd"))]
    subprocess.run(["sh", "-eux", "-c", "\n".join(lines)], cwd=installation.path("state"), check=True, timeout=30)
    write_json(installation.path("state") / "nights.json", {"copied": 1.0, "pruned": 1.0})  # it was down at night, too
    with installation.running():
        assert {job.name: job.id for job in installation.view.jobs()} == {**before, "carl": after}
        assert {job.state for job in installation.view.jobs()} == {JobState.DONE, JobState.FAILED}
        installation.drop_pair("dora", seed=4)
        installation.until_done("dora")
        assert installation.cli("republish", after).returncode == 0
        assert (installation.path("outbox") / "carl (2).mp4").exists()
        installation.until(
            lambda: len(backups.copies(installation.path("state") / "backups")) == 2, "the copy of last night"
        )
    assert installation.renders == renders + 1
    assert installation.path("state").joinpath("ledger.db").read_bytes()[18] == 2
