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
from lipsyncd.storage.private_folder import HIDDEN
from tests.kits.core_kit import UNPRIVILEGED, as_nobody, spec_of
from tests.kits.inbox_kit import InboxByHand, reason
from tests.kits.installation import picture, put, sound
from tests.kits.media.media_kit import tone, wav
from tests.kits.shared_kit import shared_folder

PICTURE, SOUND = picture(), sound()


@pytest.fixture
def inbox_by_hand(tmp_path: Path) -> Iterator[InboxByHand]:
    inbox_by_hand = InboxByHand(tmp_path)
    yield inbox_by_hand
    inbox_by_hand.ledger.close()


# -- taking ------------------------------------------------------------------------------------------------------------


def test_a_pair_is_copied_recorded_and_taken_out_of_the_inbox(inbox_by_hand: InboxByHand) -> None:
    inbox_by_hand.pair()
    job = inbox_by_hand.take_one()
    folder = inbox_by_hand.spool.folder(job.id)
    assert (folder / "image").read_bytes() == PICTURE
    assert (folder / "audio").read_bytes() == SOUND
    spec = inbox_by_hand.spec(job)
    assert {s.role: (s.name, s.sha256) for s in spec.sources} == {
        "image": ("anna.png", hashlib.sha256(PICTURE).hexdigest()),
        "audio": ("anna.wav", hashlib.sha256(SOUND).hexdigest()),
    }
    assert (job.name, job.out_name, job.state) == ("anna", "anna", JobState.QUEUED)
    assert inbox_by_hand.left == []
    assert inbox_by_hand.ledger.unreleased() == []
    assert inbox_by_hand.scan(after_s=100) == []


def test_a_manifest_decides_over_the_settings_and_brings_its_own_id(inbox_by_hand: InboxByHand) -> None:
    job_id = new_id()
    inbox_by_hand.pair()
    inbox_by_hand.manifest(
        id=job_id, out_name="Hello", renderer="preview", stitch=True, resolution=128, fps="30000/1001", priority=7,
        user_data=[1], webhook="https://example.com/x", lipsyncd={"mood": "calm"},
    )  # fmt: skip
    job = inbox_by_hand.take_one()
    spec = inbox_by_hand.spec(job)
    assert (job.id, job.name, job.out_name, job.priority) == (job_id, "Hello", "Hello", 7)
    assert (spec.renderer, spec.stitch, spec.resolution, str(spec.fps)) == ("preview", True, 128, "30000/1001")
    assert (spec.user_data, spec.webhook, spec.options) == ([1], "https://example.com/x", {"mood": "calm"})
    assert {s.role for s in spec.sources} == {"image", "audio", "manifest"}
    assert inbox_by_hand.left == []


@pytest.mark.parametrize("name", [b"bad\xff", b"line\nbreak", b"-rf", b"x" * 251, "jose\u0301".encode()])
def test_any_name_is_taken(inbox_by_hand: InboxByHand, name: bytes) -> None:
    inbox_by_hand.put(name + b".png", PICTURE)
    inbox_by_hand.put(name + b".wav", SOUND)
    job = inbox_by_hand.take_one()
    assert job.name.isprintable()
    assert "/" not in job.out_name
    assert [os.fsencode(s.name) for s in inbox_by_hand.spec(job).sources] == [name + b".png", name + b".wav"]
    assert inbox_by_hand.left == []


