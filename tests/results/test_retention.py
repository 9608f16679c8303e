"""Which files are pruned: by age, by size, and only our own. People put their files into the shared folders too."""

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
from tests.kits.jobs_by_hand import JobsByHand

DAY_S = 86400.0
EVERYTHING = Rules(outbox_days=1, archive_days=1, failed_days=1, results_h=24, uploads_h=24, ledger_days=1)


@pytest.fixture
def by_hand(tmp_path: Path) -> Iterator[JobsByHand]:
    by_hand = JobsByHand(tmp_path, retention=EVERYTHING)
    yield by_hand
    by_hand.close()


def retention(by_hand: JobsByHand) -> Retention:
    return Retention(by_hand.settings, by_hand.folders, LedgerView(by_hand.ledger.path))


def pruned(by_hand: JobsByHand, *, days: float = 0.0) -> dict[str, int]:
    """Prune as it would be done in so many days; gives how many pieces of each kind went, none left out."""
    counts = Housekeeper(by_hand.stores, by_hand.finisher, wall=lambda: time.time() + days * DAY_S).prune()
    assert [count.kind for count in counts] == [*KINDS, LEDGER]
    return {count.kind: count.goes for count in counts if count.goes}


def failed(by_hand: JobsByHand, name: str = "bert", **changes: Any) -> str:
    job_id = by_hand.queued(name, **changes)
    by_hand.finisher.fail(job_id, NoFaceFound("no face"))
    return job_id


def uploaded(by_hand: JobsByHand, upload_id: str = "", size_bytes: int = 10) -> str:
    upload_id = upload_id or new_id()

    def fill(folder: Path) -> Upload:
        (folder / "content").write_bytes(bytes(size_bytes))
        return Upload(upload_id, "image", "png", "a.png", size_bytes, "")

    Uploads(by_hand.folders.state).store(upload_id, fill)
    return upload_id


def everything_below(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if ".lipsyncd" not in path.parts}


# -- by age ------------------------------------------------------------------------------------------------------------


def test_what_is_old_goes_and_what_is_not_stays(by_hand: JobsByHand) -> None:
    by_hand.published("anna")
    failed(by_hand)
    uploaded(by_hand)
    assert pruned(by_hand, days=0.9) == {}
    one_of_each = dict.fromkeys(KINDS, 1)
    assert pruned(by_hand, days=1.1) == {**one_of_each, LEDGER: 2}
    for kind in ("outbox", "archive", "failed"):
        assert everything_below(by_hand.path(kind)) == set(), kind
        assert by_hand.folders.available(kind)
    assert list(by_hand.folders.results.iterdir()) == []
    assert by_hand.ledger.in_state(*JobState) == []
    assert pruned(by_hand, days=1.1) == {}


def test_by_default_videos_and_failures_stay_for_ever(tmp_path: Path) -> None:
    by_hand = JobsByHand(tmp_path)
    by_hand.published("anna")
    failed_id = failed(by_hand)
    uploaded(by_hand)
    assert pruned(by_hand, days=1.5) == {RESULTS: 1}
    assert pruned(by_hand, days=2.5) == {UPLOADS: 1}
    assert pruned(by_hand, days=29) == {}
    assert pruned(by_hand, days=31) == {ARCHIVE: 1}
    assert pruned(by_hand, days=91) == {LEDGER: 1}  # the failed job can be retried still
    assert pruned(by_hand, days=36_500) == {}
    assert by_hand.shown() == ["anna.json", "anna.mp4"]
    by_hand.finisher.retry(failed_id)
    assert by_hand.job(failed_id).state is JobState.QUEUED
    by_hand.close()


def test_a_failed_job_keeps_its_row_as_long_as_its_inputs(tmp_path: Path) -> None:
    by_hand = JobsByHand(tmp_path, retention=Rules(failed_days=200, ledger_days=90))
    job_id = failed(by_hand)
    assert pruned(by_hand, days=100) == {}
    by_hand.unmount("failed")
    assert pruned(by_hand, days=300) == {}  # it is unknown whether they are gone
    by_hand.mount("failed")
    assert pruned(by_hand, days=300) == {FAILED: 1, LEDGER: 1}
    assert by_hand.ledger.find(job_id) is None
    by_hand.close()


