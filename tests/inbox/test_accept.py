"""From the inbox into the spool and the ledger: each drop once, whole, and nothing lost on the way."""

from __future__ import annotations

import hashlib
import io
import os
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from sqlalchemy import event

from lipsyncd.errors import LedgerUnavailable
from lipsyncd.inbox import accept
from lipsyncd.jobs.job import Job, JobState, new_id
from tests.kits.core_kit import as_nobody, spec_of
from tests.kits.inbox_kit import Desk, reason
from tests.kits.installation import picture, put, sound
from tests.kits.media.media_kit import tone, wav

PICTURE, SOUND = picture(), sound()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.ledger.close()


# -- taking ------------------------------------------------------------------------------------------------------------


def test_a_pair_is_copied_recorded_and_taken_out_of_the_inbox(desk: Desk) -> None:
    desk.pair()
    job = desk.take_one()
    folder = desk.spool.folder(job.id)
    assert (folder / "image").read_bytes() == PICTURE
    assert (folder / "audio").read_bytes() == SOUND
    spec = desk.spec(job)
    assert {s.role: (s.name, s.sha256) for s in spec.sources} == {
        "image": ("anna.png", hashlib.sha256(PICTURE).hexdigest()),
        "audio": ("anna.wav", hashlib.sha256(SOUND).hexdigest()),
    }
    assert (job.name, job.out_name, job.state) == ("anna", "anna", JobState.QUEUED)
    assert desk.left == []
    assert desk.ledger.unreleased() == []
    assert desk.scan(after_s=100) == []


def test_a_manifest_decides_over_the_settings_and_brings_its_own_id(desk: Desk) -> None:
    job_id = new_id()
    desk.pair()
    desk.manifest(
        id=job_id, out_name="Hello", renderer="preview", stitch=True, resolution=128, fps="30000/1001", priority=7,
        user_data=[1], webhook="https://example.com/x", lipsyncd={"mood": "calm"},
    )  # fmt: skip
    job = desk.take_one()
    spec = desk.spec(job)
    assert (job.id, job.name, job.out_name, job.priority) == (job_id, "Hello", "Hello", 7)
    assert (spec.renderer, spec.stitch, spec.resolution, str(spec.fps)) == ("preview", True, 128, "30000/1001")
    assert (spec.user_data, spec.webhook, spec.options) == ([1], "https://example.com/x", {"mood": "calm"})
    assert {s.role for s in spec.sources} == {"image", "audio", "manifest"}
    assert desk.left == []


@pytest.mark.parametrize("name", [b"bad\xff", b"line\nbreak", b"-rf", b"x" * 251, "jose\u0301".encode()])
def test_any_name_is_taken(desk: Desk, name: bytes) -> None:
    desk.put(name + b".png", PICTURE)
    desk.put(name + b".wav", SOUND)
    job = desk.take_one()
    assert job.name.isprintable()
    assert "/" not in job.out_name
    assert [os.fsencode(s.name) for s in desk.spec(job).sources] == [name + b".png", name + b".wav"]
    assert desk.left == []


@pytest.mark.parametrize(
    ("image", "voice", "code"),
    [
        (SOUND, SOUND, "image-not-recognised"),
        (PICTURE, PICTURE, "audio-not-recognised"),
        (b"<svg/>" * 10, SOUND, "image-not-recognised"),
        (PICTURE, b"#EXTM3U\n/etc/passwd\n" * 5, "audio-not-recognised"),
        (picture(width=40, height=200), SOUND, "image-too-small"),
        (PICTURE[:200] + bytes(8) + PICTURE[208:300], SOUND, "image-undecodable"),
        (PICTURE, wav(tone(0.3))[:5000], "audio-undecodable"),
        (PICTURE, b"", "audio-not-recognised"),
    ],
)
def test_what_cannot_become_a_video_is_a_job_with_a_reason_and_its_files(
    desk: Desk, image: bytes, voice: bytes, code: str
) -> None:
    desk.put("anna.png", image)
    desk.put("anna.wav", voice)
    [accepted] = [*desk.scan(), *desk.scan(after_s=1801)]
    assert accepted.refused
    assert reason(accepted.job, desk) == code
    assert (desk.spool.folder(accepted.job.id) / "audio").read_bytes() == voice
    assert desk.left == []


