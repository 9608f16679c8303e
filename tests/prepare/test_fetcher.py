"""Fetching beside the preparing thread: slow servers hold up their own jobs only, and failures come back to them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lipsyncd.errors import FetchFailed, FetchRefused
from lipsyncd.jobs.job import JobSpec, JobState, new_id
from lipsyncd.network import fetch as fetching
from lipsyncd.prepare.fetcher import Fetcher
from lipsyncd.settings import CurrentSettings, Fetch, Paths, Settings
from tests.kits.core_kit import spec_of
from tests.kits.installation import Installation, picture, put, sound
from tests.network.test_fetch import Handler, Server


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


class Box:
    """A fetcher with folders for jobs."""

    def __init__(self, root: Path, server: Server, parallel: int = 4) -> None:
        rules = Fetch(allow=(server.listed,), parallel=parallel)
        self.ended = threading.Event()
        self.root = root
        self.fetcher = Fetcher(CurrentSettings(replace(Settings(Paths(storage=root)), fetch=rules)), self.ended.set)

    def begin(self, url: str, owner: str = "") -> tuple[JobSpec, Path]:
        spec = spec_of("anna", id=new_id(), image_url=url)
        folder = self.root / spec.id
        folder.mkdir()
        assert self.fetcher.begin(spec, folder, owner)
        return spec, folder

    def until_idle(self) -> None:
        deadline = time.monotonic() + 60
        while self.fetcher.under_way:
            assert time.monotonic() < deadline
            self.ended.wait(0.05)


@pytest.fixture
def box(tmp_path: Path, server: Server) -> Iterator[Box]:
    made = Box(tmp_path, server)
    yield made
    made.fetcher.close()


def test_a_file_arrives_whole_and_is_fetched_once(box: Box, server: Server) -> None:
    url = server.route("/a.png", lambda handler: handler.answer(200, b"a picture"))
    spec, folder = box.begin(url)
    box.until_idle()
    assert (folder / "image").read_bytes() == b"a picture"
    assert [path.name for path in folder.iterdir()] == ["image"]
    assert not box.fetcher.begin(spec, folder, "")
    assert len(server.seen) == 1


def test_a_failure_is_raised_when_its_job_comes_again_and_then_the_job_is_tried_anew(box: Box, server: Server) -> None:
    spec, folder = box.begin(server.route("/a.png", lambda handler: handler.answer(404)))
    box.until_idle()
    with pytest.raises(FetchRefused, match="404"):
        box.fetcher.begin(spec, folder, "")
    assert box.fetcher.begin(spec, folder, "")
    box.until_idle()
    assert len(server.seen) == 2


def test_one_owner_has_at_most_half_of_the_fetches(box: Box, server: Server) -> None:
    """Eight slow fetches of one owner leave room for a quick one of another."""
    gate = threading.Event()
    slow = server.route("/slow", lambda handler: (gate.wait(60), handler.answer(200, b"slow"))[1])
    quick = server.route("/quick", lambda handler: handler.answer(200, b"quick"))
    try:
        for _ in range(8):
            box.begin(slow, "one")
        _, folder = box.begin(quick, "two")
        deadline = time.monotonic() + 60
        while not (folder / "image").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert sum(path == "/slow" for path, _ in server.seen) == 2
    finally:
        gate.set()
    box.until_idle()
    assert sum(path == "/slow" for path, _ in server.seen) == 8


def test_closing_ends_the_fetches_under_way(tmp_path: Path, server: Server) -> None:
    box, gate = Box(tmp_path, server), threading.Event()
    box.begin(server.route("/slow", lambda handler: (gate.wait(60), handler.answer(200, b""))[1]))
    began_s = time.monotonic()
    box.fetcher.close()
    gate.set()
    assert time.monotonic() - began_s < 10


def test_a_server_that_drips_is_given_up(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_RATED_AFTER_S", 0.5)

    def drip(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        for _ in range(600):
            handler.wfile.write(b"x")
            time.sleep(0.05)

    url, began_s = server.route("/drip", drip), time.monotonic()
    with pytest.raises(FetchFailed, match=r"sends only 0\.0 kB a second"):
        fetching.fetch(url, tmp_path / "x", max_bytes=10**6, timeout_s=30, min_bytes_s=8000, allow=(server.listed,))
    assert time.monotonic() - began_s < 10
    assert not (tmp_path / "x").exists()


def test_a_slow_fetch_holds_up_no_other_job(installation: Installation, server: Server) -> None:
    """One manifest names an address whose server waits; a pair that is dropped afterwards is done long before."""
    gate = threading.Event()
    content = picture()
    url = server.route("/a.png", lambda handler: (gate.wait(60), handler.answer(200, content))[1])
    installation.changes["fetch"] = {"allow": [server.listed]}
    with installation.running():
        put(installation.path("inbox"), "slow.wav", sound())
        installation.drop_manifest("slow", image=url, audio="slow.wav")
        installation.until(lambda: len(server.seen) == 1, "the request")
        installation.drop_pair("anna")
        installation.until_done("anna")
        waiting = installation.job("slow")
        assert waiting is not None
        assert (waiting.state, waiting.stage) == (JobState.QUEUED, "fetching")
        gate.set()
        installation.until_done("slow")


def test_a_fetch_that_keeps_failing_ends_its_job(installation: Installation, server: Server) -> None:
    """Each try counts as an attempt, although its end is known only in a later round."""
    url = server.route("/a.png", lambda handler: handler.answer(404))
    installation.changes["fetch"] = {"allow": [server.listed]}
    with installation.running():
        put(installation.path("inbox"), "anna.wav", sound())
        installation.drop_manifest("anna", image=url, audio="anna.wav")
        job = installation.until_failed("anna")
    assert job.reason_code == "fetch-refused"
    assert "404" in (job.reason or "")