def test_a_job_whose_inputs_were_pruned_says_so_when_it_is_retried(tmp_path: Path) -> None:
    by_hand = JobsByHand(tmp_path, retention=Rules(failed_days=1))
    job_id = failed(by_hand)
    assert pruned(by_hand, days=2) == {FAILED: 1}
    assert by_hand.job(job_id).kept is None
    with pytest.raises(Exception, match=r"the inputs of job .* are no longer in any folder that we know"):
        by_hand.finisher.retry(job_id)
    by_hand.close()


def test_what_waits_runs_or_is_being_published_is_never_touched(by_hand: JobsByHand) -> None:
    ids = [by_hand.rendered("a"), by_hand.running("c"), by_hand.queued("b")]
    spooled = everything_below(by_hand.folders.spool)
    assert pruned(by_hand, days=36_500) == {}
    assert [by_hand.job(job_id).state for job_id in ids] == [JobState.PUBLISHING, JobState.RUNNING, JobState.QUEUED]
    assert everything_below(by_hand.folders.spool) == spooled


# -- what clients and jobs need ----------------------------------------------------------------------------------------


def test_what_a_client_asked_to_persist_stays_everywhere(by_hand: JobsByHand) -> None:
    persisting = {"rest": {"api": "talks", "persist": True}}
    by_hand.queued("kept", **persisting)
    job = by_hand.ledger.claim("cpu", "token")
    assert job is not None
    by_hand.finish_render(job.id)
    by_hand.publish(job.id)
    failed(by_hand, "kept too", **persisting)
    by_hand.published("goes")
    assert pruned(by_hand, days=36_500) == {OUTBOX: 1, ARCHIVE: 1, RESULTS: 1, LEDGER: 1}
    assert by_hand.shown() == ["kept.json", "kept.mp4"]
    assert by_hand.sidecar("kept")["persist"] is True
    for path in by_hand.ledger.path.parent.glob("ledger.db*"):
        path.unlink()
    assert not LedgerView(by_hand.ledger.path).persisting()
    assert not [piece for kind in (OUTBOX, ARCHIVE, FAILED, RESULTS) for piece in retention(by_hand).pieces(kind)
                if not piece.exempt]  # fmt: skip


def test_an_upload_that_a_job_or_a_manifest_names_stays(by_hand: JobsByHand) -> None:
    of_job, of_manifest, unused = uploaded(by_hand), uploaded(by_hand), uploaded(by_hand)
    job_id = by_hand.queued("anna", rest={"uploads": [of_job]})
    manifest = by_hand.path("inbox") / "rest-x.json"
    manifest.write_text(json.dumps({"image": f"upload:{of_manifest}", "audio": "a.wav"}))
    assert pruned(by_hand, days=3) == {UPLOADS: 1}
    assert {p.name for p in (by_hand.folders.state / "uploads").iterdir()} == {of_job, of_manifest}
    assert unused not in {of_job, of_manifest}
    by_hand.finisher.cancel(job_id)
    manifest.unlink()
    by_hand.unmount("inbox")
    assert UPLOADS not in pruned(by_hand, days=3)  # its manifests cannot be read
    by_hand.mount("inbox")
    assert pruned(by_hand, days=3)[UPLOADS] == 2


def test_a_row_stays_until_its_webhook_was_sent_and_its_files_have_left_the_inbox(by_hand: JobsByHand) -> None:
    notified = failed(by_hand, webhook="https://example.com/hook")
    spec = spec_of("unreleased")
    by_hand.ledger.insert(spec, max_attempts=3)
    by_hand.ledger._set(spec.id, inputs_released=0)
    by_hand.ledger.to_cancelled(spec.id)
    assert pruned(by_hand, days=2) == {FAILED: 1}
    assert {job.id for job in by_hand.ledger.in_state(*JobState)} == {notified, spec.id}


# -- by size and number ------------------------------------------------------------------------------------------------


def piece(at_s: float, size_bytes: int, *, exempt: bool = False) -> Piece:
    return Piece(ARCHIVE, new_id(), "/", (), (), at_s, size_bytes, 0, exempt)


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
    by_hand = JobsByHand(tmp_path, retention=Rules(outbox_gb=2.5e-6, results_h=0))
    for number in range(4):
        name = f"video {number}"
        by_hand.published(name, content=bytes([number]) * 1000)
        age_s = time.time() - 100 + number
        os.utime(by_hand.path("outbox") / f"{name}.json", (age_s, age_s))
    assert pruned(by_hand) == {OUTBOX: 3}  # each is 1000 bytes and its sidecar
    assert by_hand.shown() == ["video 3.json", "video 3.mp4"]
    by_hand.close()


