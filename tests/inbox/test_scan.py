"""When a file is finished: settle times with a clock of our own, writers that really write, and everything odd."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lipsyncd.errors import BadManifest
from lipsyncd.inbox.first_seen import FirstSeen
from lipsyncd.inbox.scan import Inbox
from lipsyncd.jobs.job import AUDIO, IMAGE, MANIFEST
from lipsyncd.storage import files
from lipsyncd.storage.private_folder import HIDDEN
from tests.kits.core_kit import Clock, as_nobody
from tests.kits.inbox_kit import NOTHING, RULES, InboxWithClock
from tests.kits.installation import picture, put, sound
from tests.kits.machine.machine_kit import needs_root
from tests.kits.media.media_kit import tone, wav
from tests.kits.shared_kit import shared_folder

PICTURE, SOUND = picture(), sound()
STREAMED = wav(tone(0.3), data_bytes=0xFFFFFFFF)  # its header was written before its length was known: no proof
CUT = SOUND[: len(SOUND) // 2]
UNKNOWN = [0, 10**9, 2 * 10**9, 0x7FFFFFFF, 0xFFFFFFFF]  # lengths that only stand for one
LIES = [32_001, 10**9 + 1, 1_999_999_999, 3 * 10**9]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "inbox").mkdir()
    return tmp_path / "inbox"


@pytest.fixture
def box(root: Path) -> InboxWithClock:
    return InboxWithClock(root)


# -- how long ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("voice", "network", "seconds"),
    [
        pytest.param(SOUND, False, 0.2, id="proven"),
        pytest.param(STREAMED, False, 1.0, id="plain"),
        pytest.param(CUT, False, 60.0, id="truncated"),
        pytest.param(b"", False, 60.0, id="empty"),
        pytest.param(bytes(4096), False, 60.0, id="zeros"),
        pytest.param(b"this is no sound at all, and no more bytes help" * 5, False, 1.0, id="something else"),
        pytest.param(SOUND, True, 5.0, id="proven, network"),
        pytest.param(STREAMED, True, 5.0, id="plain, network"),
        pytest.param(CUT, True, 1800.0, id="truncated, network"),
        *(pytest.param(wav(tone(1.0), data_bytes=n), False, 1.0, id=f"length {n:#x}") for n in UNKNOWN),
        *(pytest.param(wav(tone(1.0), data_bytes=n), False, 60.0, id=f"length {n:#x}") for n in LIES),
        pytest.param(wav(tone(1.0), data_bytes=2 * 10**9), True, 5.0, id="length 2e9, network"),
    ],
)
def test_a_file_is_finished_when_it_has_been_still_for_long_enough(
    root: Path, voice: bytes, network: bool, seconds: float
) -> None:
    box = InboxWithClock(root, network=network)
    (root / "a.png").write_bytes(PICTURE)
    (root / "a.wav").write_bytes(voice)
    assert box.ready_after(limit_s=2000) == seconds


def test_a_sound_that_its_manifest_declares_whole_is_not_waited_for(box: InboxWithClock) -> None:
    (box.root / "a.png").write_bytes(PICTURE)
    (box.root / "a.wav").write_bytes(CUT)
    assert box.scan() == box.scan(after_s=5.0) == []
    (box.root / "order.json").write_bytes(b'{"image": "a.png", "audio": "a.wav", "whole": true}')
    box.scan()
    box.scan(after_s=0.3)
    assert box.inbox.settling.next_scan_s == 0.0  # not at the next rescan
    assert box.scan() == ["order"]


def test_a_long_wait_goes_on_after_a_restart(root: Path, tmp_path: Path) -> None:
    wall = Clock()

    def daemon() -> InboxWithClock:
        box = InboxWithClock(root, network=True)
        box.inbox.settling.first_seen = FirstSeen(tmp_path / "first-seen.json", wall=lambda: wall.now_s)
        return box

    def passes(box: InboxWithClock, seconds: float) -> list[str]:
        wall.wait(seconds)
        return box.scan(after_s=seconds)

    (root / "a.png").write_bytes(PICTURE)
    (root / "a.wav").write_bytes(CUT)
    first = daemon()
    assert first.scan() == passes(first, 50) == []
    second = daemon()  # less than a minute begins anew
    assert second.scan() == passes(second, 800) == passes(second, 601) == []

    third = daemon()
    assert third.scan() == passes(third, 300) == []
    assert passes(third, 100) == ["a"]


@pytest.mark.parametrize("change", ["content", "record"])
def test_a_wait_begins_anew_for_other_content_and_without_a_record(root: Path, tmp_path: Path, change: str) -> None:
    record = tmp_path / "first-seen.json"
    (root / "a.png").write_bytes(PICTURE)
    (root / "a.wav").write_bytes(CUT)
    first, second = InboxWithClock(root), InboxWithClock(root)
    first.inbox.settling.first_seen = FirstSeen(record)
    first.inbox.settling.rules = replace(RULES, incomplete_timeout_s=1000)
    second.inbox.settling.rules = first.inbox.settling.rules
    assert first.scan() == first.scan(after_s=999) == []
    if change == "content":
        (root / "a.wav").write_bytes(CUT[:-2])
    else:
        record.write_bytes(b'{"wall_s": 0, "files": {"a.wav": [1, 2, "x"], "b.wav": 7}}')
    second.inbox.settling.first_seen = FirstSeen(record)
    assert second.scan() == second.scan(after_s=990) == []
    assert second.scan(after_s=11) == ["a"]


def test_the_clock_cannot_make_a_wait_longer_than_an_hour(root: Path, tmp_path: Path) -> None:
    (root / "a.wav").write_bytes(SOUND)
    first = InboxWithClock(root)
    first.inbox.settling.first_seen = FirstSeen(tmp_path / "seen.json", wall=lambda: 1e9)
    first.scan()
    first.scan(after_s=100)
    for wall_s, most_s in ((1e9 + 1e8, 3700.1), (5e8, 100.1)):
        second = InboxWithClock(root)
        second.inbox.settling.first_seen = FirstSeen(tmp_path / "seen.json", wall=lambda now_s=wall_s: now_s)
        second.scan()
        [waiting] = second.inbox.waiting
        assert 100 <= waiting.age_s <= most_s
        first.inbox.settling.first_seen = FirstSeen(tmp_path / "seen.json", wall=lambda: 1e9)
        first.scan(after_s=0.1)


@pytest.mark.parametrize(
    ("content", "seconds"),
    [(b'{"image": "a.png", "audio": "a.wav"}', 0.2), (b'{"image": "a.png",', 1.0), (b"", RULES.incomplete_timeout_s)],
)
def test_a_manifest_that_parses_is_whole(box: InboxWithClock, content: bytes, seconds: float) -> None:
    (box.root / "order.json").write_bytes(content)
    (box.root / "a.png").write_bytes(PICTURE)
    (box.root / "a.wav").write_bytes(SOUND)
    assert box.scan() == []
    while "order" not in box.scan():
        box.clock.wait(0.1)
        assert box.clock.now_s < 1100
    assert round(box.clock.now_s - 1000, 3) == pytest.approx(seconds, abs=0.11)


@pytest.mark.parametrize("network", [False, True])
def test_every_change_begins_the_time_anew(root: Path, network: bool) -> None:
    box = InboxWithClock(root, network=network)
    quiet_s = RULES.settle_network_s if network else RULES.settle_s
    (root / "a.png").write_bytes(PICTURE)
    changes: list[Callable[[], object]] = [
        lambda: (root / "a.wav").write_bytes(STREAMED[:5000]),
        lambda: (root / "a.wav").open("ab").write(STREAMED[5000:]),
        lambda: os.utime(root / "a.wav", (1, 1)),
        lambda: put(root, "a.wav", STREAMED),
        lambda: (root / "a.wav").chmod(0o640),
    ]
    for change in changes:
        time.sleep(0.011)  # a tick of the kernel's clock of changes
        change()
        assert box.scan() == []
        assert box.scan(after_s=quiet_s * 0.95) == []
    assert box.scan(after_s=quiet_s * 0.06) == ["a"]


def test_the_clock_of_the_file_server_does_not_matter(box: InboxWithClock) -> None:
    for name, content, mtime_s in (("a.png", PICTURE, 4e9), ("a.wav", SOUND, 0)):
        (box.root / name).write_bytes(content)
        os.utime(box.root / name, (mtime_s, mtime_s))
    assert box.ready_after(limit_s=1) == 0.2


def test_a_name_that_was_gone_begins_again(box: InboxWithClock) -> None:
    (box.root / "a.png").write_bytes(PICTURE)
    (box.root / "a.wav").write_bytes(SOUND)
    box.scan()
    box.scan(after_s=1)
    assert box.inbox.structure(b"a.wav") is not None
    (box.root / "a.wav").unlink()
    assert box.scan(after_s=10) == []
    assert box.inbox.structure(b"a.wav") is None
    (box.root / "a.wav").write_bytes(SOUND)
    assert box.scan() == []
    assert box.ready_after(limit_s=1) == 0.2


def test_a_growing_file_is_not_taken_however_slowly_it_grows(box: InboxWithClock) -> None:
    """One write just before each look, for an hour: and it is taken soon after the last one."""
    (box.root / "a.png").write_bytes(PICTURE)
    path = box.root / "a.wav"
    path.write_bytes(SOUND[:44])
    for at in range(44, len(SOUND), 200):
        with path.open("ab") as file:
            file.write(SOUND[at : at + 200])
        whole = at + 200 >= len(SOUND)
        assert box.scan(after_s=60) == [] or whole
    assert box.ready_after(limit_s=2) == 0.2


# -- who else writes ---------------------------------------------------------------------------------------------------


def test_a_file_that_a_program_has_open_for_writing_is_not_finished(box: InboxWithClock) -> None:
    """The content is whole by its own header, but a process holds it open. For how long at most: test_writers.py."""
    put(box.root, "a.png", PICTURE)
    put(box.root, "a.wav", SOUND)
    program = "import sys; f = open(sys.argv[1], 'r+b'); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, box.root / "a.wav"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        writer.stdout.readline()
        assert box.scan() == []
        assert box.scan(after_s=28) == []
        assert box.waits["a.wav"] == "a program has it open for writing"
        assert box.inbox.settling.next_scan_s == RULES.settle_s
        writer.stdin.close()
        writer.wait(10)
    assert box.scan() == ["a"]


@needs_root
@pytest.mark.parametrize(("voice", "seconds"), [(SOUND, 1.0), (STREAMED, 5.0)])
def test_another_users_file_waits_longer_where_the_kernel_does_not_tell_who_writes_it(
    root: Path, voice: bytes, seconds: float
) -> None:
    """Without a lease a proof is not enough for the short time, and plain stillness waits as on a network folder."""
    for name, content in (("a.png", PICTURE), ("a.wav", voice)):
        put(root, name, content).chmod(0o644)
    shared_folder(root)

    def work() -> tuple[float, bool | None]:
        box = InboxWithClock(root)
        return box.ready_after(limit_s=10), box.inbox.settling.answers

    assert as_nobody(work, root) == (seconds, False)


@needs_root
def test_another_users_file_that_is_open_waits_where_the_kernel_tells_it(root: Path) -> None:
    """We are root: the kernel answers for every user's file."""
    for name, content in (("a.png", PICTURE), ("a.wav", STREAMED)):
        os.chown(put(root, name, content), 1001, 1001)
    box = InboxWithClock(root)
    with (root / "a.wav").open("r+b"):
        assert box.scan() == box.scan(after_s=RULES.incomplete_timeout_s - 0.1) == []
        assert box.waits["a.wav"] == "a program has it open for writing"
    assert box.scan() == ["a"]
    assert box.inbox.settling.answers is True


