"""What people drop, through the inbox of a real daemon: each input gives the right video or the right reason."""

from __future__ import annotations

import io
import json
import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lipsyncd.jobs.job import Job, JobState, new_id
from lipsyncd.media.mp4 import inspect
from tests.kits.installation import Installation, picture, put, sound
from tests.kits.media.media_kit import bomb, encoded, wav


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """One daemon for the whole file; it gives up on incomplete files soon."""
    installation = Installation(tmp_path_factory.mktemp("busy"))
    installation.changes = {
        "watch": {"settle_s": 0.1, "incomplete_timeout_s": 1, "pair_timeout_s": 2, "manifest_grace_s": 60},
        "output": {"stitch": True},
        "fetch": {"allow": ["127.0.0.1"]},
    }
    with installation.running():
        yield installation


def ended(installation: Installation, name: str) -> Job:
    return installation.until_state(name, JobState.DONE, JobState.FAILED, JobState.CANCELLED)


def colourful(mode: str = "RGB", width: int = 81, height: int = 65) -> Image.Image:
    return Image.open(io.BytesIO(picture(3, width, height))).convert(mode)


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: shown 65 wide, 81 high
    return encoded(colourful(), "JPEG", exif=exif)


def sixteen_bit() -> bytes:
    return encoded(Image.fromarray(np.linspace(0, 65535, 65 * 81).reshape(65, 81).astype(np.uint16)), "PNG")


TONE = sound(1.0)[44:]  # one second of 16-bit samples at 16 kHz
QUIET_8_BIT = bytes([128]) * 16_000

