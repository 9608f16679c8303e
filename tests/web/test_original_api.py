"""All endpoints and fields of the original service, over real sockets, served by a real daemon."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest

from lipsyncd.jobs.job import JobState
from tests.kits.installation import picture, put, sound
from tests.kits.web_kit import Api, empty_outbox, port_of, serving

STATUS_FIELDS = {
    "id", "status", "result_url", "progress", "created_at", "started_at", "completed_at", "error",
}  # fmt: skip
INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with serving(tmp_path_factory.mktemp("original"), changes={"queue.night": {"priority": 1}}) as api:
        yield api


def generate(api: Api, *, seed: int = 0, seconds: float = 0.3, **fields: str) -> str:
    """Request a video with both files in the form; returns the job's id."""
    answer = api.form(
        "/generate-video",
        source_image=("anna.png", picture(seed)),
        audio_data=("hello.wav", sound(seconds)),
        **fields,
    )
    assert answer.status == 200, answer
    job_id: str = answer.json["id"]
    return job_id


def test_two_files_become_a_video_and_every_field_is_the_originals(api: Api) -> None:
    answer = api.form("/generate-video", source_image=("a.png", picture()), audio_data=("a.wav", sound()))
    assert set(answer.json) == {"id", "status", "result_url", "created_at"}
    assert (answer.json["status"], answer.json["result_url"]) == ("queued", None)

    at_once = api.get(f"/talk-status/{answer.json['id']}")
    assert at_once.json["status"] in ("queued", "processing")
    assert set(at_once.json) == STATUS_FIELDS
    assert at_once.json["created_at"] == answer.json["created_at"]

    done = api.done(answer.json["id"])
    assert set(done) == STATUS_FIELDS
    assert done["result_url"] == f"/storage/videos/{answer.json['id']}.mp4"
    assert (done["progress"], done["error"]) == (1.0, None)
    assert all(INSTANT.fullmatch(done[name]) for name in ("created_at", "started_at", "completed_at"))

    video = api.get(done["result_url"])
    assert (video.status, video.headers["Content-Type"]) == (200, "video/mp4")
    assert video.body[4:8] == b"ftyp"


def test_options_of_the_form_reach_the_job(api: Api) -> None:
    job_id = generate(api, stitch="true", fps="29.97", renderer="flat", user_data="scene 7")
    api.done(job_id)
    job = api.installation.view.get(job_id)
    assert (job.stitch, job.fps, job.user_data) == (True, "30000/1001", '"scene 7"')


@pytest.mark.parametrize("host", ["localhost", "media.example.org", "127.0.0.1:1"])
def test_an_upload_is_found_on_disk_whatever_host_name_its_address_has(api: Api, host: str) -> None:
    image = api.form("/upload-source-image", file=("Anna & Bert.jpeg", picture(7))).json
    voice = api.form("/upload-audio", file=("hello", sound())).json
    assert image["url"].endswith("/Anna_Bert.png")  # the suffix of its format
    assert (image["width"], image["height"], voice["duration"]) == (80, 72, 0.3)

    elsewhere = {name: upload["url"].replace(f"127.0.0.1:{api.port}", host) for name, upload in
                 (("source_url", image), ("audio_url", voice))}  # fmt: skip
    answer = api.form("/generate-video", **elsewhere)
    assert api.done(answer.json["id"])["result_url"]
    assert api.get(image["url"]).body == picture(7)


def test_a_cut_sound_is_taken_at_once_with_a_note(api: Api) -> None:
    """The folder waits for the rest of it; what a client has sent is whole."""
    began_s = time.monotonic()
    answer = api.form("/generate-video", source_image=("a.png", picture()), audio_data=("a.wav", sound(1.5)[:-14_400]))
    api.done(answer.json["id"])
    assert time.monotonic() - began_s < api.installation.settings.watch.incomplete_timeout_s / 2
    job = api.installation.view.get(answer.json["id"])
    assert (job.frames, job.duration_ms) == (27, 1050)
    [note] = [note for note in api.installation.sidecar(job.out_name)["notes"]["inputs"] if "cut" in note]
    assert note == "cut short: 1.05 of 1.50 s"


def test_a_file_and_an_address_may_be_mixed(api: Api) -> None:
    voice = api.form("/upload-audio", file=("hello.wav", sound())).json
    answer = api.form("/generate-video", source_image=("a.png", picture()), audio_url=voice["url"])
    api.done(answer.json["id"])