def test_a_write_that_changes_neither_time_nor_size_restarts_the_stillness(box: InboxWithClock) -> None:
    """The event of a write counts, since a file system may keep times to the second."""
    put(box.root, "a.png", PICTURE)
    put(box.root, "a.wav", STREAMED)
    written = [b"a.wav"]
    box.inbox.settling.modified = lambda: frozenset(written)
    assert box.scan() == []
    for _ in range(20):
        assert box.scan(after_s=0.9) == []
    written.clear()
    assert box.scan(after_s=0.9) == []
    assert box.scan(after_s=0.2) == ["a"]


def test_a_file_has_been_still_since_the_end_of_a_scan_at_the_earliest(root: Path) -> None:
    """A scan of many files takes a while: it may have looked at this one long after it began."""
    put(root, "a.png", PICTURE)
    put(root, "a.wav", SOUND)
    begins_and_ends = iter([0.0, 0.9, 1.0, 1.0, 1.05, 1.05, 1.1, 1.2])
    inbox = Inbox(shared_folder(root), RULES, network=False, clock=lambda: next(begins_and_ends))
    with inbox.open():
        assert [[drop.name for drop in inbox.ready(NOTHING)] for _ in range(4)] == [[], [], [], ["a"]]


def test_a_write_after_a_file_was_finished_makes_it_wait_anew(box: InboxWithClock) -> None:
    put(box.root, "a.wav", SOUND)
    assert box.scan() == box.scan(after_s=60) == []
    put(box.root, "a.png", PICTURE)
    box.inbox.settling.modified = lambda: frozenset([b"a.wav"])
    assert box.scan() == []
    box.inbox.settling.modified = frozenset
    assert box.scan(after_s=0.1) == []
    assert box.scan(after_s=0.2) == ["a"]


