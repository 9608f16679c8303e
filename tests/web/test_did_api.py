"""D-ID's Talks API as its clients use it, over real sockets, served by a real daemon."""

from __future__ import annotations

import http.client
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kits.installation import ROOT, picture, put, sound
from tests.kits.web_kit import Api, empty_outbox, port_of, serving

TALK_ID = re.compile(r"tlk_[0-9a-f]{32}")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with serving(tmp_path_factory.mktemp("talks"), changes={"web": {"max_queue": 100}}) as api:
        yield api


@pytest.fixture(scope="module")
def body(api: Api) -> dict[str, Any]:
    """The body of a talk made of our own uploads."""
    image = api.form("/images", image=("anna.jpg", picture(1)))
    audio = api.form("/audios", audio=("hello.wav", sound(0.4)))
    assert (image.status, audio.status) == (201, 201)
    return {"source_url": image.json["url"], "script": {"type": "audio", "audio_url": audio.json["url"]}}


def test_upload_create_poll_download_delete(api: Api, body: dict[str, Any]) -> None:
    made = api.post("/talks", {**body, "name": "line 07", "user_data": '{"scene": 7}', "driver_url": "bank://lively/"})
    assert made.status == 201
    assert set(made.json) == {"id", "object", "created_by", "created_at", "status"}
    assert (made.json["object"], made.json["status"], made.json["created_by"]) == ("talk", "created", "local")
    assert TALK_ID.fullmatch(made.json["id"])

    at_once = api.get(f"/talks/{made.json['id']}").json
    assert at_once["status"] in ("created", "started")
    assert "result_url" not in at_once
    assert api.call("DELETE", f"/talks/{made.json['id']}").refused(409, "NotReadyError")

    talk = api.talk(made.json["id"])
    assert {k: talk[k] for k in ("id", "object", "user_id", "name", "user_data", "driver_url", "source_url")} == {
        "id": made.json["id"], "object": "talk", "user_id": "local", "name": "line 07", "user_data": '{"scene": 7}',
        "driver_url": "bank://lively/", "source_url": body["source_url"],
    }  # fmt: skip
    assert talk["audio_url"] == body["script"]["audio_url"]
    assert (talk["duration"], talk["created_at"]) == (0.4, made.json["created_at"])
    assert talk["metadata"]["num_frames"] == 10
    assert talk["result_url"].endswith("/line%2007.mp4")
    assert api.get(talk["result_url"]).body[4:8] == b"ftyp"

    deleted = api.call("DELETE", f"/talks/{made.json['id']}")
    assert (deleted.status, deleted.json["id"]) == (200, made.json["id"])
    for path in (f"/talks/{made.json['id']}", talk["result_url"]):
        assert api.get(path).refused(404, "NotFoundError")
    assert api.call("DELETE", f"/talks/{made.json['id']}").refused(404, "NotFoundError") == "not found"
    assert not list(api.installation.path("outbox").glob("line 07*"))
    assert not [p for p in api.installation.path("archive").rglob("*") if made.json["id"][-12:] in p.name]


def test_a_job_of_the_inbox_is_listed_as_a_talk_and_its_files_outlive_its_deletion(api: Api) -> None:
    api.installation.drop_pair("dropped", seed=5)
    job = api.installation.until_done("dropped")
    talk = api.talk(job.id)  # a plain id works as well
    assert (talk["name"], talk["source_url"], talk["user_id"]) == ("dropped", "", "local")
    assert api.call("DELETE", f"/talks/{talk['id']}").status == 200
    assert (api.installation.path("outbox") / "dropped.mp4").exists()
    assert api.get(f"/talks/{talk['id']}").status == 404


def test_a_manifest_with_a_false_client_spoils_no_list(api: Api) -> None:
    """Every user who can write to the inbox can write `rest` too."""
    api.installation.drop_manifest("liar", image="a.png", audio="a.wav", rest={"created_ms": "now", "config": 7})
    assert api.installation.until_failed("liar").reason_code == "bad-manifest"
    assert "liar" in [talk["name"] for talk in api.get("/talks").json["talks"]]


