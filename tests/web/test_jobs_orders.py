"""`POST /jobs`, and what clients do with their jobs: over real sockets, served by a real daemon."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lipsyncd.jobs.job import Job, JobState
from lipsyncd.settings import CurrentSettings, Web
from lipsyncd.web.clients import UNLIMITED
from lipsyncd.web.jobs import Jobs
from lipsyncd.web.orders import Order
from lipsyncd.web.replies import ApiError
from tests.kits.core_kit import spec_of
from tests.kits.installation import picture, put, sound
from tests.kits.jobs_by_hand import JobsByHand
from tests.kits.web_kit import Api, Reply, serving

ANNA, BERT, BOSS = "anna:first-secret", "bert:second-secret", "boss:third-secret"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    root = tmp_path_factory.mktemp("orders")
    keys = root / "keys"
    keys.write_text(f"{ANNA}\n{BERT}\n{BOSS} admin\n")
    keys.chmod(0o600)
    with serving(root, changes={"web": {"api_key_file": str(keys), "max_queue": 8}}) as api:
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


def ordered(api: Api, seed: int = 0, **fields: str) -> dict[str, Any]:
    """Make a job of two files; gives the answer."""
    answer = api.form("/jobs", image=(f"p{seed}.png", picture(seed)), audio=("v.wav", sound(seed=seed)), **fields)
    assert answer.status == 201, answer
    body: dict[str, Any] = answer.json
    assert answer.headers["Location"] == f"/jobs/{body['id']}"
    return body


def taken_back(api: Api, *job_ids: str) -> None:
    """Cancel jobs and wait for their ends: one that has no row yet keeps its place until it is accepted."""
    for job_id in job_ids:
        assert api.post(f"/jobs/{job_id}/cancel", {}).status == 200
    for job_id in job_ids:
        assert api.get(f"/jobs/{job_id}?wait=50").json["state"] == "cancelled"


@pytest.fixture(scope="module")
def done(anna: Api) -> dict[str, Any]:
    """A finished job of Anna's."""
    job: dict[str, Any] = anna.get(f"/jobs/{ordered(anna, 1, fps='10')['id']}?wait=50").json
    return job


@pytest.fixture(scope="module")
def blocked(anna: Api) -> dict[str, Any]:
    """A job of Anna's that waits for its renderer."""
    job_id = ordered(anna, 2, renderer="missing")["id"]
    anna.installation.until(lambda: anna.get(f"/jobs/{job_id}").json["waits_for"], "the reason")
    job: dict[str, Any] = anna.get(f"/jobs/{job_id}").json
    return job


def test_a_form_with_two_files_becomes_a_video(anna: Api, done: dict[str, Any]) -> None:
    assert (done["state"], done["name"], done["fps"], done["frames"]) == ("done", "p1", "10", 3)
    assert anna.call("GET", done["result_url"]).body[4:8] == b"ftyp"


def test_json_names_addresses_and_has_the_fields_of_a_form(anna: Api) -> None:
    image = anna.form("/images", image=("a.png", picture(3))).json["url"]
    audio = anna.form("/audios", audio=("a.wav", sound(seed=3))).json["url"]
    fields = {"name": "Order 3", "renderer": "missing", "stitch": True, "resolution": 128, "fps": 29.97, "priority": -5}
    more = {"motion": "subtle", "av_offset_ms": -40, "pad_s": 0.5, "user_data": "mine", "options": {"detail": 0.5}}
    of_json = anna.post("/jobs", {"image_url": image, "audio_url": audio, **fields, **more})
    assert of_json.status == 201
    texts = {name: str(value) for name, value in (fields | more).items()} | {"options": '{"detail": 0.5}'}
    of_form = anna.form("/jobs", image_url=image, audio_url=audio, **texts)
    shown = ("name", "renderer", "stitch", "resolution", "fps", "priority")
    for answer in (of_json, of_form):
        assert [answer.json[name] for name in shown] == ["Order 3", "missing", True, 128, "30000/1001", -5]
    boss_sees = anna.get(f"/jobs/{of_json.json['id']}").json
    assert boss_sees["id"] == of_json.json["id"]
    taken_back(anna, of_json.json["id"], of_form.json["id"])