def test_a_network_folder_is_not_asked_who_writes(root: Path) -> None:
    """There a lease says nothing about other machines: only time does, and it must pass in full."""
    box = InboxWithClock(root, network=True)
    put(root, "a.png", PICTURE)
    put(root, "a.wav", SOUND)
    assert box.scan() == []
    assert box.scan(after_s=4.9) == []
    assert box.scan(after_s=0.2) == ["a"]


# -- what is no file of ours -------------------------------------------------------------------------------------------

_LEFT_BY_WRITERS = """
.hidden.wav .a.wav.Xy12Zz .syncthing.a.wav.tmp ~syncthing~a.wav.tmp .~lock.a.wav# .nfs0000000000000001 .fuse_hidden0001
.smbdelete0001 ._a.wav .DS_Store a.wav~ ~$a.wav a.wav.part a.wav.PART a.wav.partial a.wav.tmp a.tmp a.wav.temp
a.wav.crdownload a.wav.opdownload a.wav.download a.wav.filepart a.wav.aria2 .a.wav.swp a.wav.swp a.wav.lock a.wav.!sync
a.wav.bak desktop.ini Desktop.ini Thumbs.db ehthumbs.db @eaDir #recycle #snapshot .snapshot .zfs lost+found
$RECYCLE.BIN .Trash-1000 .stfolder .stversions .lipsyncd .~tmp~ a.wav:Zone.Identifier a.wav.!qB a.wav.!ut a.wav.ytdl
#a.wav# __MACOSX
"""
LEFT_BY_WRITERS = [*_LEFT_BY_WRITERS.split(), "System Volume Information", "Icon\r"]