@pytest.mark.parametrize(
    ("image", "voice", "code"),
    [
        (SOUND, SOUND, "image-not-recognised"),
        (PICTURE, PICTURE, "audio-not-recognised"),
        (b"<svg/>" * 10, SOUND, "image-not-recognised"),
        (PICTURE, b"#EXTM3U\n/etc/passwd\n" * 5, "audio-not-recognised"),
        (picture(width=40, height=200), SOUND, "image-too-small"),
        (PICTURE[:200] + bytes(8) + PICTURE[208:300], SOUND, "image-undecodable"),
        (PICTURE, wav(tone(0.3), rate=0), "audio-undecodable"),
        (PICTURE, b"", "audio-not-recognised"),
    ],
)
def test_what_cannot_become_a_video_is_a_job_with_a_reason_and_its_files(
    inbox_by_hand: InboxByHand, image: bytes, voice: bytes, code: str
) -> None:
    inbox_by_hand.put("anna.png", image)
    inbox_by_hand.put("anna.wav", voice)
    [accepted] = [*inbox_by_hand.scan(), *inbox_by_hand.scan(after_s=1801)]
    assert accepted.refused
    assert reason(accepted.job, inbox_by_hand) == code
    assert (inbox_by_hand.spool.folder(accepted.job.id) / "audio").read_bytes() == voice
    assert inbox_by_hand.left == []


def test_a_picture_of_too_many_pixels_is_refused_by_its_header(inbox_by_hand: InboxByHand) -> None:
    header = io.BytesIO()
    Image.new("1", (8000, 8000)).save(header, "PNG")
    inbox_by_hand.put("anna.png", header.getvalue())
    inbox_by_hand.put("anna.wav", SOUND)
    assert reason(inbox_by_hand.take_one(), inbox_by_hand) == "image-too-large"


def test_a_broken_manifest_is_kept_with_what_belongs_to_it(inbox_by_hand: InboxByHand) -> None:
    inbox_by_hand.pair()
    inbox_by_hand.put("anna.json", b'{"image": "anna.png", "adio": "anna.wav"}')
    job = inbox_by_hand.take_one()
    assert reason(job, inbox_by_hand) == "bad-manifest"
    assert {s.name for s in inbox_by_hand.spec(job).sources} == {"anna.json", "anna.png", "anna.wav"}
    assert inbox_by_hand.left == []


def test_one_file_in_both_roles_is_refused_for_its_content(inbox_by_hand: InboxByHand) -> None:
    inbox_by_hand.put("face.png", PICTURE)
    inbox_by_hand.manifest(image="face.png", audio="face.png")
    assert reason(inbox_by_hand.take_one(), inbox_by_hand) == "audio-not-recognised"
    assert inbox_by_hand.left == []


# -- giving the names back ---------------------------------------------------------------------------------------------


def accepted_and_not_released(inbox_by_hand: InboxByHand) -> Job:
    """A job whose files still lie in the inbox, as after a crash between acceptance and removal."""
    inbox_by_hand.pair()
    inbox_by_hand.scan()
    inbox_by_hand.clock.wait(2)
    with inbox_by_hand.inbox.open():
        [drop] = inbox_by_hand.inbox.ready({})
        accepted = inbox_by_hand.intake._take(drop)
    assert accepted is not None
    assert inbox_by_hand.left == ["anna.png", "anna.wav"]
    return accepted.job


def test_after_a_crash_the_files_are_removed_and_not_taken_twice(inbox_by_hand: InboxByHand) -> None:
    job = accepted_and_not_released(inbox_by_hand)
    new = inbox_by_hand.again()
    assert new.take() == []
    assert new.left == []
    assert [j.id for j in new.ledger.in_state(*JobState)] == [job.id]
    new.ledger.close()


def test_a_file_that_was_replaced_after_the_copy_is_a_drop_of_its_own(inbox_by_hand: InboxByHand) -> None:
    job = accepted_and_not_released(inbox_by_hand)
    inbox_by_hand.put("anna.wav", sound(seed=5))
    new = inbox_by_hand.again()
    assert new.take() == []
    assert new.left == ["anna.wav"]
    new.put("anna.png", picture(5))
    second = new.take_one()
    assert second.id != job.id
    assert (new.spool.folder(second.id) / "audio").read_bytes() == sound(seed=5)
    assert new.left == []
    new.ledger.close()


def test_a_chmod_after_the_copy_is_no_new_drop(inbox_by_hand: InboxByHand) -> None:
    accepted_and_not_released(inbox_by_hand)
    time.sleep(0.011)
    (inbox_by_hand.inbox_folder / "anna.wav").chmod(0o600)
    new = inbox_by_hand.again()
    assert new.take() == []
    assert new.left == []
    new.ledger.close()


