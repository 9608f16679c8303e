"""The hostile files of `test_media.py` as jobs: dropped into the inbox, uploaded, and fetched from URLs.

Each is refused with its code. No process of the daemon opens a certain file outside, connects to a certain port, or
grows large: no other process uses that file or that port, so each use is noticed.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from lipsyncd.jobs.job import Job, JobState
from lipsyncd.sandbox import landlock
from tests.kits.installation import Installation, picture, put, sound
from tests.kits.long_run_figures import report
from tests.kits.machine.machine_kit import LONG, PeakMemory
from tests.kits.media.media_kit import converted
from tests.kits.web_kit import Api, port_of
from tests.system.hostile.test_media import (
    BROKEN_SOUNDS,
    LYING_WAVS,
    OTHER_CODECS,
    PICTURES,
    PLAYLISTS,
    without_samples,
)

PEAK_MB = 200
WAIT_S = 200.0
NO_SOUND = {"audio-not-recognised", "audio-undecodable"}
GOOD = {"png": picture(), "wav": sound(0.4)}


@dataclass
class Canary:
    """A secret file and an open port. `touched` lists every use of them."""

    folder: Path
    opened: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self.secret = self.folder / "secret.m4a"
        self.secret.write_bytes(converted(".m4a", "-c:a", "alac"))
        self.server = socket.create_server(("127.0.0.1", 0))
        self.server.setblocking(False)
        self.port = self.server.getsockname()[1]
        self.datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.datagrams.bind(("127.0.0.1", self.port))
        self.datagrams.setblocking(False)
        self._observer = Observer()
        self._observer.schedule(_Opened(self.opened), str(self.folder))
        self._observer.start()

    def touched(self) -> list[str]:
        """The opened files and the connections so far."""
        found = list(self.opened)
        with suppress(BlockingIOError):
            found.append(f"connection from {self.server.accept()[1]}")
        with suppress(BlockingIOError):
            found.append(f"datagram {self.datagrams.recv(99)!r}")
        return found

    def close(self) -> None:
        self._observer.stop()
        self._observer.join()
        self.server.close()
        self.datagrams.close()


class _Opened(FileSystemEventHandler):
    def __init__(self, opened: list[str]) -> None:
        self._opened = opened

    def on_opened(self, event: FileSystemEvent) -> None:
        if not event.is_directory:
            self._opened.append(f"open of {event.src_path!r}")


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Canary]:
    canary = Canary(tmp_path / "outside")
    yield canary
    canary.close()


@dataclass(frozen=True)
class Case:
    """A pair with one hostile half: the one named "png" or "wav", whatever its content is."""

    what: str
    half: str
    content: bytes
    codes: frozenset[str]

    @property
    def files(self) -> Mapping[str, bytes]:
        return {**GOOD, self.half: self.content}


def cases(canary: Canary) -> list[Case]:
    """All files that must be refused: playlists and similar texts, bombs, false headers, broken files."""
    texts = {
        **PLAYLISTS,
        "ffconcat, a server": "ffconcat version 1.0\nfile http://127.0.0.1:9/a.wav\n",
        "svg, a server": '<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1:9/a.png"/></svg>',
    }
    found = []
    for what, text in texts.items():
        content = text.format(secret=canary.secret).replace("127.0.0.1:9", f"127.0.0.1:{canary.port}").encode()
        found.append(Case(f"sound: {what}", "wav", content, frozenset(NO_SOUND)))
        found.append(Case(f"picture: {what}", "png", content, frozenset({"image-not-recognised"})))
    for what, (make, error, _) in PICTURES.items():
        found.append(Case(f"picture: {what}", "png", make(), frozenset({error.code})))
    for what, (make, expected) in LYING_WAVS.items():
        if not isinstance(expected, float):
            found.append(Case(f"sound: {what}", "wav", make(), frozenset({expected[0].code})))
    for what, (_, make, _) in BROKEN_SOUNDS.items():
        found.append(Case(f"sound: {what}", "wav", make(), frozenset(NO_SOUND)))
    for what, (_, make) in OTHER_CODECS.items():
        found.append(Case(f"sound: {what}", "wav", make(), frozenset(NO_SOUND)))
    elsewhere = without_samples(canary.secret.read_bytes(), canary.secret)
    return [*found, Case("sound: samples in another file", "wav", elsewhere, frozenset({*NO_SOUND, "audio-too-short"}))]


@contextmanager
def guarded(installation: Installation, canary: Canary, what: str) -> Iterator[list[Case]]:
    """A daemon for the cases; afterwards, assert that the canary was not touched and that no process grew large."""
    assert canary.touched() == []  # it is read for the cases next, which `_check_canary` forgets
    corpus = cases(canary)
    _check_canary(canary)
    installation.changes = {
        "watch": {"incomplete_timeout_s": 1.0},
        "web": {"enabled": True, "max_queue": 1000},
        "fetch": {"allow": ["127.0.0.1"]},
        "render": {"max_attempts": 1},
    }
    with PeakMemory(installation.start().pid) as peaks:
        yield corpus
    assert installation.stop() == 0, installation.log[-3000:]
    assert canary.touched() == []
    largest, kib = max(peaks.kib.items(), key=lambda item: item[1])
    assert any("ffmpeg" in command for command in peaks.kib), "no decoder was seen"
    assert kib < PEAK_MB * 1024, largest
    assert "this kernel has no Landlock" not in installation.log or not landlock.abi()
    assert "unexpected failure" not in installation.log
    report(
        f"{len(corpus)} hostile files through {what}",
        f"each refused with its code, largest process {kib / 1024:.0f} MB, 0 files opened outside, "
        f"0 connections, Landlock {'on' if landlock.abi() else 'missing'}",
    )


def _check_canary(canary: Canary) -> None:
    """Assert that a read and a connection of our own are noticed; then forget them."""
    before = len(canary.opened)
    canary.secret.read_bytes()
    connection = socket.create_connection(("127.0.0.1", canary.port))
    deadline = threading.Event()
    while len(canary.opened) <= before:
        deadline.wait(0.01)
    assert any("connection" in touch for touch in canary.touched())
    connection.close()
    deadline.wait(0.2)  # until the last event of our own has come
    canary.opened.clear()


def check(installation: Installation, corpus: Mapping[str, Case]) -> None:
    """Every job has failed with one of its codes, without a render and without a video."""

    def ended() -> dict[str, Job]:
        return {job.id: job for job in installation.view.jobs(limit=1000) if job.state.ended}

    jobs = installation.until(lambda: (found := ended()).keys() >= corpus.keys() and found, "the ends", seconds=WAIT_S)
    wrong = {
        case.what: (jobs[job_id].state.value, jobs[job_id].reason_code, jobs[job_id].reason)
        for job_id, case in corpus.items()
        if jobs[job_id].state is not JobState.FAILED or jobs[job_id].reason_code not in case.codes
    }
    assert wrong == {}
    assert installation.renders == 0
    assert not list(installation.path("outbox").glob("*.*4"))
    for job_id in corpus:
        assert str(installation.root) not in (jobs[job_id].reason or "")


@pytest.mark.timeout(600)
@pytest.mark.inotify
def test_hostile_files_in_the_inbox_are_refused(installation: Installation, canary: Canary) -> None:
    with guarded(installation, canary, "the inbox") as corpus:
        inbox = installation.path("inbox")
        os.symlink(canary.secret, inbox / "link.wav")
        os.mkfifo(inbox / "pipe.wav")
        (inbox / "folder.wav").mkdir()
        for name in ("link", "pipe", "folder"):
            put(inbox, f"{name}.png", GOOD["png"])
        put(inbox, "up.json", json.dumps({"image": f"../../outside/{canary.secret.name}", "audio": "x.wav"}).encode())
        for number, case in enumerate(corpus):
            for suffix, content in case.files.items():
                put(inbox, f"c{number}.{suffix}", content)
        count = len(corpus) + 1
        installation.until(lambda: sum(installation.view.counts().values()) >= count, "the acceptance", seconds=WAIT_S)
        jobs = {job.name: job.id for job in installation.view.jobs(limit=1000)}
        check(installation, {jobs[f"c{number}"]: case for number, case in enumerate(corpus)})
        assert installation.view.get(jobs["up"]).reason_code == "unsafe-path"
        assert not jobs.keys() & {"link", "pipe", "folder"}
        status = json.loads((installation.path("state") / "status.json").read_text())
        assert {"link.wav", "pipe.wav", "folder.wav"} <= status["ignored"].keys()


class Files(BaseHTTPRequestHandler):
    """Serves `/N.png` and `/N.wav` of the server's `corpus`."""

    def do_GET(self) -> None:
        number, _, half = self.path.strip("/").partition(".")
        content = self.server.corpus[int(number)].files[half]  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """No output."""