def test_what_writers_and_servers_leave_beside_the_files_is_not_even_reported(box: InboxWithClock) -> None:
    for name in LEFT_BY_WRITERS:
        if name != HIDDEN:  # our own folder, which lies there
            (box.root / name).write_bytes(SOUND)
    assert box.scan() == []
    assert box.scan(after_s=90_000) == []
    assert box.inbox.ignored == {}
    assert box.inbox.waiting == []
    assert box.inbox.settling.next_scan_s is None
    assert len(os.listdir(box.root)) == len(LEFT_BY_WRITERS)


@pytest.mark.parametrize("name", ["notes.txt", "a.wave", "wav", "png.", "a.png.txt", "noext"])
def test_other_files_are_left_alone_and_reported(box: InboxWithClock, name: str) -> None:
    (box.root / name).write_bytes(SOUND)
    assert box.scan(after_s=90_000) == []
    assert box.inbox.ignored == {name: "has no suffix of a picture, a sound or a manifest"}
    assert (box.root / name).exists()


@pytest.mark.parametrize(
    "make",
    [
        os.mkfifo,
        os.mkdir,
        lambda path: os.symlink("/etc/passwd", path),
        lambda path: socket.socket(socket.AF_UNIX).bind(str(path)),
    ],
    ids=["fifo", "folder", "link", "socket"],
)
def test_what_is_no_regular_file_is_reported_and_never_opened(
    box: InboxWithClock, make: Callable[[Path], object]
) -> None:
    make(box.root / "a.wav")
    (box.root / "a.png").write_bytes(PICTURE)
    (box.root / "order.json").write_text('{"image": "a.png", "audio": "a.wav"}')
    started = time.monotonic()
    box.scan()
    box.clock.wait(2)
    [drop] = box.drops()
    assert time.monotonic() - started < 5
    why = "is a folder, and folders are not looked into" if (box.root / "a.wav").is_dir() else "is no regular file"
    assert box.inbox.ignored == {"a.wav": why}
    assert drop.refusal is not None
    assert drop.refusal.code == "unsafe-path"
    assert [f.name for f in drop.files.values()] == [b"order.json", b"a.png"]