def test_a_shared_portrait_stays_until_its_last_manifest(inbox_by_hand: InboxByHand) -> None:
    inbox_by_hand.put("face.png", PICTURE)
    inbox_by_hand.put("one.wav", sound(seed=1))
    inbox_by_hand.manifest("one", image="face.png", audio="one.wav")
    inbox_by_hand.manifest("two", image="face.png", audio="two.wav")
    assert inbox_by_hand.take_one().name == "one"
    assert inbox_by_hand.left == ["face.png", "two.json"]
    inbox_by_hand.put("two.wav", sound(seed=2))
    assert inbox_by_hand.take_one().name == "two"
    assert inbox_by_hand.left == []


def test_an_inbox_from_which_nothing_may_be_removed_is_served_once(tmp_path: Path) -> None:
    """A read-only share: each pair becomes one job, over scans, a chmod and a new start; nothing spins."""
    shared_folder(tmp_path / "inbox")
    os.chown(tmp_path / "inbox" / HIDDEN, UNPRIVILEGED, UNPRIVILEGED)
    (tmp_path / "spool").mkdir()
    for name, content in (("anna.png", PICTURE), ("anna.wav", SOUND)):
        (tmp_path / "inbox" / name).write_bytes(content)
        (tmp_path / "inbox" / name).chmod(0o644)
    (tmp_path / "inbox").chmod(0o555)
    (tmp_path / "spool").chmod(0o777)
    tmp_path.chmod(0o777)

    def first() -> list[object]:
        inbox_by_hand = InboxByHand(tmp_path)
        jobs = [len(inbox_by_hand.take()), len(inbox_by_hand.take()), len(inbox_by_hand.scan(after_s=10_000))]
        inbox_by_hand.ledger.close()
        return [jobs, inbox_by_hand.inbox.settling.next_scan_s, inbox_by_hand.inbox.waiting, inbox_by_hand.left]

    def second() -> list[object]:
        inbox_by_hand = InboxByHand(tmp_path)
        jobs = [len(inbox_by_hand.take()), len(inbox_by_hand.take())]
        inbox_by_hand.ledger.close()
        return [
            jobs,
            inbox_by_hand.inbox.settling.next_scan_s,
            inbox_by_hand.inbox.waiting,
            len(os.listdir(tmp_path / "spool")),
        ]

    assert as_nobody(first, tmp_path) == [[1, 0, 0], None, [], ["anna.png", "anna.wav"]]
    time.sleep(0.011)
    (tmp_path / "inbox" / "anna.wav").chmod(0o664)
    assert as_nobody(second) == [[0, 0], None, [], 1]
    (tmp_path / "inbox").chmod(0o755)


# -- races -------------------------------------------------------------------------------------------------------------


def numbered(number: int) -> tuple[bytes, bytes]:
    """A picture and a sound that hold the same number, in their size and length."""
    buffer = io.BytesIO()
    Image.new("L", (64 + number, 64)).save(buffer, "PNG")
    return buffer.getvalue(), wav(tone(0.05) + bytes(2 * number))


