"""The lag of lips behind a voice, measured on finished videos by the mesh."""

from __future__ import annotations

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from lipsyncd.media import ffmpeg
from lipsyncd.media.ffmpeg import Encoding
from lipsyncd.renderers import Scene
from lipsyncd.renderers.encoder import Encoder
from lipsyncd.renderers.lag import best_shift
from lipsyncd.renderers.motion.moving_shot import moving
from lipsyncd.renderers.preview import Preview
from tests.kits.media.portraits import picture
from tests.kits.media.preview_kit import voice

SPEECH = "Good morning! My father and my mother are at home. How do you do?"


def test_a_known_shift_is_found():
    random = np.random.default_rng(4)
    curve = np.convolve(random.random(400), np.hanning(15), "same")
    for steps in (-13, 0, 7):
        lag_s, correlation = best_shift(curve, np.roll(curve, steps))
        assert lag_s == pytest.approx(steps / 100, abs=0.003)
        assert correlation > 0.9


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of `preview` with a subtle motion, as a job makes it."""
    folder = tmp_path_factory.mktemp("talk")
    speech = voice(SPEECH)
    (folder / "sound.s16").write_bytes(np.repeat(speech, 3).astype("<i2").tobytes())
    frames = -(-len(speech) * 25 // 16_000)
    scene = Scene(picture("astronaut"), speech, Fraction(25), frames, False, 256, "subtle")
    shot = moving(Preview().open(scene), scene)
    encoding = Encoding(256, 256, Fraction(25), folder / "sound.s16", 1, crf=18, preset="veryfast", audio_kbps=128)
    with Encoder(ffmpeg.find(), encoding, folder / "talk.mp4") as encoder:
        for frame in shot.frames():
            encoder.write(frame)
        encoder.finish()
    return folder / "talk.mp4"


def lag_of(video: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "lipsyncd", "bench", "--lag", str(video), "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(ran.stdout)


def test_the_lips_of_preview_are_within_a_frame_of_the_voice(talk: Path):
    found = lag_of(talk)
    assert abs(found["lag_ms"]) <= 40
    assert found["correlation"] > 0.6
    assert found["faces"] == 1.0


def test_a_sound_that_comes_late_is_measured(talk: Path):
    """The same video with its sound 120 ms later: the lips come first by as much more."""
    late = talk.with_name("late.mp4")
    command = [
        str(ffmpeg.find()), "-v", "error", "-y", "-i", str(talk), "-c:v", "copy", "-af", "adelay=120:all=1",
        "-c:a", "aac", str(late),
    ]  # fmt: skip
    subprocess.run(command, check=True)
    assert lag_of(late)["lag_ms"] == pytest.approx(lag_of(talk)["lag_ms"] - 120, abs=15)


def test_what_does_not_speak_is_refused(tmp_path: Path, talk: Path):
    still = tmp_path / "still.mp4"
    command = [
        str(ffmpeg.find()), "-v", "error", "-y", "-i", str(talk), "-vf", "select=eq(n\\,0),loop=100:1:0,setpts=N/25/TB",
        "-af", "anull", "-t", "3", str(still),
    ]  # fmt: skip
    subprocess.run(command, check=True)
    command = [sys.executable, "-m", "lipsyncd", "bench", "--lag", str(still)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "the lips in the video do not move" in ran.stderr
