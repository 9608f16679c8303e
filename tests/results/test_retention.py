"""What goes and what stays: by age, by size, by whose it is. Folders are shared with people, who put things there."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from lipsyncd.daemon.housekeeping import Housekeeper
from lipsyncd.errors import NoFaceFound
from lipsyncd.jobs.job import JobState, new_id
from lipsyncd.ledger.view import LedgerView
from lipsyncd.results import leftovers
from lipsyncd.results.leftovers import ARCHIVE, FAILED, KINDS, OUTBOX, RESULTS, UPLOADS, Piece
from lipsyncd.results.retention import LEDGER, Limits, Retention, over
from lipsyncd.settings.sections import Retention as Rules
from lipsyncd.storage.uploads import Upload, Uploads
from tests.kits.core_kit import spec_of
from tests.kits.jobs_by_hand import Shop

DAY_S = 86400.0
EVERYTHING = Rules(outbox_days=1, archive_days=1, failed_days=1, results_h=24, uploads_h=24, ledger_days=1)


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(tmp_path, retention=EVERYTHING)
    yield shop
    shop.close()


def retention(shop: Shop) -> Retention:
    return Retention(shop.settings, shop.folders, LedgerView(shop.ledger.path))


def pruned(shop: Shop, *, days: float = 0.0) -> dict[str, int]:
    """Prune as it would be done in so many days; gives how many pieces of each kind went, none left out."""
    counts = Housekeeper(shop.finisher, wall=lambda: time.time() + days * DAY_S).prune()
    assert [count.kind for count in counts] == [*KINDS, LEDGER]
    return {count.kind: count.goes for count in counts if count.goes}


def failed(shop: Shop, name: str = "bert", **changes: Any) -> str:
    job_id = shop.queued(name, **changes)
    shop.finisher.fail(job_id, NoFaceFound("no face"))
    return job_id


def uploaded(shop: Shop, upload_id: str = "", size_bytes: int = 10) -> str:
    upload_id = upload_id or new_id()

    def fill(folder: Path) -> Upload:
        (folder / "content").write_bytes(bytes(size_bytes))
        return Upload(upload_id, "image", "png", "a.png", size_bytes, "")

    Uploads(shop.folders.state).store(upload_id, fill)
    return upload_id


def everything_below(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if ".lipsyncd" not in path.parts}


# -- by age ------------------------------------------------------------------------------------------------------------


def test_what_is_old_goes_and_what_is_not_stays(shop: Shop) -> None:
    shop.published("anna")
    failed(shop)
    uploaded(shop)
    assert pruned(shop, days=0.9) == {}
    one_of_each = dict.fromkeys(KINDS, 1)
    assert pruned(shop, days=1.1) == {**one_of_each, LEDGER: 2}
    for kind in ("outbox", "archive", "failed"):
        assert everything_below(shop.folders.shared[kind]) == set(), kind
        assert shop.folders.available(kind)
    assert list(shop.folders.results.iterdir()) == []
    assert shop.ledger.in_state(*JobState) == []
    assert pruned(shop, days=1.1) == {}


def test_by_default_videos_and_failures_stay_for_ever(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    shop.published("anna")
    failed_id = failed(shop)
    uploaded(shop)
    assert pruned(shop, days=1.5) == {RESULTS: 1}
    assert pruned(shop, days=2.5) == {UPLOADS: 1}
    assert pruned(shop, days=29) == {}
    assert pruned(shop, days=31) == {ARCHIVE: 1}
    assert pruned(shop, days=91) == {LEDGER: 1}  # the failed job can be retried still
    assert pruned(shop, days=36_500) == {}
    assert shop.shown() == ["anna.json", "anna.mp4"]
    shop.finisher.retry(failed_id)
    assert shop.job(failed_id).state is JobState.QUEUED
    shop.close()


def test_a_failed_job_keeps_its_row_as_long_as_its_inputs(tmp_path: Path) -> None:
    shop = Shop(tmp_path, retention=Rules(failed_days=200, ledger_days=90))
    job_id = failed(shop)
    assert pruned(shop, days=100) == {}
    shop.unmount("failed")
    assert pruned(shop, days=300) == {}  # nobody knows whether they are gone
    shop.mount("failed")
    assert pruned(shop, days=300) == {FAILED: 1, LEDGER: 1}
    assert shop.ledger.find(job_id) is None
    shop.close()


def test_a_job_whose_inputs_were_pruned_says_so_when_it_is_retried(tmp_path: Path) -> None:
    shop = Shop(tmp_path, retention=Rules(failed_days=1))
    job_id = failed(shop)
    assert pruned(shop, days=2) == {FAILED: 1}
    assert shop.job(job_id).kept is None
    with pytest.raises(Exception, match=r"the inputs of job .* are no longer in any folder that we know"):
        shop.finisher.retry(job_id)
    shop.close()


def test_what_waits_runs_or_is_being_published_is_never_touched(shop: Shop) -> None:
    ids = [shop.rendered("a"), shop.running("c"), shop.queued("b")]
    spooled = everything_below(shop.folders.spool)
    assert pruned(shop, days=36_500) == {}
    assert [shop.job(job_id).state for job_id in ids] == [JobState.PUBLISHING, JobState.RUNNING, JobState.QUEUED]
    assert everything_below(shop.folders.spool) == spooled


# -- what clients and jobs need ----------------------------------------------------------------------------------------


def test_what_a_client_asked_to_persist_stays_everywhere(shop: Shop) -> None:
    persisting = {"rest": {"api": "talks", "persist": True}}
    shop.queued("kept", **persisting)
    job = shop.ledger.claim("cpu", "token")
    assert job is not None
    shop.finish_render(job.id)
    shop.finisher.publish(job.id)
    failed(shop, "kept too", **persisting)
    shop.published("goes")
    assert pruned(shop, days=36_500) == {OUTBOX: 1, ARCHIVE: 1, RESULTS: 1, LEDGER: 1}
    assert shop.shown() == ["kept.json", "kept.mp4"]
    assert shop.sidecar("kept")["persist"] is True
    for path in shop.ledger.path.parent.glob("ledger.db*"):
        path.unlink()
    assert not LedgerView(shop.ledger.path).persisting()
    assert not [piece for kind in (OUTBOX, ARCHIVE, FAILED, RESULTS) for piece in retention(shop).pieces(kind)
                if not piece.exempt]  # fmt: skip


def test_an_upload_that_a_job_or_a_manifest_names_stays(shop: Shop) -> None:
    of_job, of_manifest, of_nobody = uploaded(shop), uploaded(shop), uploaded(shop)
    job_id = shop.queued("anna", rest={"uploads": [of_job]})
    manifest = shop.folders.shared["inbox"] / "rest-x.json"
    manifest.write_text(json.dumps({"image": f"upload:{of_manifest}", "audio": "a.wav"}))
    assert pruned(shop, days=3) == {UPLOADS: 1}
    assert {p.name for p in (shop.folders.state / "uploads").iterdir()} == {of_job, of_manifest}
    assert of_nobody not in {of_job, of_manifest}
    shop.finisher.cancel(job_id)
    manifest.unlink()
    shop.unmount("inbox")
    assert UPLOADS not in pruned(shop, days=3)  # nobody can say what waits in there
    shop.mount("inbox")
    assert pruned(shop, days=3)[UPLOADS] == 2


def test_a_row_stays_until_its_end_was_told_and_its_files_have_left_the_inbox(shop: Shop) -> None:
    told = failed(shop, webhook="https://example.com/hook")
    spec = spec_of("unreleased")
    shop.ledger.insert(spec, max_attempts=3)
    shop.ledger._set(spec.id, inputs_released=0)
    shop.ledger.to_cancelled(spec.id)
    assert pruned(shop, days=2) == {FAILED: 1}
    assert {job.id for job in shop.ledger.in_state(*JobState)} == {told, spec.id}


# -- by size and number ------------------------------------------------------------------------------------------------


def piece(at_s: float, size_bytes: int, *, exempt: bool = False) -> Piece:
    return Piece(ARCHIVE, new_id(), Path("/"), (), (), at_s, size_bytes, 0, exempt)


@pytest.mark.parametrize(
    ("limits", "goes"),
    [
        (Limits(0, 0), []),
        (Limits(0, 100), []),
        (Limits(0, 99), [1.0]),
        (Limits(0, 80), [1.0]),
        (Limits(0, 79), [1.0, 3.0]),
        (Limits(0, 1), [1.0, 3.0, 4.0]),
        (Limits(50, 0), [1.0, 3.0, 4.0]),
        (Limits(97, 60), [1.0, 3.0]),
        (Limits(97.5, 0), [1.0]),
    ],
)
def test_the_oldest_go_until_the_rest_fits(limits: Limits, goes: list[float]) -> None:
    there = [piece(1, 20), piece(2, 20, exempt=True), piece(3, 20), piece(4, 40)]
    assert [p.at_s for p in over(there, limits, now_s=100)] == goes


def test_what_a_clock_dated_years_ahead_goes_before_what_is_made_since_it_was_put_right() -> None:
    """Else the size would be full of it for years, and each new piece would go in its first night."""
    now_s, year_s = 1.8e9, 365 * DAY_S
    there = [
        piece(now_s - 60, 20),
        piece(now_s + 60, 20),
        piece(now_s + 9 * year_s, 40),
        piece(now_s + 10 * year_s, 40),
    ]
    assert over(there, Limits(0, 80), now_s=now_s) == [there[2]]
    assert over(there, Limits(0, 79), now_s=now_s) == [there[2], there[3]]
    assert over(there, Limits(0, 39), now_s=now_s) == [there[2], there[3], there[0]]
    assert over(there, Limits(DAY_S, 0), now_s=now_s) == []


def test_what_is_over_the_size_goes_oldest_first(tmp_path: Path) -> None:
    shop = Shop(tmp_path, retention=Rules(outbox_gb=2.5e-6, results_h=0))
    for number in range(4):
        name = f"video {number}"
        shop.published(name, content=bytes([number]) * 1000)
        age_s = time.time() - 100 + number
        os.utime(shop.folders.shared["outbox"] / f"{name}.json", (age_s, age_s))
    assert pruned(shop) == {OUTBOX: 3}  # each is 1000 bytes and its sidecar
    assert shop.shown() == ["video 3.json", "video 3.mp4"]
    shop.close()


def test_the_newest_rows_stay(tmp_path: Path) -> None:
    shop = Shop(tmp_path, retention=Rules(ledger_rows=3))
    ids = [shop.published(f"job {number}") for number in range(5)]
    live = shop.queued("live")
    assert pruned(shop) == {LEDGER: 2}
    assert [job.id for job in shop.ledger.in_state(*JobState)] == [*ids[2:], live]
    shop.close()


def test_many_rows_go_in_batches_that_let_others_write(tmp_path: Path) -> None:
    shop = Shop(tmp_path, retention=Rules(ledger_days=1))
    first = spec_of("job 0")
    shop.ledger.insert(first, max_attempts=3)
    shop.ledger.set_released([first.id])
    shop.ledger.to_cancelled(first.id)
    multiply(shop, first.id, 1200)
    ids = [job.id for job in shop.ledger.in_state(JobState.CANCELLED)]
    assert len(ids) == 1200
    assert shop.ledger.upkeep.forget(ids) == 500
    assert pruned(shop, days=2) == {LEDGER: 700}
    with shop.ledger._write() as session:
        left = [session.execute(text(f"SELECT count(*) FROM {table}")).scalar_one() for table in ("job", "job_event")]
    assert left == [0, 0]
    shop.close()


def multiply(shop: Shop, job_id: str, number: int) -> None:
    """Make so many jobs of one, in a single transaction; each is linked to the first."""
    with shop.ledger._write() as session:
        row = dict(session.execute(text("SELECT * FROM job WHERE id=:id"), {"id": job_id}).mappings().one())
        rows = [
            {**row, "id": (made := new_id()), "seq": seq, "source_sig": made, "duplicate_of": job_id}
            for seq in range(2, number + 1)
        ]
        session.execute(text(f"INSERT INTO job({', '.join(row)}) VALUES({', '.join(f':{c}' for c in row)})"), rows)
        session.execute(text("INSERT INTO job_event(job_id, at_ms, state) SELECT id, 1, state FROM job"))


# -- what is not ours --------------------------------------------------------------------------------------------------


def test_nothing_of_other_people_goes(shop: Shop, tmp_path: Path) -> None:
    """Whatever a folder's users may put beside, inside and in place of our files."""
    done = [shop.published(name) for name in ("anna", "replaced", "same size", "linked", "garbled")]
    failures = [failed(shop, name) for name in ("bert", "carl")]
    outbox, archive, failures_root = (shop.folders.shared[kind] for kind in ("outbox", "archive", "failed"))
    precious = tmp_path / "precious"
    (precious / "2020-01-01").mkdir(parents=True)

    theirs = {
        outbox / "family.mp4": b"x",
        outbox / "family.json": b'{"id": "x", "video": "family.mp4"}',
        outbox / "notes.json": b"[1, 2]",
        outbox / "huge.json": b"{" + b" " * 2_000_000,
        outbox / "no sidecar.mp4": b"x",
        archive / "2020-01-01" / "holiday.png": b"x",
        archive / "family album" / "job.json": b"{}",
        failures_root / "mine" / "job.json": b"{}",
        failures_root / "mine" / "reason.json": b"{}",
        Path(shop.job(failures[0]).kept or "") / "a note of mine.txt": b"x",
        Path(shop.job(done[0]).kept or "") / "extra.wav": b"x",
        precious / "job.json": b"x",
        precious / "bert.png": b"x",
        precious / "2020-01-01" / "job.json": b"x",
    }
    for path, content in theirs.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (outbox / "replaced.mp4").write_bytes(b"an edited cut")
    (outbox / "same size.mp4").write_bytes(b"A VIDEO")
    (outbox / "linked.mp4").unlink()
    (outbox / "linked.mp4").symlink_to(precious / "job.json")
    (outbox / "garbled.json").write_bytes(b"{")
    (archive / "2019-01-01").symlink_to(precious)
    (failures_root / "a link").symlink_to(precious)

    went = pruned(shop, days=36_500)

    assert went == {OUTBOX: 1, ARCHIVE: 5, FAILED: 2, RESULTS: 5, LEDGER: 7}
    assert {path: path.read_bytes() for path in theirs} == theirs
    stems = {name.partition(".")[0] for name in shop.shown()}
    assert stems == {"family", "garbled", "huge", "linked", "no sidecar", "notes", "replaced", "same size"}
    assert (outbox / "linked.mp4").is_symlink()
    assert everything_below(archive) >= {"2020-01-01/holiday.png", "2019-01-01"}
    assert len(everything_below(failures_root)) == 6  # "mine" and "a link", and bert's folder for the note in it


