"""Every decode of hostile files as the kernel saw it: restricted first, then no file outside its job and no network.

`tests/system/hostile/test_jobs.py` watches one secret file and one port. Here strace records every open, exec and
socket of a daemon and all its children, so that an unexpected access counts too. `jail_calls_kit` judges the record.
Two checks show that its judgement is strict: records from which a restriction is removed, and a run without Landlock.
"""

from __future__ import annotations

import random
import re
import socket
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pytest

from lipsyncd.jobs.job import new_id
from lipsyncd.sandbox import landlock
from tests.kits.faults.faulty_renderers import NAMES
from tests.kits.faults.jail_calls_kit import CALLS, OPENS, OPTIONS, violations
from tests.kits.faults.trace_kit import Event, Origin, read, strace, traced, with_origins
from tests.kits.installation import Installation, picture, put, sound
from tests.kits.long_run_figures import report
from tests.kits.media.footage_kit import H264, REPLAY, VP8, film
from tests.kits.media.media_kit import converted, corners, encoded, ffmpeg, png_chunk, png_of, tone, wav
from tests.sandbox.test_jail import WITHOUT_LANDLOCK, needs_landlock
from tests.system.hostile.test_jobs import GOOD, Canary, cases
from tests.system.hostile.test_media import SEEDS, without_samples

pytestmark = [needs_landlock, pytest.mark.inotify, pytest.mark.timeout(600)]

WAIT_S = 400.0  # a quarter of a minute on an idle machine

# -- what is dropped ---------------------------------------------------------------------------------------------------

ROLES = {"png": "image", "wav": "audio"}
MVG = "push graphic-context\nviewbox 0 0 99 99\nimage over 0,0 0,0 '{there}'\npop graphic-context\n"


def decodable(there: str) -> dict[str, tuple[str, bytes]]:
    """Valid files that reach a decoder and refer to `there`, a file or an address: their suffix and bytes."""
    svg = f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{there}"/></svg>'.encode()
    playlist = f"#EXTM3U\n#EXTINF:1,\n{there}\n#EXT-X-ENDLIST\n".encode()
    comment = MVG.format(there=there).encode()
    jpeg, png, flac = encoded(corners(), "JPEG"), picture(7), converted(".flac")
    rows = (b"\0" + random.Random(there).randbytes(3 * 64)) * 64
    return {
        "a WAV with a playlist for samples": ("wav", wav((playlist * 400)[:16_000])),
        "a WAV with a playlist behind it": ("wav", wav(tone(0.5)) + playlist),
        "an MP3 whose cover lies elsewhere": ("wav", _id3_cover(there) + converted(".mp3")),
        "a FLAC whose cover lies elsewhere": ("wav", flac[:42] + _flac_cover(there) + flac[42:]),
        "a JPEG with an MVG in its comment": ("png", jpeg[:2] + b"\xff\xfe" + _sized(comment) + jpeg[2:]),
        "a PNG with an SVG behind it": ("png", png + svg),
        "a PNG with an SVG in its text": ("png", png_of(64, 64, rows, extra=png_chunk(b"tEXt", b"svg\0" + svg))),
    }