def test_halves_that_are_swapped_all_the_time_never_come_from_two_moments(tmp_path: Path) -> None:
    """A writer replaces both halves again and again, the picture first: a job holds halves that lay there together.

    Those are the two of one number, or the next number's picture with the sound that it found.
    """
    inbox_by_hand = InboxByHand(tmp_path)
    halves = [numbered(number) for number in range(40)]
    kind = {hashlib.sha256(half).digest(): n for n, pair in enumerate(halves) for half in pair}
    end, errors = threading.Event(), []

    def swap() -> None:
        for number in range(10_000_000):
            if end.is_set():
                return
            image, voice = halves[number % len(halves)]
            put(inbox_by_hand.inbox_folder, "anna.png", image)
            put(inbox_by_hand.inbox_folder, "anna.wav", voice)
            time.sleep(random.choice((0.0, 0.0, 0.04)))

    writer = threading.Thread(target=swap)
    writer.start()
    taken, deadline = 0, time.monotonic() + 20
    try:
        while taken < 40 and time.monotonic() < deadline:
            for accepted in inbox_by_hand.scan(after_s=0.21):
                taken += 1
                folder = inbox_by_hand.spool.folder(accepted.job.id)
                image, voice = (
                    kind[hashlib.sha256((folder / role).read_bytes()).digest()] for role in ("image", "audio")
                )
                if (image - voice) % len(halves) not in (0, 1):
                    errors.append((image, voice))
                inbox_by_hand.ledger.to_cancelled(accepted.job.id)
                inbox_by_hand.spool.remove(accepted.job.id)
    finally:
        end.set()
        writer.join()
        inbox_by_hand.ledger.close()
    assert errors == []
    assert taken > 0


def test_a_file_that_vanishes_while_it_is_taken_is_forgotten(inbox_by_hand: InboxByHand) -> None:
    inbox_by_hand.pair()
    inbox_by_hand.scan()
    inbox_by_hand.clock.wait(2)
    with inbox_by_hand.inbox.open():
        drops = inbox_by_hand.inbox.ready({})
        (inbox_by_hand.inbox_folder / "anna.wav").unlink()
        with pytest.raises(FileNotFoundError):
            inbox_by_hand.intake._take(drops[0])
    assert os.listdir(inbox_by_hand.spool.root) == []
    assert inbox_by_hand.ledger.in_state(*JobState) == []
    assert inbox_by_hand.left == ["anna.png"]


def test_what_one_drop_brings_up_stays_with_that_drop(inbox_by_hand: InboxByHand) -> None:
    """A full disk for one of them, here a name that the spool cannot take: the others are accepted."""
    blocked = new_id()
    (inbox_by_hand.spool.root / blocked).mkdir()
    (inbox_by_hand.spool.root / blocked / "another file").touch()
    inbox_by_hand.pair("anna")
    inbox_by_hand.manifest("anna", id=blocked)
    inbox_by_hand.pair("bert", seed=1)
    assert [a.job.name for a in inbox_by_hand.take()] == ["bert"]
    assert inbox_by_hand.left == ["anna.json", "anna.png", "anna.wav"]


def test_two_drops_of_the_same_bytes_are_two_jobs_with_one_key(inbox_by_hand: InboxByHand) -> None:
    inbox_by_hand.pair()
    first = inbox_by_hand.take_one()
    inbox_by_hand.pair()
    second = inbox_by_hand.take_one()
    assert (first.out_name, second.out_name) == ("anna", "anna (2)")
    assert inbox_by_hand.ledger.idem_key(first.id) == inbox_by_hand.ledger.idem_key(second.id) is not None
    inbox_by_hand.pair(seed=1)
    assert inbox_by_hand.ledger.idem_key(inbox_by_hand.take_one().id) != inbox_by_hand.ledger.idem_key(first.id)
    assert replace(first, id=second.id) != second


# -- many at once ------------------------------------------------------------------------------------------------------


def test_a_burst_shares_its_commits_and_is_taken_in_the_order_of_its_names(
    inbox_by_hand: InboxByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accept, "_SHORTEST_PASS_S", 60.0)  # one pass, however slow the disk
    for number in range(70):
        inbox_by_hand.pair(f"p{number:02}", seed=number)
    commits = []
    event.listen(inbox_by_hand.ledger._engine, "commit", commits.append)
    names = [accepted.job.name for accepted in inbox_by_hand.take()]
    assert names == [f"p{number:02}" for number in range(70)]
    assert [job.seq for job in inbox_by_hand.ledger.in_state(JobState.QUEUED)] == list(range(1, 71))
    assert len(commits) <= 5  # 32 + 32 + 6 rows, and once that their files are gone from the inbox
    assert inbox_by_hand.left == []
    assert inbox_by_hand.ledger.unreleased() == []