def test_a_job_file_that_names_others_files_takes_nothing_along(shop: Shop) -> None:
    """Members of the group may write in there: a forged job.json must not turn us against files elsewhere."""
    job_id = shop.published("anna")
    kept = Path(shop.job(job_id).kept or "")
    spec = json.loads((kept / "job.json").read_text())
    victims = [shop.folders.state / "ledger.db", kept.parent / "neighbour.png"]
    victims[1].write_bytes(b"x")
    for source, name in zip(spec["sources"], ("../../../state/ledger.db", "../neighbour.png"), strict=True):
        source["name"] = name
    (kept / "job.json").write_text(json.dumps(spec))
    pruned(shop, days=2)
    assert all(victim.exists() for victim in victims)


def test_a_piece_that_changed_since_it_was_looked_at_stays(shop: Shop) -> None:
    shop.published("anna")
    [shown] = retention(shop).pieces(OUTBOX)
    [archived] = retention(shop).pieces(ARCHIVE)
    sidecar = shop.folders.shared["outbox"] / "anna.json"
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), "id": new_id()}))
    away = archived.folder.with_name("away")
    archived.folder.rename(away)
    archived.folder.symlink_to(away)
    assert not leftovers.remove(shown)
    assert not leftovers.remove(archived)
    assert shop.shown() == ["anna.json", "anna.mp4"]
    assert sorted(path.name for path in away.iterdir()) == ["anna.png", "anna.wav", "job.json"]


