"""Own REST under `/jobs`, and what all routes tell of a job that waits: over real sockets, served by a real daemon."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from lipsyncd.daemon.commands import carry_out
from lipsyncd.errors import DiskLow
from lipsyncd.jobs.job import Job, JobState, new_id
from lipsyncd.jobs.waits import SAME_WORK, waits_for
from lipsyncd.ledger.withdrawn import FILE, Withdrawn
from lipsyncd.settings import CurrentSettings
from lipsyncd.storage.control_files import WITHDRAW, Answer, Request
from lipsyncd.web.clients import CLIENT, UNLIMITED, Client
from lipsyncd.web.jobs import Jobs
from lipsyncd.web.links import Links
from lipsyncd.web.routes.jobs_api import JobRoutes
from lipsyncd.web.uploads import CheckedUploads
from lipsyncd.web.views.bodies import JobBodies
from lipsyncd.web.views.kept import KeptOrders
from tests.kits.core_kit import is_soon, queued
from tests.kits.installation import picture, put, sound
from tests.kits.jobs_by_hand import JobsByHand
from tests.kits.web_kit import Api, serving

ANNA, BERT, BOSS = "anna:first-secret", "bert:second-secret", "boss:third-secret"
SETTLES_S = 1.5  # so that a manifest of REST lies in the inbox that long


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    root = tmp_path_factory.mktemp("jobs")
    keys = root / "keys"
    keys.write_text(f"{ANNA}\n{BERT}\n{BOSS} admin\n")
    keys.chmod(0o600)
    changes = {
        "web": {"api_key_file": str(keys), "max_queue": 50},
        "watch": {"settle_s": SETTLES_S, "settle_proven_s": SETTLES_S},
        "queue.news": {"priority": 0},
    }
    with serving(root, changes=changes) as api:
        yield api


@pytest.fixture(scope="module")
def anna(api: Api) -> Api:
    return replace(api, headers={"Authorization": ANNA})


@pytest.fixture(scope="module")
def bert(api: Api) -> Api:
    return replace(api, headers={"Authorization": BERT})


@pytest.fixture(scope="module")
def boss(api: Api) -> Api:
    return replace(api, headers={"Authorization": BOSS})


def generate(api: Api, seed: int = 0, *, seconds: float = 0.3, **fields: str) -> str:
    """Request a video; gives the job's id."""
    parts = {"source_image": (f"p{seed}.png", picture(seed)), "audio_data": ("v.wav", sound(seconds, seed))}
    answer = api.form("/generate-video", **parts, **fields)
    assert answer.status == 200, answer
    job_id: str = answer.json["id"]
    return job_id


def until(api: Api, job_id: str, what: str, **wanted: Any) -> dict[str, Any]:
    """The job as soon as these fields of it have these values."""

    def found() -> dict[str, Any] | None:
        job: dict[str, Any] = api.get(f"/jobs/{job_id}").json
        return job if wanted.items() <= job.items() else None

    job: dict[str, Any] = api.installation.until(found, what)
    return job


# -- what a job waits for ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def blocked(anna: Api) -> dict[str, Any]:
    """A job whose renderer is not installed."""
    job_id = generate(anna, 1, renderer="missing")
    anna.installation.until(lambda: anna.get(f"/jobs/{job_id}").json["waits_for"], "the reason")
    job: dict[str, Any] = anna.get(f"/jobs/{job_id}").json
    return job


def test_a_blocked_job_says_why_and_what_to_do_on_every_route(anna: Api, blocked: dict[str, Any]) -> None:
    why = blocked["waits_for"]
    assert blocked["state"] == "queued"
    assert why["code"] == "renderer-not-installed"
    assert "tests.no_such_module" in why["message"]
    assert "install them" in why["remedy"]
    status = anna.get(f"/talk-status/{blocked['id']}").json
    assert (status["status"], status["lipsyncd"]) == ("queued", {"waits_for": why})
    talk = anna.get(f"/talks/{blocked['id']}").json
    assert (talk["status"], talk["lipsyncd"]) == ("started", {"waits_for": why})  # D-ID's word once it was tried
    [listed] = [t for t in anna.get("/talks").json["talks"] if t["id"] == talk["id"]]
    assert listed["lipsyncd"] == {"waits_for": why}


def test_health_keeps_the_originals_nine_fields(anna: Api, blocked: dict[str, Any]) -> None:
    assert len(anna.get("/health").json) == 9