@pytest.mark.parametrize("name", ["a.wav", "a.png", "a.json"])
def test_a_hundred_gigabytes_are_not_read(box: InboxWithClock, name: str) -> None:
    with (box.root / name).open("wb") as file:
        file.truncate(100 * 10**9)
    started = time.monotonic()
    assert box.scan() == []
    assert box.scan(after_s=90_000) == []
    assert time.monotonic() - started < 2
    assert box.inbox.ignored[name].startswith("has 100000 MB; at most ")


def test_a_manifest_that_names_what_is_too_large_is_refused_at_once(box: InboxWithClock) -> None:
    with (box.root / "a.wav").open("wb") as file:
        file.truncate(600_000_000)
    (box.root / "order.json").write_text('{"image": "a.png", "audio": "a.wav"}')
    box.scan()
    box.clock.wait(2)
    [drop] = box.drops()
    assert "'a.wav', which has 600 MB; at most 512 MB are taken" in str(drop.refusal)
    assert list(drop.files) == [MANIFEST]


def test_a_manifest_that_is_too_large_is_refused_with_its_reason(box: InboxWithClock) -> None:
    (box.root / "a.json").write_text(json.dumps({"image": "a.png", "text": "x" * 70_000}))
    box.scan()
    box.clock.wait(2)
    [drop] = box.drops()
    assert isinstance(drop.refusal, BadManifest)