def test_a_sidecar_whose_video_was_taken_goes_alone(shop: Shop) -> None:
    shop.published("anna")
    (shop.folders.shared["outbox"] / "anna.mp4").unlink()
    assert pruned(shop, days=2)[OUTBOX] == 1
    assert shop.shown() == []


def test_a_redrop_that_was_skipped_has_only_its_sidecar_to_lose(shop: Shop) -> None:
    shop.published("anna")
    outbox = shop.folders.shared["outbox"]
    skipped = {**shop.sidecar("anna"), "id": new_id(), "duplicate_of": shop.sidecar("anna")["id"]}
    (outbox / "bert.json").write_text(json.dumps(skipped))
    os.utime(outbox / "bert.json", (1, 1))
    assert pruned(shop) == {OUTBOX: 1}
    assert shop.shown() == ["anna.json", "anna.mp4"]


def test_videos_in_the_folders_of_sub_inboxes_are_found(shop: Shop) -> None:
    shop.published("anna")
    outbox = shop.folders.shared["outbox"]
    (outbox / "urgent").mkdir()
    for path in list(outbox.glob("anna.*")):
        path.rename(outbox / "urgent" / path.name)
    assert pruned(shop, days=2)[OUTBOX] == 1
    assert everything_below(outbox) == {"urgent"}