@pytest.mark.parametrize(
    ("parts", "path"),
    [
        ({}, "body.source_image"),
        ({"source_image": ("a.png", picture())}, "body.audio_data"),
        ({"source_url": "https://a.example/a.png", "source_image": ("a.png", picture())}, "body.source_image"),
        ({"source_url": "file:///etc/passwd", "audio_data": ("a.wav", sound())}, "body.source_url"),
        (
            {"source_image": ("a.png", picture()), "audio_data": ("a.wav", sound()), "stitch": "perhaps"},
            "body.stitch",
        ),
    ],
    ids=["nothing", "no sound", "two pictures", "a file scheme", "no boolean"],
)
def test_what_is_missing_or_wrong_is_named(api: Api, parts: dict[str, str], path: str) -> None:
    answer = api.form("/generate-video", **parts)
    answer.refused(400, "ValidationError")
    assert path in answer.json["details"]


@pytest.mark.parametrize(
    ("route", "content", "status", "kind"),
    [
        ("/upload-source-image", b"%PDF-1.4 and so on", 415, "UnsupportedMimeTypeError"),
        ("/upload-source-image", sound(), 415, "UnsupportedMimeTypeError"),
        ("/upload-source-image", picture()[:-40], 400, "BadRequestError"),
        ("/upload-source-image", picture(width=20, height=20), 400, "InvalidImageResolutionError"),
        ("/upload-source-image", b"", 415, "UnsupportedMimeTypeError"),
        ("/upload-audio", picture(), 415, "UnsupportedMimeTypeError"),
        ("/upload-audio", sound(0.05), 400, "InvalidAudioDurationError"),
        ("/upload-audio", b"RIFF\x24\0\0\0WAVEfmt ", 400, "BadRequestError"),
    ],
)
def test_an_upload_is_fully_checked_at_once(api: Api, route: str, content: bytes, status: int, kind: str) -> None:
    before = sorted(p.name for p in (api.installation.path("state") / "uploads").iterdir())
    api.form(route, file=("x", content)).refused(status, kind)
    assert sorted(p.name for p in (api.installation.path("state") / "uploads").iterdir()) == before


def test_a_failed_job_says_why(api: Api) -> None:
    job_id = generate(api, renderer="shy")
    status = api.get(f"/talk-status/{job_id}?wait=60").json
    assert (status["status"], status["result_url"]) == ("error", None)
    assert "no face in the picture" in status["error"]
    assert "failed" in api.get(f"/storage/videos/{job_id}.mp4").refused(404, "NotFoundError")


def test_ranges_head_and_etag(api: Api) -> None:
    path = api.done(generate(api))["result_url"]
    whole = api.get(path)
    size, etag = len(whole.body), whole.headers["ETag"]

    part = api.get(path, Range="bytes=4-7")
    assert (part.status, part.body) == (206, b"ftyp")
    assert part.headers["Content-Range"] == f"bytes 4-7/{size}"
    assert api.get(path, Range="bytes=-5").body == whole.body[-5:]
    for wrong in (
        f"bytes={size}-",
        "bytes=0-1,4-5",
        "bytes=7-4",
        "bytes=-",
        "bytes=-0",
        "bytes=-00",
        "pages=1-2",
        "bytes=" + "9" * 5000 + "-",
    ):
        refused = api.get(path, Range=wrong)
        assert refused.refused(416, "RangeError")
        assert refused.headers["Content-Range"] == f"bytes */{size}"
    assert api.get(path, Range=f"bytes=0-{size + 99}").body == whole.body
    assert api.get(path, If_None_Match=etag).status == 304

    head = api.call("HEAD", path)
    assert (head.status, head.body) == (200, b"")
    assert (head.headers["Content-Length"], head.headers["Accept-Ranges"]) == (str(size), "bytes")


def test_a_consumer_that_empties_the_outbox_takes_nothing_from_a_rest_client(api: Api) -> None:
    job_id = generate(api)
    path = api.done(job_id)["result_url"]
    empty_outbox(api.installation)
    assert api.get(path).status == 200

    api.installation.until(lambda: not (api.installation.path("spool") / job_id).exists(), "the spool to be cleared")
    (api.installation.path("state") / "results" / f"{job_id}.mp4").unlink()
    assert "taken from the outbox or expired" in api.get(path).refused(404, "NotFoundError")


