"""Limits: requests that are too large, too many, too slow, broken or repeated, and a server without disk or inbox."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lipsyncd.jobs.job import JobState, id_of_key
from lipsyncd.ledger.ledger import Ledger
from lipsyncd.results.leftovers import UPLOADS, Piece, listed, remove
from lipsyncd.results.retention import Limits, over
from lipsyncd.settings import CurrentSettings
from lipsyncd.storage.control_files import Request, ask
from lipsyncd.storage.folders import Folders
from lipsyncd.storage.uploads import Upload, Uploads
from lipsyncd.web.clients import UNLIMITED
from lipsyncd.web.jobs import Jobs
from lipsyncd.web.links import Links
from lipsyncd.web.orders import Order
from lipsyncd.web.replies import ApiError
from lipsyncd.web.views.bodies import JobBodies
from lipsyncd.web.views.queue import SlotCount
from tests.kits.core_kit import claimed, queued
from tests.kits.installation import Installation, picture, sound
from tests.kits.web_kit import Api, Reply, multipart, serving

SCRIPT = {"type": "audio", "audio_url": "http://127.0.0.1/a.wav"}
# `prepare` refuses it quickly, without any request.
TALK = {"source_url": "http://127.0.0.1/a.png", "script": SCRIPT}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    changes = {"web": {"max_upload_mb": 1, "upload_timeout_s": 2.0, "max_queue": 4}, "render": {"renderer": "slow"}}
    with serving(tmp_path_factory.mktemp("limits"), changes=changes) as api:
        yield api


def uploads_of(api: Api) -> list[str]:
    return sorted(path.name for path in (api.installation.path("state") / "uploads").iterdir())


def drained(api: Api) -> None:
    """Cancel all open jobs and wait until none is left."""
    busy = [JobState.QUEUED, JobState.RUNNING, JobState.PUBLISHING]
    for job in api.installation.view.jobs(states=busy):
        ask(api.installation.folders.control, Request("cancel", job.id), timeout_s=20)
    api.installation.until(
        lambda: not api.installation.view.jobs(states=busy) and not list(api.installation.path("inbox").glob("rest-*")),
        "the queue's end",
    )


# -- too large, too slow -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "status"), [("/images", 400), ("/audios/", 400), ("/upload-source-image", 413),
                                              ("/generate-video", 413)])  # fmt: skip
@pytest.mark.parametrize("honest", [True, False], ids=["with a length", "chunked"])
def test_four_megabytes_over_a_limit_of_one_are_refused_and_leave_nothing(
    api: Api, path: str, status: int, honest: bool
) -> None:
    before = uploads_of(api)
    body, content_type = multipart({"source_image" if "generate" in path else "file": ("a.png", bytes(4_000_000))})
    if honest:
        answer = api.call("POST", path, body, {"Content-Type": content_type})
    else:
        pieces = [body[at : at + 100_000] for at in range(0, len(body), 100_000)]
        answer = chunked(api, path, pieces, content_type)
    assert "1 MB" in answer.refused(status, "InvalidFileSizeError")
    assert uploads_of(api) == before


def chunked(api: Api, path: str, pieces: list[bytes], content_type: str) -> Reply:
    """Send a body without a length. The server may answer before all of it was sent."""
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=30)
    try:
        connection.request("POST", path, iter(pieces), {"Content-Type": content_type}, encode_chunked=True)
        answer = connection.getresponse()
        return Reply(answer.status, answer.headers, answer.read())
    finally:
        connection.close()


def test_json_over_its_limit_gets_an_error_in_json(api: Api) -> None:
    api.call("POST", "/talks", b" " * 1_100_000).refused(400, "InvalidFileSizeError")


def test_an_upload_that_never_ends_times_out(api: Api) -> None:
    before, began_s = uploads_of(api), time.monotonic()
    with socket.create_connection(("127.0.0.1", api.port), timeout=20) as line:
        line.sendall(
            b"POST /images HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000\r\n"
            b"Content-Type: multipart/form-data; boundary=X\r\n\r\n"
            b'--X\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nabc'
        )
        head = line.recv(65536)
    assert b" 408 " in head.split(b"\r\n")[0]
    assert b'"RequestTimeoutError"' in head
    assert time.monotonic() - began_s < 10
    assert uploads_of(api) == before


def test_json_that_never_ends_times_out(api: Api) -> None:
    with socket.create_connection(("127.0.0.1", api.port), timeout=20) as line:
        line.sendall(b'POST /talks HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n{"a":')
        assert b" 408 " in line.recv(65536).split(b"\r\n")[0]


@pytest.mark.slow
def test_a_hundred_clients_may_wait_and_the_next_one_is_answered_at_once(api: Api) -> None:
    drained(api)
    files = {"source_image": ("a.png", picture()), "audio_data": ("a.wav", sound(2.0))}
    job_id = api.form("/generate-video", **files).json["id"]
    request = f"GET /talk-status/{job_id}?wait=50 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    with contextlib.ExitStack() as lines:
        for _ in range(100):
            lines.enter_context(socket.create_connection(("127.0.0.1", api.port), timeout=60)).sendall(request)
        began_s = time.monotonic()
        while api.get(f"/talk-status/{job_id}?wait=3").json["status"] in ("queued", "processing"):
            if time.monotonic() - began_s < 2.9:
                break  # this one did not have to wait
            began_s = time.monotonic()
        else:
            raise AssertionError("the job ended before anybody was answered at once")
    drained(api)


def test_a_client_that_hangs_up_in_the_middle_leaves_nothing(api: Api) -> None:
    before = uploads_of(api)
    with socket.create_connection(("127.0.0.1", api.port), timeout=20) as line:
        line.sendall(
            b"POST /images HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000\r\n"
            b"Content-Type: multipart/form-data; boundary=X\r\n\r\n"
            b'--X\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + bytes(300_000)
        )
        api.installation.until(lambda: len(uploads_of(api)) > len(before), "the upload to arrive")
    api.installation.until(lambda: uploads_of(api) == before, "it to be cleared away")


# -- broken requests ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [b"", b"  ", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"a": NaN}', b'{"source_url": "\\ud800"}',
     b'{"script": 1e999}'],
)  # fmt: skip
def test_broken_json_is_400(api: Api, body: bytes) -> None:
    answer = api.call("POST", "/talks", body)
    assert answer.json["kind"] in ("BadRequestError", "ValidationError")
    assert answer.status == 400


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("text/plain", b"hello"),
        ("multipart/form-data", b"hello"),
        ("multipart/form-data; boundary=X", b"hello"),
        ("multipart/form-data; boundary=X", b"--X\r\n\r\n"),
        ("multipart/form-data; boundary=X", b"--X\r\nContent-Disposition: form-data; name=image\r\n\r\nabc"),
        ("multipart/form-data; boundary=" + "X" * 200, b"--X--"),
        ("multipart/mixed; boundary=X", b"--X--\r\n"),
    ],
)
def test_a_broken_form_is_400(api: Api, content_type: str, body: bytes) -> None:
    before = uploads_of(api)
    answer = api.call("POST", "/images", body, {"Content-Type": content_type})
    assert (answer.status, "kind" in answer.json) in ((400, True), (415, True))
    assert uploads_of(api) == before


def test_the_error_for_a_wrong_method_names_the_right_ones(api: Api) -> None:
    answer = api.call("PUT", "/talks/", b"{}")
    assert "GET" in answer.refused(405, "MethodNotAllowedError")
    assert set(answer.headers["Allow"].split(", ")) == {"GET", "HEAD", "POST"}
    api.call("POST", "/nothing", b"{}").refused(404, "NotFoundError")


# -- too many ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_full_queue_says_when_to_try_again_and_the_inbox_is_never_full(api: Api) -> None:
    drained(api)
    files = {"source_image": ("a.png", picture()), "audio_data": ("a.wav", sound(2.0))}
    with ThreadPoolExecutor(8) as several:
        answers = list(several.map(lambda _: api.form("/generate-video", **files), range(8)))
    accepted = [answer.json["id"] for answer in answers if answer.status == 200]
    refused = [answer for answer in answers if answer.status != 200]
    assert 4 <= len(accepted) <= 6  # four wait; one or two may have started meanwhile
    for answer in refused:
        assert "4 may" in answer.refused(429, "TooManyRequestsError")
        assert 1 <= int(answer.headers["Retry-After"]) <= 3600
    api.installation.drop_pair("dropped")
    api.installation.until_state("dropped", JobState.QUEUED, JobState.RUNNING, JobState.DONE)
    drained(api)
    assert api.form("/generate-video", **files).status == 200
    drained(api)


def test_the_wait_and_each_end_are_computed_from_recent_jobs_and_the_slots(tmp_path: Path) -> None:
    """Four jobs wait and the last ones took ten seconds each: forty seconds on one slot, twenty on two."""
    installation = Installation(tmp_path, changes={"web": {"max_queue": 4}})
    installation.folders.initialise()
    order = Order(image="https://a.example/a.png", audio="https://a.example/a.wav")
    with closing(Ledger(installation.path("state") / "ledger.db")) as ledger:
        for number in range(3):
            done = claimed(ledger, f"done {number}")
            ledger.to_publishing(done, token="t", sha256="0" * 64, size=1, frames=25, render_ms=40)
            ledger.to_done(done, note="published")
        with closing(sqlite3.connect(ledger.path)) as connection, connection:
            connection.execute("UPDATE job SET finished_ms = started_ms + 10000")
        for number in range(4):
            queued(ledger, f"waiting {number}", rest={"created_ms": 1})
        links = Links(installation.folders.state, signed=False)
        for slots, wait_s, ends_s in (
            (1, "40", [10, 20, 30, 40]),
            (2, "20", [10, 10, 20, 20]),
            (8, "5", [10, 10, 10, 10]),
            (0, "40", [None] * 4),  # of a cluster that cannot be reached
        ):
            jobs = Jobs(CurrentSettings(installation.settings), installation.folders, partial(SlotCount, slots))
            waiting = jobs.view.jobs(states=[JobState.QUEUED], limit=9)[::-1]
            queue = JobBodies(jobs, links).queue(waiting)
            assert sorted([queue.eta_s(job) for job in waiting], key=lambda end_s: end_s or 0) == ends_s
            with pytest.raises(ApiError) as refusal:
                asyncio.run(jobs.submit(order, client=UNLIMITED, key=None, base=""))
            jobs.close()
            assert (refusal.value.status, refusal.value.headers["Retry-After"]) == (429, wait_s)


# -- repeated requests -------------------------------------------------------------------------------------------------


def test_the_same_idempotency_key_gives_the_same_job(api: Api) -> None:
    drained(api)
    with ThreadPoolExecutor(4) as several:
        answers = list(several.map(lambda _: api.post("/talks", TALK, Idempotency_Key="order-7"), range(4)))
    assert {answer.status for answer in answers} == {201}
    assert len({answer.body for answer in answers}) == 1
    assert answers[0].json["id"] == "tlk_" + id_of_key("local", "order-7").replace("-", "")
    assert answers[0].json["id"][16] == "8"  # a UUID of version 8

    other = api.post("/talks", {**TALK, "name": "another"}, Idempotency_Key="order-7")
    assert "another request" in other.refused(422, "IdempotencyError")
    assert api.post("/talks", TALK, Idempotency_Key="order-8").json["id"] != answers[0].json["id"]
    assert api.post("/talks", TALK, Idempotency_Key="\xe9\xff").status == 201  # bytes that are no UTF-8
    api.post("/talks", TALK, Idempotency_Key="x" * 256).refused(400, "BadRequestError")
    drained(api)


def test_a_repeated_form_is_the_same_by_the_bytes_of_its_files(api: Api) -> None:
    drained(api)

    def order(seed: int) -> Reply:
        files = {"source_image": ("a.png", picture(seed)), "audio_data": ("a.wav", sound())}
        return api.form("/generate-video", headers={"Idempotency-Key": "form-1"}, **files)

    first, again = order(1), order(1)
    assert first.json == again.json
    order(2).refused(422, "IdempotencyError")
    drained(api)


# -- faults of the server ----------------------------------------------------------------------------------------------


def test_an_unmounted_inbox_is_503(api: Api) -> None:
    inbox = api.installation.path("inbox")
    away = inbox.rename(inbox.with_name("inbox away"))
    inbox.mkdir()
    try:
        answer = api.post("/talks", TALK)
        assert "not mounted" in answer.refused(503, "ServiceUnavailableError")
        assert answer.headers["Retry-After"]
    finally:
        inbox.rmdir()
        away.rename(inbox)


def test_a_disk_below_its_floor_is_507(tmp_path_factory: pytest.TempPathFactory) -> None:
    floor = 10**9
    with serving(tmp_path_factory.mktemp("full"), changes={"paths": {"min_free_mb": floor}}) as api:
        api.form("/images", image=("a.png", picture())).refused(507, "InsufficientStorageError")
        api.post("/talks", TALK).refused(507, "InsufficientStorageError")


def test_a_bug_gets_an_error_of_the_same_form_without_a_traceback(api: Api) -> None:
    before = api.installation.log
    image = api.form("/images", image=("a.png", picture())).json
    (api.installation.path("state") / "uploads" / image["id"] / "facts.json").write_text('{"no": "known field"}')
    answer = api.get(image["url"])
    assert answer.refused(500, "InternalServerError") == "internal server error"
    assert "Traceback" in api.installation.log.removeprefix(before)
    (api.installation.path("state") / "uploads" / image["id"] / "facts.json").unlink()


# -- addresses ---------------------------------------------------------------------------------------------------------


def test_no_address_leads_into_the_servers_own_network(tmp_path_factory: pytest.TempPathFactory) -> None:
    with socket.create_server(("127.0.0.1", 0)) as canary:
        canary.settimeout(0.2)
        hits: list[Any] = []
        stop = threading.Event()

        def count() -> None:
            while not stop.is_set():
                try:
                    hits.append(canary.accept())
                except TimeoutError:
                    continue

        counting = threading.Thread(target=count)
        counting.start()
        port = canary.getsockname()[1]
        hosts = ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "localhost", "0.0.0.0", "[::]", "169.254.169.254",
                 "10.0.0.1", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "100.64.0.1", "192.0.0.192"]  # fmt: skip
        with serving(tmp_path_factory.mktemp("ssrf"), changes={"web": {"max_queue": 100}}) as api:
            made = [
                api.post("/talks", {**TALK, "source_url": f"http://{host}:{port}/a.png"}).json["id"] for host in hosts
            ]
            ended = [api.talk(talk_id, "error") for talk_id in made]
        stop.set()
        counting.join()
    assert hits == []
    assert {talk["error"]["kind"] for talk in ended} == {"SourceError"}
    assert {talk["error"]["code"] for talk in ended} == {"fetch-refused"}


# -- retention of uploads ----------------------------------------------------------------------------------------------


def test_old_uploads_expire_except_those_that_an_open_job_names(tmp_path_factory: pytest.TempPathFactory) -> None:
    state = tmp_path_factory.mktemp("sweep")
    uploads, folders = Uploads(state), Folders(state=state, spool=state, shared={})

    def store(upload_id: str) -> None:
        def fill(folder: Any) -> Upload:
            (folder / "content").write_bytes(b"x")
            return Upload(upload_id, "image", "png", "a.png", 1, "")

        uploads.store(upload_id, fill)

    for name in ("old", "needed", "fresh", "deleted"):
        store(name)
    for name in ("old", "needed"):
        os.utime(uploads.root / name / "facts.json", (0, 0))
    uploads.delete("deleted")
    (uploads.root / ".tmp-half").mkdir()
    os.utime(uploads.root / ".tmp-half", (0, 0))
    (uploads.root / "torn").mkdir()

    assert uploads.find("deleted") is None
    assert uploads.sweep() == 1
    two_days = Limits(age_s=48 * 3600, size_bytes=0)

    def due(*needed: str) -> list[Piece]:
        return over(listed(folders, UPLOADS, needed), two_days, time.time())

    assert sorted(piece.id for piece in due("needed")) == ["deleted", "old", "torn"]
    [needed] = [piece for piece in due() if piece.id == "needed"]
    uploads.touch("needed")
    assert not remove(folders, needed)  # a client has just submitted a job with it
    assert all(remove(folders, piece) for piece in due("needed"))
    assert sorted(p.name for p in uploads.root.iterdir()) == ["fresh", "needed"]
    assert due() == []


def test_an_upload_that_a_waiting_job_names_is_in_use(api: Api) -> None:
    drained(api)
    image = api.form("/images", image=("a.png", picture())).json
    api.post("/talks", {**TALK, "source_url": image["url"]})
    [manifest] = [json.loads(p.read_text()) for p in api.installation.path("inbox").glob("rest-*.json")] or [None]
    if manifest is not None:
        assert manifest["rest"]["uploads"] == [image["id"]]
        assert manifest["image"] == f"upload:{image['id']}"
    api.installation.until(lambda: not list(api.installation.path("inbox").glob("rest-*.json")), "the job to be taken")
    used = [json.loads(job.rest or "{}").get("uploads") for job in api.installation.view.jobs()]
    assert [image["id"]] in used
    drained(api)