def test_a_manifest_may_name_a_file_of_any_suffix(box: InboxWithClock) -> None:
    (box.root / "voice.data").write_bytes(SOUND)
    (box.root / "face.picture").write_bytes(PICTURE)
    assert box.scan(after_s=10) == []
    assert set(box.inbox.ignored) == {"voice.data", "face.picture"}
    (box.root / "order.json").write_text('{"image": "face.picture", "audio": "voice.data"}')
    box.scan()
    drops: list[str] = []
    looks = 0
    while not drops:
        looks += 1
        assert box.inbox.settling.next_scan_s is not None
        drops = box.scan(after_s=box.inbox.settling.next_scan_s)
    assert drops == ["order"]
    assert looks <= 4
    assert box.inbox.ignored == {}


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stem", "shown"),
    [
        (b"with space", "with space"),
        (b"quote'\"`$(x)", "quote'\"`$(x)"),
        (b"line\nbreak", "line\\nbreak"),
        (b"\x1b[31mred", "\\x1b[31mred"),
        (b"bad\xff\xfe", "bad\\xff\\xfe"),
        (b"-rf", "-rf"),
        (b"CON", "CON"),
        ("\U0001f600".encode(), "\U0001f600"),
        (b"x" * 251, "x" * 251),
        (b"a.b.c", "a.b.c"),
    ],
)
def test_any_name_is_taken_and_shown_on_one_line(box: InboxWithClock, stem: bytes, shown: str) -> None:
    put(box.root, stem + b".png", PICTURE)
    box.scan(after_s=1)
    box.scan(after_s=1)
    assert box.waits == {f"{shown}.png": "waits for a sound of the same stem"}
    put(box.root, stem + b".WAV", SOUND)
    box.scan()
    box.clock.wait(1)
    [drop] = box.drops()
    assert drop.files[IMAGE].name == stem + b".png"
    assert drop.files[AUDIO].name == stem + b".WAV"


# -- rights and moments ------------------------------------------------------------------------------------------------


def test_what_may_not_be_read_waits_with_its_reason_and_heals_alone(root: Path) -> None:
    def work() -> list[object]:
        box = InboxWithClock(root)
        seen: list[object] = [box.scan(), box.scan(after_s=3600), box.waits, box.inbox.settling.next_scan_s]
        (root / "go").touch()
        while (root / "go").exists():
            time.sleep(0.01)
        return [*seen, box.scan(), box.scan(after_s=1)]

    root.chmod(0o777)
    for name, content in (("a.png", PICTURE), ("a.wav", SOUND)):
        (root / name).write_bytes(content)
        (root / name).chmod(0)
    program = """
import os, sys, time
root = sys.argv[1]
while not os.path.exists(root + "/go"):
    time.sleep(0.01)
for name in ("a.png", "a.wav"):
    os.chmod(f"{root}/{name}", 0o644)
os.unlink(root + "/go")
"""
    healer = subprocess.Popen([sys.executable, "-c", program, str(root)])
    try:
        before, later, waits, next_scan_s, changed, healed = as_nobody(work, root)
    finally:
        healer.wait(20)
    reason = "cannot be read: Permission denied"
    assert (before, later, waits) == ([], [], {"a.png": reason, "a.wav": reason})
    assert next_scan_s is None  # no busy loop: the rescan clock is enough
    assert (changed, healed) == ([], ["a"])


def test_a_folder_that_cannot_be_listed_is_an_error_and_not_an_empty_one(box: InboxWithClock) -> None:
    with box.inbox.open():
        box.inbox.folder.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            box.inbox.ready(NOTHING)


def test_a_folder_that_is_gone_is_not_open(box: InboxWithClock) -> None:
    box.root.rename(box.root.with_name("away"))
    with box.inbox.open() as is_open:
        assert not is_open


def test_what_a_job_has_taken_is_not_offered_again_until_it_changes(box: InboxWithClock) -> None:
    for name, content in (("a.png", PICTURE), ("a.wav", SOUND)):
        put(box.root, name, content)
    box.scan()
    assert box.scan(after_s=1) == ["a"]
    taken = {
        name: found for name in (b"a.png", b"a.wav") if (found := files.identity(os.fsencode(box.root) + b"/" + name))
    }
    assert box.scan(after_s=1, taken=taken) == []
    assert box.inbox.waiting == []
    put(box.root, "a.wav", SOUND)
    put(box.root, "a.png", PICTURE)
    box.scan(taken=taken)
    assert box.scan(after_s=1, taken=taken) == ["a"]


