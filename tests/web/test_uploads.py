"""What clients have uploaded: who may read it, how long it is kept, how much of it, how slowly it may come."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lipsyncd.ledger.view import LedgerView
from lipsyncd.results.leftovers import UPLOADS
from lipsyncd.results.retention import Retention
from lipsyncd.web.clients import Client
from lipsyncd.web.quotas import may_take_one
from tests.kits.installation import Installation, picture, sound
from tests.kits.web_kit import Api, multipart, port_of, serving
from tests.web.test_tenants import ANNA, BERT, keys_file, with_key


def test_uploads_are_ours_alone_and_must_be_those_that_were_checked(tmp_path: Path) -> None:
    """Under the unit's umask, and also those of an older version; one whose bytes have changed is no source."""
    installation = Installation(tmp_path, changes={"web": {"enabled": True}})
    before = os.umask(0o007)
    try:
        installation.start(fresh=True)
    finally:
        os.umask(before)
    api = Api(installation, port_of(installation))
    image = api.form("/images", image=("a.png", picture())).json
    folder = installation.path("state") / "uploads" / image["id"]
    for name in ("content", "facts.json"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600
    (folder / "content").chmod(0o660)
    installation.stop()

    with serving(tmp_path) as api:
        api.installation.until(lambda: (folder / "content").stat().st_mode & 0o777 == 0o600, "the right mode")
        (folder / "content").write_bytes(picture(7))
        made = api.form("/generate-video", source_url=image["url"], audio_data=("a.wav", sound()))
        talk = api.talk(made.json["id"], "error")
        assert talk["error"]["code"] == "inputs-lost"
        assert "checked" in talk["error"]["description"]


# -- the lowest rate ---------------------------------------------------------------------------------------------------

HEAD = (
    "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000\r\n"
    "Content-Type: multipart/form-data; boundary=X\r\n\r\n"
    '--X\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
)


def slow_clients(stack: contextlib.ExitStack, api: Api, number: int) -> list[socket.socket]:
    """Clients that send a hundred bytes of a picture each second, until the stack is closed."""
    lines = [stack.enter_context(socket.create_connection(("127.0.0.1", api.port), timeout=60)) for _ in range(number)]
    for line in lines:
        line.sendall(HEAD.format(path="/images").encode())
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(1.0):
            for line in lines:
                with contextlib.suppress(OSError):
                    line.sendall(b"x" * 100)

    thread = threading.Thread(target=drip)
    thread.start()
    stack.callback(thread.join)
    stack.callback(stop.set)
    return lines


@pytest.mark.slow
def test_a_dozen_slow_uploads_are_ended_and_others_find_room(tmp_path: Path) -> None:
    with serving(tmp_path) as api, contextlib.ExitStack() as stack:
        lines = slow_clients(stack, api, 12)
        began_s = time.monotonic()
        folder = api.installation.path("state") / "uploads"
        api.installation.until(lambda: len(list(folder.glob(".tmp-in-*"))) == 12, "twelve uploads on their way")
        assert api.form("/images", image=("a.png", picture())).refused(429, "TooManyRequestsError")
        api.installation.until(lambda: api.form("/images", image=("a.png", picture())).status == 201, "room")
        assert time.monotonic() - began_s < 120  # and not the 300 s of `web.upload_timeout_s`
        answers = [line.recv(65_536) for line in lines]
    assert all(answer.startswith(b"HTTP/1.1 408 ") and b"too slow" in answer for answer in answers)


@pytest.mark.slow
def test_an_upload_at_the_lowest_rate_arrives_and_json_that_drips_is_ended(tmp_path: Path) -> None:
    """With a pause in it, and for longer than the rate is measured at a time."""
    with serving(tmp_path, changes={"web": {"min_kb_s": 2.0}}) as api:
        body, content_type = multipart({"image": ("a.png", picture(1, 160, 130))})
        with socket.create_connection(("127.0.0.1", api.port), timeout=60) as line:
            head = f"Host: localhost\r\nContent-Length: {len(body)}\r\nContent-Type: {content_type}\r\n\r\n"
            line.sendall(f"POST /images HTTP/1.1\r\n{head}".encode())
            half = len(body) // 2
            line.sendall(body[:half])
            time.sleep(6)
            for at in range(half, len(body), 5000):
                line.sendall(body[at : at + 5000])
                time.sleep(1)
            assert line.recv(65_536).startswith(b"HTTP/1.1 201 ")
        with socket.create_connection(("127.0.0.1", api.port), timeout=60) as line:
            line.sendall(b"POST /talks HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000\r\n\r\n{")
            began_s = time.monotonic()
            assert line.recv(65_536).startswith(b"HTTP/1.1 408 ")
            assert 5 < time.monotonic() - began_s < 60


# -- the share of one client -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("taken", "own", "tenants", "expected"),
    [
        ({}, "a", 2, True),
        ({"a": 4}, "a", 2, True),
        ({"a": 5}, "a", 2, False),  # half of ten
        ({"a": 5}, "b", 2, True),
        ({"a": 5, "b": 4}, "b", 2, True),
        ({"a": 5, "b": 5}, "a", 2, False),
        ({"a": 4, "b": 4}, "b", 4, False),  # two places are left for the other two
        ({"a": 4, "b": 4}, "c", 4, True),
        ({"a": 4, "b": 4, "c": 1}, "d", 4, True),
        ({"a": 4, "b": 4, "c": 2}, "d", 4, False),
        ({"a": 7}, "b", 9, True),
        ({"": 9}, "", 1, True),
        ({"": 5, "a": 5}, "a", 1, False),
    ],
)
def test_the_places_that_one_of_several_tenants_gets(
    taken: dict[str, int], own: str, tenants: int, expected: bool
) -> None:
    assert may_take_one(Client(own, tenants=tenants), taken, 10) is expected


