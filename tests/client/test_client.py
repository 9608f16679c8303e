"""`lipsyncd.Client` and `AsyncClient` against a real daemon, over HTTP and through its storage folder."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import lipsyncd
from lipsyncd.client.over_http import OverHttp
from lipsyncd.errors import (
    Busy,
    IllegalTransition,
    ImageNotRecognised,
    JobCancelled,
    KeyRefused,
    MissingFile,
    NameTaken,
    NoDaemon,
    NoFaceFound,
    ServerError,
    UnknownJob,
    Unreachable,
    UsageError,
)
from lipsyncd.jobs.job import new_id
from tests.kits.installation import ROOT, Installation, picture, sound
from tests.kits.web_kit import Api, serving

KEY = "anna:one-long-secret"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with serving(tmp_path_factory.mktemp("client"), LIPSYNCD_API_KEY=KEY) as api:
        yield api


@pytest.fixture(params=["http", "storage"])
def client(request: pytest.FixtureRequest, api: Api) -> lipsyncd.Client:
    if request.param == "http":
        return lipsyncd.Client(api.url, key=KEY)
    return lipsyncd.Client(storage=api.installation.root / "storage")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A pair of this test alone, in the working folder."""
    monkeypatch.chdir(tmp_path)
    seed = abs(hash(request.node.nodeid)) % 2**32
    Path("ada.png").write_bytes(picture(seed))
    Path("hello.wav").write_bytes(sound(0.5, seed))
    return tmp_path


def test_a_job_is_submitted_followed_and_downloaded(client: lipsyncd.Client, files: Path) -> None:
    job = client.submit("ada.png", "hello.wav", fps=50, resolution=96, options={"colour": "blue"})
    events = list(job.events(every_s=0.05))
    assert events[-1].state == "done"
    assert [event.state for event in events] == sorted(
        (event.state for event in events), key=["queued", "running", "publishing", "done"].index
    )
    video = job.result(timeout_s=10).download("a.mp4")
    assert (video.path, video.frames, video.width, video.renderer) == (Path("a.mp4"), 25, 96, "flat")
    assert job.facts.duration_s == 0.5
    assert job.facts.name == "ada-hello"
    with pytest.raises(NameTaken):
        job.result().download("a.mp4")
    assert job.result().download(files).path == files / "ada-hello.mp4"
    assert job.result().download("a.mp4", force=True).frames == 25
    assert client.job(job.id).state == "done"


def test_a_server_tells_of_changes_with_the_place_in_the_queue(api: Api, files: Path) -> None:
    client = lipsyncd.Client(api.url, key=KEY)
    Path("hello.wav").write_bytes(sound(3))
    first = client.submit("ada.png", "hello.wav", renderer="slow", name="first")
    second = client.submit("ada.png", "hello.wav", renderer="slow", name="second", resolution=96)
    next(event for event in first.events(every_s=60) if event.stage == "rendering")
    waits = next(event for event in second.events(every_s=60) if event.position)
    assert (waits.state, waits.position) == ("queued", 1)
    for job in (second, first):
        job.cancel()
        assert [event.state for event in job.events(every_s=1)][-1] == "cancelled"


