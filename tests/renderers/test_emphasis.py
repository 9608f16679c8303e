"""The delivery of a voice: stressed syllables, pauses, pitch."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from lipsyncd.renderers import SPEECH_RATE
from lipsyncd.renderers.voice.analysis import STEP_RATE, STEPS_AT_ONCE, analyse
from lipsyncd.renderers.voice.emphasis import emphasis
from tests.kits.media.preview_kit import silence, voice
from tests.kits.media.sound_kit import at_level, band, noise

FPS = Fraction(25)
SENTENCE = "Please call Stella. Ask her to bring these things with her from the store."


def frames_of(speech: np.ndarray, fps: Fraction = FPS) -> int:
    return int(-(-len(speech) * fps // SPEECH_RATE))


def test_silence_has_no_stress_and_no_speaker():
    heard = emphasis(silence(3), FPS, 75)

    assert not heard.stress.any()
    assert not heard.speaking.any()
    assert not heard.pitch.any()


@pytest.mark.parametrize("make", [band, noise])
def test_music_and_noise_without_a_voice_are_a_pause(make):
    heard = emphasis(at_level(make(4), -20), FPS, 100)

    assert not heard.stress.any()
    assert not heard.speaking.any()


@pytest.mark.parametrize("speaker", ["en-us", "en-us+f3", "de"])
def test_a_sentence_has_about_one_stressed_syllable_a_second(speaker):
    speech = voice(SENTENCE, speaker)
    stress = emphasis(speech, FPS, frames_of(speech)).stress
    hills = np.count_nonzero((stress[1:-1] > 0.5) & (stress[1:-1] > stress[:-2]) & (stress[1:-1] >= stress[2:]))

    assert 0.4 <= hills / (len(speech) / SPEECH_RATE) <= 2.5
    assert stress.max() > 0.9
    assert (stress > 0.5).mean() < 0.3


def test_the_loudest_of_equal_syllables_is_the_stressed_one():
    one = voice("[[ma:]]")
    one = one[: np.flatnonzero(np.abs(one) > 300)[-1] + 800]
    speech = np.concatenate([(one * (0.8 if index == 3 else 0.35)).astype(np.int16) for index in range(6)])
    heard = emphasis(speech, FPS, frames_of(speech))
    syllable = int(np.argmax(heard.stress) / 25 * SPEECH_RATE / len(one))

    assert syllable == 3
    others = np.delete(heard.stress, np.arange(*(int(i * len(one) / 640) for i in (3, 4)), dtype=int)[:-1])
    assert np.percentile(others, 80) < 0.5


def test_speaking_falls_in_a_pause_and_comes_back():
    speech = np.concatenate([silence(1), voice(SENTENCE), silence(2), voice(SENTENCE)])
    heard = emphasis(speech, FPS, frames_of(speech))
    begins, pause = 25, frames_of(np.concatenate([silence(1), voice(SENTENCE)]))

    assert not heard.speaking[: begins - 10].any()
    assert heard.speaking[begins + 10 : begins + 60].min() > 0.9
    assert heard.speaking[pause + 18 : pause + 40].max() == 0.0
    assert heard.speaking[pause + 70 :][:25].max() > 0.9
    assert not heard.stress[pause + 10 : pause + 40].any()


def test_frames_after_the_sound_are_a_pause():
    speech = voice("Hello.")
    heard = emphasis(speech, FPS, 200)

    assert len(heard.stress) == len(heard.speaking) == len(heard.pitch) == 200
    assert heard.stress.dtype == np.float32
    assert not heard.stress[-100:].any()
    assert not heard.speaking[-100:].any()


def test_a_rising_pitch_is_measured_in_semitones():
    """A sound of twenty harmonics whose pitch rises by an octave in two seconds."""
    at_s = np.arange(2 * SPEECH_RATE) / SPEECH_RATE
    hz = 110.0 * 2.0 ** (at_s / 2)
    phase = 2 * np.pi * np.cumsum(hz) / SPEECH_RATE
    tone = sum(np.sin(k * phase) / k for k in range(1, 21))
    heard = emphasis((tone * 6000).astype(np.int16), FPS, 50)

    assert heard.pitch[40] - heard.pitch[10] == pytest.approx(12 * 30 / 50, abs=0.5)
    assert heard.pitch[25] == pytest.approx(0.0, abs=0.5)


@pytest.mark.parametrize("hz", [80.0, 155.0, 310.0, 390.0])
def test_the_pitch_of_a_telephone_voice_is_found_though_its_fundamental_is_missing(hz):
    at_s = np.arange(SPEECH_RATE) / SPEECH_RATE
    harmonics = [k * hz for k in range(1, 40) if 300 <= k * hz <= 3400]
    tone = sum(np.cos(2 * np.pi * f * at_s) for f in harmonics) / len(harmonics)
    steps = analyse((tone * 20_000).astype(np.int16))

    assert steps.pitch_hz[20:-20] == pytest.approx(hz, rel=0.02)
    assert steps.periodicity[20:-20].min() > 0.9


def test_noise_has_no_period():
    noise = np.random.default_rng(5).normal(0, 2000, 4 * SPEECH_RATE).astype(np.int16)

    assert np.percentile(analyse(noise).periodicity, 99) < 0.6


def test_the_measurements_do_not_depend_on_where_a_block_ends():
    speech = voice(SENTENCE)
    shift = STEPS_AT_ONCE - 150  # the end of a block falls into the sentence
    alone = analyse(speech)
    late = analyse(np.concatenate([silence(shift / STEP_RATE), speech]))

    assert np.allclose(late.bands[shift:], alone.bands, rtol=1e-4, atol=1e-9)
    assert np.allclose(late.periodicity[shift:], alone.periodicity, atol=1e-4)


@pytest.mark.parametrize("seconds", [0.04, 0.2, 0.32])
def test_a_very_short_sound_has_a_delivery_too(seconds):
    """Shorter than the gaps that are closed between words."""
    samples = round(seconds * SPEECH_RATE)
    hum = 8000 * np.sign(np.sin(2 * np.pi * 130 * np.arange(samples) / SPEECH_RATE))
    frames = -(-samples * 25 // SPEECH_RATE)
    found = emphasis(hum.astype(np.int16), Fraction(25), frames)
    assert len(found.stress) == len(found.speaking) == len(found.pitch) == frames
