"""Writers in pieces, writers that fill a file later, that never close it, and what downloads keep beside it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from lipsyncd.errors import AmbiguousPair
from lipsyncd.inbox.first_seen import FirstSeen
from tests.kits.core_kit import Clock
from tests.kits.inbox_kit import RULES, InboxWithClock
from tests.kits.installation import picture, put, sound
from tests.kits.media.media_kit import converted, tone, wav

PICTURE, SOUND = picture(), sound()
STREAMED = wav(tone(0.3), data_bytes=0xFFFFFFFF)
SECOND = 32_000  # bytes of the WAVs here

ENDLESS: dict[str, Callable[[], bytes]] = {
    "mp3 without a count": lambda: converted(".mp3", "-write_xing", "0"),
    "amr": lambda: b"#!AMR\n" + (b"\x3c" + bytes(range(31))) * 50,
    "adts": lambda: converted(".aac"),
    "ogg without its end": lambda: _without_last_page(converted(".ogg", "-c:a", "libopus", seconds=4.0)),
    "fragmented mp4": lambda: _without_index(converted(".mp4", "-movflags", "frag_keyframe+empty_moov")),
}


def _without_last_page(ogg: bytes) -> bytes:
    return ogg[: ogg.rindex(b"OggS")]


def _without_index(mp4: bytes) -> bytes:
    return mp4[: mp4.rindex(b"mfra") - 4]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "inbox").mkdir()
    return tmp_path / "inbox"


@pytest.fixture
def box(root: Path) -> InboxWithClock:
    (root / "a.png").write_bytes(PICTURE)
    return InboxWithClock(root)


def add(path: Path, data: bytes) -> None:
    """Open, append, close, as a writer in pieces does."""
    time.sleep(0.011)  # a tick of the kernel's clock of changes
    with path.open("ab") as file:
        file.write(data)


# -- in pieces ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENDLESS)
@pytest.mark.parametrize(("network", "seconds"), [(False, 3.0), (True, 5.0)])
def test_what_shows_no_end_of_its_own_waits_three_seconds(root: Path, name: str, network: bool, seconds: float) -> None:
    box = InboxWithClock(root, network=network)
    (root / "a.png").write_bytes(PICTURE)
    (root / "a.wav").write_bytes(ENDLESS[name]())
    assert box.scan() == box.scan(after_s=2.0) == []
    if not network:
        why = "its format does not show where it ends: it is taken after 3 s without a change"
        assert box.waits["a.wav"] == why
    assert box.ready_after(limit_s=10) == pytest.approx(seconds - 2.0, abs=0.01)


@pytest.mark.parametrize(("pause_s", "seconds"), [(0.5, 3.0), (1.5, 4.5), (10.0, 30.0), (25.0, 60.0), (3600.0, 60.0)])
def test_it_waits_three_times_its_longest_pause_and_no_longer_than_for_a_rest(
    box: InboxWithClock, pause_s: float, seconds: float
) -> None:
    data = converted(".mp3", "-write_xing", "0")
    path = box.root / "a.mp3"
    path.write_bytes(data[:4000])
    assert box.scan() == []
    for at in (4000, 5000):
        add(path, data[at : at + 1000])
        box.scan(after_s=pause_s)
    add(path, data[6000:])
    assert box.scan(after_s=0.2) == []  # a short pause does not hide the long ones
    assert box.ready_after(limit_s=100) == pytest.approx(seconds, abs=0.05)


def test_another_file_under_the_name_has_made_no_pauses(box: InboxWithClock) -> None:
    put(box.root, "a.mp3", converted(".mp3", "-write_xing", "0"))
    assert box.scan() == []
    put(box.root, "a.mp3", converted(".mp3", "-write_xing", "0", seconds=1.5))
    assert box.scan(after_s=2.9) == []
    assert box.ready_after(limit_s=100) == pytest.approx(3.0, abs=0.05)


def test_a_sound_whose_length_is_a_placeholder_keeps_its_short_time_whatever_pauses_it_made(
    box: InboxWithClock,
) -> None:
    (box.root / "a.wav").write_bytes(STREAMED[:2000])
    assert box.scan() == []
    add(box.root / "a.wav", STREAMED[2000:])
    assert box.scan(after_s=0.9) == []
    assert box.ready_after(limit_s=100) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("meanwhile", [b"", b"more"])
def test_a_restarted_daemon_knows_the_pauses_of_a_writer(root: Path, tmp_path: Path, meanwhile: bytes) -> None:
    wall = Clock()
    (root / "a.png").write_bytes(PICTURE)
    path, data = root / "a.mp3", converted(".mp3", "-write_xing", "0")

    def daemon() -> InboxWithClock:
        box = InboxWithClock(root)
        box.inbox.settling.first_seen = FirstSeen(tmp_path / "first-seen.json", wall=lambda: wall.now_s)
        return box

    path.write_bytes(data[:4000])
    first = daemon()
    assert first.scan() == []
    add(path, data[4000:])
    assert first.scan(after_s=8.0) == []
    if meanwhile:
        add(path, meanwhile)
    second = daemon()
    assert second.scan() == second.scan(after_s=15.0) == []
    assert second.ready_after(limit_s=100) == pytest.approx(24.0 - 15.0, abs=0.05)


def test_a_restarted_daemon_knows_of_a_write_that_only_an_event_told_of(root: Path, tmp_path: Path) -> None:
    def daemon() -> InboxWithClock:
        box = InboxWithClock(root)
        box.inbox.settling.rules = replace(RULES, incomplete_timeout_s=1000)
        box.inbox.settling.first_seen = FirstSeen(tmp_path / "first-seen.json")
        return box

    (root / "a.png").write_bytes(PICTURE)
    (root / "a.wav").write_bytes(SOUND[: len(SOUND) // 2])
    first = daemon()
    assert first.scan() == first.scan(after_s=900) == []
    first.inbox.settling.modified = lambda: frozenset([b"a.wav"])
    assert first.scan(after_s=50) == []
    second = daemon()
    assert second.scan() == second.scan(after_s=990) == []
    assert second.scan(after_s=11) == ["a"]


def test_a_file_that_grows_all_the_time_is_not_written_down_at_each_scan(box: InboxWithClock, tmp_path: Path) -> None:
    record = tmp_path / "first-seen.json"
    box.inbox.settling.first_seen = FirstSeen(record)
    path = box.root / "a.mp3"
    path.write_bytes(b"\xff\xfb" * 500)
    versions = set()
    for _ in range(10):
        add(path, bytes(100))
        box.scan(after_s=3.0)
        versions.add(record.stat().st_ino if record.exists() else 0)
    assert len(versions) <= 2


# -- laid out at full size ---------------------------------------------------------------------------------------------

VOICE = tone(2.0)


@pytest.mark.parametrize(
    ("samples", "seconds"),
    [
        pytest.param(VOICE + bytes(SECOND + 2), 10.0, id="more than a second"),
        pytest.param(VOICE + bytes(SECOND), 0.2, id="a second"),
        pytest.param(bytes(2 * SECOND), 10.0, id="nothing yet"),
        pytest.param(bytes(SECOND // 2), 0.2, id="half a second of silence"),
        pytest.param(VOICE + bytes(2 * SECOND) + b"\1\0", 0.2, id="a silence within"),
    ],
)
def test_a_wav_that_ends_in_zeros_waits_ten_seconds(box: InboxWithClock, samples: bytes, seconds: float) -> None:
    (box.root / "a.wav").write_bytes(wav(samples))
    assert box.ready_after(limit_s=30) == seconds
    assert box.scan() == ["a"]


def test_a_wav_that_is_laid_out_and_filled_later_is_taken_when_it_is_filled(box: InboxWithClock) -> None:
    whole = wav(tone(4.0))
    path = box.root / "a.wav"
    path.write_bytes(whole[:100].ljust(len(whole), b"\0"))
    assert box.scan() == box.scan(after_s=9.9) == []
    assert (
        box.waits["a.wav"]
        == "its end is zeros, as of a file that is filled later: it is taken after 10 s without a change"
    )
    for end in (60_000, len(whole)):
        time.sleep(0.011)
        with path.open("r+b") as file:
            file.write(whole[:end])
        assert box.scan(after_s=9.0) == []
    assert box.ready_after(limit_s=10) == 0.2


LAID_OUT: dict[str, Callable[[], bytes]] = {
    "rf64": lambda: converted(".wav", "-rf64", "always", seconds=4.0),
    "wav of 24 bits and two channels": lambda: converted(".wav", "-c:a", "pcm_s24le", seconds=4.0, channels=2),
    "wav of unknown length": lambda: wav(tone(4.0), data_bytes=0xFFFFFFFF),
    "joined wavs": lambda: wav(tone(1.5)) * 3,
    "aiff": lambda: converted(".aiff", seconds=4.0),
    "w64": lambda: converted(".w64", seconds=4.0),
    "caf": lambda: converted(".caf", seconds=4.0),
    "mp3 with its count": lambda: converted(".mp3", seconds=8.0),
    "m4a with its index in front": lambda: converted(".m4a", "-movflags", "faststart", seconds=12.0),
}


@pytest.mark.parametrize("name", LAID_OUT)
def test_other_sounds_that_are_laid_out_are_not_proven_either(box: InboxWithClock, name: str) -> None:
    whole = LAID_OUT[name]()
    path = box.root / "a.wav"
    path.write_bytes(whole[: len(whole) * 6 // 10].ljust(len(whole), b"\0"))
    assert box.ready_after(limit_s=30) == 10.0
    path.write_bytes(whole)
    box.scan()
    assert box.ready_after(limit_s=30) <= 1.0


# -- beside it ---------------------------------------------------------------------------------------------------------

BESIDE = [
    "a.wav.aria2",
    "a.wav.part",
    "a.wav.crdownload",
    "a.wav.PART",
    ".a.wav.Xy12Zz",
    ".a.wav.part",
    ".a.wav.x.y.tmp",
]
NOT_BESIDE = [
    "b.wav.aria2", "a.aria2", "a.wav.bak", "a.wavy.part", ".a.wav", ".a.wa.part", ".a.wavx.part", "._a.wav",
    ".a.wav.why.txt.0123abcd.part", ".lipsyncd.a.wav.part", ".a.wav.0123abcd.part", ".syncthing.a.wav.tmp",
]  # fmt: skip


@pytest.mark.parametrize("name", BESIDE)
def test_a_file_beside_it_shows_that_a_download_is_not_finished(box: InboxWithClock, name: str) -> None:
    (box.root / "a.wav").write_bytes(SOUND)
    beside = box.root / name
    beside.write_bytes(b"1")
    assert box.scan() == box.scan(after_s=50) == []
    assert box.waits["a.wav"] == f"is not finished, as '{name}' beside it shows"
    add(beside, b"2")
    assert box.scan() == box.scan(after_s=59.9) == []
    assert box.inbox.settling.next_scan_s == pytest.approx(0.1, abs=0.001)
    beside.unlink()
    assert box.scan() == ["a"]


@pytest.mark.parametrize("name", BESIDE)
def test_it_holds_nothing_back_once_nothing_has_changed_it_for_long(box: InboxWithClock, name: str) -> None:
    (box.root / "a.wav").write_bytes(SOUND)
    (box.root / name).write_bytes(b"1")
    assert box.ready_after(limit_s=100) == 60.0


@pytest.mark.parametrize("name", NOT_BESIDE)
def test_other_names_hold_nothing_back(box: InboxWithClock, name: str) -> None:
    (box.root / "a.wav").write_bytes(SOUND)
    (box.root / name).write_bytes(b"1")
    assert box.ready_after(limit_s=100) == 0.2


def test_a_half_that_has_waited_for_long_is_held_back_as_well(box: InboxWithClock) -> None:
    box.scan()
    assert box.scan(after_s=1000) == []
    (box.root / ".a.png.new").write_bytes(b"a new version of it")
    (box.root / "a.wav").write_bytes(SOUND)
    assert box.scan() == box.scan(after_s=10) == []
    (box.root / ".a.png.new").unlink()
    assert box.scan() == ["a"]


def test_the_latest_of_many_beside_it_counts(box: InboxWithClock) -> None:
    (box.root / "a.wav").write_bytes(SOUND)
    for name in (".a.wav.1", ".a.wav.2", ".a.wav.3"):
        (box.root / name).write_bytes(b"1")
    assert box.scan() == box.scan(after_s=50) == []
    add(box.root / ".a.wav.2", b"2")
    assert box.scan() == box.scan(after_s=50) == []
    assert "'.a.wav.2'" in box.waits["a.wav"]


def test_one_that_was_left_behind_does_not_count_anew_after_a_restart(root: Path, tmp_path: Path) -> None:
    wall, record = Clock(), tmp_path / "first-seen.json"
    (root / "a.png").write_bytes(PICTURE)
    (root / "a.png.part").write_bytes(b"1")
    for _ in range(2):
        box = InboxWithClock(root)
        box.inbox.settling.first_seen = FirstSeen(record, wall=lambda: wall.now_s)
        for _ in range(3):
            box.scan(after_s=40)
            wall.wait(40)
    (root / "a.wav").write_bytes(SOUND)
    again = InboxWithClock(root)
    again.inbox.settling.first_seen = FirstSeen(record, wall=lambda: wall.now_s)
    assert again.ready_after(limit_s=100) == 0.2


def test_what_a_manifest_declares_whole_is_not_held_back(box: InboxWithClock) -> None:
    (box.root / "a.mp3").write_bytes(converted(".mp3", "-write_xing", "0"))
    (box.root / "a.mp3.part").write_bytes(b"1")
    (box.root / "order.json").write_bytes(b'{"image": "a.png", "audio": "a.mp3", "whole": true}')
    assert box.scan() == box.scan(after_s=0.3) == []  # the manifest has been read
    assert box.scan(after_s=0.8) == ["order"]


def test_very_many_hidden_names_cost_little(box: InboxWithClock) -> None:
    (box.root / "a.wav").write_bytes(SOUND)
    for number in range(5000):
        (box.root / f".a.wav.{number}").touch()
    started = time.process_time()
    assert box.scan() == box.scan(after_s=59) == []
    assert time.process_time() - started < 2
    assert box.scan(after_s=2) == ["a"]


# -- open for ever -----------------------------------------------------------------------------------------------------


@contextmanager
def held_open(path: Path) -> Iterator[None]:
    """Another process has the file open for writing, as a file server that never closes."""
    program = "import sys; f = open(sys.argv[1], 'r+b'); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        writer.stdout.readline()
        try:
            yield
        finally:
            writer.stdin.close()
            writer.wait(10)


@pytest.mark.parametrize(
    ("voice", "seconds"),
    [
        pytest.param(SOUND, 30.0, id="proven"),
        pytest.param(STREAMED, 60.0, id="not proven"),
        pytest.param(wav(bytes(2 * SECOND)), 60.0, id="zeros"),
        pytest.param(SOUND[: len(SOUND) // 2], 60.0, id="cut"),
    ],
)
def test_an_open_descriptor_holds_a_file_back_for_a_limited_time(
    box: InboxWithClock, voice: bytes, seconds: float
) -> None:
    (box.root / "a.wav").write_bytes(voice)
    with held_open(box.root / "a.wav"):
        assert box.scan() == box.scan(after_s=20) == []
        assert box.waits["a.wav"] == "a program has it open for writing"
        assert box.ready_after(limit_s=100) == pytest.approx(seconds - 20, abs=0.05)


def test_each_write_begins_that_time_anew(box: InboxWithClock) -> None:
    """Also one that only an event tells of."""
    (box.root / "a.wav").write_bytes(SOUND)
    with held_open(box.root / "a.wav"):
        for _ in range(3):
            time.sleep(0.011)
            os.utime(box.root / "a.wav")
            assert box.scan() == box.scan(after_s=29) == []
        box.inbox.settling.modified = lambda: frozenset([b"a.wav"])
        assert box.scan(after_s=0.9) == box.scan(after_s=29) == []
        box.inbox.settling.modified = frozenset
        assert box.scan(after_s=29) == []
        assert box.scan(after_s=1.1) == ["a"]


def test_a_restarted_daemon_takes_what_was_open_and_still_for_long(root: Path, tmp_path: Path) -> None:
    wall = Clock()
    (root / "a.wav").write_bytes(SOUND)
    first = InboxWithClock(root)
    first.inbox.settling.first_seen = FirstSeen(tmp_path / "seen.json", wall=lambda: wall.now_s)
    with held_open(root / "a.wav"):
        assert first.scan() == first.scan(after_s=70) == []
        (root / "a.png").write_bytes(PICTURE)
        second = InboxWithClock(root)
        second.inbox.settling.first_seen = FirstSeen(tmp_path / "seen.json", wall=lambda: wall.now_s)
        assert second.ready_after(limit_s=100) == 0.2


# -- what gave way, and names in another case --------------------------------------------------------------------------


def test_what_gave_way_is_left_alone_after_a_restart_too(root: Path, tmp_path: Path) -> None:
    def daemon() -> InboxWithClock:
        box = InboxWithClock(root)
        box.inbox.settling.first_seen = FirstSeen(tmp_path / "first-seen.json")
        return box

    for name, content in (("a.tif", PICTURE), ("a.png", PICTURE), ("a.wav", SOUND)):
        put(root, name, content)
    first = daemon()
    first.scan()
    assert first.scan(after_s=1) == ["a"]
    for name in ("a.png", "a.wav"):
        (root / name).unlink()
    second = daemon()
    assert second.scan() == second.scan(after_s=1) == []
    assert second.waits == {}
    assert "gives way to 'a.png' of the same stem" in second.inbox.ignored["a.tif"]
    third = daemon()
    put(root, "a.tif", PICTURE + b"changed")
    third.scan()
    assert third.scan(after_s=1) == []
    assert set(third.waits) == {"a.tif"}


def test_a_manifest_whose_name_fits_several_files_but_for_their_case_says_so_and_ends(root: Path) -> None:
    box = InboxWithClock(root)
    for name in ("Face.png", "FACE.png", "voice.wav"):
        put(root, name, PICTURE if name.endswith("png") else SOUND)
    put(root, "order.json", b'{"image": "face.png", "audio": "voice.wav"}')
    assert box.scan() == box.scan(after_s=1) == []
    assert (
        box.waits["order.json"] == "waits for 'face.png', since 'FACE.png' and 'Face.png' both fit but for their case"
    )
    box.clock.wait(60)
    [drop] = box.drops()
    assert isinstance(drop.refusal, AmbiguousPair)
    assert "'FACE.png' and 'Face.png'" in str(drop.refusal)
    assert sorted(f.text for f in drop.files.values()) == ["order.json", "voice.wav"]


def test_the_file_of_the_exact_name_may_still_come(root: Path) -> None:
    box = InboxWithClock(root)
    for name in ("Face.png", "FACE.png", "voice.wav"):
        put(root, name, PICTURE if name.endswith("png") else SOUND)
    put(root, "order.json", b'{"image": "face.png", "audio": "voice.wav"}')
    assert box.scan() == box.scan(after_s=10) == []
    put(root, "face.png", PICTURE)
    box.scan()
    assert box.scan(after_s=1) == ["order"]
