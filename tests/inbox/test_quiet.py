"""A scan that finds nothing new ends early: it judges no file, and still sees each change and each time that comes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lipsyncd.inbox.first_seen import FirstSeen
from lipsyncd.inbox.settle import Settling
from lipsyncd.jobs.job import Identity
from tests.kits.inbox_kit import RULES, InboxByHand, InboxWithClock
from tests.kits.installation import picture, put, sound
from tests.kits.shared_kit import shared_folder

PICTURE, SOUND = picture(), sound()
DAY_S = RULES.pair_timeout_s


@pytest.fixture
def box(tmp_path: Path) -> InboxWithClock:
    """An inbox in which everything has settled, and nothing is new."""
    box = InboxWithClock(tmp_path / "inbox")
    for name in ("a.png", "b.png", "c.wav"):
        put(box.root, name, PICTURE if name.endswith("png") else SOUND)
    (box.root / "notes.txt").write_bytes(b"some text")
    put(box.root, "order.json", b'{"image": "later.png", "audio": "later.wav"}')
    (box.root / ".c.wav.part").write_bytes(b"of a copy")
    (box.root / "folder").mkdir()
    quiet(box)
    return box


def quiet(box: InboxWithClock) -> None:
    """Scan until a scan finds nothing new."""
    for after_s in (0.0, 100.0, RULES.incomplete_timeout_s, 10.0, 10.0):
        assert box.scan(after_s) == []
    assert box.inbox.unchanged


def in_place(path: Path, content: bytes, at: int) -> None:
    """Overwrite a part of a file, as a writer does that has laid it out before."""
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


def with_the_same_time(path: Path, content: bytes) -> None:
    """Write a file and set back its time, as some copiers do."""
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced(path: Path) -> None:
    before = path.stat()
    put(path.parent, path.name, path.read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_nothing_is_judged_again_and_the_ages_go_on(box: InboxWithClock, monkeypatch: pytest.MonkeyPatch) -> None:
    waits, ages = box.waits, {w.name: w.age_s for w in box.inbox.waiting}
    ignored = dict(box.inbox.ignored)
    monkeypatch.setattr(Settling, "observe", lambda *_, **__: pytest.fail("a file was judged"))
    assert box.scan(10.0) == box.scan(10.0) == []
    assert box.waits == waits
    assert {"a.png", "b.png", "c.wav", "order.json"} == set(waits)
    assert {w.name: w.age_s for w in box.inbox.waiting} == {name: age_s + 20.0 for name, age_s in ages.items()}
    assert dict(box.inbox.ignored) == ignored
    assert set(ignored) == {"notes.txt", "folder"}


CHANGES: dict[str, Callable[[Path], object]] = {
    "a new file": lambda root: put(root, "d.png", PICTURE),
    "a new hidden file": lambda root: (root / ".a.png.Xy1Zw2").write_bytes(b"of rsync"),
    "a file that grows": lambda root: (root / "c.wav").open("ab").write(b"more"),
    "a file that is filled in place": lambda root: in_place(root / "c.wav", b"\1\2\3", 100),
    "other content of the same size and time": lambda root: with_the_same_time(root / "a.png", bytes(len(PICTURE))),
    "another file of the same content and time": lambda root: replaced(root / "a.png"),
    "a mode": lambda root: (root / "a.png").chmod(0o640),
    "another time": lambda root: os.utime(root / "a.png", (1, 1)),
    "a file less": lambda root: (root / "b.png").unlink(),
    "another name": lambda root: (root / "b.png").rename(root / "e.png"),
    "two names exchanged": lambda root: [
        (root / one).rename(root / other) for one, other in (("a.png", "x"), ("b.png", "a.png"), ("x", "b.png"))
    ],
    "a second name": lambda root: os.link(root / "b.png", root / "folder" / "b.png"),
    "a text": lambda root: (root / "notes.txt").write_bytes(b"another text"),
    "a manifest": lambda root: with_the_same_time(root / "order.json", b'{"image": "other.png", "audio": "other.wav"}'),
    "a link in place of a file": lambda root: [(root / "b.png").unlink(), (root / "b.png").symlink_to("a.png")],
    "a part beside a file": lambda root: in_place(root / ".c.wav.part", b"of another", 0),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_each_change_is_seen_by_the_next_scan(box: InboxWithClock, change: Callable[[Path], object]) -> None:
    change(box.root)
    box.scan(10.0)
    assert not box.inbox.unchanged
    box.scan(10.0)
    box.scan(RULES.incomplete_timeout_s)
    quiet(box)


def test_a_change_of_our_own_folder_is_none(box: InboxWithClock) -> None:
    [hidden] = [path for path in box.root.iterdir() if path.name == ".lipsyncd"]
    (hidden / "something").write_bytes(b"")
    box.scan(10.0)
    assert box.inbox.unchanged


def test_the_other_half_makes_a_pair_at_once(box: InboxWithClock) -> None:
    put(box.root, "a.wav", SOUND)
    assert box.scan(10.0) == []
    assert box.inbox.settling.next_scan_s == pytest.approx(RULES.settle_proven_s)
    assert box.scan(RULES.settle_proven_s) == ["a"]


def test_a_reported_write_that_no_time_and_no_size_shows_counts(box: InboxWithClock) -> None:
    box.inbox.settling.modified = lambda: frozenset([b"b.png"])
    box.scan(10.0)
    assert not box.inbox.unchanged
    assert box.waits["b.png"] == "still being written"


@pytest.mark.parametrize("change", ["rules", "network", "taken"])
def test_what_else_decides_counts_too(box: InboxWithClock, change: str) -> None:
    settling = box.inbox.settling
    if change == "rules":
        settling.rules = replace(RULES, pair_timeout_s=60.0)
    elif change == "network":
        settling.network = True
    identity = Identity.of((box.root / "a.png").stat()) if change == "taken" else None
    box.scan(10.0, {} if identity is None else {b"a.png": identity})
    assert not box.inbox.unchanged


def test_a_half_is_refused_when_its_time_is_over(box: InboxWithClock) -> None:
    passed_s = 0.0
    while not (drops := box.scan(10.0)):
        passed_s += 10.0
        box.clock.wait(3600.0)
        assert passed_s < DAY_S
    assert {"a", "b", "c", "order"} == set(drops)
    waited_s = box.clock.now_s - 1000.0
    assert DAY_S <= waited_s < DAY_S + 2 * 3610


def test_what_has_waited_for_a_minute_is_written_down_in_time(tmp_path: Path) -> None:
    box, record = InboxWithClock(tmp_path / "inbox"), tmp_path / "seen.json"
    box.inbox.settling.first_seen = FirstSeen(record, wall=box.clock)
    put(box.root, "a.png", PICTURE)
    for _ in range(6):
        box.scan(10.0)
    assert box.inbox.unchanged
    assert not record.exists()
    box.scan(10.0)
    assert list(json.loads(record.read_bytes())["files"]) == ["a.png"]
    written_s = box.clock.now_s
    while json.loads(record.read_bytes())["wall_s"] == written_s:  # the time since then is believed for an hour only
        box.scan(10.0)
        assert box.clock.now_s - written_s < 1000


@pytest.mark.parametrize("content", [SOUND[: len(SOUND) // 2], b""], ids=["truncated", "empty"])
def test_a_file_that_is_not_finished_is_judged_at_each_scan(box: InboxWithClock, content: bytes) -> None:
    put(box.root, "d.wav", content)
    for _ in range(4):
        box.scan(1.0)
        assert not box.inbox.unchanged


def test_a_file_that_cannot_be_read_is_tried_at_each_scan(box: InboxWithClock, monkeypatch: pytest.MonkeyPatch) -> None:
    put(box.root, "d.wav", SOUND)

    def refuse(_name: bytes) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(box.inbox.settling, "_open_file", refuse)
    box.scan(10.0)
    for _ in range(3):
        box.scan(10.0)
        assert not box.inbox.unchanged
        assert box.inbox.settling.unreadable == {"d.wav": "cannot be read: Permission denied"}


def test_a_drop_that_could_not_be_taken_is_offered_again(tmp_path: Path) -> None:
    box = InboxWithClock(tmp_path / "inbox")
    put(box.root, "a.png", PICTURE)
    put(box.root, "a.wav", SOUND)
    box.scan()
    assert [box.scan(10.0) for _ in range(4)] == [["a"]] * 4


def test_a_queue_in_the_inbox_is_none_of_its_files(tmp_path: Path) -> None:
    box = InboxWithClock(tmp_path / "inbox")
    box.inbox = type(box.inbox)(shared_folder(box.root), RULES, network=False, queues=["fast"], clock=box.clock)
    (box.root / "fast").mkdir()
    put(box.root, "a.png", PICTURE)
    quiet(box)
    (box.root / "fast" / "b.png").write_bytes(PICTURE)
    box.scan(10.0)
    assert box.inbox.unchanged


def test_a_late_manifest_is_not_looked_up_again_while_nothing_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_hand = InboxByHand(tmp_path)
    by_hand.manifest("order")
    for after_s in (0.0, 100.0, 10.0):
        by_hand.scan(after_s)
    asked: list[str] = []
    serve = by_hand.intake._late_manifests.serve
    monkeypatch.setattr(by_hand.intake._late_manifests, "serve", lambda drop: asked.append(drop.name) or serve(drop))
    by_hand.scan(10.0)
    assert asked == []
    by_hand.put("another.png", PICTURE)
    by_hand.scan(10.0)
    assert asked == ["order"]
    by_hand.ledger.close()