def test_a_blocked_job_is_taken_back(anna: Api, blocked: dict[str, Any]) -> None:
    talk_id = "tlk_" + blocked["id"].replace("-", "")
    assert anna.call("DELETE", f"/talks/{talk_id}").refused(409, "NotReadyError")
    cancelled = anna.post(f"/jobs/{talk_id}/cancel", {})
    assert (cancelled.status, cancelled.json["state"], cancelled.json["waits_for"]) == (200, "cancelled", None)
    assert anna.get(f"/talks/{talk_id}").json["error"]["code"] == "cancelled"
    again = anna.post(f"/jobs/{talk_id}/cancel", {})
    assert again.json == cancelled.json
    assert "lipsyncd" not in anna.get(f"/talk-status/{talk_id}").json
    assert anna.call("DELETE", f"/talks/{talk_id}").status == 200


def test_what_a_job_waits_for_besides_its_turn(tmp_path: Path) -> None:
    by_hand = JobsByHand(tmp_path)
    job = replace(by_hand.job(queued(by_hand.ledger)), max_attempts=3)
    by_hand.close()
    reason = {"reason_code": "render-crashed", "reason": "exit 1", "remedy": "see the log"}
    assert waits_for(job) is None
    found = waits_for(job, paused="3 MB are free")
    assert found == {"code": "disk-low", "message": "3 MB are free", "remedy": DiskLow.default_remedy}
    again = waits_for(replace(job, attempt=1, **reason), paused="3 MB are free")
    assert again is not None
    assert again["message"] == "attempt 1 of 3 failed, and the next one starts by itself: exit 1"
    other = new_id()
    same = waits_for(replace(job, duplicate_of=other))
    assert same is not None
    assert same["code"] == SAME_WORK
    assert other not in json.dumps(same), "it may be another client's job"
    published = waits_for(replace(job, state=JobState.PUBLISHING, **reason))
    assert published == {"code": "render-crashed", "message": "exit 1", "remedy": "see the log"}
    for state in (JobState.RUNNING, JobState.FAILED, JobState.DONE, JobState.CANCELLED):
        assert waits_for(replace(job, state=state, **reason), paused="3 MB are free") is None


# -- one job -----------------------------------------------------------------------------------------------------------


def test_a_job_is_shown_from_its_post_to_its_end(anna: Api) -> None:
    job_id = generate(anna, 2)
    first = anna.get(f"/jobs/{job_id}")
    assert (first.json["id"], first.json["state"], first.json["fraction"]) == (job_id, "queued", 0.0)
    assert first.headers["Retry-After"] == "2"
    done = anna.get(f"/jobs/{job_id}?wait=50").json
    assert done.keys() == first.json.keys()
    assert (done["state"], done["fraction"], done["frames"], done["duration"]) == ("done", 1.0, 8, 0.3)
    assert anna.call("GET", done["result_url"]).body[4:8] == b"ftyp"
    assert "done" in anna.post(f"/jobs/{job_id}/cancel", {}).refused(409, "NotReadyError")


def test_a_failed_job_says_why(anna: Api) -> None:
    job_id = generate(anna, 3, renderer="shy")
    failed = anna.get(f"/jobs/{job_id}?wait=50").json
    assert (failed["state"], failed["error"]["code"], failed["result_url"]) == ("failed", "no-face", None)
    assert "no face" in failed["error"]["message"]
    anna.post(f"/jobs/{job_id}/cancel", {}).refused(409, "NotReadyError")


def test_a_running_job_is_taken_back_within_a_second(anna: Api) -> None:
    seeds = iter(range(40, 50))

    def took_s() -> float:
        job_id = generate(anna, next(seeds), seconds=20, renderer="slow")
        until(anna, job_id, "the render", state="running", stage="rendering")
        asked_s = time.monotonic()
        answer = anna.post(f"/jobs/{job_id}/cancel", {})
        assert answer.status == 200
        assert answer.json["cancel_requested"] or answer.json["state"] == "cancelled"
        assert anna.get(f"/jobs/{job_id}?wait=50").json["state"] == "cancelled"
        return time.monotonic() - asked_s

    assert is_soon(took_s, 2.5)  # one second on an idle machine


def test_a_job_is_taken_back_before_intake_and_never_prepared(anna: Api) -> None:
    for seed in range(50, 55):  # on a busy machine intake may be sooner than the request
        job_id = generate(anna, seed)
        answer = anna.post(f"/jobs/{job_id}/cancel", {})
        if anna.installation.view.find(job_id) is None:
            break
    else:
        raise AssertionError("the manifest was to lie in the inbox still")
    assert (answer.status, answer.json["state"], answer.json["cancel_requested"]) == (200, "queued", True)
    assert anna.get(f"/jobs/{job_id}").json["cancel_requested"]
    assert anna.get(f"/jobs/{job_id}?wait=50").json["state"] == "cancelled"
    assert anna.get(f"/talk-status/{job_id}").json["error"] == "cancelled on request"
    stages = [event.note for event in anna.installation.view.events(job_id)]
    assert not any("prepar" in note for note in stages), stages
    recorded = Withdrawn(anna.installation.path("state"))
    anna.installation.until(lambda: job_id not in recorded, "the end of the record")


