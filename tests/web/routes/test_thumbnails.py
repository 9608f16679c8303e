"""Thumbnails over HTTP: of uploads and of jobs, whichever way they came, only for those who see upload or job."""

from __future__ import annotations

import io
import json
from functools import partial
from typing import Any

import pytest
from PIL import Image

from tests.kits.installation import face, picture, put, sound
from tests.kits.media.footage_kit import H264, HEIGHT, WIDTH, film
from tests.kits.media.media_kit import corners, encoded
from tests.kits.web_kit import Api, Reply
from tests.prepare.test_decode import turned_by
from tests.web.test_tenants import BERT, BOSS, with_key


def shown(reply: Reply) -> tuple[int, int]:
    """The size of the JPEG in an answer."""
    assert (reply.status, reply.headers["Content-Type"]) == (200, "image/jpeg"), reply
    image = Image.open(io.BytesIO(reply.body))
    image.load()
    return image.size


def test_an_upload_of_any_kind_shows_its_thumbnail_to_its_owner_alone(api: Api, anna: Api) -> None:
    turned = encoded(corners(96, 64), "JPEG", exif=turned_by(6))
    for name, data, size in (
        ("a.heic", encoded(corners(324, 162), "HEIF"), (320, 160)),
        ("a.jpg", turned, (64, 96)),
        ("a.mp4", film(".mp4", 5, *H264), (WIDTH, HEIGHT)),
    ):
        answer = anna.form("/images", image=(name, data)).json
        assert answer["thumbnail_url"] == f"/images/{answer['id']}/thumbnail"
        reply = anna.get(answer["thumbnail_url"])
        assert shown(reply) == size
        assert reply.headers["Cache-Control"] == "private, no-cache"
        assert anna.get(answer["thumbnail_url"], If_None_Match=reply.headers["ETag"]).status == 304
    with_key(api, BERT).get(answer["thumbnail_url"]).refused(404, "NotFoundError")
    assert with_key(api, BOSS).get(answer["thumbnail_url"]).status == 200
    api.get(answer["thumbnail_url"]).refused(401, "AuthorizationError")
    assert anna.call("DELETE", f"/images/{answer['id']}").status == 204
    anna.get(answer["thumbnail_url"]).refused(404, "NotFoundError")
    audio = anna.form("/audios", audio=("a.wav", sound())).json
    anna.get(f"/images/{audio['id']}/thumbnail").refused(404, "NotFoundError")


def test_a_job_has_one_from_its_preparation_until_it_is_deleted(api: Api, anna: Api) -> None:
    job = anna.form("/jobs", image=("p.heic", encoded(corners(640, 480), "HEIF")), audio=("v.wav", sound())).json
    assert job["thumbnail_url"] is None
    job = anna.get(f"/jobs/{job['id']}?wait=50").json
    assert (job["state"], job["thumbnail_url"]) == ("done", f"/jobs/{job['id']}/thumbnail")
    assert shown(anna.get(job["thumbnail_url"])) == (320, 240)
    assert anna.get("/jobs").json["jobs"][0]["thumbnail_url"] == job["thumbnail_url"]
    event = anna.get(f"/jobs/{job['id']}/events").body.split(b"data: ")[1].partition(b"\n")[0]
    assert json.loads(event)["thumbnail_url"] == job["thumbnail_url"]
    with_key(api, BERT).get(job["thumbnail_url"]).refused(404, "NotFoundError")
    api.get(job["thumbnail_url"]).refused(401, "AuthorizationError")

    again = anna.form("/jobs", image=("p.heic", encoded(corners(640, 480), "HEIF")), audio=("v.wav", sound())).json
    again = anna.get(f"/jobs/{again['id']}?wait=50").json  # is given the first one's video, and prepares nothing
    assert again["thumbnail_url"] is not None
    assert shown(anna.get(again["thumbnail_url"])) == (320, 240)

    for one in (job, again):
        assert anna.call("DELETE", f"/jobs/{one['id']}").status == 204
        assert not (api.installation.path("state") / "thumbnails" / f"{one['id']}.jpg").exists()
    anna.get(job["thumbnail_url"]).refused(404, "NotFoundError")


@pytest.mark.slow
def test_jobs_of_the_folder_and_failed_ones_show_what_was_dropped(api: Api) -> None:
    """A video's first frame; a picture whose sound is none; and nothing of a picture that cannot be decoded."""
    boss, inbox = with_key(api, BOSS), api.installation.path("inbox")
    damaged = bytearray(picture(2, 400, 300))
    damaged[5000:5100] = bytes(100)
    for name, image, voice in (
        ("film.mp4", film(".mp4", 20, *H264), sound()),
        ("mute.png", face(5), sound(0.01)),
        ("torn.png", bytes(damaged), sound()),
    ):
        put(inbox, name, image)
        put(inbox, f"{name.partition('.')[0]}.wav", voice)

    def job(name: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = boss.get(f"/jobs?name={name}").json["jobs"]
        return found[0] if found and found[0]["state"] in ("done", "failed") else {}

    film_job, mute, torn = (api.installation.until(partial(job, name), name) for name in ("film", "mute", "torn"))
    assert (film_job["state"], mute["state"], torn["state"]) == ("done", "failed", "failed")
    for one in (film_job, mute):
        assert max(shown(boss.get(one["thumbnail_url"]))) <= 320
    assert torn["thumbnail_url"] is None
    assert "a retry or a new job" in boss.get(f"/jobs/{torn['id']}/thumbnail").refused(404, "NotFoundError")
