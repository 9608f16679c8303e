"""Before any handler: bytes that are no HTTP, bodies that differ from their head, and silent clients."""

from __future__ import annotations

import gzip
import json
import socket
import time
from collections.abc import Iterator

import pytest

from tests.kits.web_kit import Api, serving


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with serving(tmp_path_factory.mktemp("wire"), changes={"web": {"upload_timeout_s": 2.0}}) as api:
        yield api


def answer_to(api: Api, *pieces: bytes) -> bytes:
    """What the server sends for raw bytes until it closes the connection."""
    with socket.create_connection(("127.0.0.1", api.port), timeout=20) as line:
        for piece in pieces:
            line.sendall(piece)
        got = b""
        while piece := line.recv(65536):
            got += piece
        return got


CLOSE = b"Host: localhost\r\nConnection: close\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", 400),
        (b"GET / HTTP/1.1\r\nA\0b: c\r\n\r\n", 400),
        (b"\r\n" * 9 + b"x y z\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 9000 + b"\r\n\r\n", 400),
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 200 + b"\r\n", 400),
        (b"POST /talks HTTP/1.1\r\n" + CLOSE + b"Content-Length: ten\r\n\r\n", 400),
        (b"POST /talks HTTP/1.1\r\n" + CLOSE + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST /talks HTTP/1.1\r\n" + CLOSE + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc", 400),
        (b"POST /talks HTTP/1.1\r\n" + CLOSE + b"Expect: miracles\r\nContent-Length: 0\r\n\r\n", 417),
        (b"GET /health HTTP/1.1\r\n" + CLOSE + b"Upgrade: websocket\r\n\r\n", 200),
    ],
    ids=["TLS", "NUL", "three words", "long header", "long line", "many headers", "length", "chunk", "gzip", "expect",
         "upgrade"],
)  # fmt: skip
def test_requests_that_aiohttp_itself_refuses_get_an_error_of_the_same_form(api: Api, data: bytes, status: int) -> None:
    """No handler sees these; neither key nor Host is checked."""
    before = api.installation.log
    head, _, body = answer_to(api, data).partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0].split()[1] == b"%d" % status, head
    assert b"Content-Type: application/json; charset=utf-8" in lines
    error = json.loads(body)
    if status != 200:
        assert set(error) == {"kind", "description"}
        assert error["kind"] == "BadRequestError"
        assert "\n" not in error["description"]
    assert "Traceback" not in api.installation.log.removeprefix(before)


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nHost: loc"], ids=["nothing", "half a head"])
def test_a_client_that_sends_no_whole_head_is_disconnected(api: Api, sent: bytes) -> None:
    began_s = time.monotonic()
    assert answer_to(api, sent) == b""
    assert time.monotonic() - began_s > 1.5  # the limit of this server is 2 s


def test_a_client_that_has_sent_a_head_may_be_slower_afterwards(api: Api) -> None:
    """The same connection, idle for longer than a head may take, then a head in two pieces."""
    request = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.create_connection(("127.0.0.1", api.port), timeout=20) as line:
        line.sendall(request[:-2])
        time.sleep(0.2)
        line.sendall(request[-2:])
        assert line.recv(65536).startswith(b"HTTP/1.1 200 ")
        time.sleep(2.2)
        line.sendall(request)
        assert line.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_a_body_that_unpacks_to_more_than_the_limit_is_refused(api: Api) -> None:
    packed = gzip.compress(b'{"name": "' + b"x" * 30_000_000 + b'"}')
    assert len(packed) < 100_000
    answer = api.call("POST", "/talks", packed, {"Content-Encoding": "gzip"})
    assert answer.status == 400
    assert answer.json["kind"] in ("InvalidFileSizeError", "BadRequestError")
