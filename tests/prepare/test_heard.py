"""What the renderer listens to: the voice, also where the sum of the channels has lost it."""

import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest

from lipsyncd.media import Kind
from lipsyncd.prepare.decode_sound import decode_sound
from tests.kits.media.media_kit import ffmpeg, tone, wav

RATE = 48_000
VOICE = np.frombuffer(tone(1.0, rate=RATE), "<i2").astype(float)  # a sine of 16000
OTHER = np.frombuffer(tone(1.0, rate=RATE, hertz=470.0), "<i2").astype(float)


def stereo(left: np.ndarray, right: np.ndarray) -> bytes:
    both = np.stack([left, right], axis=1)
    return wav(np.rint(both).astype("<i2").tobytes(), channels=2, rate=RATE)


def mixed(layout: str, **channels: float) -> bytes:
    """The voice on some channels of a layout, each with its gain."""
    pan = f"pan={layout}|" + "|".join(f"{name}={gain}*c0" for name, gain in channels.items())
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.wav"), Path(folder, "out.wav")
        source.write_bytes(wav(VOICE.astype("<i2").tobytes(), rate=RATE))
        subprocess.run([str(ffmpeg()), "-v", "error", "-i", str(source), "-af", pan, str(target)], check=True)
        return target.read_bytes()


def levels(folder: Path, data: bytes) -> tuple[float, float]:
    """RMS of speech and of the louder channel of the sound, in parts of the voice."""
    (folder / "input").write_bytes(data)
    sound = decode_sound(folder / "input", Kind.WAV, folder, ffmpeg=ffmpeg())
    assert sound.notes == ()
    assert sound.speech_samples == 16_000
    speech = np.fromfile(folder / "speech.s16", "<i2").astype(float)
    both = np.fromfile(folder / "sound.s16", "<i2").astype(float).reshape(-1, sound.channels)
    whole = np.sqrt(np.mean(VOICE**2))
    return np.sqrt(np.mean(speech**2)) / whole, float(np.sqrt(np.mean(both**2, axis=0)).max() / whole)


@pytest.mark.parametrize(
    ("left", "right", "heard"),
    [
        pytest.param(VOICE, -VOICE, 1.0, id="opposite phase"),
        pytest.param(0.5 * VOICE, -0.45 * VOICE, 0.5, id="nearly opposite, the left one louder"),
        pytest.param(-0.45 * VOICE, 0.5 * VOICE, 0.5, id="nearly opposite, the right one louder"),
        pytest.param(VOICE, -0.49 * VOICE, 0.255, id="a loss of just less than 12 dB"),
        pytest.param(VOICE, -0.52 * VOICE, 1.0, id="a loss of just more than 12 dB"),
        pytest.param(VOICE, VOICE, 1.0, id="the same twice"),
        pytest.param(VOICE, 0 * VOICE, 0.5, id="one silent channel"),
        pytest.param(0.5 * VOICE, 0.5 * OTHER, 0.354, id="two voices"),
        pytest.param(0 * VOICE, 0 * VOICE, 0.0, id="silence"),
    ],
)
def test_a_voice_that_the_sum_of_the_channels_loses_is_heard_from_the_louder_one(tmp_path, left, right, heard):
    speech, _ = levels(tmp_path, stereo(left, right))
    assert speech == pytest.approx(heard, abs=0.01)


def test_the_sound_itself_keeps_both_channels(tmp_path):
    levels(tmp_path, stereo(VOICE, -VOICE))
    both = np.fromfile(tmp_path / "sound.s16", "<i2").reshape(-1, 2)
    assert np.array_equal(both[:, 0], VOICE.astype(int))
    assert np.array_equal(both[:, 1], -VOICE.astype(int))


@pytest.mark.parametrize("layout", ["3.0", "5.1", "7.1"])
def test_the_centre_of_many_channels_keeps_its_level(tmp_path, layout):
    speech, sound = levels(tmp_path, mixed(layout, FC=1.0))
    assert speech == pytest.approx(1.0, abs=0.01)
    assert sound == pytest.approx(1.0, abs=0.01)


def test_loud_channels_beside_the_centre_are_limited_and_do_not_wrap_around(tmp_path):
    speech, sound = levels(tmp_path, mixed("5.1", FC=1.9, FL=1.9, FR=1.9))
    assert speech > 1.3
    assert sound > 1.3
    samples = np.fromfile(tmp_path / "speech.s16", "<i2").astype(int)
    assert np.abs(np.diff(samples)).max() < 20_000


def test_mono_and_stereo_keep_their_levels(tmp_path):
    assert levels(tmp_path, wav(VOICE.astype("<i2").tobytes(), rate=RATE)) == pytest.approx((1.0, 1.0), abs=0.01)
    assert levels(tmp_path, stereo(VOICE, VOICE)) == pytest.approx((1.0, 1.0), abs=0.01)
