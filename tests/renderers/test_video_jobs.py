"""Jobs with a video in place of a picture, through a daemon."""

from __future__ import annotations

import json
import math
import subprocess
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from lipsyncd.jobs.job import JobState
from lipsyncd.media.video_frames import BOUNCE, CUT, LOOP, source_index
from tests.kits.installation import Installation, put, sound
from tests.kits.media.footage_kit import H264, HEIGHT, REPLAY, SLOW_READER, VP8, WIDTH, film, number_of
from tests.kits.media.media_kit import converted, ffmpeg


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    installation = Installation(tmp_path_factory.mktemp("busy"))
    installation.changes = {
        "watch": {"settle_s": 0.1, "manifest_grace_s": 5},
        "render": {"renderer": "replay", "renderers": [REPLAY, SLOW_READER], "stall_timeout_s": 3},
        "output": {"stitch": True},
    }
    with installation.running():
        yield installation


def numbers_in(video: Path) -> list[int]:
    command = [str(ffmpeg()), "-nostdin", "-v", "error", "-i", str(video), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    frames = np.frombuffer(raw, np.uint8).reshape(-1, HEIGHT, WIDTH, 3)
    return [number_of(frame) for frame in frames]


@pytest.mark.parametrize(("suffix", "options"), [(".mp4", H264), (".mov", H264), (".webm", VP8)], ids=str)
def test_a_video_and_a_sound_of_one_stem_are_a_pair(busy: Installation, suffix: str, options: tuple[str, ...]) -> None:
    name = f"pair{suffix[1:]}"
    put(busy.path("inbox"), f"{name}{suffix}", film(suffix, 10, *options))
    put(busy.path("inbox"), f"{name}.wav", sound(1.0))
    busy.until_done(name)
    shown = numbers_in(busy.path("outbox") / f"{name}.mp4")
    assert shown == [source_index(number, 10, BOUNCE) for number in range(25)]
    assert "the video has 10 of 25 frames" in json.dumps(busy.sidecar(name))


@pytest.mark.parametrize(("mode", "frames"), [(LOOP, 25), (CUT, 10)])
def test_a_job_chooses_what_happens_when_its_sound_is_longer(busy: Installation, mode: str, frames: int) -> None:
    name = f"mode{mode}"
    put(busy.path("inbox"), f"{name}-film.mp4", film(".mp4", 10, *H264))
    put(busy.path("inbox"), f"{name}-voice.wav", sound(1.0))
    busy.drop_manifest(
        name, image=f"{name}-film.mp4", audio=f"{name}-voice.wav", lipsyncd={"duration_mode": mode}, out_name=name
    )
    job = busy.until_done(name)
    assert job.frames == frames
    assert job.duration_ms == frames * 40
    assert numbers_in(busy.path("outbox") / f"{name}.mp4") == [source_index(n, 10, mode) for n in range(frames)]
    sidecar = json.dumps(busy.sidecar(name))
    assert ("the sound was cut from 1.00 to 0.40 s" if mode == CUT else "it goes on by duration_mode = loop") in sidecar


def test_a_video_is_submitted_like_a_picture(busy: Installation, tmp_path: Path) -> None:
    for name, data in (("ada.webm", film(".webm", 10, *VP8)), ("ada.wav", sound(0.4)), ("song.mp4", converted(".m4a"))):
        (tmp_path / name).write_bytes(data)
    done = busy.cli("submit", tmp_path / "ada.webm", tmp_path / "ada.wav", "--wait", "--out", tmp_path / "out.mp4")
    assert done.returncode == 0, done.stderr
    assert numbers_in(tmp_path / "out.mp4") == list(range(10))
    refused = busy.cli("submit", tmp_path / "song.mp4", tmp_path / "ada.wav")
    assert refused.returncode != 0
    assert "is a sound (m4a)" in refused.stderr


def test_a_longer_video_ends_with_the_sound(busy: Installation) -> None:
    put(busy.path("inbox"), "long.mp4", film(".mp4", 60, *H264))
    put(busy.path("inbox"), "long.wav", sound(1.0))
    assert busy.until_done("long").frames == 25
    assert numbers_in(busy.path("outbox") / "long.mp4") == list(range(25))


def test_the_preview_renderer_refuses_a_video_and_names_one_that_accepts_it(busy: Installation) -> None:
    put(busy.path("inbox"), "still.mp4", film(".mp4", 10, *H264))
    put(busy.path("inbox"), "still.wav", sound(0.5))
    busy.drop_manifest("refused", image="still.mp4", audio="still.wav", renderer="preview", out_name="refused")
    job = busy.until_state("refused", JobState.FAILED)
    assert job.reason_code == "video-not-taken"
    assert "musetalk" in (job.remedy or "")


def test_a_wrong_duration_mode_fails_the_job(busy: Installation) -> None:
    put(busy.path("inbox"), "odd.mp4", film(".mp4", 10, *H264))
    put(busy.path("inbox"), "odd.wav", sound(0.5))
    busy.drop_manifest("odd2", image="odd.mp4", audio="odd.wav", lipsyncd={"duration_mode": "backwards"})
    assert busy.until_state("odd2", JobState.FAILED).reason_code == "bad-option"


def test_an_mp4_without_video_is_no_picture(busy: Installation) -> None:
    put(busy.path("inbox"), "song.mp4", converted(".m4a"))
    put(busy.path("inbox"), "song.wav", sound(0.5))
    job = busy.until_state("song", JobState.FAILED)
    assert job.reason_code == "image-not-recognised"
    assert "is a sound (m4a)" in (job.reason or "")


def test_a_long_analysis_is_no_silence_and_can_be_cancelled(busy: Installation) -> None:
    for name in ("slow", "slower"):
        put(busy.path("inbox"), f"{name}-film.mp4", film(".mp4", 100, *H264))
        put(busy.path("inbox"), f"{name}-voice.wav", sound(2.0 if name == "slow" else 4.0))
        busy.drop_manifest(
            name,
            image=f"{name}-film.mp4",
            audio=f"{name}-voice.wav",
            renderer="slow-reader",
            out_name=name,
            stitch=True,
        )
    assert busy.until_done("slow").frames == 50  # 5 s of analysis, where 3 s of silence end a render
    job = busy.until_state("slower", JobState.RUNNING)
    assert busy.cli("cancel", job.id).returncode == 0
    cancelled_s = time.monotonic()
    busy.until_state("slower", JobState.CANCELLED)
    assert time.monotonic() - cancelled_s < 5  # the analysis alone would take ten seconds


def test_the_length_of_a_video_is_exact_at_fractional_rates(busy: Installation) -> None:
    put(busy.path("inbox"), "ntsc.mov", film(".mov", 20, *H264, rate="30000/1001"))
    put(busy.path("inbox"), "ntsc.wav", sound(1.0))
    busy.drop_manifest("ntsc2", image="ntsc.mov", audio="ntsc.wav", fps=29.97, out_name="ntsc2")
    assert busy.until_done("ntsc2").frames == math.ceil(Fraction(30000, 1001))
    shown = numbers_in(busy.path("outbox") / "ntsc2.mp4")
    assert shown == [source_index(number, 20, BOUNCE) for number in range(30)]