def test_a_job_that_is_being_published_says_what_it_waits_for_and_stays(anna: Api) -> None:
    outbox = anna.installation.path("outbox")
    away = outbox.with_name("outbox away")
    outbox.rename(away)
    outbox.mkdir()
    try:
        job_id = generate(anna, 9)
        job = until(anna, job_id, "the publication", state="publishing")
        anna.installation.until(lambda: anna.get(f"/jobs/{job_id}").json["waits_for"], "the reason")
        job = anna.get(f"/jobs/{job_id}").json
        assert (job["state"], job["waits_for"]["code"]) == ("publishing", "outbox-unavailable")
        assert "being published" in anna.post(f"/jobs/{job_id}/cancel", {}).refused(409, "NotReadyError")
        assert anna.get(f"/talk-status/{job_id}").json["lipsyncd"]["waits_for"] == job["waits_for"]
    finally:
        outbox.rmdir()
        away.rename(outbox)
    assert anna.get(f"/jobs/{job_id}?wait=50").json["state"] == "done"


# -- whose it is -------------------------------------------------------------------------------------------------------


def test_another_keys_job_is_neither_seen_nor_taken_back(anna: Api, bert: Api, boss: Api) -> None:
    job_id = generate(anna, 6, seconds=20, renderer="slow")
    for _ in ("before intake", "afterwards"):
        bert.get(f"/jobs/{job_id}").refused(404, "NotFoundError")
        bert.post(f"/jobs/{job_id}/cancel", {}).refused(404, "NotFoundError")
        assert not anna.get(f"/jobs/{job_id}").json["cancel_requested"]
        until(anna, job_id, "the render", state="running")
    assert boss.get(f"/jobs/{job_id}").status == 200
    assert boss.post(f"/jobs/{job_id}/cancel", {}).status == 200
    assert anna.get(f"/jobs/{job_id}?wait=10").json["state"] == "cancelled"


def test_a_job_of_the_folder_is_the_administrators(api: Api, anna: Api, boss: Api) -> None:
    put(api.installation.path("inbox"), "of the folder.png", picture(7))
    api.installation.drop_manifest("of the folder", image="of the folder.png", text="hello", renderer="missing")
    job = api.installation.until_state("of the folder", JobState.QUEUED, JobState.FAILED)
    anna.post(f"/jobs/{job.id}/cancel", {}).refused(404, "NotFoundError")
    assert boss.get(f"/jobs/{job.id}").status == 200


def test_without_a_key_nothing_is_said(api: Api) -> None:
    stranger = replace(api, headers={})
    stranger.get(f"/jobs/{new_id()}").refused(401, "AuthorizationError")
    stranger.post(f"/jobs/{new_id()}/cancel", {}).refused(401, "AuthorizationError")


# -- hostile requests --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("job_id", ["x", "..", "%2e%2e", "%00", "tlk_", "0" * 4000, "019e%2f..%2f", "%ff", "a;b"])
@pytest.mark.parametrize(("method", "suffix"), [("GET", ""), ("POST", "/cancel")])
def test_what_is_no_id_is_not_found(anna: Api, job_id: str, method: str, suffix: str) -> None:
    anna.call(method, f"/jobs/{job_id}{suffix}", b"" if method == "POST" else None).refused(404, "NotFoundError")


def test_an_unknown_id_is_not_found_and_not_recorded(anna: Api, boss: Api) -> None:
    unknown = new_id()
    for client in (anna, boss):
        client.post(f"/jobs/{unknown}/cancel", {}).refused(404, "NotFoundError")
    file = anna.installation.path("state") / FILE
    assert not file.exists() or unknown not in file.read_text()


def test_a_wrong_method_names_the_right_one(anna: Api) -> None:
    path = f"/jobs/{new_id()}"
    assert anna.call("GET", f"{path}/cancel").refused(405, "MethodNotAllowedError")
    assert "DELETE, GET, HEAD" in anna.call("PUT", path).refused(405, "MethodNotAllowedError")


