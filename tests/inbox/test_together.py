"""Drops that are accepted together: shared fsyncs and commits, one bad drop among them, large ones, and the rate."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lipsyncd.inbox import accept
from lipsyncd.jobs.job import new_id
from lipsyncd.storage import spool as spool_module
from tests.kits.inbox_kit import InboxByHand
from tests.kits.installation import picture, sound
from tests.kits.machine.intake_rate import intake, plain_loop, scan_s
from tests.kits.machine.machine_kit import drop_pairs


@pytest.fixture
def inbox_by_hand(tmp_path: Path) -> Iterator[InboxByHand]:
    inbox_by_hand = InboxByHand(tmp_path)
    yield inbox_by_hand
    inbox_by_hand.ledger.close()


def settled(inbox_by_hand: InboxByHand) -> None:
    inbox_by_hand.scan()
    inbox_by_hand.clock.wait(60.0)


def test_many_drops_share_their_commits_and_the_fsync_of_their_names(
    inbox_by_hand: InboxByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits, names_kept, at_once = [], [], []
    inbox_by_hand.ledger.commit_listeners.append(lambda: commits.append(1))
    fsync_folder, sync_all = spool_module.fsync_folder, spool_module.sync_all
    monkeypatch.setattr(spool_module, "fsync_folder", lambda path: (names_kept.append(path), fsync_folder(path)))
    monkeypatch.setattr(spool_module, "sync_all", lambda all_: (at_once.append(sum(map(len, all_))), sync_all(all_)))
    monkeypatch.setattr(accept, "_MOST_S", 60.0)
    drop_pairs(inbox_by_hand.inbox_folder, range(100))
    settled(inbox_by_hand)
    assert len(inbox_by_hand.scan()) == 100
    # Four descriptors for each pair: its picture, its sound, job.json and the folder. 160 are the most at a time.
    assert at_once == [160, 160, 80]
    assert names_kept == [inbox_by_hand.spool.root] * 3
    assert len(commits) == 3 + 1  # the rows of each batch, and the removal of all from the inbox


def test_a_drop_that_cannot_be_staged_harms_no_other_one_of_its_batch(
    inbox_by_hand: InboxByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(folder: Path, *_: object, **__: object) -> None:
        if (folder.parent / "image").read_bytes() == picture(1):
            raise OSError(28, "No space left on device")
        write_new(folder, *_, **__)

    write_new = spool_module.write_new
    for number in range(4):
        inbox_by_hand.pair(f"p{number}", seed=number)
    settled(inbox_by_hand)
    monkeypatch.setattr(spool_module, "write_new", no_room)
    assert [one.job.name for one in inbox_by_hand.scan()] == ["p0", "p2", "p3"]
    assert inbox_by_hand.left == ["p1.png", "p1.wav"]
    assert dict(inbox_by_hand.intake.stuck) == {"p1": "cannot be taken: No space left on device"}
    assert not [name for name in os.listdir(inbox_by_hand.spool.root) if name.startswith(".")]
    monkeypatch.setattr(spool_module, "write_new", write_new)
    assert [one.job.name for one in inbox_by_hand.scan()] == ["p1"]
    assert dict(inbox_by_hand.intake.stuck) == {}


def test_an_unexpected_error_leaves_nothing_in_the_spool_and_everything_in_the_inbox(
    inbox_by_hand: InboxByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        inbox_by_hand.pair(f"p{number}", seed=number)
    settled(inbox_by_hand)
    stage = inbox_by_hand.spool.stage

    def fails_at_the_last(job_id: str, fill: object) -> object:
        if len(inbox_by_hand.intake._batch._staged) == 2:
            raise MemoryError
        return stage(job_id, fill)  # type: ignore[arg-type]

    monkeypatch.setattr(inbox_by_hand.spool, "stage", fails_at_the_last)
    with pytest.raises(MemoryError):
        inbox_by_hand.scan()
    assert os.listdir(inbox_by_hand.spool.root) == []
    assert len(inbox_by_hand.left) == 6
    monkeypatch.undo()
    assert len(inbox_by_hand.scan()) == 3


def test_large_drops_come_last_and_one_in_a_pass(inbox_by_hand: InboxByHand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accept, "_LARGE_BYTES", 100_000)
    for stem, seconds in (("a", 5.0), ("b", 6.0), ("c", 0.2)):
        inbox_by_hand.put(f"{stem}.png", picture(1))
        inbox_by_hand.put(f"{stem}.wav", sound(seconds))
    settled(inbox_by_hand)
    assert [one.job.name for one in inbox_by_hand.scan()] == ["c", "a"]
    assert inbox_by_hand.intake.cut_short, "the next scan does not follow at once"
    inbox_by_hand.pair("d")  # dropped while the first large one was copied
    inbox_by_hand.scan()
    assert [one.job.name for one in inbox_by_hand.scan(after_s=60.0)] == ["d"]
    assert not inbox_by_hand.intake.cut_short
    assert inbox_by_hand.left == []


def test_a_large_drop_that_cannot_be_taken_holds_up_no_other_one(
    inbox_by_hand: InboxByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accept, "_LARGE_BYTES", 100_000)
    for stem in ("a", "b"):
        inbox_by_hand.put(f"{stem}.png", picture(1))
        inbox_by_hand.put(f"{stem}.wav", sound(5.0))
    blocked = new_id()
    (inbox_by_hand.spool.root / blocked).mkdir()
    (inbox_by_hand.spool.root / blocked / "another file").touch()
    inbox_by_hand.manifest("a", id=blocked, image="a.png", audio="a.wav")
    settled(inbox_by_hand)
    assert [one.job.name for one in inbox_by_hand.scan()] == ["b"]
    assert not inbox_by_hand.intake.cut_short, "the scans follow each other without an end"
    assert inbox_by_hand.left == ["a.json", "a.png", "a.wav"]


def test_a_batch_ends_after_its_time_and_before_a_drop_that_takes_long_to_copy(
    inbox_by_hand: InboxByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    accept_all = inbox_by_hand.spool.accept_all
    monkeypatch.setattr(
        inbox_by_hand.spool, "accept_all", lambda staged: (sizes.append(len(staged)), accept_all(staged))
    )
    monkeypatch.setattr(accept, "_SLOW_BYTES", 100_000)
    for number in range(5):
        inbox_by_hand.put(f"p{number}.png", picture(number))
        inbox_by_hand.put(f"p{number}.wav", sound(5.0 if number == 3 else 0.2, seed=number))
    settled(inbox_by_hand)
    assert len(inbox_by_hand.scan()) == 5
    assert sizes == [3, 2]
    sizes.clear()
    monkeypatch.setattr(accept, "_MOST_S", -1.0)
    drop_pairs(inbox_by_hand.inbox_folder, range(3))
    settled(inbox_by_hand)
    assert len(inbox_by_hand.scan()) == 3
    assert sizes == [1, 1, 1]


def test_the_intake_keeps_up_with_a_plain_loop_that_writes_the_same(tmp_path: Path) -> None:
    """In processor time, of which a busy machine takes less than of the clock's: measured are 0.6 to 0.7."""
    ours_s, loop_s = [], []
    for number in range(3):
        ours, by_hand = intake(tmp_path / f"intake-{number}", 200)
        loop_s.append(plain_loop(tmp_path / f"loop-{number}", by_hand).cpu_s)
        ours_s.append(ours.cpu_s)
        by_hand.ledger.close()
    assert min(loop_s) / min(ours_s) > 0.35, (ours_s, loop_s)


def test_a_scan_takes_ten_times_as_long_for_ten_times_as_many_waiting_files(tmp_path: Path) -> None:
    few_s, many_s = (scan_s(tmp_path / str(files), files) for files in (400, 4000))
    assert many_s / few_s < 18, f"{few_s:.4f} s for 400 files, {many_s:.4f} s for 4000"


def test_a_scan_that_finds_nothing_new_costs_a_fraction_of_one_that_judges_each_file(tmp_path: Path) -> None:
    """Measured is a fifth; ten thousand waiting files were 3 % of a core for an idle daemon before."""
    judged_s = scan_s(tmp_path / "judged", 2000)
    quiet_s = scan_s(tmp_path / "quiet", 2000, apart_s=10.0)
    assert quiet_s < judged_s / 2, f"{quiet_s:.4f} s where nothing is new, {judged_s:.4f} s otherwise"