def faults(answer: Reply) -> dict[str, str]:
    answer.refused(400, "ValidationError")
    return {path.removeprefix("body."): fault["message"] for path, fault in answer.json["details"].items()}


def test_every_wrong_field_is_named_with_its_rule(anna: Api) -> None:
    url = "https://a.example/a.png"
    found = faults(anna.post("/jobs", {"image": url, "resolutoin": 64, "stitch": "maybe", "priority": "high"}))
    assert "did you mean 'image_url'" in found["image"]
    assert "did you mean 'resolution'" in found["resolutoin"]
    assert found["stitch"] == "'stitch' must be true or false"
    assert found["priority"] == "'priority' must be a whole number"
    assert "exactly one of the file 'audio' of a form, 'audio_url', 'audio_of', or 'text'" in found["audio"]
    both = faults(anna.form("/jobs", image=("a.png", picture()), image_url=url, text="Hello", audio_url=url))
    assert set(both) == {"image", "audio"}
    assert "object" in faults(anna.form("/jobs", image_url=url, audio_url=url, options="[1]"))["options"]
    both_kinds = {"image_url": url, "audio_url": url}
    assert "from -100 to 100" in anna.post("/jobs", {**both_kinds, "priority": 101}).refused(400, "BadRequestError")
    assert "1 to 120" in anna.post("/jobs", {**both_kinds, "fps": "x"}).refused(400, "BadRequestError")
    for wrong, allowed in (
        ({"renderer": "nosuch"}, "choose one of"),
        ({"renderer": "preview", "options": {"strength": 9}}, "from 0.5 to 1.5"),
        ({"renderer": "preview", "options": {"strengt": 1}}, "it has these"),
    ):
        assert allowed in anna.post("/jobs", {**both_kinds, **wrong}).refused(400, "BadRequestError")
    anna.call("POST", "/jobs", b"{").refused(400, "BadRequestError")
    anna.form("/jobs", image=("a.png", b"no picture"), audio=("a.wav", sound())).refused(
        415, "UnsupportedMimeTypeError"
    )
    assert faults(anna.post("/jobs", {**both_kinds, "webhook": "http://127.0.0.1/"})).keys() == {"webhook"}


def test_a_text_is_spoken_and_a_voice_that_is_missing_is_refused(anna: Api) -> None:
    pytest.importorskip("espeakng_loader")
    asked = {"image_url": "https://a.example/a.png", "text": "Hello", "renderer": "missing"}
    for nobody in ("en_US-nobody-medium", "Joanna", "no-such-voice"):
        assert "GET /tts/voices" in faults(anna.post("/jobs", {**asked, "voice": nobody}))["voice"]
    made = anna.post("/jobs", {**asked, "voice": "en-GB"})
    assert made.status == 201
    taken_back(anna, made.json["id"])


def test_an_idempotency_key_gives_one_job(anna: Api) -> None:
    def order(seed: int) -> Reply:
        files = {"image": ("a.png", picture(seed)), "audio": ("a.wav", sound(seed=4))}
        return anna.form("/jobs", headers={"Idempotency-Key": "order-4"}, **files, renderer="missing")

    first, again = order(4), order(4)
    assert (first.status, again.status, first.json["id"]) == (201, 201, again.json["id"])
    order(5).refused(422, "IdempotencyError")
    taken_back(anna, first.json["id"])


def test_a_key_handles_its_own_jobs_and_an_administrators_all(
    anna: Api, bert: Api, boss: Api, done: dict[str, Any], blocked: dict[str, Any]
) -> None:
    for job in (done, blocked):
        for path in ("cancel", "retry", "priority"):
            bert.post(f"/jobs/{job['id']}/{path}", {"priority": 1}).refused(404, "NotFoundError")
        bert.call("DELETE", f"/jobs/{job['id']}").refused(404, "NotFoundError")
    assert boss.post(f"/jobs/{blocked['id']}/priority", {"priority": 7}).json["priority"] == 7
    assert anna.get(f"/jobs/{blocked['id']}").json["priority"] == 7
    put(
        boss.installation.path("inbox"),
        "dropped.json",
        b'{"image": "https://a.example/a", "audio": "https://a.example/b"}',
    )
    dropped = boss.installation.until(lambda: boss.get("/jobs?name=dropped").json["jobs"], "the dropped job")[0]
    anna.post(f"/jobs/{dropped['id']}/retry", {}).refused(404, "NotFoundError")
    boss.post(f"/jobs/{dropped['id']}/cancel", {})