PICTURES: dict[str, tuple[bytes, tuple[int, int] | str]] = {
    "odd": (picture(4, 101, 75), (102, 76)),
    "rotated": (rotated(), (66, 82)),
    "transparent": (encoded(colourful("RGBA"), "PNG"), (82, 66)),
    "cmyk": (encoded(colourful("CMYK"), "JPEG"), (82, 66)),
    "grey": (encoded(colourful("L"), "PNG"), (82, 66)),
    "sixteen-bit": (sixteen_bit(), (82, 66)),
    "palette": (encoded(colourful("P"), "PNG"), (82, 66)),
    "webp": (encoded(colourful(), "WEBP"), (82, 66)),
    "one-pixel": (encoded(Image.new("RGB", (1, 1)), "PNG"), "image-too-small"),
    "huge": (bomb(), "image-too-large"),
    "truncated-png": (picture()[:-400], "image-undecodable"),
    "truncated-jpeg": (encoded(colourful(), "JPEG")[:-300], "image-undecodable"),
    "gif": (encoded(colourful(), "GIF"), (82, 66)),
    "psd": (b"8BPS\0\1" + bytes(6) + b"\0\3" + bytes(400), "image-not-recognised"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg" width="99" height="99"/>', "image-not-recognised"),
    "animated": (
        encoded(colourful(), "WEBP", save_all=True, append_images=[colourful("L").convert("RGB")], duration=100),
        "image-animated",
    ),
}

SOUNDS: dict[str, tuple[bytes, float | str]] = {
    "empty": (b"", "audio-not-recognised"),
    "short": (sound(0.1), "audio-too-short"),
    "long": (wav(bytes([128]) * (2000 * 660), rate=2000, bits=8), "audio-too-long"),
    "8-bit": (wav(QUIET_8_BIT, bits=8), 1.0),
    "255-channels": (wav(bytes(255 * 2 * 800), channels=255), "audio-undecodable"),
    "endless-header": (wav(TONE, data_bytes=0xFFFFFFFF), 1.0),
    "declares-2e9-bytes": (wav(TONE, data_bytes=2 * 10**9), 1.0),
    "three-joined": (wav(TONE) * 3, 3.0),
    "joined-in-two-formats": (wav(TONE) + wav(TONE, rate=8000), "audio-undecodable"),
    "cut-short": (wav(TONE)[:-9600], 0.7),
    "header-of-zero": (wav(TONE, data_bytes=0), 1.0),
    "rate-zero": (wav(TONE, rate=0), "audio-undecodable"),
    "no-channels": (wav(TONE, channels=0), "audio-undecodable"),
    "odd-bytes": (wav(TONE + b"\0"), 1.0),
    "playlist": (b"ffconcat version 1.0\nfile secret.wav\n", "audio-not-recognised"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_gives_its_video_or_its_reason(busy: Installation, name: str) -> None:
    content, expected = PICTURES[name]
    put(busy.path("inbox"), f"{name}.png", content)
    put(busy.path("inbox"), f"{name}.wav", sound(0.24))

    job = ended(busy, name)

    if isinstance(expected, str):
        assert job.reason_code == expected, job
        check_reason(busy, job, f"{name}.png", content)
    else:
        assert job.state is JobState.DONE, job
        facts = inspect(busy.path("outbox") / f"{name}.mp4")
        assert (facts.video.width, facts.video.height) == expected


@pytest.mark.parametrize("name", SOUNDS)
def test_a_sound_gives_its_video_or_its_reason(busy: Installation, name: str) -> None:
    content, expected = SOUNDS[name]
    put(busy.path("inbox"), f"{name}.png", picture())
    put(busy.path("inbox"), f"{name}.wav", content)

    job = ended(busy, name)

    if isinstance(expected, str):
        assert job.reason_code == expected, job
        check_reason(busy, job, f"{name}.wav", content)
    else:
        assert job.state is JobState.DONE, job
        assert job.duration_ms == pytest.approx(expected * 1000, abs=1)
        assert job.frames == math.ceil(expected * 25)


def check_reason(installation: Installation, job: Job, name: str, content: bytes) -> None:
    """The reason is complete, and the file lies beside it byte for byte."""
    installation.until(lambda: installation.view.get(job.id).kept, "the folder under failed/")
    reason = installation.reason(job)
    assert reason["code"] == job.reason_code
    assert reason["message"]
    assert reason["remedy"]
    folder = Path(installation.view.get(job.id).kept or "")
    assert (folder / name).read_bytes() == content


@pytest.mark.parametrize(
    ("fields", "code", "reason"),
    [
        ({"image": "../a.png", "audio": "a.wav"}, "unsafe-path", "'../a.png'"),
        ({"image": "/etc/passwd", "audio": "a.wav"}, "unsafe-path", "path"),
        ({"image": "linked.png", "audio": "a.wav"}, "unsafe-path", "no regular file"),
        ({"image": "a.png"}, "bad-manifest", "audio"),
        ({"image": "a.png", "audio": "a.wav", "colour": "red"}, "bad-manifest", "colour"),
        ({"image": "a.png", "audio": "a.wav", "fps": 1000}, "bad-manifest", "fps"),
        ({"image": "a.png", "audio": "a.wav", "out_name": "-rf"}, "bad-name", "-rf"),
        ({"image": "nowhere.png", "audio": "nowhere.wav"}, "missing-file", "nowhere.png"),
    ],
)
def test_a_bad_manifest_is_moved_away_with_its_reason(
    busy: Installation, fields: dict[str, object], code: str, reason: str
) -> None:
    link = busy.path("inbox") / "linked.png"
    if not link.is_symlink():
        link.symlink_to("/etc/hostname")
    name = f"order-{os.urandom(4).hex()}"
    busy.drop_manifest(name, **fields)

    job = ended(busy, name)

    assert job.reason_code == code
    assert reason in (job.reason or "")
    check_reason(busy, job, f"{name}.json", json.dumps(fields).encode())


def test_a_half_that_stays_alone_is_given_back(busy: Installation) -> None:
    put(busy.path("inbox"), "lonely.png", picture(5))
    assert ended(busy, "lonely").reason_code == "missing-half"


def test_three_files_of_a_stem_are_given_back_together(busy: Installation) -> None:
    put(busy.path("inbox"), "trio.png", picture(6))
    put(busy.path("inbox"), "trio.jpg", encoded(colourful(), "JPEG"))
    put(busy.path("inbox"), "trio.wav", sound())
    job = ended(busy, "trio")
    assert job.reason_code == "ambiguous-pair"
    busy.until(lambda: busy.view.get(job.id).kept, "the folder")
    names = {p.name for p in Path(busy.view.get(job.id).kept or "").iterdir()}
    assert {"trio.png", "trio.jpg", "trio.wav"} <= names


def test_a_manifest_just_after_its_pair_changes_that_job_or_is_refused_with_its_name(busy: Installation) -> None:
    put(busy.path("inbox"), "blocker.png", picture(7))
    put(busy.path("inbox"), "blocker.wav", sound(20, 7))
    busy.drop_manifest("blocker", image="blocker.png", audio="blocker.wav", renderer="slow")
    busy.until_state("blocker", JobState.RUNNING)
    busy.drop_pair("late", seed=8)
    job = busy.until_state("late", JobState.QUEUED)
    busy.drop_manifest("order-late", image="late.png", audio="late.wav", resolution=128, stitch=False, fps=50)
    busy.until(lambda: busy.view.get(job.id).fps == "50", "the new options")
    blocker = busy.job("blocker")
    assert blocker is not None
    assert busy.cli("cancel", blocker.id).returncode == 0
    done = busy.until_done("late")
    assert inspect(busy.path("outbox") / "late.mp4").video.width == 128

    busy.drop_manifest("too-late", image="late.png", audio="late.wav")
    refused = ended(busy, "too-late")
    assert refused.reason_code == "inputs-already-taken"
    assert done.id in (refused.reason or "")


def test_the_same_id_with_the_same_files_is_the_same_job(busy: Installation) -> None:
    job_id = new_id()
    for _ in range(2):
        put(busy.path("inbox"), "again.png", picture(9))
        put(busy.path("inbox"), "again.wav", sound(seed=9))
        busy.drop_manifest("again", id=job_id, image="again.png", audio="again.wav")
        busy.until(lambda: not list(busy.path("inbox").glob("again*")), "the taking")
        busy.until_done("again")
    assert len([j for j in busy.view.jobs(limit=1000) if j.name == "again"]) == 1


@pytest.mark.parametrize(
    "stem", ["with space", "line\nbreak", "-rf", "Zoë", "日本語", "a" * 200, "quote'\"$(id)", "ends.with.dots", "con"]
)
def test_odd_names_come_through(busy: Installation, stem: str) -> None:
    before = {p.name for p in busy.path("outbox").glob("*.mp4")}
    put(busy.path("inbox"), f"{stem}.png", picture(10))
    put(busy.path("inbox"), f"{stem}.wav", sound(0.24, seed=len(before)))
    new = busy.until(lambda: {p.name for p in busy.path("outbox").glob("*.mp4")} - before, "the video")
    assert len(new) == 1
    assert not next(iter(new)).startswith(("-", "."))
    assert "\n" not in next(iter(new))


def test_a_name_that_is_no_utf8_comes_through(busy: Installation) -> None:
    put(busy.path("inbox"), b"caf\xe9.png", picture(11))
    put(busy.path("inbox"), b"caf\xe9.wav", sound(0.24, seed=11))
    video = busy.until(lambda: list(busy.path("outbox").glob("caf*.mp4")), "the video")
    assert len(video) == 1


def test_text_is_spoken(busy: Installation) -> None:
    put(busy.path("inbox"), "speaker.png", picture(12))
    busy.drop_manifest("spoken", image="speaker.png", text="Good morning.", voice="en-us")
    job = busy.until_done("spoken")
    assert (job.duration_ms or 0) > 500
    assert busy.sidecar("spoken")["text"] == "Good morning."


@contextmanager
def server(files: dict[str, bytes]) -> Iterator[str]:
    """A web server on loopback that knows these paths; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = files.get(self.path.partition("?")[0])
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def test_addresses_are_fetched(busy: Installation) -> None:
    with server({"/face": picture(13), "/voice": sound(0.24, 13)}) as address:
        busy.drop_manifest("fetched", image=f"{address}/face?token=secret", audio=f"{address}/voice")
        job = busy.until_done("fetched")
    assert job.frames == 6
    assert "secret" not in busy.log


def test_an_address_that_does_not_hold_the_file_ends_the_job_with_its_reason(busy: Installation) -> None:
    with server({"/voice": sound()}) as address:
        busy.drop_manifest("gone", image=f"{address}/face", audio=f"{address}/voice")
        assert ended(busy, "gone").reason_code == "fetch-refused"
        busy.drop_manifest("wrong", image=f"{address}/voice", audio=f"{address}/voice")
        assert ended(busy, "wrong").reason_code == "image-not-recognised"


def test_an_address_inside_the_network_is_refused(busy: Installation) -> None:
    busy.drop_manifest("inside", image="http://169.254.169.254/latest/meta-data", audio="http://[::1]/a.wav")
    job = ended(busy, "inside")
    assert job.reason_code == "fetch-refused"
    assert "169.254.169.254" in (job.reason or "")


def test_other_files_are_left_alone(busy: Installation) -> None:
    note = busy.path("inbox") / "README.txt"
    note.write_text("for people")
    folder = busy.path("inbox") / "folder.wav"
    folder.mkdir(exist_ok=True)
    os.mkfifo(busy.path("inbox") / "pipe.png")
    status = busy.path("state") / "status.json"
    ignored = {"README.txt", "folder.wav", "pipe.png"}
    busy.until(lambda: ignored <= set(json.loads(status.read_text())["ignored"]), "a scan that reports them")
    assert ignored <= set(json.loads(busy.cli("status", "--json").stdout)["daemon"]["ignored"])
    assert note.exists()
    assert folder.is_dir()