def test_one_key_cannot_fill_the_queue_for_another(tmp_path: Path) -> None:
    changes = keys_file(tmp_path, ANNA, BERT)
    changes["web"]["max_queue"] = 6
    with serving(tmp_path, changes=changes | {"render": {"renderer": "hang"}}) as api:
        anna, bert = with_key(api, ANNA), with_key(api, BERT)
        files = {"source_image": ("a.png", picture()), "audio_data": ("a.wav", sound())}
        first = anna.form("/generate-video", **files).json["id"]
        api.installation.until(
            lambda: anna.get(f"/talk-status/{first}").json["status"] == "processing", "the first one to run"
        )
        answers = [anna.form("/generate-video", **files).status for _ in range(6)]
        assert answers == [200, 200, 200, 429, 429, 429]
        refused = anna.form("/generate-video", **files)
        assert "3 of them this client's" in refused.refused(429, "TooManyRequestsError")
        assert [bert.form("/generate-video", **files).status for _ in range(4)] == [200, 200, 200, 429]


class Silent(BaseHTTPRequestHandler):
    """Answers one path at once, and all others after half a minute."""

    def do_GET(self) -> None:
        if self.path != "/quick.png":
            time.sleep(30)
        body = picture()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def silent_server() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.slow
def test_the_slow_fetches_of_one_key_hold_up_no_other(tmp_path: Path, silent_server: str) -> None:
    changes = keys_file(tmp_path, ANNA, BERT) | {"fetch": {"allow": ["127.0.0.1"], "timeout_s": 12.0}}
    with serving(tmp_path, changes=changes) as api, contextlib.ExitStack() as stack:
        for _ in range(8):
            thread = threading.Thread(
                target=with_key(api, ANNA).form, args=("/images",), kwargs={"source_url": f"{silent_server}/a.png"}
            )
            thread.start()
            stack.callback(thread.join)
        time.sleep(1)
        began_s = time.monotonic()
        answer = with_key(api, BERT).form("/images", source_url=f"{silent_server}/quick.png")
        assert answer.status == 201, answer
        assert time.monotonic() - began_s < 10  # and not the 12 s of each fetch


# -- the space of uploads ----------------------------------------------------------------------------------------------


def test_each_key_has_an_equal_part_of_the_space_and_persisting_lives_within_it(tmp_path: Path) -> None:
    """0.96 MB for two keys. Each of these pictures has some 94 kB with its thumbnail and its bookkeeping."""
    changes = keys_file(tmp_path, ANNA, BERT) | {"retention": {"uploads_gb": 0.00096}}
    with serving(tmp_path, changes=changes) as api:
        anna, bert = with_key(api, ANNA), with_key(api, BERT)
        content = picture(1, 160, 130)
        assert 60_000 < len(content) < 64_000

        def send(client: Api, **fields: str) -> int:
            return client.form("/images", image=("a.png", content), **fields).status

        assert [send(anna, persist="true") for _ in range(3)] == [201, 201, 507]  # half of the part
        assert [send(anna) for _ in range(3)] == [201, 201, 507]
        full = anna.form("/images", image=("a.png", content))
        assert "retention.uploads_gb" in full.refused(507, "InsufficientStorageError")
        assert full.headers["Retry-After"]
        assert [send(bert) for _ in range(6)] == [201, 201, 201, 201, 201, 507]
        uploads = api.installation.path("state") / "uploads"
        for path in uploads.glob("*/facts.json"):
            os.utime(path, (time.time() - 7200, time.time() - 7200))
        assert [send(anna), send(anna)] == [201, 201]  # its own oldest ones go, those that persist stay
        assert len(list(uploads.glob("*/persists"))) == 2
        assert sum(path.stat().st_size for path in uploads.glob("*/content")) <= 960_000


def test_uploads_that_persist_go_last_and_only_for_their_size(tmp_path: Path) -> None:
    """Such as those of a key that is gone, or of the time before there was a limit."""
    content = picture(1, 160, 130)
    with serving(tmp_path, changes={"retention": {"uploads_gb": 0.0}}) as api:
        persist = [api.form("/images", image=("a.png", content), persist="true").json["id"] for _ in range(4)]
        others = [api.form("/images", image=("a.png", content)).json["id"] for _ in range(3)]
        uploads = api.installation.path("state") / "uploads"
        for number, upload_id in enumerate(persist + others):
            at_s = time.time() - 300 * 86_400 + number
            os.utime(uploads / upload_id / "facts.json", (at_s, at_s))
    view = LedgerView(api.installation.path("state") / "ledger.db")

    def due(uploads_gb: float) -> set[str]:
        api.installation.changes["retention"]["uploads_gb"] = uploads_gb
        rules = Retention(api.installation.settings, api.installation.folders, view)
        return {piece.id for piece in rules.due(UPLOADS, time.time())[0]}

    each_gb = sum(path.stat().st_size for path in (uploads / persist[0]).iterdir()) / 1e9
    assert due(0.0) == set(others)  # too old
    assert due(4.5 * each_gb) == set(others)
    assert due(2.5 * each_gb) == {*others, *persist[:2]}