def test_a_burst_with_one_name_twice_still_becomes_jobs_of_different_names(inbox_by_hand: InboxByHand) -> None:
    inbox_by_hand.put("anna.png", picture())
    for number in range(3):
        inbox_by_hand.put(f"v{number}.wav", sound(seed=number))
        inbox_by_hand.manifest(f"m{number}", audio=f"v{number}.wav", out_name="same")
    jobs = [accepted.job for accepted in inbox_by_hand.take()]
    assert [job.out_name for job in jobs] == ["same", "same (2)", "same (3)"]
    assert inbox_by_hand.left == []


def test_two_manifests_of_one_id_in_one_scan_are_one_job(inbox_by_hand: InboxByHand) -> None:
    wanted = new_id()
    inbox_by_hand.put("anna.png", picture())
    inbox_by_hand.put("anna.wav", sound())
    for name in ("one", "two"):
        inbox_by_hand.manifest(name, id=wanted)
    assert [accepted.job.id for accepted in inbox_by_hand.take()] == [wanted]
    assert inbox_by_hand.left == []


def test_a_scan_that_is_stopped_leaves_the_rest_for_the_next(inbox_by_hand: InboxByHand) -> None:
    for number in range(5):
        inbox_by_hand.pair(f"p{number}", seed=number)
    inbox_by_hand.scan()
    inbox_by_hand.clock.wait(2)
    asked = iter((False, False, True))
    assert len(inbox_by_hand.intake.scan(lambda: next(asked))) == 2
    assert inbox_by_hand.intake.cut_short
    assert len(inbox_by_hand.left) == 6
    assert len(inbox_by_hand.scan()) == 3
    assert not inbox_by_hand.intake.cut_short


def test_a_ledger_without_room_keeps_what_was_accepted_and_takes_nothing_twice(inbox_by_hand: InboxByHand) -> None:
    """The disk fills up between the spool's commit and the row: the job is there, and gets its row later."""
    limit = "PRAGMA max_page_count={}".format
    inbox_by_hand.pair()
    inbox_by_hand.scan()
    with inbox_by_hand.ledger._engine.connect() as connection:
        connection.exec_driver_sql(limit(1))  # SQLite takes the present size for it
    with pytest.raises(LedgerUnavailable, match="full"):
        for number in range(1000):
            inbox_by_hand.ledger.insert(spec_of(f"filler {number}"), max_attempts=3)
    for _ in range(3):
        with pytest.raises(LedgerUnavailable, match="full"):
            inbox_by_hand.scan(after_s=2)
    assert len(inbox_by_hand.spool.ids()) == 1
    assert inbox_by_hand.left == ["anna.png", "anna.wav"]

    with inbox_by_hand.ledger._engine.connect() as connection:
        connection.exec_driver_sql(limit(1_000_000))
    assert [accepted.job.name for accepted in inbox_by_hand.scan()] == ["anna"]
    assert inbox_by_hand.scan(after_s=2) == []
    assert inbox_by_hand.left == []
    assert len(inbox_by_hand.spool.ids()) == 1


def test_a_job_is_reported_when_it_has_its_row_also_when_the_folder_then_cannot_be_listed(
    inbox_by_hand: InboxByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[str] = []
    inbox_by_hand.ledger.listeners.append(lambda step, _job: reported.append(step))
    inbox_by_hand.pair()
    inbox_by_hand.scan()

    def locked(new: list[object], **_: object) -> list[Job]:
        if new:
            raise LedgerUnavailable("the ledger is locked")
        return []

    with monkeypatch.context() as patched:
        patched.setattr(inbox_by_hand.ledger, "insert_all", locked)
        with pytest.raises(LedgerUnavailable):
            inbox_by_hand.scan(after_s=2.0)
    assert reported == []
    inbox_by_hand.inbox_folder.rename(inbox_by_hand.root / "away")
    assert [accepted.job.name for accepted in inbox_by_hand.scan()] == ["anna"]
    assert reported == ["accepted"]
