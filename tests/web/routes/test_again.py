"""`image_of` and `audio_of`: another job of what an earlier one was made of, as long as that is kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lipsyncd.jobs.job import AUDIO, IMAGE, JobSpec
from lipsyncd.settings import CurrentSettings
from lipsyncd.web.clients import UNLIMITED
from lipsyncd.web.jobs import Jobs
from lipsyncd.web.uploads import CheckedUploads
from lipsyncd.web.views.kept import KeptOrders
from tests.kits.installation import face, picture, put, sound
from tests.kits.jobs_by_hand import JobsByHand
from tests.kits.web_kit import Api, Reply
from tests.web.test_tenants import BERT, BOSS, with_key

BOTH = {"image": True, "audio": True}


def ended(client: Api, reply: Reply) -> dict[str, Any]:
    assert reply.status == 201, reply
    job: dict[str, Any] = client.get(f"/jobs/{reply.json['id']}?wait=50").json
    assert job["state"] in ("done", "failed"), job
    return job


@pytest.fixture(scope="module")
def first(anna: Api) -> dict[str, Any]:
    """A finished job of Anna's, of two files."""
    fields = {"name": "First", "motion": "subtle", "fps": "10", "pad_s": "0.5", "options": '{"detail": 0.5}'}
    return ended(anna, anna.form("/jobs", image=("p.png", picture(1)), audio=("v.wav", sound(0.6, 1)), **fields))


def test_a_job_is_made_of_the_inputs_of_an_earlier_one(anna: Api, first: dict[str, Any]) -> None:
    assert first["inputs"] == BOTH
    assert next(job for job in anna.get("/jobs").json["jobs"] if job["id"] == first["id"])["inputs"] == BOTH
    again = ended(anna, anna.post("/jobs", {"image_of": first["id"], "audio_of": first["id"], "fps": 20}))
    assert (again["state"], again["name"], again["fps"], again["frames"]) == ("done", "First", "20", 12)
    other = ended(anna, anna.form("/jobs", image_of=f"tlk_{first['id'].replace('-', '')}", audio=("w.wav", sound(0.2))))
    assert (other["state"], other["duration"]) == ("done", 0.2)


def test_the_order_of_a_job_fills_a_form_again(anna: Api, first: dict[str, Any]) -> None:
    order = anna.get(f"/jobs/{first['id']}/order").json
    known = {"name": "First", "fps": "10", "motion": "subtle", "pad_s": 0.5, "options": {"detail": 0.5}, "text": None}
    assert {name: order[name] for name in known} == known
    assert order["inputs"] == BOTH
    again = {name: value for name, value in order.items() if value is not None and name not in ("inputs", "ssml")}
    body = {**again, "image_of": first["id"], "audio_of": first["id"]}
    assert ended(anna, anna.post("/jobs", body))["duration"] == first["duration"]


def test_the_same_request_with_its_key_is_the_same_job(anna: Api, first: dict[str, Any]) -> None:
    body = {"image_of": first["id"], "audio_of": first["id"], "name": "Once"}
    one, two = (anna.post("/jobs", body, Idempotency_Key="again-1").json for _ in range(2))
    assert one["id"] == two["id"]


@pytest.mark.slow
def test_a_text_is_spoken_again_by_its_voice_or_by_another_one(anna: Api, first: dict[str, Any]) -> None:
    text = {"text": "Good morning to you.", "voice": "en-gb"}
    spoken = ended(anna, anna.post("/jobs", {"image_of": first["id"], **text}))
    assert anna.get(f"/jobs/{spoken['id']}/order").json | text == anna.get(f"/jobs/{spoken['id']}/order").json
    for voice, shown in ((None, "en-gb"), ("de", "de")):
        named = {} if voice is None else {"voice": voice}
        again = anna.post("/jobs", {"image_of": first["id"], "audio_of": spoken["id"], "name": "said", **named})
        assert ended(anna, again)["state"] == "done"
        order = anna.get(f"/jobs/{again.json['id']}/order").json
        assert (order["text"], order["voice"]) == (text["text"], shown)
    anna.post("/jobs", {"image_of": first["id"], "audio_of": first["id"], "voice": "de"}).refused(
        400, "ValidationError"
    )


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ({"image_of": "x"}, "must be the id of a job"),
        ({"image_of": 5}, "must be the id of a job"),
        ({"image_of": "{id}", "image_url": "https://example.com/a.png"}, "send exactly one of"),
        ({"image_of": "{id}", "audio_of": "{id}", "text": "Hello"}, "send exactly one of"),
    ],
)
def test_a_request_that_cannot_be_understood_names_the_field(
    anna: Api, first: dict[str, Any], body: dict[str, Any], fault: str
) -> None:
    filled = {
        name: value.replace("{id}", first["id"]) if isinstance(value, str) else value for name, value in body.items()
    }
    reply = anna.post("/jobs", filled)
    reply.refused(400, "ValidationError")
    assert any(fault in detail["message"] for detail in reply.json["details"].values()), reply.json


def test_jobs_of_others_are_no_source(api: Api, first: dict[str, Any]) -> None:
    bert = with_key(api, BERT)
    refused = bert.post("/jobs", {"image_of": first["id"], "text": "Hello"}).refused(404, "NotFoundError")
    assert refused == f"image_of: there is no job {first['id']}"
    bert.get(f"/jobs/{first['id']}/order").refused(404, "NotFoundError")
    boss = with_key(api, BOSS)
    assert ended(boss, boss.post("/jobs", {"image_of": first["id"], "audio_of": first["id"]}))["state"] == "done"