def test_after_its_retention_a_video_comes_from_the_outbox_while_it_lies_there(api: Api) -> None:
    job_id = generate(api)
    path = api.done(job_id)["result_url"]
    body = api.get(path).body
    api.installation.until(lambda: not (api.installation.path("spool") / job_id).exists(), "the spool to be cleared")
    (api.installation.path("state") / "results" / f"{job_id}.mp4").unlink()
    assert api.get(path).body == body

    shown = api.installation.path("outbox") / f"{api.installation.view.get(job_id).out_name}.mp4"
    shown.rename(shown.with_suffix(".moved"))
    shown.symlink_to("/etc/hostname")  # a user who can write to the outbox gets no other file
    assert api.get(path).refused(404, "NotFoundError")


def test_the_video_of_a_queue_comes_from_its_folder_in_the_outbox_after_its_retention(api: Api) -> None:
    inbox = api.installation.path("inbox") / "night"
    put(inbox, "nora.png", picture(7))
    put(inbox, "nora.wav", sound(seed=7))
    job_id = api.installation.until_done("nora").id
    path = api.done(job_id)["result_url"]
    body = api.get(path).body
    api.installation.until(lambda: not (api.installation.path("spool") / job_id).exists(), "the spool to be cleared")
    (api.installation.path("state") / "results" / f"{job_id}.mp4").unlink()
    assert (api.installation.path("outbox") / "night" / "nora.mp4").read_bytes() == body
    assert api.get(path).body == body


def test_a_link_in_the_results_is_not_followed(api: Api) -> None:
    job_id = generate(api)
    path = api.done(job_id)["result_url"]
    api.installation.until(lambda: not (api.installation.path("spool") / job_id).exists(), "the spool to be cleared")
    kept = api.installation.path("state") / "results" / f"{job_id}.mp4"
    empty_outbox(api.installation)
    kept.unlink()
    kept.symlink_to("/etc/hostname")
    assert api.get(path).refused(404, "NotFoundError")


def test_health_has_the_nine_fields_of_the_original_and_true_values(api: Api) -> None:
    health = api.get("/health").json
    assert list(health) == [
        "status", "service", "version", "model_loaded", "device", "vram_used_gb", "vram_total_gb", "jobs_queued",
        "jobs_processing",
    ]  # fmt: skip
    api.done(generate(api))
    health = api.get("/health").json
    assert (health["status"], health["device"], health["vram_total_gb"]) == ("healthy", "cpu", 0.0)
    assert health["model_loaded"] is True  # the render child keeps its renderer
    assert (health["jobs_queued"], health["jobs_processing"]) == (0, 0)


@pytest.mark.parametrize("job_id", ["nonsense", "01a2045d-f5c0-7137-bcbe-93170dae2eb4", "..", "%2e%2e%2fx"])
def test_an_unknown_id_is_404(api: Api, job_id: str) -> None:
    api.get(f"/talk-status/{job_id}").refused(404, "NotFoundError")
    api.get(f"/storage/videos/{job_id}.mp4").refused(404, "NotFoundError")


def test_a_restart_between_the_request_and_the_video_loses_nothing(tmp_path_factory: pytest.TempPathFactory) -> None:
    changes = {"watch": {"settle_proven_s": 2.0}, "render": {"renderer": "slow"}}
    with serving(tmp_path_factory.mktemp("restart"), changes=changes) as api:
        installation = api.installation
        first = generate(api, seconds=0.6)
        installation.until_state("anna", JobState.RUNNING)
        second = generate(api, seed=1)
        assert installation.view.find(second) is None  # its manifest still lies in the inbox
        installation.kill()
        installation.start()
        api.port = port_of(installation)
        assert api.get(f"/talk-status/{second}").json["status"] in ("queued", "processing", "done")
        assert api.done(first)["result_url"]
        assert api.done(second)["result_url"]


def test_a_long_poll_answers_as_soon_as_the_job_has_ended(api: Api) -> None:
    job_id = generate(api)
    now = api.get(f"/talk-status/{job_id}?wait=0")
    assert now.headers["Retry-After"] == "2"
    assert api.get(f"/talk-status/{job_id}?wait=nonsense").status == 200
    ended = api.get(f"/talk-status/{job_id}?wait=50")
    assert ended.json["status"] == "done"
    assert "Retry-After" not in ended.headers