def test_what_a_job_does_not_allow_is_409_with_the_reason(
    anna: Api, done: dict[str, Any], blocked: dict[str, Any]
) -> None:
    ended, waits = f"/jobs/{done['id']}", f"/jobs/{blocked['id']}"
    assert "has ended already (done); only failed" in anna.post(f"{ended}/retry", {}).refused(409, "NotReadyError")
    assert "only waiting ones" in anna.post(f"{ended}/priority", {"priority": 1}).refused(409, "NotReadyError")
    assert "the job waits; only failed" in anna.post(f"{waits}/retry", {}).refused(409, "NotReadyError")
    assert "take it back first" in anna.call("DELETE", waits).refused(409, "NotReadyError")
    for body in ({}, {"priority": "1"}, {"priority": True}, {"priority": 101}):
        assert "from -100 to 100" in faults(anna.post(f"{waits}/priority", body))["priority"]


def test_a_cancelled_job_is_tried_again_and_then_deleted(anna: Api) -> None:
    job_id = ordered(anna, 6, renderer="missing")["id"]
    anna.installation.until(lambda: anna.get(f"/jobs/{job_id}").json["waits_for"], "the reason")
    assert anna.post(f"/jobs/{job_id}/cancel", {}).json["state"] == "cancelled"
    again = anna.post(f"/jobs/{job_id}/retry", {})
    assert (again.status, again.json["state"], again.json["finished_at"]) == (200, "queued", None)
    assert anna.post(f"/jobs/{job_id}/cancel", {}).json["state"] == "cancelled"
    assert anna.call("DELETE", f"/jobs/{job_id}").status == 204
    anna.get(f"/jobs/{job_id}").refused(404, "NotFoundError")
    anna.call("DELETE", f"/jobs/{job_id}").refused(404, "NotFoundError")


def test_a_job_that_is_tried_again_needs_a_place_in_the_queue(bert: Api) -> None:
    """Of 8 places for three tenants Bert may have 4."""
    job_ids = [ordered(bert, seed, renderer="missing")["id"] for seed in range(20, 24)]
    refused = bert.form("/jobs", image=("a.png", picture(24)), audio=("a.wav", sound()))
    assert "4 of them this client's" in refused.refused(429, "TooManyRequestsError")
    bert.installation.until(lambda: bert.get(f"/jobs/{job_ids[0]}").json["waits_for"], "the row")
    taken_back(bert, job_ids[0])
    other = ordered(bert, 25, renderer="missing")["id"]
    assert bert.post(f"/jobs/{job_ids[0]}/retry", {}).refused(429, "TooManyRequestsError")
    taken_back(bert, *job_ids[1:], other)
    assert bert.post(f"/jobs/{job_ids[0]}/retry", {}).status == 200
    taken_back(bert, job_ids[0])


@pytest.mark.parametrize("look", ["pending", "waiting_from_rest"])
def test_a_job_that_gets_its_row_while_places_are_counted_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: str
) -> None:
    """Intake accepts it right after the server has looked into the inbox, or into the ledger."""
    by_hand = JobsByHand(tmp_path, web=Web(max_queue=1))
    jobs = Jobs(CurrentSettings(by_hand.settings), by_hand.folders)
    order = Order(image="https://a.example/a.png", audio="https://a.example/a.wav")

    def submitted() -> Job:
        return asyncio.run(jobs.submit(order, client=UNLIMITED, key=None, base=""))

    first = submitted()
    where: Any = jobs if look == "pending" else jobs.view
    original = getattr(where, look)

    def accepted_afterwards(**without: Any) -> Any:
        found = original(**without)
        if by_hand.ledger.find(first.id) is None:
            by_hand.ledger.insert(spec_of(id=first.id, rest={"created_ms": 1}), max_attempts=3)
            (by_hand.path("inbox") / f"rest-{first.id}.json").unlink()
        return found

    monkeypatch.setattr(where, look, accepted_afterwards)
    with pytest.raises(ApiError, match="1 jobs wait, at most 1 may"):
        submitted()
    assert by_hand.job(first.id).state is JobState.QUEUED
    jobs.close()
    by_hand.close()