def test_a_share_that_is_not_mounted_is_left_alone(shop: Shop) -> None:
    shop.published("anna")
    shop.unmount("outbox")
    shop.unmount("archive")
    assert pruned(shop, days=2) == {RESULTS: 1, LEDGER: 1}
    shop.mount("outbox")
    shop.mount("archive")
    assert pruned(shop, days=2) == {OUTBOX: 1, ARCHIVE: 1}


def test_a_removal_that_was_cut_off_is_finished_the_next_time(shop: Shop) -> None:
    """The proof goes last: what is left is ours still."""
    done, lost = shop.published("anna"), failed(shop)
    for kept, first in ((shop.job(done).kept, "anna.png"), (shop.job(lost).kept, "bert.png")):
        (Path(kept or "") / first).unlink()
    (shop.folders.shared["outbox"] / "anna.mp4").unlink()
    (shop.folders.results / f"{done}.mp4").unlink()
    assert pruned(shop, days=2) == {OUTBOX: 1, ARCHIVE: 1, FAILED: 1, RESULTS: 1, LEDGER: 2}


def test_a_dry_count_tells_what_a_pruning_then_does(shop: Shop) -> None:
    shop.published("anna", content=bytes(5000))
    failed(shop)
    uploaded(shop, size_bytes=700)
    now_s = time.time() + 2 * DAY_S
    before = everything_below(shop.folders.state.parent)
    told = retention(shop).count(now_s)
    assert everything_below(shop.folders.state.parent) == before
    done = Housekeeper(shop.finisher, wall=lambda: now_s).prune()
    assert told == done
    assert {c.kind: c.goes for c in told} == {**dict.fromkeys(KINDS, 1), LEDGER: 2}
    assert next(c for c in told if c.kind == RESULTS).frees_bytes > 5000