def test_the_newest_rows_stay(tmp_path: Path) -> None:
    by_hand = JobsByHand(tmp_path, retention=Rules(ledger_rows=3))
    ids = [by_hand.published(f"job {number}") for number in range(5)]
    live = by_hand.queued("live")
    assert pruned(by_hand) == {LEDGER: 2}
    assert [job.id for job in by_hand.ledger.in_state(*JobState)] == [*ids[2:], live]
    by_hand.close()


def test_many_rows_go_in_batches_that_let_others_write(tmp_path: Path) -> None:
    by_hand = JobsByHand(tmp_path, retention=Rules(ledger_days=1))
    first = spec_of("job 0")
    by_hand.ledger.insert(first, max_attempts=3)
    by_hand.ledger.set_released([first.id])
    by_hand.ledger.to_cancelled(first.id)
    multiply(by_hand, first.id, 1200)
    ids = [job.id for job in by_hand.ledger.in_state(JobState.CANCELLED)]
    assert len(ids) == 1200
    assert by_hand.ledger.upkeep.delete_ended(ids) == 500
    assert pruned(by_hand, days=2) == {LEDGER: 700}
    with by_hand.ledger._write() as session:
        left = [session.execute(text(f"SELECT count(*) FROM {table}")).scalar_one() for table in ("job", "job_event")]
    assert left == [0, 0]
    by_hand.close()


def multiply(by_hand: JobsByHand, job_id: str, number: int) -> None:
    """Make so many jobs of one, in a single transaction; each is linked to the first."""
    with by_hand.ledger._write() as session:
        row = dict(session.execute(text("SELECT * FROM job WHERE id=:id"), {"id": job_id}).mappings().one())
        rows = [
            {**row, "id": (made := new_id()), "seq": seq, "source_sig": made, "duplicate_of": job_id}
            for seq in range(2, number + 1)
        ]
        session.execute(text(f"INSERT INTO job({', '.join(row)}) VALUES({', '.join(f':{c}' for c in row)})"), rows)
        session.execute(text("INSERT INTO job_event(job_id, at_ms, state) SELECT id, 1, state FROM job"))


# -- what is not ours --------------------------------------------------------------------------------------------------


def test_files_of_other_people_stay(by_hand: JobsByHand, tmp_path: Path) -> None:
    """Whatever a folder's users may put beside, inside and in place of our files."""
    done = [by_hand.published(name) for name in ("anna", "replaced", "same size", "linked", "garbled")]
    failures = [failed(by_hand, name) for name in ("bert", "carl")]
    outbox, archive, failures_root = (by_hand.path(kind) for kind in ("outbox", "archive", "failed"))
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
        Path(by_hand.job(failures[0]).kept or "") / "a note of mine.txt": b"x",
        Path(by_hand.job(done[0]).kept or "") / "extra.wav": b"x",
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

    went = pruned(by_hand, days=36_500)

    assert went == {OUTBOX: 1, ARCHIVE: 5, FAILED: 2, RESULTS: 5, LEDGER: 7}
    assert {path: path.read_bytes() for path in theirs} == theirs
    stems = {name.partition(".")[0] for name in by_hand.shown()}
    assert stems == {"family", "garbled", "huge", "linked", "no sidecar", "notes", "replaced", "same size"}
    assert (outbox / "linked.mp4").is_symlink()
    assert everything_below(archive) >= {"2020-01-01/holiday.png", "2019-01-01"}
    assert len(everything_below(failures_root)) == 6  # "mine" and "a link", and bert's folder for the note in it


def test_a_job_file_that_names_others_files_takes_nothing_along(by_hand: JobsByHand) -> None:
    """Members of the group may write in there: a forged job.json must not turn us against files elsewhere."""
    job_id = by_hand.published("anna")
    kept = Path(by_hand.job(job_id).kept or "")
    spec = json.loads((kept / "job.json").read_text())
    victims = [by_hand.folders.state / "ledger.db", kept.parent / "neighbour.png"]
    victims[1].write_bytes(b"x")
    for source, name in zip(spec["sources"], ("../../../state/ledger.db", "../neighbour.png"), strict=True):
        source["name"] = name
    (kept / "job.json").write_text(json.dumps(spec))
    pruned(by_hand, days=2)
    assert all(victim.exists() for victim in victims)


