"""Streams of events of a real server: when they end, who may read one from a page, and readers that do not read."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lipsyncd.web.views.streams import MOST_STREAMS
from tests.kits.installation import picture, sound
from tests.kits.web_kit import Api, Browser, Reader, serving

ANNA, BERT, CARL = "anna:first-secret", "bert:second-secret", "carl:third-secret"
LISTED, FOREIGN = "https://studio.example.org", "https://evil.example"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"{ANNA}\n{BERT}\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


@pytest.fixture
def api(tmp_path: Path, keys: Path, pool: ThreadPoolExecutor) -> Iterator[Api]:
    """The server stops before the pool, whose readers wait for it."""
    with serving(tmp_path, changes={"web": {"api_key_file": str(keys), "cors_origins": [LISTED]}}) as api:
        yield api


def opened(browser: Browser, **headers: str) -> Reader:
    """As EventSource opens a stream: it can send no header of its own."""
    return Reader(browser.api, "/jobs/events", **{**browser.sent("GET"), "Accept": "text/event-stream", **headers})


def followed(pool: ThreadPoolExecutor, reader: Reader) -> Future[list[dict[str, Any]]]:
    """All its events, once the stream has ended."""
    assert reader.answer.status == 200
    return pool.submit(lambda: list(reader.events()))


def test_a_stream_names_the_devices_of_a_server_with_several(tmp_path: Path) -> None:
    render = {"devices": ["cpu", "cuda:7", "cuda:8"], "max_concurrent_jobs": 2}
    with serving(tmp_path, changes={"render": render}) as api:
        reader = Reader(api, "/jobs/events")
        assert reader.until(slots=2) == {"slots": 2, "busy": 0}
        reader.close()


def test_a_stream_ends_with_its_sign_in_and_no_other_does(api: Api, pool: ThreadPoolExecutor) -> None:
    mine, other = Browser(api), Browser(api)
    for browser in (mine, other):
        assert browser.sign_in(ANNA).status == 204
    readers = [opened(mine), opened(mine), opened(other), Reader(api, "/jobs/events", Authorization=ANNA)]
    ends = [followed(pool, reader) for reader in readers]
    assert mine.call("DELETE", "/session").status == 204
    assert [end.result(60) for end in ends[:2]] == [[], []]
    assert opened(mine).answer.status == 401
    assert not any(end.done() for end in ends[2:])
    first = Reader(api, "/jobs/events", Authorization=ANNA)
    job = other.form("/jobs", image=("p.png", picture()), audio=("v.wav", sound(0.3)), renderer="missing").json
    for path in ("/jobs/events", f"/jobs/{job['id']}/events"):
        for headers in ({"Origin": FOREIGN}, {"Origin": LISTED}, {"Sec_Fetch_Site": "same-site"}):
            assert Reader(api, path, **other.sent("GET", **headers)).answer.status == 403
    first.until(id=job["id"])
    first.close()
    assert other.call("DELETE", "/session").status == 204
    assert job["id"] in {event["id"] for event in ends[2].result(60)}
    assert not ends[3].done()
    api.installation.stop()
    assert job["id"] in {event["id"] for event in ends[3].result(60)}


def test_all_streams_end_when_the_keys_change_and_readers_with_a_key_come_back(
    api: Api, keys: Path, pool: ThreadPoolExecutor
) -> None:
    browser = Browser(api)
    assert browser.sign_in(BERT).status == 204
    readers = [opened(browser), *(Reader(api, "/jobs/events", Authorization=key) for key in (ANNA, BERT))]
    ends = [followed(pool, reader) for reader in readers]
    assert api.installation.cli("reload").returncode == 0  # the keys are the same
    time.sleep(0.3)
    assert not any(end.done() for end in ends)
    keys.write_text(f"{BERT}\n{CARL}\n")
    assert api.installation.cli("reload").returncode == 0
    assert [end.result(60) for end in ends] == [[], [], []]
    back = [Reader(api, "/jobs/events", Authorization=key) for key in (ANNA, BERT, CARL)]
    assert [reader.answer.status for reader in back] == [401, 200, 200]
    assert opened(browser).answer.status == 401
    for reader in back:
        reader.close()


def test_a_page_of_a_listed_origin_reads_a_stream_with_its_key(api: Api) -> None:
    for path, status in (("/jobs/events", 200), ("/jobs/none/events", 404)):
        for origin, allowed in ((LISTED, LISTED), (FOREIGN, None)):
            reader = Reader(api, path, Authorization=ANNA, Origin=origin)
            assert reader.answer.status == status
            assert reader.answer.headers["Access-Control-Allow-Origin"] == allowed
            assert reader.answer.headers["Access-Control-Allow-Credentials"] is None
            reader.close()
    assert Reader(api, "/jobs/events", Origin=LISTED).answer.headers["Access-Control-Allow-Origin"] == LISTED  # of 401


@pytest.mark.slow
def test_a_comment_comes_every_15_seconds(api: Api) -> None:
    with socket.create_connection(("127.0.0.1", api.port), timeout=30) as line:
        head = f"GET /jobs/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: {ANNA}\r\n\r\n"
        line.sendall(head.encode())
        seen, began_s = b"", time.monotonic()
        while seen.count(b":\n\n") < 2:
            seen += line.recv(65536)
        assert 29 < time.monotonic() - began_s < 50
        assert seen.endswith(b":\n\n\r\n")  # in a chunk


def test_the_257th_stream_is_refused_and_requests_are_answered(tmp_path: Path) -> None:
    with serving(tmp_path, LIPSYNCD_API_KEY=ANNA) as api:
        readers = [Reader(api, "/jobs/events", Authorization=ANNA) for _ in range(MOST_STREAMS)]
        assert {reader.answer.status for reader in readers} == {200}
        refused = api.get("/jobs/events", Authorization=ANNA)
        assert "256 streams are open" in refused.refused(503, "ServiceUnavailableError")
        assert refused.headers["Retry-After"] == "10"
        assert api.get("/jobs", Authorization=ANNA).status == 200
        for reader in readers:
            reader.close()
        api.installation.until(lambda: Reader(api, "/jobs/events", Authorization=ANNA).answer.status == 200, "a place")
        assert "Traceback" not in api.installation.log


@pytest.mark.slow
def test_a_reader_that_does_not_read_is_disconnected_and_no_other(tmp_path: Path) -> None:
    """Its socket takes little, so that what is unread stays in the server. Each order by hand moves twenty places."""
    with serving(tmp_path, changes={"web": {"max_queue": 40}}) as api, socket.socket() as line:
        files = {"image": ("p.png", picture()), "audio": ("v.wav", sound(60))}
        first = api.form("/jobs", renderer="slow", **files).json["id"]
        ids = [api.form("/jobs", renderer="slow", name="n" * 190, **files).json["id"] for _ in range(20)]
        api.installation.until(lambda: api.get(f"/jobs/{ids[-1]}").json["position"] == 20, "the last place")
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
        line.settimeout(30)
        line.connect(("127.0.0.1", api.port))
        line.sendall(b"GET /jobs/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        reader = Reader(api, "/jobs/events")
        for priority in range(1, 101):
            moved = ids[-priority % len(ids)]
            api.post(f"/jobs/{moved}/priority", {"priority": priority})
            reader.until(id=moved, priority=priority)  # who reads gets everything, and soon
            if "a stream is too slow" in api.installation.log:
                break
        assert api.installation.log.count("a stream is too slow") == 1
        assert api.get(f"/jobs/{first}").json["state"] == "running"
        received = 0
        try:
            while piece := line.recv(65536):
                received += len(piece)
        except ConnectionResetError:
            pass
        assert received < 512 << 10  # what lay in the sockets
        reader.close()
        for job_id in (*ids, first):
            api.post(f"/jobs/{job_id}/cancel", {})