def test_the_list_is_newest_first_and_new_talks_shift_no_page(api: Api, body: dict[str, Any]) -> None:
    made = [api.post("/talks", {**body, "name": f"n{number}"}).json["id"] for number in range(5)]
    assert [t["id"] for t in api.get("/talks?limit=100").json["talks"]][:5] == made[::-1]
    for talk_id in made:
        api.talk(talk_id)

    first = api.get("/talks?limit=2").json
    newer = api.post("/talks", body).json["id"]
    second = api.get(f"/talks?limit=2&token={first['token']}").json
    assert [t["id"] for t in first["talks"] + second["talks"]] == made[:0:-1]
    seen, token = [], ""
    while True:
        page = api.get(f"/talks?limit=3&token={token}").json
        seen += [talk["id"] for talk in page["talks"]]
        if "token" not in page:
            break
        token = page["token"]
    api.talk(newer)
    assert seen[0] == newer
    assert len(seen) == len(set(seen)) == len(api.installation.view.jobs(limit=1000))


@pytest.mark.parametrize(("limit", "most"), [("0", 1), ("-5", 1), ("1000", 100), ("many", 100), ("", 100)])
def test_the_limit_of_a_list_is_moved_into_its_bounds(api: Api, limit: str, most: int) -> None:
    assert 1 <= len(api.get(f"/talks?limit={limit}").json["talks"]) <= most


@pytest.mark.parametrize("token", ["x", "c2VxOi0x", "!!!!", "c2VxOjk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5", "%00"])
def test_a_token_that_the_server_did_not_issue_is_refused(api: Api, token: str) -> None:
    api.get(f"/talks?token={token}").refused(400, "BadRequestError")


def test_a_renderer_and_an_option_that_do_not_exist_are_refused_at_once(api: Api, body: dict[str, Any]) -> None:
    for own, rule in (({"renderer": "nosuch"}, "choose one of"), ({"renderer": "preview", "sway": 2}, "from 0 to 1")):
        assert rule in api.post("/talks", {**body, "config": {"lipsyncd": own}}).refused(400, "BadRequestError")


def test_types_are_read_leniently_and_unknown_fields_are_ignored(api: Api, body: dict[str, Any]) -> None:
    talk = {
        **body,
        "script": {**body["script"], "subtitles": "false", "ssml": "false", "reduce_noise": "no"},
        "config": {
            "stitch": "true", "pad_audio": "0.6", "fluent": "false", "result_format": ".mp4", "align_driver": True,
            "logo": {"url": "https://a.example/l.png", "position": [0, 0]}, "nonsense": {"a": [1]},
        },
        "face": {"size": 100}, "presenter_id": "amy",
    }  # fmt: skip
    made = api.call("POST", "/talks/", json.dumps(talk).encode(), {"Content-Type": "text/plain"})
    assert made.status == 201
    [line] = [line for line in api.installation.log.splitlines() if "mean nothing here" in line]
    assert line.endswith("'presenter_id', 'config.nonsense'")
    talk = api.talk(made.json["id"])
    assert talk["config"]["stitch"] is True
    assert (talk["config"]["pad_audio"], talk["config"]["align_driver"]) == (0.6, True)
    assert talk["duration"] == 1.0  # 0.4 s of voice and 0.6 s of silence
    assert talk["metadata"]["num_frames"] == 25


def test_our_own_options_have_an_object_of_their_own(api: Api, body: dict[str, Any]) -> None:
    made = api.post("/talks", {**body, "config": {"lipsyncd": {"resolution": 128, "fps": 30}}}).json
    assert api.talk(made["id"])["metadata"]["resolution"] == [128, 128]
    refused = api.post("/talks", {**body, "config": {"lipsyncd": {"resolution": 3}}})
    assert "resolution" in refused.refused(400, "BadRequestError")


@pytest.mark.parametrize(
    ("change", "paths"),
    [
        ({"script": None}, {"body.script"}),
        ({"source_url": None}, {"body.source_url"}),
        (
            {"source_url": "data:image/png;base64,AA", "script": {"type": "audio", "audio_url": "ftp://x/a.wav"}},
            {"body.source_url", "body.script.audio_url"},
        ),
        ({"script": {"type": "audio"}}, {"body.script.audio_url"}),
        ({"script": {"type": "song"}}, {"body.script.type"}),
        ({"script": {"type": "text"}}, {"body.script.input"}),
        ({"script": {"type": "text", "input": "..."}}, {"body.script.input"}),
        ({"script": "hello"}, {"body.script"}),
        ({"config": {"pad_audio": 61}}, {"body.config.pad_audio"}),
        ({"config": {"stitch": "maybe", "result_format": "mov"}}, {"body.config.stitch", "body.config.result_format"}),
        ({"user_data": " " * 10}, {"body.user_data"}),
        ({"user_data": "x" * 1001}, {"body.user_data"}),
        ({"webhook": "gopher://x"}, {"body.webhook"}),
        ({"webhook": "http://hooks.example.org/x"}, {"body.webhook"}),
        ({"webhook": "https://127.0.0.1/x"}, {"body.webhook"}),
        ({"result_url": "https://bucket.example/put"}, {"body.result_url"}),
    ],
)
def test_every_wrong_field_is_named_at_once(
    api: Api, body: dict[str, Any], change: dict[str, Any], paths: set[str]
) -> None:
    answer = api.post("/talks", {k: v for k, v in {**body, **change}.items() if v is not None})
    assert answer.refused(400, "ValidationError") == "validation failed"
    assert set(answer.json["details"]) == paths
    for path, detail in answer.json["details"].items():
        assert f"'{path.rpartition('.')[2]}'" in detail["message"]