def test_a_piece_that_changed_since_it_was_looked_at_stays(by_hand: JobsByHand) -> None:
    by_hand.published("anna")
    [shown] = retention(by_hand).pieces(OUTBOX)
    [archived] = retention(by_hand).pieces(ARCHIVE)
    sidecar = by_hand.path("outbox") / "anna.json"
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), "id": new_id()}))
    folder = Path(archived.where)
    away = folder.with_name("away")
    folder.rename(away)
    folder.symlink_to(away)
    assert not leftovers.remove(by_hand.folders, shown)
    assert not leftovers.remove(by_hand.folders, archived)
    assert by_hand.shown() == ["anna.json", "anna.mp4"]
    assert sorted(path.name for path in away.iterdir()) == ["anna.png", "anna.wav", "job.json"]


def test_a_sidecar_whose_video_was_taken_goes_alone(by_hand: JobsByHand) -> None:
    by_hand.published("anna")
    (by_hand.path("outbox") / "anna.mp4").unlink()
    assert pruned(by_hand, days=2)[OUTBOX] == 1
    assert by_hand.shown() == []


def test_a_redrop_that_was_skipped_has_only_its_sidecar_to_lose(by_hand: JobsByHand) -> None:
    by_hand.published("anna")
    outbox = by_hand.path("outbox")
    skipped = {**by_hand.sidecar("anna"), "id": new_id(), "duplicate_of": by_hand.sidecar("anna")["id"]}
    (outbox / "bert.json").write_text(json.dumps(skipped))
    os.utime(outbox / "bert.json", (1, 1))
    assert pruned(by_hand) == {OUTBOX: 1}
    assert by_hand.shown() == ["anna.json", "anna.mp4"]


def test_videos_in_the_folders_of_sub_inboxes_are_found(by_hand: JobsByHand) -> None:
    by_hand.published("anna")
    outbox = by_hand.path("outbox")
    (outbox / "urgent").mkdir()
    for path in list(outbox.glob("anna.*")):
        path.rename(outbox / "urgent" / path.name)
    assert pruned(by_hand, days=2)[OUTBOX] == 1
    assert everything_below(outbox) == {"urgent"}


def test_a_share_that_is_not_mounted_is_left_alone(by_hand: JobsByHand) -> None:
    by_hand.published("anna")
    by_hand.unmount("outbox")
    by_hand.unmount("archive")
    assert pruned(by_hand, days=2) == {RESULTS: 1, LEDGER: 1}
    by_hand.mount("outbox")
    by_hand.mount("archive")
    assert pruned(by_hand, days=2) == {OUTBOX: 1, ARCHIVE: 1}


def test_a_removal_that_was_cut_off_is_finished_the_next_time(by_hand: JobsByHand) -> None:
    """The proof goes last: what is left is ours still."""
    done, lost = by_hand.published("anna"), failed(by_hand)
    for kept, first in ((by_hand.job(done).kept, "anna.png"), (by_hand.job(lost).kept, "bert.png")):
        (Path(kept or "") / first).unlink()
    (by_hand.path("outbox") / "anna.mp4").unlink()
    (by_hand.folders.results / f"{done}.mp4").unlink()
    assert pruned(by_hand, days=2) == {OUTBOX: 1, ARCHIVE: 1, FAILED: 1, RESULTS: 1, LEDGER: 2}


def test_a_dry_count_equals_what_is_then_pruned(by_hand: JobsByHand) -> None:
    by_hand.published("anna", content=bytes(5000))
    failed(by_hand)
    uploaded(by_hand, size_bytes=700)
    now_s = time.time() + 2 * DAY_S
    before = everything_below(by_hand.folders.state.parent)
    counted = retention(by_hand).count(now_s)
    assert everything_below(by_hand.folders.state.parent) == before
    done = Housekeeper(by_hand.stores, by_hand.finisher, wall=lambda: now_s).prune()
    assert counted == done
    assert {c.kind: c.goes for c in counted} == {**dict.fromkeys(KINDS, 1), LEDGER: 2}
    assert next(c for c in counted if c.kind == RESULTS).frees_bytes > 5000