def test_a_manifest_is_read_once_for_each_of_its_contents(box: InboxWithClock) -> None:
    path = box.root / "order.json"
    path.write_text('{"image": "a.png", "audio": "a.wav"}')
    box.scan(after_s=1)
    box.scan(after_s=1)
    assert box.waits == {"order.json": "waits for 'a.png' and 'a.wav'"}
    before = box.inbox._parsed[b"order.json"]
    box.scan(after_s=1)
    assert box.inbox._parsed[b"order.json"] is before
    put(box.root, "order.json", b'{"image": "b.png", "audio": "b.wav"}')
    box.scan(after_s=1)
    box.scan(after_s=1)
    assert box.waits == {"order.json": "waits for 'b.png' and 'b.wav'"}


def test_files_that_a_waiting_manifest_names_are_kept_for_it(box: InboxWithClock) -> None:
    put(box.root, "face.png", PICTURE)
    put(box.root, "order.json", b'{"image": "face.png", "audio": "voice.wav"}')
    box.scan()
    box.scan(after_s=1)
    assert b"face.png" in box.inbox.named_by_manifests(NOTHING)
    assert b"other.png" not in box.inbox.named_by_manifests(NOTHING)
    (box.root / "new.json").write_bytes(b"{")
    box.scan()
    assert b"other.png" in box.inbox.named_by_manifests(NOTHING)  # who knows what it will name
    with (box.root / "new.json").open("ab"):
        box.scan(after_s=61)
        assert b"other.png" not in box.inbox.named_by_manifests(NOTHING)


def test_a_new_kind_beside_a_usual_one_gives_way_with_its_reason_until_it_changes(box: InboxWithClock) -> None:
    for name, content in (("a.tif", PICTURE), ("a.png", PICTURE), ("a.aac", SOUND), ("a.wav", SOUND)):
        put(box.root, name, content)
    box.scan()
    [drop] = [drop for _ in range(3) for drop in (box.clock.wait(1), box.drops())[1]][:1]
    assert sorted(f.text for f in drop.files.values()) == ["a.png", "a.wav"]
    for name in ("a.png", "a.wav"):
        (box.root / name).unlink()
    assert box.scan(after_s=1) == []
    assert box.waits == {}
    assert "gives way to 'a.png' of the same stem" in box.inbox.ignored["a.tif"]
    assert "gives way to 'a.wav' of the same stem" in box.inbox.ignored["a.aac"]
    put(box.root, "a.tif", PICTURE + b"changed")
    box.scan()
    box.scan(after_s=1)
    assert set(box.waits) == {"a.tif"}
    put(box.root, "b.json", b'{"image": "a.tif", "audio": "a.aac"}')
    assert "b" in [name for _ in range(3) for name in box.scan(after_s=1)]


def test_a_manifest_names_a_file_of_any_suffix_in_any_case(box: InboxWithClock) -> None:
    put(box.root, "Face.PICTURE", PICTURE)
    put(box.root, "voice.wav", SOUND)
    put(box.root, "order.json", b'{"image": "face.picture", "audio": "VOICE.wav"}')
    assert [name for _ in range(4) for name in box.scan(after_s=1)] == ["order"]


def test_a_name_in_another_unicode_form_is_kept_for_its_manifest_as_well(box: InboxWithClock) -> None:
    put(box.root, "jose\u0301.png", PICTURE)
    put(box.root, "order.json", '{"image": "jos\u00e9.png", "audio": "voice.wav"}'.encode())
    box.scan()
    box.scan(after_s=1)
    assert "jose\u0301.png".encode() in box.inbox.named_by_manifests(NOTHING)
    put(box.root, "voice.wav", SOUND)
    box.scan()
    assert box.inbox.without_files(NOTHING) == []