@pytest.mark.parametrize("body", [b"", b"{", b"\xff" * 5000, b"[" * 50_000], ids=["none", "cut", "bytes", "deep"])
def test_the_body_of_a_cancellation_is_not_read(anna: Api, body: bytes) -> None:
    answer = anna.call("POST", f"/jobs/{new_id()}/cancel", body, {"Content-Type": "application/json"})
    answer.refused(404, "NotFoundError")


def test_a_body_that_never_comes_holds_up_nothing(anna: Api) -> None:
    head = f"POST /jobs/{new_id()}/cancel HTTP/1.1\r\nHost: localhost\r\nAuthorization: {ANNA}\r\n"
    with socket.create_connection(("127.0.0.1", anna.port), timeout=10) as connection:
        connection.sendall(f"{head}Content-Length: 1000000000\r\n\r\n".encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 404")


def test_many_cancellations_of_one_job_at_a_time_agree_and_delay_no_reader(anna: Api) -> None:
    job_id = generate(anna, 8, seconds=20, renderer="slow")

    def read_s() -> float:
        asked_s = time.monotonic()
        assert anna.get(f"/talk-status/{job_id}").status == 200
        return time.monotonic() - asked_s

    with ThreadPoolExecutor(24) as several:
        cancels = [several.submit(anna.post, f"/jobs/{job_id}/cancel", {}) for _ in range(20)]
        took_s = read_s()
        assert {one.result().status for one in cancels} == {200}
    assert took_s < 2.0 + 10 * read_s()  # a busy machine delays each request
    assert anna.get(f"/jobs/{job_id}?wait=10").json["state"] == "cancelled"
    assert not re.search(r" error | Traceback", anna.installation.log)


# -- ids without a row -------------------------------------------------------------------------------------------------


def test_an_id_that_was_taken_back_outlives_a_crash_and_is_forgotten_at_its_end(tmp_path: Path) -> None:
    by_hand, job_id = JobsByHand(tmp_path), new_id()
    answer = carry_out(Request(WITHDRAW, job_id.upper()), by_hand.stores, by_hand.finisher)
    by_hand.close()
    assert (answer.ok, answer.message) == (True, "is taken back before it is accepted")
    assert job_id in Withdrawn(by_hand.folders.state)
    Withdrawn(by_hand.folders.state).discard(job_id)
    assert job_id not in Withdrawn(by_hand.folders.state)


def test_a_job_that_has_a_row_is_cancelled_and_may_be_retried(tmp_path: Path) -> None:
    by_hand = JobsByHand(tmp_path)
    job_id = by_hand.queued()
    assert carry_out(Request(WITHDRAW, job_id), by_hand.stores, by_hand.finisher).message == "cancelled"
    assert by_hand.job(job_id).state is JobState.CANCELLED
    assert job_id not in by_hand.stores.withdrawn
    by_hand.close()


def test_what_is_no_id_is_not_recorded_and_the_file_stays_small(tmp_path: Path) -> None:
    by_hand = JobsByHand(tmp_path)
    for text in ("x" * 299, "../../etc", "", "tlk_"):
        assert not carry_out(Request(WITHDRAW, text), by_hand.stores, by_hand.finisher).ok
    assert not (by_hand.folders.state / FILE).exists()
    first, ids = new_id(), [new_id() for _ in range(1000)]
    by_hand.stores.withdrawn._write((first, *ids[:-1]))
    by_hand.stores.withdrawn.add(ids[-1])
    assert first not in by_hand.stores.withdrawn
    assert all(one in by_hand.stores.withdrawn for one in (ids[0], ids[-1]))
    by_hand.close()


@pytest.mark.parametrize("content", ["", "{", '{"ids": 7}', '["a"]', '{"ids": [1, null]}'])
def test_a_damaged_file_takes_nothing_back(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    withdrawn = Withdrawn(tmp_path)
    assert new_id() not in withdrawn
    withdrawn.add("a")
    assert "a" in withdrawn


# -- the list, and equal requests --------------------------------------------------------------------------------------


def test_the_list_has_the_newest_jobs_of_the_client_in_one_state_or_in_any(anna: Api, bert: Api, boss: Api) -> None:
    mine, other = [generate(anna, seed) for seed in (70, 71)], generate(bert, 72)
    waiting = anna.get("/jobs?limit=2").json["jobs"]
    assert {job["id"] for job in waiting} == set(mine)  # before intake has seen them
    for job_id in (*mine, other):
        until(boss, job_id, "the end", state="done")
    listed = anna.get("/jobs?state=done&limit=2").json["jobs"]
    assert listed[0] == anna.get(f"/jobs/{listed[0]['id']}").json
    assert {job["id"] for job in listed} == set(mine)
    assert other not in [job["id"] for job in anna.get("/jobs").json["jobs"]]
    assert other in [job["id"] for job in boss.get("/jobs").json["jobs"]]
    assert {job["state"] for job in boss.get("/jobs?state=failed").json["jobs"]} <= {"failed"}
    assert "allowed is one of queued, running" in anna.get("/jobs?state=error").refused(400, "BadRequestError")


def test_pages_of_the_list_have_each_job_once(anna: Api) -> None:
    """Also while new jobs come, and beginning with one that has no row yet."""
    for seed in (73, 74):
        until(anna, generate(anna, seed), "the end", state="done")
    newest = generate(anna, 75)
    first = anna.get("/jobs?limit=1").json
    assert [job["id"] for job in first["jobs"]] == [newest]
    until(anna, newest, "the end", state="done")
    seen, cursor = [newest], first["next"]
    while cursor:
        page = anna.get(f"/jobs?limit=2&cursor={cursor}").json
        seen += [job["id"] for job in page["jobs"]]
        cursor = page["next"]
    assert len(seen) >= 3
    assert seen == [job["id"] for job in anna.get("/jobs").json["jobs"]]
    assert anna.get("/jobs?cursor=x").refused(400, "BadRequestError") == "the token was not issued by this server"


def test_the_list_is_filtered_by_states_name_queue_and_time(anna: Api, boss: Api) -> None:
    for name, content in (("Evening_show.png", picture(77)), ("Evening_show.wav", sound(0.3, 77))):
        put(boss.installation.path("inbox") / "news", name, content)

    def dropped(query: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = boss.get(f"/jobs?queue=news{query}").json["jobs"]
        return found

    job = boss.installation.until(lambda: dropped("&state=done"), "the dropped job")[0]
    assert (job["name"], job["queue"]) == ("Evening_show", "news")
    assert dropped(f"&name=EVENING_&state=queued,done&since={job['created_at']}") == [job]
    assert dropped("&name=eveningx") == dropped("&state=failed&state=cancelled") == dropped("&since=2999-01-01") == []
    assert anna.get("/jobs?queue=news").json == {"jobs": [], "next": None}
    assert "2026-11-30T08:00:00Z" in boss.get("/jobs?since=yesterday").refused(400, "BadRequestError")
    assert "200" in boss.get("/jobs?name=" + "x" * 201).refused(400, "BadRequestError")
    assert "'x'" in boss.get("/jobs?state=done,x").refused(400, "BadRequestError")


def test_the_same_files_uploaded_again_are_the_same_request(anna: Api) -> None:
    """A client that got no answer uploads anew, and the addresses of its uploads are others then."""

    def talk(seed: int) -> Any:
        image = anna.form("/images", image=("a.png", picture(seed))).json["url"]
        audio = anna.form("/audios", audio=("a.wav", sound(0.3, 80))).json["url"]
        script = {"type": "audio", "audio_url": audio}
        return anna.post("/talks", {"source_url": image, "script": script}, Idempotency_Key="order-80")

    first, again = talk(80), talk(80)
    assert (first.status, again.status) == (201, 201)
    assert first.json["id"] == again.json["id"]
    talk(81).refused(422, "IdempotencyError")


def test_a_job_that_is_accepted_while_it_is_taken_back_is_taken_back(tmp_path: Path) -> None:
    """The daemon has recorded its id, and its row does not show that before it is prepared."""
    by_hand = JobsByHand(tmp_path)
    job = by_hand.ledger.get(queued(by_hand.ledger))

    class Accepting(Jobs):
        async def get(self, _job_id: str, _client: Client) -> Job:
            return job

        async def request(self, _action: str, _job_id: str, _value: int = 0) -> Answer:
            return Answer(True, "is taken back before it is accepted")

    settings = CurrentSettings(by_hand.settings)
    jobs = Accepting(settings, by_hand.folders)
    kept = KeptOrders(jobs, CheckedUploads(settings, Path("/nowhere")))
    routes = JobRoutes(jobs, JobBodies(jobs, Links(by_hand.folders.state, signed=False)), kept)
    request = make_mocked_request("POST", f"/jobs/{job.id}/cancel", match_info={"id": job.id})
    request[CLIENT] = UNLIMITED
    answer = asyncio.run(routes.cancel(request))
    assert isinstance(answer.body, bytes)
    shown = json.loads(answer.body)
    assert (answer.status, shown["state"], shown["cancel_requested"]) == (200, "queued", True)
    jobs.close()
    by_hand.close()