def _id3_cover(there: str) -> bytes:
    """A tag whose picture is an address. Source: ID3v2.3, 4.15."""
    content = b"\0-->\0\3\0" + there.encode()
    frame = b"APIC" + struct.pack(">IH", len(content), 0) + content
    size = bytes(len(frame) >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\3\0\0" + size + frame


def _flac_cover(there: str) -> bytes:
    """A picture block that has an address in place of a picture. Source: RFC 9639, 8.8."""
    url = there.encode()
    block = struct.pack(">II3sIIIIII", 3, 3, b"-->", 0, 0, 0, 0, 0, len(url)) + url
    return b"\6" + len(block).to_bytes(3, "big") + block


def _sized(comment: bytes) -> bytes:
    return struct.pack(">H", len(comment) + 2) + comment


def damaged(data: bytes, seed: str) -> bytes:
    """The same file with some bytes of its middle third changed, so that its structure stays valid."""
    chance, changed = random.Random(seed), bytearray(data)
    for _ in range(12):
        changed[chance.randrange(len(data) // 3, 2 * len(data) // 3)] ^= 1 << chance.randrange(8)
    return bytes(changed)


@dataclass(frozen=True)
class Record:
    """The system calls of a daemon and its children while files were dropped.

    dropped  names of the jobs by what was dropped
    decoded  the input, "image" or "audio", that a decoder must have opened, by the name of its job
    """

    events: tuple[Event, ...]
    installation: Installation
    canary: Canary
    dropped: Mapping[str, str]
    decoded: Mapping[str, str]

    @property
    def storage(self) -> Path:
        return self.installation.root / "storage"

    @cached_property
    def jailed(self) -> list[tuple[Origin, Event]]:
        return [(origin, event) for origin, event in with_origins(self.events) if origin.jailed_at]

    def of_one(self, event: Event) -> list[Event]:
        """All calls of the thread that made `event`, after the exec of the daemon."""
        return [self.events[0], *(each for each in self.events if each.thread == event.thread)]

    @cached_property
    def locks(self) -> list[Event]:
        return [event for event in self.events if event.name == "landlock_restrict_self"]


def drop_all(installation: Installation, canary: Canary) -> tuple[dict[str, str], dict[str, str]]:
    """Put everything into the inbox; returns `dropped` and `decoded` of the record."""
    inbox, dropped, decoded = installation.path("inbox"), dict[str, str](), dict[str, str]()

    def drop(what: str, files: Mapping[str, bytes]) -> str:
        dropped[what] = name = f"c{len(dropped)}"
        for suffix, content in files.items():
            put(inbox, f"{name}.{suffix}", content)
        return name

    for case in cases(canary):
        drop(case.what, case.files)
    places = (str(canary.secret), f"http://127.0.0.1:{canary.port}/a.png")
    for there in places:
        drop(f"MVG, {there}", {**GOOD, "png": MVG.format(there=there).encode()})
    for number, what in enumerate(decodable("")):
        half, content = decodable(places[number % 2])[what]
        decoded[drop(what, {**GOOD, half: content})] = ROLES[half]
    for what, (kind, make) in SEEDS.items():
        half = "wav" if kind else "png"
        decoded[drop(f"a damaged {what}", {**GOOD, half: damaged(make(), what)})] = ROLES[half]
    whole = film(".mp4", 15, *H264)
    films = {"mp4": whole, "webm": film(".webm", 15, *VP8), "mov": without_samples(whole, canary.secret)}
    for suffix, content in films.items():
        name = drop(f"a film, {suffix}", {"wav": sound(0.8, len(dropped)), suffix: content})
        installation.drop_manifest(name, image=f"{name}.{suffix}", audio=f"{name}.wav", renderer="replay")
        decoded[name] = "image"
    decoded[drop("a good pair", {"png": picture(1), "wav": sound(0.4, 1)})] = "image"
    return dropped, decoded


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    installation = Installation(tmp_path_factory.mktemp("walls"))
    installation.changes = {
        "watch": {"incomplete_timeout_s": 1.0},
        "render": {"max_attempts": 1, "renderers": [*NAMES, REPLAY]},
    }
    installation.folders.initialise()
    canary = Canary(installation.root / "outside")
    try:
        dropped, decoded = drop_all(installation, canary)
        with traced(installation, installation.root / "trace", CALLS, *OPTIONS):
            installation.until(lambda: _ended(installation) >= len(dropped), "the ends", seconds=WAIT_S)
    finally:
        canary.close()
    return Record(tuple(read(installation.root / "trace", refused=True)), installation, canary, dropped, decoded)


def _ended(installation: Installation) -> int:
    return sum(job.state.ended for job in installation.view.jobs(limit=1000))


# -- what the record shows ---------------------------------------------------------------------------------------------


def test_every_decode_is_restricted_and_none_leaves_its_job(record: Record) -> None:
    assert violations(record.events, record.storage) == []
    opened = [event for _, event in record.jailed if event.name in OPENS and not event.error]
    report(
        f"{len(record.dropped)} files through the inbox, recorded by strace",
        f"{len(record.locks)} jailed processes opened {len(opened)} files: each its job's own or part of its program; "
        f"no socket, Landlock {landlock.abi()}",
    )


def test_decoders_have_really_opened_the_files(record: Record) -> None:
    """Otherwise the test above would pass for a daemon that decodes nothing."""
    opened = {event.led_to for _, event in record.jailed}
    # WAVs that are joined, and lengths that are unknown, are read from a file that the daemon makes of its own copy.
    inputs = {re.sub("/rewritten$", "/audio", path) for path in opened}
    ids = {job.name: job.id for job in record.installation.view.jobs(limit=1000)}
    what = {name: what for what, name in record.dropped.items()}
    spool = record.storage / "spool"
    unseen = [name for name, role in record.decoded.items() if str(spool / ids[name] / role) not in inputs]
    assert [what[name] for name in unseen] == []
    assert record.installation.until_done(record.dropped["a good pair"])
    assert record.installation.until_done(record.dropped["a film, mp4"])

    commands = {" ".join(origin.program) for origin, _ in record.jailed}
    demuxers = {found for command in commands for found in re.findall(r"-f (\w+) -i", command)}
    assert demuxers >= {"wav", "mp3", "mov", "ogg", "flac", "matroska", "aac", "aiff", "caf", "w64", "amr"}
    for sign in (
        "lipsyncd.prepare.picture_child",
        "framecrc",
        "pipe:1",
        "libx264",
    ):  # a picture, a scan, a film in use, the encoder
        assert any(sign in command for command in commands), sign


def test_no_process_even_tries_to_open_what_a_file_refers_to(record: Record) -> None:
    """Demuxers are chosen, not guessed, and follow no reference: no open, allowed or refused, names the secret.

    A socket that the jail's filter refuses leaves no line in this record; see the willing decoder below for those.
    """
    outside = f"{record.canary.folder}/"
    assert not [event for event in record.events if any(outside in p for p in (*event.paths, event.led_to))]
    assert not [
        event for event in record.events if event.name in ("socket", "connect") and "AF_INET" in event.arguments
    ]


# -- the judgement is strict -------------------------------------------------------------------------------------------


def test_a_record_without_the_restriction_of_one_process_brings_complaints(record: Record) -> None:
    assert len(record.locks) > len(record.decoded)
    for lock in record.locks:
        alone = record.of_one(lock)
        assert violations(alone, record.storage) == []
        assert violations([each for each in alone if each is not lock], record.storage), lock.thread


def test_a_restriction_after_an_input_is_opened_is_too_late(record: Record) -> None:
    inputs = {e.thread: e for _, e in record.jailed if e.led_to.endswith(("/image", "/audio"))}
    for opened in inputs.values():
        alone = record.of_one(opened)
        [lock] = [each for each in alone if each.name == "landlock_restrict_self"]
        alone.remove(lock)
        alone.insert(alone.index(opened) + 1, lock)
        assert violations(alone, record.storage), opened.thread


STRANGE = {
    "a stranger's file": ("/etc/passwd", "O_RDONLY", "reads outside its job"),
    "its own memory": ("/proc/self/mem", "O_RDONLY", "reads outside its job"),
    "a data file of the system": ("/usr/lib/os-release", "O_RDONLY", "reads outside its job"),
    "another job": ("{spool}/00000000-0000-7000-8000-000000000000/audio", "O_RDONLY", "reads outside its job"),
    "another file of its job": ("{job}/job.json", "O_RDONLY", "reads outside its job"),
    "the inbox": ("{spool}/../inbox/a.wav", "O_RDONLY", "reads outside its job"),
    "a place for loot": ("{job}/loot", "O_WRONLY|O_CREAT", "writes outside its job"),
    "a library": ("/usr/lib/x86_64-linux-gnu/libc.so.6", "O_RDWR", "writes outside its job"),
    "its input": ("{job}/audio", "O_RDWR", "writes an input"),
}


@pytest.mark.parametrize("what", STRANGE)
def test_an_open_of_anything_else_is_a_complaint(record: Record, what: str) -> None:
    path, flags, violation = STRANGE[what]
    origin, opened = next((d, e) for d, e in record.jailed if e.led_to.endswith("/audio"))
    path = path.format(spool=record.storage / "spool", job=Path(opened.led_to).parent)
    strange = replace(opened, led_to=path, arguments=flags)
    found = violations([strange if e is opened else e for e in record.of_one(opened)], record.storage)
    assert found == [f"{origin} {violation}: openat {path}"]


@pytest.mark.parametrize(
    "name", ["socket", "connect", "sendto", "ptrace", "io_uring_setup", "unlink", "execve", "chmod"]
)
def test_any_other_call_that_succeeds_in_the_jail_is_a_complaint(record: Record, name: str) -> None:
    """The call is appended to the calls of the process, so that nothing else changes."""
    _, opened = next((d, e) for d, e in record.jailed if e.led_to.endswith("/audio"))
    alone, strange = record.of_one(opened), replace(opened, name=name, led_to="", arguments="AF_UNIX")
    assert len(violations([*alone, strange], record.storage)) == 1
    assert violations([*alone, replace(strange, error="EACCES")], record.storage) == []


READS = "O_RDONLY|O_CLOEXEC"
FREE = {
    "a decode": (Event(2, "execve", ("/bin/ffmpeg", "ffmpeg", "-i", "a.wav"), "", 9, 9), "decodes outside the jail"),
    "a socket": (Event(2, "socket", (), "AF_INET, SOCK_DGRAM, IPPROTO_IP", 9, 9), "makes a socket"),
    "a connection": (Event(2, "connect", (), "3, {sa_family=AF_UNIX}", 9, 9), "uses the network"),
    "an input": (Event(2, "openat", (), "O_RDONLY", 9, 9, led_to="/s/spool/j/image"), "opens a file of a user"),
    "a dropped file": (Event(2, "openat", (), "O_RDONLY", 9, 9, led_to="/s/inbox/a.png"), "opens a file of a user"),
    "an input, by its name alone": (Event(2, "openat", (), "O_PATH", 9, 9, led_to="/s/spool/j/image"), "opens a file"),
    "a decoder in the daemon": (
        Event(1, "openat", (), "O_RDONLY", 9, 9, led_to="/v/PIL/_imaging.so"),
        "loads a decoder",
    ),
    "an input in the daemon": (Event(1, "openat", (), f"{READS}, 0", 9, 9, led_to="/s/spool/j/image"), ""),
    "an input that it changes": (Event(1, "openat", (), "O_RDWR", 9, 9, led_to="/s/spool/j/image"), "in another way"),
    "a link in its inbox": (Event(1, "openat", (), READS, 9, 9, led_to="/s/inbox/a.wav"), "in another way"),
    "what the jail has made": (Event(2, "openat", (), "O_RDONLY", 9, 9, led_to="/s/spool/j/picture.rgb"), ""),
    "a unix socket": (Event(2, "socket", (), "AF_UNIX, SOCK_STREAM, 0", 9, 9), ""),
    "its version": (Event(2, "execve", ("/bin/ffmpeg", "ffmpeg", "-version"), "", 9, 9), ""),
}


@pytest.mark.parametrize("what", FREE)
def test_what_an_unjailed_child_of_the_daemon_may_do(what: str) -> None:
    event, violation = FREE[what]
    daemon = Event(1, "execve", ("/bin/python", "python", "-m", "lipsyncd", "run"), "", 1, 1)
    child = [
        Event(1, "vfork", (), "", 2, 3, gave=2),
        Event(2, "execve", ("/bin/python", "python", "-m", "lipsyncd.renderers"), "", 3, 3),
    ]
    found = violations([daemon, *child, event], Path("/s"))
    assert [violation in each for each in found] == [True] * bool(violation)


def test_a_restriction_is_inherited_over_fork_and_exec_and_nowhere_else(tmp_path: Path) -> None:
    """Lines as strace writes them, of calls that overlap."""
    (tmp_path / "record").write_text(
        "1 vfork( <unfinished ...>\n"
        "2 landlock_restrict_self(3, 0) = 0\n"
        '2 execve("\\x61", ["\\x61", "\\x62"], 0x1 /* 1 var */ <unfinished ...>\n'
        "1 <... vfork resumed>) = 2\n"
        "2 <... execve resumed>) = 0\n"
        "2 clone3({flags=CLONE_THREAD} => {parent_tid=[4]}, 88 <unfinished ...>\n"
        '4 openat(AT_FDCWD</>, "\\x2f\\x63", O_RDONLY) = 5<\\x2f\\x64>\n'
        "2 <... clone3 resumed>) = 4\n"
        '4 openat(AT_FDCWD</>, "\\x2f\\x63", O_RDONLY) = -1 EACCES (Permission denied)\n'
        '1 openat(AT_FDCWD</>, "\\x2f\\x63", O_RDONLY) = 5<\\x2f\\x63>\n'
        '1 openat(AT_FDCWD</>, "\\x2f\\x63", O_RDONLY) = ?\n'
    )
    seen = [
        (d.program, bool(d.jailed_at), e.led_to, e.error)
        for d, e in with_origins(read(tmp_path / "record", refused=True))
    ]
    assert seen[-3:] == [
        (("a", "b"), True, "/d", ""),
        (("a", "b"), True, "", "EACCES"),
        ((), False, "/c", ""),
    ]


# -- a decoder that is willing -----------------------------------------------------------------------------------------

WILLING = """
import sys
from pathlib import Path
from lipsyncd.prepare.decode_picture import decode_picture
from lipsyncd.prepare.decode_sound import decode_sound
from lipsyncd.sandbox.jail import run_jailed
from lipsyncd.media import Kind
ffmpeg, job, address = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
decode_sound(job / "audio", Kind.WAV, job, ffmpeg=ffmpeg)
decode_picture(job / "image", job, background=(0, 0, 0))
for source in (["-f", "concat", "-safe", "0", "-i", str(job / "list")], ["-f", "wav", "-i", address]):
    command = [str(ffmpeg), "-nostdin", "-y", *source, "-f", "s16le", str(job / "loot")]
    run_jailed(command, readable=[job / "list"], writable=[job / "loot"], timeout_s=60)
"""


@dataclass(frozen=True)
class Willing:
    """What an ffmpeg did whose command names a reference and an address, and what ordinary decodes did before it."""

    events: list[Event]
    storage: Path
    secret: Path
    loot: Path


@pytest.fixture
def willing(tmp_path: Path) -> Callable[[str], Willing]:
    def run(before: str) -> Willing:
        job, secret = tmp_path / "storage" / "spool" / new_id(), tmp_path / "secret.wav"
        job.mkdir(parents=True)
        (job / "loot").touch()
        (job / "audio").write_bytes(sound())
        (job / "image").write_bytes(picture())
        (job / "list").write_text(f"ffconcat version 1.0\nfile {secret}\n")
        secret.write_bytes(wav(tone(1)))
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
            code = textwrap.dedent(before) + WILLING
            command = [*strace(tmp_path / "trace", CALLS, *OPTIONS), sys.executable, "-c", code]
            subprocess.run([*command, ffmpeg(), job, address], check=True, capture_output=True, timeout=120)
        return Willing(read(tmp_path / "trace", refused=True), tmp_path / "storage", secret, job / "loot")

    return run


def test_the_jail_refuses_a_willing_decoder_and_the_record_shows_it(willing: Callable[[str], Willing]) -> None:
    ran = willing("")
    assert violations(ran.events, ran.storage) == []
    tried = [e for e in ran.events if e.name in OPENS and e.path.endswith(str(ran.secret))]
    assert [e.error for e in tried] == ["EACCES"]
    assert {e.error for e in ran.events if e.name == "socket"} == {"EACCES"}
    assert ran.loot.stat().st_size == 0


def test_on_a_kernel_without_landlock_the_same_decodes_bring_complaints(willing: Callable[[str], Willing]) -> None:
    ran = willing(WITHOUT_LANDLOCK)
    found = violations(ran.events, ran.storage)
    assert sum("decodes outside the jail" in violation for violation in found) == 4
    for name in ("audio", "image"):
        assert any("opens a file of a user outside the jail" in each and each.endswith(f"/{name}") for each in found)
    assert [e for e in ran.events if e.led_to == str(ran.secret)], "the trap does not work, so the test proves nothing"
    assert ran.loot.stat().st_size > 0
