"""Addresses that clients name: good files become a video, bad sources fail the job with a reason."""

from __future__ import annotations

import contextlib
import gzip
import json
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from tests.kits.faults.faulty_renderers import NAMES
from tests.kits.installation import picture, sound
from tests.kits.media.footage_kit import H264, HEIGHT, REPLAY, VP8, WIDTH, film
from tests.kits.web_kit import Api, serving
from tests.kits.webhook_receiver import Answer, receiving, until

PICTURE, VOICE = picture(3), sound(0.4)
ID = "01a20531-200e-7570-9e24-3b013f83c95d"


class Source(BaseHTTPRequestHandler):
    """Good and bad files by their paths."""

    def do_GET(self) -> None:
        with contextlib.suppress(ConnectionError):
            getattr(self, "_" + self.path.strip("/").partition(".")[0])()

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def _send(self, body: bytes, **headers: str) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def _anna(self) -> None:
        self._send(PICTURE)

    def _hello(self) -> None:
        self._send(VOICE, Content_Type="text/html")  # the type in the header is not trusted

    def _page(self) -> None:
        self._send(b"<html>no picture</html>", Content_Type="image/png")

    def _bomb(self) -> None:
        self._send(gzip.compress(bytes(30_000_000)), Content_Encoding="gzip")

    def _endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(bytes(1 << 16))

    def _slow(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(PICTURE)))
        self.end_headers()
        for byte in PICTURE:
            self.wfile.write(bytes([byte]))
            time.sleep(0.1)

    def _moved(self) -> None:
        self._redirect("/anna.png")

    def _inwards(self) -> None:
        self._redirect("http://169.254.169.254/latest/meta-data")

    def _lost(self) -> None:
        self._redirect("/gone.png")

    def _gone(self) -> None:
        self.send_error(404)

    def _round(self) -> None:
        self._redirect("/round.png")

    def _redirect(self, where: str) -> None:
        self.send_response(302)
        self.send_header("Location", where)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture(scope="module")
def source() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Source)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    fetch = {"allow": ["127.0.0.1"], "max_mb": 1, "timeout_s": 4.0}
    changes = {
        "fetch": fetch,
        "render": {"max_attempts": 1, "renderers": [*NAMES, REPLAY]},
        "web": {"webhook_allow": ["127.0.0.1"]},
    }
    with serving(tmp_path_factory.mktemp("sources"), changes=changes) as api:
        yield api


def talk(api: Api, source: str, image: str, audio: str = "hello.wav") -> str:
    script = {"type": "audio", "audio_url": f"{source}/{audio}"}
    talk_id: str = api.post("/talks", {"source_url": f"{source}/{image}", "script": script}).json["id"]
    return talk_id


@pytest.mark.parametrize("image", ["anna.png", "moved.png"])
def test_files_of_an_allowed_host_become_a_video(api: Api, source: str, image: str) -> None:
    answer = api.talk(talk(api, source, image))
    assert answer["duration"] == 0.4
    assert answer["source_url"] == f"{source}/{image}"
    made = api.form("/generate-video", source_url=f"{source}/anna.png", audio_url=f"{source}/hello.wav")
    assert api.get(api.done(made.json["id"])["result_url"]).body[4:8] == b"ftyp"


@pytest.mark.parametrize(
    ("image", "code", "word"),
    [
        ("bomb.png", "fetch-refused", "compressed"),
        ("endless.png", "fetch-refused", "larger than 1000000 bytes"),
        ("slow.png", "fetch-failed", ""),
        ("inwards.png", "fetch-refused", "no public address"),
        ("round.png", "fetch-refused", "redirect"),
        ("page.png", "image-not-recognised", "page.png"),
    ],
)
def test_a_bad_source_fails_the_job_with_its_reason(api: Api, source: str, image: str, code: str, word: str) -> None:
    began_s = time.monotonic()
    answer = api.talk(talk(api, source, image), "error")
    assert (answer["error"]["kind"], answer["error"]["code"]) == ("SourceError", code), answer
    assert word in answer["error"]["description"]
    assert time.monotonic() - began_s < 60


@pytest.mark.parametrize("audio", ["endless.wav", "lost.wav", "inwards.wav"])
def test_a_bad_sound_is_no_fault_of_the_picture(api: Api, source: str, audio: str) -> None:
    """Not even if its address redirects to one that looks like the picture's."""
    answer = api.talk(talk(api, source, "anna.png", audio), "error")
    assert (answer["error"]["kind"], answer["error"]["code"]) == ("AudioError", "fetch-refused")


def test_a_webhook_has_the_talk_as_its_client_gets_it(api: Api, source: str) -> None:
    """The same fields, and a link with the host name that this client used."""
    script = {"type": "audio", "audio_url": f"{source}/hello.wav"}
    order = {"source_url": f"{source}/anna.png", "script": script, "name": "scene", "user_data": "scene 7"}
    with receiving(Answer(500), Answer(204)) as receiver:
        made = api.post("/talks", {**order, "webhook": f"{receiver.url}?secret=1"}, Host=f"localhost:{api.port}").json
        answer = api.talk(made["id"])
        until(lambda: len(receiver.hits) == 2, "the second try", seconds=40)
    assert {hit.target.partition("?")[2] for hit in receiver.hits} == {"secret=1"}
    message = json.loads(receiver.hits[1].body)
    assert message.pop("result_url") == answer.pop("result_url").replace("127.0.0.1", "localhost")
    assert message == answer