def test_an_older_server_is_asked_again_and_again(api: Api, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no streams, and answers 404."""
    client, answer, asked = lipsyncd.Client(api.url, key=KEY), OverHttp._answer, []
    job = client.submit("ada.png", "hello.wav")

    def older(way: OverHttp, method: str, path: str, *rest: Any) -> Any:
        asked.append(path.rpartition("/")[2])
        return answer(way, method, f"{path}/no/such/route" if path.endswith("/events") else path, *rest)

    monkeypatch.setattr(OverHttp, "_answer", older)
    assert list(job.events(every_s=0.1))[-1].state == "done"
    assert asked.count("events") == 1


def test_text_is_spoken_by_the_daemon(client: lipsyncd.Client, files: Path) -> None:
    job = client.submit("ada.png", text="One.", voice="en-us", name="spoken", priority=5)
    assert job.result(timeout_s=60).download().path == Path("spoken.mp4")


def test_a_job_that_fails_raises_the_class_of_its_reason(client: lipsyncd.Client, files: Path) -> None:
    job = client.submit("ada.png", "hello.wav", renderer="preview")
    with pytest.raises(NoFaceFound) as failed:
        job.result(timeout_s=60)
    assert failed.value.code == "no-face"
    assert failed.value.remedy
    assert [event.state for event in job.events()] == ["failed"]
    assert job.id in [one.id for one in client.jobs(state="failed")]
    assert job.id not in [one.id for one in client.jobs(state="done")]
    assert client.jobs(limit=1)[0].state in ("failed", "done", "running", "queued", "publishing", "cancelled")


def test_the_same_key_gives_the_same_job(client: lipsyncd.Client, files: Path) -> None:
    order = partial(client.submit, "ada.png", "hello.wav", idempotency_key=f"order-{new_id()}")
    first, again = order(), order()
    assert first.id == again.id
    first.result(timeout_s=60)
    assert order().id == first.id


def test_a_job_is_taken_back(client: lipsyncd.Client, files: Path) -> None:
    Path("hello.wav").write_bytes(sound(20))
    job = client.submit("ada.png", "hello.wav", renderer="slow")
    assert next(event for event in job.events(every_s=0.05) if event.stage == "rendering").fraction < 1
    job.cancel()
    with pytest.raises(JobCancelled):
        job.result(timeout_s=30)
    early = client.submit("ada.png", "hello.wav", renderer="slow", name="early")
    early.cancel()
    with pytest.raises(JobCancelled):
        early.result(timeout_s=30)


def test_a_job_that_has_ended_is_left_as_it_is(client: lipsyncd.Client, files: Path) -> None:
    job = client.submit("ada.png", "hello.wav")
    with pytest.raises(TimeoutError, match="after 0 s"):
        job.result(timeout_s=0)
    job.result(timeout_s=60)
    with pytest.raises(IllegalTransition):
        job.cancel()


def test_mistakes_are_told_at_the_call(client: lipsyncd.Client, files: Path) -> None:
    with pytest.raises(MissingFile, match=r"cannot read 'gone\.png'"):
        client.submit("gone.png", "hello.wav")
    with pytest.raises(ImageNotRecognised):
        client.submit("hello.wav", "hello.wav")
    with pytest.raises(UsageError, match="either"):
        client.submit("ada.png")
    with pytest.raises(UsageError, match="motion"):
        client.submit("ada.png", "hello.wav", motion="wild")
    with pytest.raises(UsageError, match="allowed is one of queued"):
        client.jobs(state="error")
    with pytest.raises(UnknownJob):
        client.job(new_id()).result(timeout_s=1)


def test_asyncio_has_the_same_names(api: Api, files: Path) -> None:
    async def make() -> tuple[list[lipsyncd.Event], lipsyncd.Video, list[str]]:
        client = lipsyncd.AsyncClient(api.url, key=KEY)
        jobs = await asyncio.gather(*(client.submit("ada.png", "hello.wav", name=f"both-{n}") for n in range(2)))
        events = [event async for event in jobs[0].events(every_s=60)]  # the server tells of each change
        async for _ in jobs[1].events(every_s=60):
            break  # nothing waits for the others
        with pytest.raises(UnknownJob):
            [event async for event in client.job(new_id()).events()]
        results = await asyncio.gather(*(job.result(timeout_s=60) for job in jobs))
        video = await results[1].download("b.mp4")
        with pytest.raises(IllegalTransition):
            await jobs[0].cancel()
        return events, video, [job.state for job in await client.jobs(limit=2)]

    events, video, states = asyncio.run(make())
    assert events[-1].state == "done"
    assert (video.path, video.frames) == (Path("b.mp4"), 13)
    assert states == ["done", "done"]
    names = {name for name in vars(lipsyncd.Client) if not name.startswith("_")}
    assert names <= set(vars(lipsyncd.AsyncClient))


def test_it_needs_the_standard_library_only(api: Api, files: Path) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import lipsyncd\n"
        "client = lipsyncd.Client(sys.argv[2], key=sys.argv[3])\n"
        "print(client.submit('ada.png', 'hello.wav').result(timeout_s=60).download('c.mp4').frames)\n"
    )
    command = [sys.executable, "-I", "-S", "-c", program, str(ROOT), api.url, KEY]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("13\n", "")


# -- servers that refuse, vanish or lie --------------------------------------------------------------------------------


def test_wrong_arguments_and_wrong_keys_are_refused(api: Api) -> None:
    for wrong in ({}, {"url": api.url, "storage": "/tmp"}, {"storage": "/tmp", "key": "k"}, {"url": "box:8003"}):
        with pytest.raises(UsageError):
            lipsyncd.Client(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no folder"):
        lipsyncd.Client(storage="/nonexistent")
    with pytest.raises(KeyRefused, match="key"):
        lipsyncd.Client(api.url, key="another").jobs()
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1 "):
        lipsyncd.Client("http://127.0.0.1:1").jobs()


def test_a_full_queue_says_when_to_ask_again(tmp_path: Path, files: Path) -> None:
    Path("hello.wav").write_bytes(sound(20))
    (tmp_path / "full").mkdir()
    with serving(tmp_path / "full", changes={"web": {"max_queue": 1}}) as full:
        client = lipsyncd.Client(full.url)
        running = client.submit("ada.png", "hello.wav", renderer="slow")
        next(event for event in running.events(every_s=0.05) if event.state == "running")
        waiting = client.submit("ada.png", "hello.wav", renderer="slow")
        with pytest.raises(Busy) as busy:
            client.submit("ada.png", "hello.wav", renderer="slow")
        assert 1 <= busy.value.retry_after_s <= 3600
        for job in (waiting, running):
            job.cancel()


def test_a_storage_without_a_daemon_says_so(tmp_path: Path, files: Path) -> None:
    installation = Installation(tmp_path / "idle")
    installation.root.mkdir()
    installation.folders.initialise()
    client = lipsyncd.Client(storage=installation.root / "storage")
    job = client.submit("ada.png", "hello.wav")
    assert job.state == "queued"
    with pytest.raises(NoDaemon):
        job.result(timeout_s=10)


class Liar(BaseHTTPRequestHandler):
    """Announces a video of 1,000 bytes, and sends ten of them."""

    body = b""

    def do_GET(self) -> None:
        video = self.path.endswith(".mp4")
        self.send_response(200)
        self.send_header("Content-Length", "1000" if video else str(len(self.body)))
        self.end_headers()
        self.wfile.write(b"0123456789" if video else self.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def liar() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Liar) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_download_that_breaks_off_leaves_nothing(liar: str, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"id": "1", "name": "a", "state": "done", "stage": "", "fraction": 1, "renderer": "flat", "error": None}
    body = json.dumps({**facts, "waits_for": None, "frames": 1, "duration": 1, "result_url": "/a.mp4"}).encode()
    monkeypatch.setattr(Liar, "body", body)
    result = lipsyncd.Client(liar).job("1").result()
    before = set(files.iterdir())
    with pytest.raises(Unreachable, match="part of the video"):
        result.download("a.mp4")
    assert set(files.iterdir()) == before


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"id": 1}', b'{"jobs": [{"state": "odd"}]}'])
def test_another_server_at_the_address_is_recognised(liar: str, monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    monkeypatch.setattr(Liar, "body", body)
    with pytest.raises(ServerError):
        lipsyncd.Client(liar).job("1").refresh()
    with pytest.raises(ServerError):
        lipsyncd.Client(liar).jobs()


# -- types -------------------------------------------------------------------------------------------------------------

TYPED = """
import lipsyncd

client = lipsyncd.Client("http://box:8003", key="k")
reveal_type(client.submit("a.png", "a.wav").result(timeout_s=1).download("a.mp4").frames)
reveal_type([event.eta_s for event in client.job("x").events()])
reveal_type(next(lipsyncd.frames("a.png", "a.wav")).shape)
reveal_type(lipsyncd.check("a.png").faces[0].width)
client.submit("a.png", "a.wav", motoin="lively")


async def use(client: lipsyncd.AsyncClient) -> None:
    reveal_type((await (await client.submit("a.png", fps=25)).result()).facts.name)
    await client.submit("a.png", fps=[])
"""


@pytest.mark.slow
def test_a_type_checker_knows_the_package(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(TYPED)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), str(program)]
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False).stdout
    revealed = [line.partition('"')[2] for line in said.splitlines() if "Revealed" in line]
    assert revealed == [f'{name}"' for name in ("int", "list[float | None]", "tuple[Any, ...]", "int", "str")], said
    assert len([line for line in said.splitlines() if ": error:" in line]) == 2, said
    assert "motoin" in said