def test_a_text_is_spoken_with_the_nearest_voice(api: Api, body: dict[str, Any]) -> None:
    script = {
        "type": "text",
        "input": "Good morning.",
        "provider": {"type": "microsoft", "voice_id": "de-DE-KatjaNeural"},
    }
    talk = api.talk(api.post("/talks", {"source_url": body["source_url"], "script": script}).json["id"])
    assert talk["duration"] > 0.5
    assert talk["audio_url"] == ""
    ssml = {"type": "text", "ssml": "true", "input": "<speak>Hello <break time='200ms'/> again</speak>"}
    assert api.talk(api.post("/talks", {"source_url": body["source_url"], "script": ssml}).json["id"])["duration"] > 0.5


def test_without_the_extra_a_text_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['espeakng_loader'] = None\n")
    with serving(tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}") as api:
        talk = {"source_url": "https://a.example/a.png", "script": {"type": "text", "input": "Good morning."}}
        answer = api.post("/talks", talk)
        assert "none is configured" in answer.refused(400, "ValidationError")
        assert answer.json["details"] == {"body.script.type": {"message": "only 'audio' is available on this server"}}
        assert api.get("/tts/voices").json == []


def test_the_listed_voices_can_be_requested(api: Api) -> None:
    voices = api.get("/tts/voices").json
    assert {"en-us", "de"} <= {voice["id"] for voice in voices}
    wanted = {"id", "name", "gender", "access", "provider", "languages", "styles"}
    assert all(set(voice) == wanted for voice in voices)


def test_a_failed_talk_names_the_input_at_fault(api: Api, body: dict[str, Any]) -> None:
    unreachable = {**body, "source_url": "http://127.0.0.1:1/a.png"}
    talk = api.talk(api.post("/talks", unreachable).json["id"], "error")
    assert talk["error"]["kind"] == "SourceError"
    assert "127.0.0.1" in talk["error"]["description"]
    assert "result_url" not in talk
    script = {"type": "audio", "audio_url": "http://[::1]:1/a.wav"}
    assert api.talk(api.post("/talks", {**body, "script": script}).json["id"], "error")["error"]["kind"] == "AudioError"


def test_a_missing_upload_is_refused_at_once(api: Api, body: dict[str, Any]) -> None:
    made = api.form("/images", image=("b.png", picture(9))).json
    assert api.get(made["url"]).status == 200
    answer = api.call("DELETE", f"/images/{made['id']}")
    assert (answer.status, answer.body) == (204, b"")
    assert api.call("DELETE", f"/images/{made['id']}").refused(404, "NotFoundError") == "image not found"
    assert api.get(made["url"]).refused(404, "NotFoundError") == "image not found"
    assert "image not found" in api.post("/talks", {**body, "source_url": made["url"]}).refused(400, "BadRequestError")
    audio = api.form("/audios", file=("b.wav", sound())).json  # "file" is a frequent mistake
    assert api.call("DELETE", f"/images/{audio['id']}").status == 404
    assert api.call("DELETE", f"/audios/{audio['id']}").status == 204


@pytest.mark.parametrize(("path", "form"), [("/images", {"image": ""}), ("/audios", {"name": "x"})])
def test_the_error_of_an_upload_without_a_file_says_what_to_send(api: Api, path: str, form: dict[str, str]) -> None:
    answer = api.form(path, **form)
    assert "source_url" in answer.refused(400, "BadRequestError")


def test_a_talk_as_a_form_is_answered_with_what_to_send_instead(api: Api) -> None:
    sent = api.form("/talks", file=("anna.png", picture()))
    message = sent.refused(400, "BadRequestError")
    assert "POST /images" in message
    assert "application/json" in message