@contextmanager
def served(corpus: list[Case]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    server.corpus = corpus  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def uploaded(api: Api, case: Case) -> str | None:
    """Send both halves in a form; returns the job's id, or None if the form was refused for its content."""
    parts = {"source_image": ("a.png", case.files["png"]), "audio_data": ("a.wav", case.files["wav"])}
    answer = api.form("/generate-video", **parts)
    if answer.status == 200:
        job_id: str = answer.json["id"]
        return job_id
    assert answer.status in (400, 413, 415), (case.what, answer)
    assert answer.json["kind"] != "InternalServerError", (case.what, answer)
    return None


def fetched(api: Api, source: str, number: int) -> str:
    """Send the URLs of both halves; returns the job's id."""
    script = {"type": "audio", "audio_url": f"{source}/{number}.wav"}
    talk: str = api.post("/talks", {"source_url": f"{source}/{number}.png", "script": script}).json["id"]
    return str(uuid.UUID(talk.removeprefix("tlk_")))


@pytest.mark.timeout(600)
@pytest.mark.inotify
def test_hostile_files_over_rest_are_refused(installation: Installation, canary: Canary) -> None:
    """By upload and by URL in turn; `make test-long` sends each file both ways."""
    with guarded(installation, canary, "REST") as corpus, served(corpus) as source:
        api, jobs, at_once = Api(installation, port_of(installation)), dict[str, Case](), 0
        for number, case in enumerate(corpus):
            if number % 2 or LONG:
                jobs[fetched(api, source, number)] = case
            if number % 2 == 0 or LONG:
                job_id = uploaded(api, case)
                at_once += job_id is None
                jobs |= {} if job_id is None else {job_id: case}
        assert len(jobs) + at_once == len(corpus) * (1 + LONG)
        check(installation, jobs)