@pytest.mark.slow
def test_a_job_of_the_folder_is_made_again_from_the_archive_until_it_is_pruned(api: Api) -> None:
    boss, inbox = with_key(api, BOSS), api.installation.path("inbox")
    put(inbox, "dropped.png", picture(3))
    put(inbox, "dropped.wav", sound(0.3, 3))
    job_id = api.installation.until_done("dropped").id
    api.installation.until(lambda: boss.get(f"/jobs/{job_id}").json["inputs"] == BOTH, "the archive")
    again = ended(boss, boss.post("/jobs", {"image_of": job_id, "audio_of": job_id, "name": "again"}))
    assert (again["state"], again["name"], again["inputs"]) == ("done", "again", BOTH)
    [kept] = api.installation.path("archive").glob(f"*/{job_id}")
    shutil.rmtree(kept)
    refused = boss.post("/jobs", {"image_of": job_id, "text": "Hello"}).refused(410, "GoneError")
    assert refused == f"the picture of job {job_id} is not kept any more; send the picture itself"
    order = boss.get(f"/jobs/{job_id}/order").json
    assert (order["name"], order["motion"], order["options"]) == ("dropped", None, None)


def test_what_was_uploaded_is_kept_as_long_as_the_upload(api: Api, anna: Api) -> None:
    image = anna.form("/images", image=("a.png", picture(4))).json
    job = ended(anna, anna.form("/jobs", image_url=image["url"], audio=("v.wav", sound(seed=4))))
    assert job["inputs"] == BOTH
    [kept] = api.installation.until(lambda: [*api.installation.path("archive").glob(f"*/{job['id']}")], "the archive")
    shutil.rmtree(kept)
    assert anna.post("/jobs", {"image_of": job["id"], "audio_of": job["id"]}).status == 201
    assert anna.call("DELETE", f"/images/{image['id']}").status == 204
    assert anna.get(f"/jobs/{job['id']}").json["inputs"] == {"image": False, "audio": True}
    anna.post("/jobs", {"image_of": job["id"], "audio_of": job["id"]}).refused(410, "GoneError")


@pytest.mark.slow
def test_a_member_who_rewrites_a_failed_job_gets_no_upload_of_others(api: Api, anna: Api) -> None:
    theirs = with_key(api, BERT).form("/images", image=("b.png", face(5))).json["id"]
    failed = ended(anna, anna.form("/jobs", image=("p.png", picture(5)), audio=("v.wav", sound()), renderer="preview"))
    assert (failed["state"], failed["inputs"]) == ("failed", BOTH)

    def kept() -> list[Path]:
        """Other tests of this module leave failed jobs, too."""
        reasons = [*api.installation.path("failed").glob("*/reason.json")]
        return [file.with_name("job.json") for file in reasons if failed["id"] in file.read_text()]

    [written] = api.installation.until(kept, "failed/")

    def rewrite(reference: str) -> Reply:
        written.write_text(json.dumps({**json.loads(written.read_text()), "image_url": reference}))
        return anna.post("/jobs", {"image_of": failed["id"], "text": "Hello"})

    rest = json.loads(api.installation.view.find(failed["id"]).rest or "")
    again = ended(anna, rewrite(f"upload:{theirs}"))
    assert json.loads(api.installation.view.find(again["id"]).rest or "")["uploads"] == rest["uploads"][:1]
    shutil.rmtree(api.installation.path("state") / "uploads" / rest["uploads"][0])
    for reference in (f"upload:{theirs}", "upload:../../../../etc", "file:///etc/passwd", "/etc/passwd"):
        rewrite(reference).refused(410, "GoneError")


# -- while an ended job's inputs go from the spool to the archive ------------------------------------------------------


@pytest.fixture
def by_hand(tmp_path: Path) -> Iterator[JobsByHand]:
    by_hand = JobsByHand(tmp_path)
    yield by_hand
    by_hand.close()


def kept_orders(by_hand: JobsByHand) -> KeptOrders:
    settings = CurrentSettings(by_hand.settings)
    return KeptOrders(Jobs(settings, by_hand.folders), CheckedUploads(settings, Path("/nowhere")))


def test_a_row_that_was_read_before_that_shows_them(by_hand: JobsByHand) -> None:
    job = by_hand.job(by_hand.published())
    assert job.kept is not None
    kept = kept_orders(by_hand)
    assert kept.inputs(replace(job, kept=None)) == BOTH
    by_hand.ledger.delete(job.id)
    assert kept.inputs(replace(job, kept=None)) == dict.fromkeys((IMAGE, AUDIO), False)


def test_they_are_copied_from_wherever_they_are(
    by_hand: JobsByHand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = by_hand.rendered()
    with monkeypatch.context() as patch:
        patch.setattr(by_hand.finisher, "clear_away", lambda *_: None)
        by_hand.publish(job_id)
    job, kept = by_hand.job(job_id), kept_orders(by_hand)
    read = kept._spool.spec

    def read_just_before(spooled_id: str) -> JobSpec | None:
        spec = read(spooled_id)
        by_hand.finisher.clear_away(job)
        return spec

    monkeypatch.setattr(kept._spool, "spec", read_just_before)
    found = kept.find(IMAGE, job, UNLIMITED, tmp_path)
    assert found.copy is not None
    assert found.copy.path.read_text() == "anna.png"