def test_a_talk_that_waits_keeps_an_upload_that_is_deleted(api: Api) -> None:
    image = api.form("/images", image=("c.png", picture(11))).json
    audio = api.form("/audios", audio=("c.wav", sound())).json
    made = api.post("/talks", {"source_url": image["url"], "script": {"type": "audio", "audio_url": audio["url"]}}).json
    assert api.call("DELETE", f"/images/{image['id']}").status == 204
    api.talk(made["id"])


def test_a_deletion_leaves_files_that_others_put_into_the_outbox(api: Api, body: dict[str, Any]) -> None:
    talk = api.talk(api.post("/talks", {**body, "name": "kept"}).json["id"])
    empty_outbox(api.installation)
    put(api.installation.path("outbox"), "kept.mp4", b"another user's")
    assert api.get(talk["result_url"]).body[4:8] == b"ftyp"
    assert api.call("DELETE", f"/talks/{talk['id']}").status == 200
    assert (api.installation.path("outbox") / "kept.mp4").read_bytes() == b"another user's"


def test_a_talk_that_persists_outlives_the_retention(tmp_path: Path) -> None:
    with serving(tmp_path) as api:
        image = api.form("/images", image=("p.png", picture())).json
        audio = api.form("/audios", audio=("p.wav", sound())).json
        talk = {"source_url": image["url"], "script": {"type": "audio", "audio_url": audio["url"]}}
        again = api.form("/audios", audio=("p.wav", sound()), persist="true").json
        kept = api.talk(api.post("/talks", {**talk, "persist": "true"}).json["id"])
        gone = api.talk(api.post("/talks", talk).json["id"])
        empty_outbox(api.installation)
        api.installation.until(lambda: not list(api.installation.path("spool").iterdir()), "the spool to be cleared")
        for path in [
            *api.installation.path("state").glob("results/*"),
            *api.installation.path("archive").glob("*/*/job.json"),
            *api.installation.path("state").glob("uploads/*/facts.json"),
        ]:
            os.utime(path, (time.time() - 40 * 86400,) * 2)
        assert api.installation.cli("prune").returncode == 0
        assert len(list(api.installation.path("archive").glob("*/*/job.json"))) == 1
        assert [path.name for path in api.installation.path("state").glob("uploads/*")] == [again["id"]]
        assert api.call("DELETE", f"/audios/{again['id']}").status == 204
        assert api.installation.cli("prune").returncode == 0
        assert list(api.installation.path("state").glob("uploads/*")) == []
        assert api.get(gone["result_url"]).refused(404, "NotFoundError")
        assert api.get(kept["result_url"]).status == 200


def test_an_interrupted_deletion_is_finished_by_the_next_start(tmp_path: Path) -> None:
    with serving(tmp_path, LIPSYNCD_FAIL="delete-before-row") as api:
        image = api.form("/images", image=("p.png", picture())).json
        audio = api.form("/audios", audio=("p.wav", sound())).json
        talk = {"source_url": image["url"], "script": {"type": "audio", "audio_url": audio["url"]}}
        made = api.talk(api.post("/talks", talk).json["id"])
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            api.call("DELETE", f"/talks/{made['id']}")
        api.installation.start()
        api.port = port_of(api.installation)
        api.installation.until(lambda: api.get(f"/talks/{made['id']}").status == 404, "the next start to finish it")
        assert api.call("DELETE", f"/talks/{made['id']}").status == 404


def test_there_is_always_credit_in_whole_numbers(api: Api) -> None:
    credit = api.get("/credits/").json
    assert credit["remaining"] > 0
    assert {type(credit["remaining"]), type(credit["credits"][0]["total"])} == {int}


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/clips", {"clips": []}),
        ("/animations/", {"animations": []}),
        ("/clips/presenters", {"presenters": []}),
        ("/expressives/avatars", {"avatars": []}),
        ("/settings", {}),
    ],
)
def test_routes_for_missing_things_answer_an_empty_list(api: Api, path: str, answer: dict[str, Any]) -> None:
    assert api.get(path).json == answer


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/talks/streams"),
        ("GET", "/talks/streams"),
        ("DELETE", "/talks/streams/strm_1/ice"),
        ("POST", "/agents"),
        ("POST", "/clips"),
        ("POST", "/scenes/"),
        ("POST", "/tts/voices"),
        ("POST", "/images/face-detection"),
    ],
)
def test_routes_for_missing_functions_answer_501_with_a_reason(api: Api, method: str, path: str) -> None:
    api.call(method, path, b"{}").refused(501, "NotImplementedError")