# -- uploads by address ------------------------------------------------------------------------------------------------


def test_an_upload_may_be_an_address(api: Api, source: str) -> None:
    image = api.form("/images", source_url=f"{source}/moved.png")
    voice = api.form("/audios", source_url=f"{source}/hello.wav")
    assert (image.status, voice.status) == (201, 201)
    assert (image.json["width"], image.json["url"].rpartition("/")[2]) == (80, "moved.png")
    assert (voice.json["duration"], voice.json["url"].rpartition("/")[2]) == (0.4, "hello.wav")
    assert api.get(image.json["url"]).body == PICTURE
    again = api.form("/images", source_url=image.json["url"].replace("127.0.0.1", "elsewhere.example"))
    assert again.json["id"] == image.json["id"]  # our own address is not fetched


@pytest.mark.parametrize(
    ("name", "status", "word"),
    [
        ("endless.png", 400, "larger than"),
        ("slow.png", 400, "did not arrive"),
        ("inwards.png", 400, "no public address"),
        ("gone.png", 400, "404"),
        ("page.png", 415, "is a web page"),
        ("hello.wav", 415, "is a sound (wav)"),
    ],
)
def test_an_address_without_a_usable_file_leaves_nothing(
    api: Api, source: str, name: str, status: int, word: str
) -> None:
    before = sorted(path.name for path in (api.installation.path("state") / "uploads").iterdir())
    answer = api.form("/images", source_url=f"{source}/{name}")
    assert word in answer.refused(status, "BadRequestError" if status == 400 else "UnsupportedMimeTypeError")
    assert sorted(path.name for path in (api.installation.path("state") / "uploads").iterdir()) == before


@pytest.mark.parametrize(
    "host", ["[::ffff:127.1]", "[::ffff:1.2.3.400]", "[1:2:3:4:5:6:7:8:9]", "[v1.x]", "[::1", "[]", "]", "\u2100",
             "a..b", "127.1", "%00", "-a", "a" * 300],
)  # fmt: skip
def test_an_address_without_a_valid_host_is_refused_by_every_route(api: Api, source: str, host: str) -> None:
    """With 4xx, or as the reason of the failed job; `[::ffff:127.1]` was an internal error."""
    voice = {"type": "audio", "audio_url": f"{source}/hello.wav"}
    for path in ("", "a.png", f"files/images/{ID}/a.png"):
        url = f"http://{host}/{path}"
        for answer in (
            api.form("/images", source_url=url),
            api.form("/audios", source_url=url),
            api.post("/talks", {"source_url": url, "script": voice}),
            api.post("/talks", {"source_url": f"{source}/anna.png", "script": {**voice, "audio_url": url}}),
            api.form("/generate-video", source_url=url, audio_data=("a.wav", VOICE)),
            api.post("/talks", {"source_url": f"{source}/anna.png", "script": voice, "webhook": url}),
        ):
            assert answer.status in (201, 200, 400, 429), (answer, url)
            assert "Traceback" not in api.installation.log
        for talk in api.get("/talks").json["talks"]:
            if talk["source_url"] == url:
                assert api.talk(talk["id"], "error")["error"]["code"].startswith("fetch-")


# -- videos in place of a picture --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_a_video_may_replace_a_picture(api: Api, suffix: str) -> None:
    film_ = film(suffix, 30, *(H264 if suffix == ".mp4" else VP8))
    image = api.form("/upload-source-image", file=("anna.bin", film_)).json
    assert (image["width"], image["height"], image["kind"]) == (WIDTH, HEIGHT, suffix[1:])
    kept = api.get(image["url"])
    assert (kept.body, kept.headers["Content-Type"]) == (film_, f"video/{suffix[1:]}")

    made = api.form("/generate-video", source_url=image["url"], audio_data=("a.wav", sound(0.8)), renderer="replay")
    assert api.get(api.done(made.json["id"])["result_url"]).body[4:8] == b"ftyp"
    made = api.form("/generate-video", source_image=("a.mp4", film_), audio_data=("a.wav", sound()), renderer="preview")
    status = api.get(f"/talk-status/{made.json['id']}?wait=50").json
    assert status["status"] == "error"
    assert "musetalk" in status["error"]  # the renderer that takes videos
    assert api.get(f"/talks/{made.json['id']}").json["error"]["kind"] == "SourceError"


def test_a_video_that_cannot_be_decoded_is_refused_at_once(api: Api) -> None:
    answer = api.form("/upload-source-image", file=("a.mp4", film(".mp4", 30, *H264).replace(b"avc1", b"xxxx")))
    assert answer.refused(400, "BadRequestError")
    assert answer.json["details"]["code"] == "image-undecodable"
    answer = api.form("/upload-audio", file=("a.webm", film(".webm", 30, *VP8)))
    assert answer.refused(400, "BadRequestError")
    assert "the WebM holds no sound" in answer.json["description"]
    answer = api.form("/upload-audio", file=("a.avi", b"RIFF\x24\0\0\0AVI LIST" + bytes(40)))
    assert answer.refused(415, "UnsupportedMimeTypeError")
    assert "audio/wav" in answer.json["details"]["supported"]
