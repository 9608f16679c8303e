"""Names and folder habits that public reports describe, through the inbox of a daemon, each with its right value."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from lipsyncd.jobs.job import Job, JobState
from lipsyncd.media.mp4 import inspect
from tests.kits.installation import Installation, picture, put, sound
from tests.kits.media.footage_kit import H264, VP8, WIDTH, film, film_with_voice
from tests.kits.media.media_kit import converted, encoded

VOICE = sound(1.5)
FRAMES = 38  # at 25 frames a second


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    installation = Installation(tmp_path_factory.mktemp("busy"))
    installation.changes = {"output": {"stitch": True}, "watch": {"settle_s": 0.2}}
    with installation.running():
        yield installation


def ended(installation: Installation, name: str) -> Job:
    return installation.until_state(name, JobState.DONE, JobState.FAILED, JobState.CANCELLED)


def jpeg() -> bytes:
    return encoded(Image.open(io.BytesIO(picture())), "JPEG")


def sound_alone(suffix: str, *options: str) -> bytes:
    return converted(suffix, *options, seconds=1.5)


PAIRS = {
    "c05-mp4": [(".png", picture), (".mp4", lambda: sound_alone(".mp4", "-c:a", "aac"))],
    "c05-mov": [(".png", picture), (".mov", lambda: sound_alone(".mov", "-c:a", "aac"))],
    "c05-webm": [(".png", picture), (".webm", lambda: sound_alone(".webm", "-c:a", "libopus"))],
    "weba": [(".png", picture), (".weba", lambda: sound_alone(".webm", "-c:a", "libvorbis"))],
    "c09-jfif": [(".jfif", jpeg), (".wav", lambda: VOICE)],
    "jpe": [(".JPE", jpeg), (".wav", lambda: VOICE)],
    "m4b": [(".png", picture), (".m4b", lambda: sound_alone(".m4a", "-c:a", "aac"))],
    "3gp": [(".png", picture), (".3gp", lambda: sound_alone(".mp4", "-c:a", "aac"))],
    "picture-named-wav": [(".wav", jpeg), (".flac", lambda: VOICE)],
    "crossed": [(".png", lambda: VOICE), (".wav", picture)],
    "film-beside-picture": [(".png", picture), (".mp4", lambda: film_with_voice(".mp4", *H264, "-c:a", "aac"))],
    "webm-beside-picture": [(".png", picture), (".webm", lambda: film_with_voice(".webm", *VP8, "-c:a", "libopus"))],
}


@pytest.mark.parametrize("stem", PAIRS)
def test_the_bytes_decide_which_half_a_file_is(busy: Installation, stem: str) -> None:
    for suffix, make in PAIRS[stem]:
        put(busy.path("inbox"), stem + suffix, make())
    job = ended(busy, stem)
    assert (job.state, job.reason_code) == (JobState.DONE, None)
    assert job.frames in (FRAMES, FRAMES + 1, FRAMES + 2)  # some codecs pad


def test_a_film_beside_a_sound_is_the_picture(busy: Installation) -> None:
    put(busy.path("inbox"), "film-beside-sound.mp4", film(".mp4", 30, *H264))
    put(busy.path("inbox"), "film-beside-sound.wav", VOICE)
    job = ended(busy, "film-beside-sound")
    assert (job.state, job.frames) == (JobState.DONE, FRAMES)
    assert inspect(busy.path("outbox") / "film-beside-sound.mp4").video.width == WIDTH


def test_a_manifest_names_files_without_regard_to_case(busy: Installation) -> None:
    put(busy.path("inbox"), "C06_Case.JPG", jpeg())
    put(busy.path("inbox"), "C06_Case.WAV", VOICE)
    order = {"image": "c06_case.jpg", "audio": "c06_case.wav", "fps": 30, "out_name": "c06_wanted"}
    put(busy.path("inbox"), "C06_Case.json", json.dumps(order).encode())
    assert ended(busy, "c06_wanted").frames == 45
    facts = inspect(busy.path("outbox") / "c06_wanted.mp4")
    assert facts.video.frames == 45
    assert not (busy.path("outbox") / "C06_Case.mp4").exists()


def test_a_manifest_in_utf16_with_its_mark_is_read(busy: Installation) -> None:
    put(busy.path("inbox"), "c12_p.png", picture())
    put(busy.path("inbox"), "c12_s.wav", VOICE)
    put(busy.path("inbox"), "c12.json", json.dumps({"image": "c12_p.png", "audio": "c12_s.wav"}).encode("utf-16"))
    assert ended(busy, "c12").frames == FRAMES


@pytest.mark.parametrize(
    ("stem", "image"), [("c13", "C:\\Users\\anna\\c13_p.png"), ("share", "\\\\nas\\x.png"), ("blank", "c13_p.png ")]
)
def test_a_path_of_windows_in_a_manifest_is_refused_at_once(busy: Installation, stem: str, image: str) -> None:
    put(busy.path("inbox"), f"{stem}.json", json.dumps({"image": image, "audio": "c13_s.wav"}).encode())
    assert ended(busy, stem).reason_code == "unsafe-path"


def test_a_new_kind_beside_a_usual_one_is_left_alone_with_its_reason(busy: Installation) -> None:
    for suffix, content in ((".tif", picture()), (".jpg", jpeg()), (".aac", VOICE), (".wav", VOICE)):
        put(busy.path("inbox"), f"IMG_1{suffix}", content)
    assert ended(busy, "IMG_1").frames == FRAMES
    busy.until(lambda: not (busy.path("inbox") / "IMG_1.wav").exists(), "the sound is taken")
    inbox = Path(busy.path("inbox"))
    assert {p.name for p in inbox.glob("IMG_1.*")} == {"IMG_1.tif", "IMG_1.aac"}


PHONES = {
    "heic": (".HEIC", lambda: encoded(Image.open(io.BytesIO(picture())), "HEIF")),
    "heif": (".heif", lambda: encoded(Image.open(io.BytesIO(picture())), "HEIF")),
    "avif": (".avif", lambda: encoded(Image.open(io.BytesIO(picture())), "AVIF")),
    "heic-named-jpg": (".jpg", lambda: encoded(Image.open(io.BytesIO(picture())), "HEIF")),
    "bmp": (".bmp", lambda: encoded(Image.open(io.BytesIO(picture())), "BMP")),
    "tiff": (".tiff", lambda: encoded(Image.open(io.BytesIO(picture())), "TIFF")),
    "gif": (".gif", lambda: encoded(Image.open(io.BytesIO(picture())), "GIF")),
}


@pytest.mark.parametrize("stem", PHONES)
def test_the_pictures_of_phones_and_scanners_are_taken(busy: Installation, stem: str) -> None:
    suffix, make = PHONES[stem]
    put(busy.path("inbox"), stem + suffix, make())
    put(busy.path("inbox"), f"{stem}.wav", VOICE)
    job = ended(busy, stem)
    assert (job.state, job.reason_code, job.frames) == (JobState.DONE, None, FRAMES)
    facts = inspect(busy.path("outbox") / f"{stem}.mp4")
    assert (facts.video.width, facts.video.height) == (80, 72)


@pytest.mark.slow
def test_a_picture_of_50_megapixels_gives_a_square_and_no_whole_video(busy: Installation) -> None:
    large = Image.open(io.BytesIO(picture(0, 256, 192))).resize((8192, 6144), Image.Resampling.NEAREST)
    put(busy.path("inbox"), "large.jpg", encoded(large, "JPEG"))
    put(busy.path("inbox"), "large.wav", VOICE)
    whole = ended(busy, "large")
    assert whole.reason_code == "image-too-large"
    busy.until(lambda: busy.view.get(whole.id).kept, "the folder under failed/")
    assert "stitch = false" in busy.reason(whole)["remedy"]

    put(busy.path("inbox"), "square.jpg", encoded(large, "JPEG"))
    put(busy.path("inbox"), "square.wav", VOICE)
    order = {"image": "square.jpg", "audio": "square.wav", "stitch": False, "resolution": 128}
    put(busy.path("inbox"), "square.json", json.dumps(order).encode())
    assert ended(busy, "square").frames == FRAMES
    sidecar = json.loads((busy.path("outbox") / "square.json").read_bytes())
    assert "decoded at half its size" in json.dumps(sidecar)


@pytest.mark.parametrize(
    ("stem", "image", "audio", "code"),
    [
        ("two-sounds", VOICE, VOICE, "image-not-recognised"),
        ("two-pictures", picture(), picture(1), "audio-not-recognised"),
    ],
)
def test_two_of_a_kind_under_the_names_of_a_pair_are_refused_at_once(
    busy: Installation, stem: str, image: bytes, audio: bytes, code: str
) -> None:
    put(busy.path("inbox"), f"{stem}.png", image)
    put(busy.path("inbox"), f"{stem}.wav", audio)
    assert ended(busy, stem).reason_code == code