def test_a_picture_of_too_many_pixels_is_refused_by_its_header(desk: Desk) -> None:
    header = io.BytesIO()
    Image.new("1", (8000, 8000)).save(header, "PNG")
    desk.put("anna.png", header.getvalue())
    desk.put("anna.wav", SOUND)
    assert reason(desk.take_one(), desk) == "image-too-large"


def test_a_broken_manifest_is_kept_with_what_belongs_to_it(desk: Desk) -> None:
    desk.pair()
    desk.put("anna.json", b'{"image": "anna.png", "adio": "anna.wav"}')
    job = desk.take_one()
    assert reason(job, desk) == "bad-manifest"
    assert {s.name for s in desk.spec(job).sources} == {"anna.json", "anna.png", "anna.wav"}
    assert desk.left == []


def test_one_file_in_both_roles_is_refused_for_its_content(desk: Desk) -> None:
    desk.put("face.png", PICTURE)
    desk.manifest(image="face.png", audio="face.png")
    assert reason(desk.take_one(), desk) == "audio-not-recognised"
    assert desk.left == []


# -- giving the names back ---------------------------------------------------------------------------------------------


def accepted_and_not_released(desk: Desk) -> Job:
    """A job whose files still lie in the inbox, as after a crash between acceptance and removal."""
    desk.pair()
    desk.scan()
    desk.clock.wait(2)
    [drop] = desk.inbox.ready({})
    accepted = desk.intake._take(drop)
    assert accepted is not None
    assert desk.left == ["anna.png", "anna.wav"]
    return accepted.job


def test_after_a_crash_the_files_are_removed_and_not_taken_twice(desk: Desk) -> None:
    job = accepted_and_not_released(desk)
    new = desk.again()
    assert new.take() == []
    assert new.left == []
    assert [j.id for j in new.ledger.in_state(*JobState)] == [job.id]
    new.ledger.close()


def test_a_file_that_was_replaced_after_the_copy_is_a_drop_of_its_own(desk: Desk) -> None:
    job = accepted_and_not_released(desk)
    desk.put("anna.wav", sound(seed=5))
    new = desk.again()
    assert new.take() == []
    assert new.left == ["anna.wav"]
    new.put("anna.png", picture(5))
    second = new.take_one()
    assert second.id != job.id
    assert (new.spool.folder(second.id) / "audio").read_bytes() == sound(seed=5)
    assert new.left == []
    new.ledger.close()


def test_a_chmod_after_the_copy_is_no_new_drop(desk: Desk) -> None:
    accepted_and_not_released(desk)
    time.sleep(0.011)
    (desk.inbox_folder / "anna.wav").chmod(0o600)
    new = desk.again()
    assert new.take() == []
    assert new.left == []
    new.ledger.close()


def test_a_shared_portrait_stays_until_its_last_manifest(desk: Desk) -> None:
    desk.put("face.png", PICTURE)
    desk.put("one.wav", sound(seed=1))
    desk.manifest("one", image="face.png", audio="one.wav")
    desk.manifest("two", image="face.png", audio="two.wav")
    assert desk.take_one().name == "one"
    assert desk.left == ["face.png", "two.json"]
    desk.put("two.wav", sound(seed=2))
    assert desk.take_one().name == "two"
    assert desk.left == []


def test_an_inbox_from_which_nothing_may_be_removed_is_served_once(tmp_path: Path) -> None:
    """A read-only share: each pair becomes one job, over scans, a chmod and a new start; nothing spins."""
    for folder in ("inbox", "spool"):
        (tmp_path / folder).mkdir()
    for name, content in (("anna.png", PICTURE), ("anna.wav", SOUND)):
        (tmp_path / "inbox" / name).write_bytes(content)
        (tmp_path / "inbox" / name).chmod(0o644)
    (tmp_path / "inbox").chmod(0o555)
    (tmp_path / "spool").chmod(0o777)
    tmp_path.chmod(0o777)

    def first() -> list[object]:
        desk = Desk(tmp_path)
        jobs = [len(desk.take()), len(desk.take()), len(desk.scan(after_s=10_000))]
        desk.ledger.close()
        return [jobs, desk.inbox.next_look_s, desk.inbox.waiting, desk.left]

    def second() -> list[object]:
        desk = Desk(tmp_path)
        jobs = [len(desk.take()), len(desk.take())]
        desk.ledger.close()
        return [jobs, desk.inbox.next_look_s, desk.inbox.waiting, len(os.listdir(tmp_path / "spool"))]

    assert as_nobody(first, tmp_path) == [[1, 0, 0], None, [], ["anna.png", "anna.wav"]]
    time.sleep(0.011)
    (tmp_path / "inbox" / "anna.wav").chmod(0o664)
    assert as_nobody(second) == [[0, 0], None, [], 1]
    (tmp_path / "inbox").chmod(0o755)


# -- races -------------------------------------------------------------------------------------------------------------


def numbered(number: int) -> tuple[bytes, bytes]:
    """A picture and a sound that both say the same number, in their size and length, to whoever looks."""
    buffer = io.BytesIO()
    Image.new("L", (64 + number, 64)).save(buffer, "PNG")
    return buffer.getvalue(), wav(tone(0.05) + bytes(2 * number))


def test_halves_that_are_swapped_all_the_time_never_come_from_two_moments(tmp_path: Path) -> None:
    """A writer replaces both halves again and again, the picture first: a job holds halves that lay there together.

    Those are the two of one number, or the next number's picture with the sound that it found.
    """
    desk = Desk(tmp_path)
    halves = [numbered(number) for number in range(40)]
    kind = {hashlib.sha256(half).digest(): n for n, pair in enumerate(halves) for half in pair}
    end, errors = threading.Event(), []

    def swap() -> None:
        for number in range(10_000_000):
            if end.is_set():
                return
            image, voice = halves[number % len(halves)]
            put(desk.inbox_folder, "anna.png", image)
            put(desk.inbox_folder, "anna.wav", voice)
            time.sleep(random.choice((0.0, 0.0, 0.04)))

    writer = threading.Thread(target=swap)
    writer.start()
    taken, deadline = 0, time.monotonic() + 20
    try:
        while taken < 40 and time.monotonic() < deadline:
            for accepted in desk.scan(after_s=0.21):
                taken += 1
                folder = desk.spool.folder(accepted.job.id)
                image, voice = (
                    kind[hashlib.sha256((folder / role).read_bytes()).digest()] for role in ("image", "audio")
                )
                if (image - voice) % len(halves) not in (0, 1):
                    errors.append((image, voice))
                desk.ledger.to_cancelled(accepted.job.id)
                desk.spool.remove(accepted.job.id)
    finally:
        end.set()
        writer.join()
        desk.ledger.close()
    assert errors == []
    assert taken > 0


def test_a_file_that_vanishes_while_it_is_taken_is_forgotten(desk: Desk) -> None:
    desk.pair()
    desk.scan()
    desk.clock.wait(2)
    drops = desk.inbox.ready({})
    (desk.inbox_folder / "anna.wav").unlink()
    with pytest.raises(FileNotFoundError):
        desk.intake._take(drops[0])
    assert os.listdir(desk.spool.root) == []
    assert desk.ledger.in_state(*JobState) == []
    assert desk.left == ["anna.png"]


def test_what_one_drop_brings_up_stays_with_that_drop(desk: Desk) -> None:
    """A full disk for one of them, here a name that the spool cannot take: the others are accepted."""
    blocked = new_id()
    (desk.spool.root / blocked).mkdir()
    (desk.spool.root / blocked / "somebody's").touch()
    desk.pair("anna")
    desk.manifest("anna", id=blocked)
    desk.pair("bert", seed=1)
    assert [a.job.name for a in desk.take()] == ["bert"]
    assert desk.left == ["anna.json", "anna.png", "anna.wav"]


def test_two_drops_of_the_same_bytes_are_two_jobs_with_one_key(desk: Desk) -> None:
    desk.pair()
    first = desk.take_one()
    desk.pair()
    second = desk.take_one()
    assert (first.out_name, second.out_name) == ("anna", "anna (2)")
    assert desk.ledger.idem_key(first.id) == desk.ledger.idem_key(second.id) is not None
    desk.pair(seed=1)
    assert desk.ledger.idem_key(desk.take_one().id) != desk.ledger.idem_key(first.id)
    assert replace(first, id=second.id) != second


# -- many at once ------------------------------------------------------------------------------------------------------


def test_a_burst_shares_its_commits_and_is_taken_in_the_order_of_its_names(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accept, "_SHORTEST_PASS_S", 60.0)  # one pass, however slow the disk
    for number in range(70):
        desk.pair(f"p{number:02}", seed=number)
    commits = []
    event.listen(desk.ledger._engine, "commit", commits.append)
    names = [accepted.job.name for accepted in desk.take()]
    assert names == [f"p{number:02}" for number in range(70)]
    assert [job.seq for job in desk.ledger.in_state(JobState.QUEUED)] == list(range(1, 71))
    assert len(commits) <= 5  # 32 + 32 + 6 rows, and once that their files are gone from the inbox
    assert desk.left == []
    assert desk.ledger.unreleased() == []


def test_a_burst_with_one_name_twice_still_becomes_jobs_of_different_names(desk: Desk) -> None:
    desk.put("anna.png", picture())
    for number in range(3):
        desk.put(f"v{number}.wav", sound(seed=number))
        desk.manifest(f"m{number}", audio=f"v{number}.wav", out_name="same")
    jobs = [accepted.job for accepted in desk.take()]
    assert [job.out_name for job in jobs] == ["same", "same (2)", "same (3)"]
    assert desk.left == []


def test_two_manifests_of_one_id_in_one_scan_are_one_job(desk: Desk) -> None:
    wanted = new_id()
    desk.put("anna.png", picture())
    desk.put("anna.wav", sound())
    for name in ("one", "two"):
        desk.manifest(name, id=wanted)
    assert [accepted.job.id for accepted in desk.take()] == [wanted]
    assert desk.left == []


def test_a_scan_that_is_told_to_stop_leaves_the_rest_for_the_next(desk: Desk) -> None:
    for number in range(5):
        desk.pair(f"p{number}", seed=number)
    desk.scan()
    desk.clock.wait(2)
    asked = iter((False, False, True))
    assert len(desk.intake.scan(lambda: next(asked))) == 2
    assert desk.intake.cut_short
    assert len(desk.left) == 6
    assert len(desk.scan()) == 3
    assert not desk.intake.cut_short


def test_a_ledger_without_room_keeps_what_was_accepted_and_takes_nothing_twice(desk: Desk) -> None:
    """The disk fills up between the spool's commit and the row: the job is there, and gets its row later."""
    limit = "PRAGMA max_page_count={}".format
    desk.pair()
    desk.scan()
    with desk.ledger._engine.connect() as connection:
        connection.exec_driver_sql(limit(1))  # SQLite takes the present size for it
    with pytest.raises(LedgerUnavailable, match="full"):
        for number in range(1000):
            desk.ledger.insert(spec_of(f"filler {number}"), max_attempts=3)
    for _ in range(3):
        with pytest.raises(LedgerUnavailable, match="full"):
            desk.scan(after_s=2)
    assert len(desk.spool.ids()) == 1
    assert desk.left == ["anna.png", "anna.wav"]

    with desk.ledger._engine.connect() as connection:
        connection.exec_driver_sql(limit(1_000_000))
    assert [accepted.job.name for accepted in desk.scan()] == ["anna"]
    assert desk.scan(after_s=2) == []
    assert desk.left == []
    assert len(desk.spool.ids()) == 1
