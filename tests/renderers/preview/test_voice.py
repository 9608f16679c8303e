"""The analysis of the voice: the times of frames, and the mouth for a sound."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from lipsyncd.renderers import SPEECH_RATE
from lipsyncd.renderers.audio import frame_bounds, frame_level, frame_times, windows
from lipsyncd.renderers.preview.voice import MouthCurves, motion, mouth_curves
from lipsyncd.renderers.voice.analysis import HOP, STEP_RATE, STEPS_AT_ONCE, WINDOW, analyse
from tests.kits.media.preview_kit import correlation, loudness, silence, voice

RATES = [Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(30), Fraction(60)]
TEN_MINUTES = 600 * SPEECH_RATE


def burst(at_s: float, length_s: float, total_s: float) -> np.ndarray:
    """An ah whose pitch falls from 130 Hz, surrounded by silence: harmonics under formants at 700, 1200 and 2600 Hz."""
    samples = silence(total_s)
    start, count = round(at_s * SPEECH_RATE), round(length_s * SPEECH_RATE)
    inside_s = np.arange(count) / SPEECH_RATE
    phase = 2 * np.pi * np.cumsum(130 - 15 * inside_s) / SPEECH_RATE
    tone = np.zeros(count)
    for k in range(1, 30):
        hz = 125.0 * k
        tone += np.sin(k * phase) * sum(1 / (1 + ((hz - formant) / 120) ** 2) for formant in (700, 1200, 2600)) / k**0.5
    samples[start : start + count] = np.rint(0.4 * 32767 * tone / np.abs(tone).max())
    return samples


def curves_of(speech: np.ndarray) -> MouthCurves:
    return mouth_curves(analyse(speech))


# -- frames and samples ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fps", RATES)
def test_frames_divide_the_samples_without_gap_overlap_or_drift(fps):
    frames = int(-(-TEN_MINUTES * fps // SPEECH_RATE))
    bounds = frame_bounds(fps, frames)

    assert bounds[0] == 0
    assert bounds[-1] >= TEN_MINUTES > bounds[-2]
    for i in (1, frames // 2, frames):
        assert bounds[i] == int(Fraction(i * SPEECH_RATE) / fps)


def test_frame_times_are_exact_after_ten_minutes_at_a_1001_rate():
    fps = Fraction(30000, 1001)

    assert frame_times(fps, 17983)[-1] == pytest.approx(float(Fraction(2 * 17982 + 1, 2) / fps), abs=1e-9)


def test_the_level_of_a_frame_is_that_of_its_own_samples():
    speech = np.concatenate([np.full(640, 16384, np.int16), silence(0.04), np.full(640, -32768, np.int16)])

    assert frame_level(speech, Fraction(25), 4).tolist() == pytest.approx([0.5, 0.0, 1.0, 0.0])


def test_levels_do_not_depend_on_where_the_blocks_end():
    speech = np.random.default_rng(1).integers(-8000, 8000, 60 * SPEECH_RATE).astype(np.int16)
    level = frame_level(speech, Fraction(60), 3600)

    assert len(level) > 3 * 1024
    for i in (0, 1023, 1024, 2048, 3599):
        first, last = frame_bounds(Fraction(60), 3600)[i : i + 2]
        own = speech[first:last].astype(np.float64) / 32768
        assert level[i] == pytest.approx(np.sqrt(np.mean(own**2)), rel=1e-5)


@pytest.mark.parametrize("samples", [0, 1, HOP, 5 * HOP + 7, 7 * HOP])
def test_windows_in_blocks_equal_the_windows_of_the_whole(samples):
    speech = np.random.default_rng(2).integers(-9999, 9999, samples).astype(np.int16)
    (whole,) = windows(speech, hop=HOP, width=WINDOW, at_once=1000)
    blocks = list(windows(speech, hop=HOP, width=WINDOW, at_once=3))

    expected = np.lib.stride_tricks.sliding_window_view(whole, WINDOW)[::HOP]
    seen = np.concatenate([np.lib.stride_tricks.sliding_window_view(block, WINDOW)[::HOP] for block in blocks])
    assert len(expected) == samples // HOP + 1
    assert np.array_equal(seen, expected)


def test_the_analysis_of_a_long_voice_is_seamless():
    """A steady tone has the same spectrum on both sides of the end of a block."""
    steps = STEPS_AT_ONCE
    at_s = np.arange(round(2.2 * steps * HOP)) / SPEECH_RATE
    tone = np.rint(13_000 * np.sin(2 * np.pi * 700 * at_s)).astype(np.int16)
    level = analyse(tone).bands[10:-10].sum(axis=1)

    assert len(level) > 2 * steps
    assert level.max() / level.min() == pytest.approx(1.0, rel=0.05)


# -- the mouth ---------------------------------------------------------------------------------------------------------


def test_silence_keeps_the_mouth_exactly_shut():
    still = motion(silence(4), Fraction(25), 100)

    assert not still.openness.any()
    assert not still.width.any()


def test_the_hiss_of_a_quiet_room_keeps_it_shut_as_well():
    hiss = np.random.default_rng(3).normal(0, 20, 4 * SPEECH_RATE).astype(np.int16)  # -64 dB

    assert not motion(hiss, Fraction(25), 100).openness.any()


def test_a_voice_of_any_level_opens_the_mouth_equally_wide():
    speech = voice("Good morning, everybody.")
    frames = len(speech) * 25 // SPEECH_RATE
    loud, quiet = (motion((speech * gain).astype(np.int16), Fraction(25), frames).openness for gain in (0.9, 0.09))

    assert loud.max() > 0.85
    assert np.abs(loud - quiet).max() < 0.05


def test_the_mouth_opens_fast_and_closes_slowly():
    openness = curves_of(burst(1.0, 0.5, 3.0)).openness
    rising, falling = np.flatnonzero(openness > 0.1 * openness.max()), np.flatnonzero(openness > 0.9 * openness.max())
    attack_s, release_s = (falling[0] - rising[0]) / STEP_RATE, (rising[-1] - falling[-1]) / STEP_RATE

    assert 0.02 <= attack_s <= 0.06
    assert 0.06 <= release_s <= 0.13


@pytest.mark.parametrize("fps", RATES)
def test_a_sound_late_in_a_long_voice_moves_the_right_frame(fps):
    """After nine minutes: a rate rounded to an integer would be off by half a second."""
    at_s = 540.0
    speech = burst(at_s, 0.2, 541.0)
    openness = motion(speech, fps, int(-(-len(speech) * fps // SPEECH_RATE))).openness
    first = int(np.flatnonzero(openness > 0.5)[0])

    assert (first + 0.5) / float(fps) == pytest.approx(at_s, abs=1.0 / float(fps) + 0.03)


def test_all_frame_rates_sample_one_curve():
    speech = voice("Please call Stella.")
    fine = motion(speech, Fraction(1000), len(speech) // 16)
    for fps in RATES:
        frames = int(len(speech) * fps // SPEECH_RATE)
        sampled = motion(speech, fps, frames)
        at = np.rint(frame_times(fps, frames) * 1000 - 0.5).astype(int)
        assert np.abs(sampled.openness - fine.openness[at]).max() < 0.05
        assert np.abs(sampled.width - fine.width[at]).max() < 0.05


def test_frames_after_the_sound_are_shut():
    speech = voice("[[a:]]")
    openness = motion(speech, Fraction(25), 100).openness

    assert openness.max() > 0.5
    assert not openness[-40:].any()


@pytest.mark.parametrize("speaker", ["en-us", "en-us+f3", "de", "es", "fr-fr"])
def test_vowels_have_their_shapes(speaker):
    """ah: wide open, neither round nor spread; ee: spread; oo and oh: round."""
    shape = {}
    for vowel in ("a:", "i:", "u:", "o:"):
        curves = curves_of(voice(f"[[{vowel}{vowel}]]", speaker))
        openness, width = curves.openness, curves.width
        held = openness > 0.8 * openness.max()
        shape[vowel] = openness[held].mean(), width[held].mean()

    assert shape["a:"][0] > 0.8
    assert abs(shape["a:"][1]) < 0.25
    assert shape["i:"][0] < 0.7
    assert shape["i:"][1] > 0.4
    assert shape["u:"][0] < 0.85
    assert shape["u:"][1] < -0.3
    assert shape["o:"][1] < -0.6


@pytest.mark.parametrize("speaker", ["en-us", "en-us+f3", "de"])
def test_close_vowels_after_a_loud_one_are_seen_too(speaker):
    """The loudest vowel decides how wide a sound opens the mouth; oo has a hundredth of its energy above 400 Hz."""
    speech = voice("How do you do?", speaker)
    voiced, openness = analyse(speech).periodicity > 0.6, curves_of(speech).openness

    assert (openness[voiced] > 0.1).mean() > 0.55


@pytest.mark.parametrize("consonant", ["p", "b", "m"])
@pytest.mark.parametrize("speaker", ["en-us", "en-us+f3", "de"])
def test_lips_close_for_p_b_and_m(consonant, speaker):
    curves = curves_of(voice(f"[[a:{consonant}a:]]", speaker))
    openness = curves.openness
    wide = np.flatnonzero(openness > 0.5)
    between = openness[wide[0] : wide[-1]]

    assert between.min() < 0.05
    assert (between < 0.2).sum() >= 4  # for 40 ms or more, so that a frame at 25 fps falls into it
    assert curves.press[wide[0] : wide[-1]].max() > 0.75
    assert curves.bite.max() < 0.05
    assert curves.press[openness > 0.3].max() < 0.45  # pressed lips and an open mouth exclude each other


def test_an_s_between_vowels_shows_teeth_and_no_closed_lips():
    curves = curves_of(voice("[[a:ssa:]]"))
    openness, width = curves.openness, curves.width
    wide = np.flatnonzero(openness > 0.5)
    hiss = wide[0] + int(np.argmin(openness[wide[0] : wide[-1]]))

    assert 0.1 < openness[hiss] < 0.35
    assert width[hiss] > 0.3


def test_strength_scales_the_opening_within_bounds():
    speech = voice("Good morning.")
    frames = len(speech) * 25 // SPEECH_RATE
    weak, usual, strong = (motion(speech, Fraction(25), frames, strength=gain).openness for gain in (0.5, 1.0, 1.5))

    assert weak.max() == pytest.approx(0.5 * usual.max(), rel=0.01)
    assert usual.max() < strong.max() <= 1.2


@pytest.mark.parametrize("consonant", ["f", "v"])
@pytest.mark.parametrize("vowel", ["a:", "i:", "o:"])
@pytest.mark.parametrize("speaker", ["en-us", "en-us+f3", "de"])
def test_the_lower_lip_goes_under_the_teeth_for_f_and_v_and_is_not_pressed(consonant, vowel, speaker):
    curves = curves_of(voice(f"[[{vowel}{consonant}{vowel}]]", speaker))

    assert curves.bite.max() > 0.9
    assert curves.press.max() < 0.05
    bitten = np.flatnonzero(curves.bite > 0.6)
    assert 0.04 <= len(bitten) / STEP_RATE <= 0.2
    assert curves.openness[bitten].max() < 0.25


@pytest.mark.parametrize("consonant", ["k", "g", "s", "z", "S", "t"])
@pytest.mark.parametrize("speaker", ["en-us", "de"])
def test_consonants_behind_the_lips_neither_press_nor_bite(consonant, speaker):
    curves = curves_of(voice(f"[[a:{consonant}a:]]", speaker))

    assert curves.press.max() < 0.05
    assert curves.bite.max() < 0.05


@pytest.mark.parametrize("consonant", ["p", "m", "f"])
def test_the_lips_take_60_to_120_ms_into_a_shape(consonant):
    """From resting to the full shape; measured between 5 and 95 %, as the ends of a smooth movement cannot be seen."""
    curves = curves_of(voice(f"[[a:{consonant}a:]]"))
    shape = curves.bite if consonant == "f" else curves.press
    top = int(np.argmax(shape))
    begins, full = np.flatnonzero(shape[:top] < 0.05)[-1], np.flatnonzero(shape > 0.95 * shape[top])[0]

    assert 0.05 <= (full - begins) / STEP_RATE <= 0.12


SENTENCES = [
    ("Please call Stella. Ask her to bring these things with her from the store.", "en-us"),
    ("The quick brown fox jumps over the lazy dog, and nobody seems to mind.", "en-us"),
    ("Please call Stella. Ask her to bring these things with her from the store.", "en-us+f3"),
    ("The quick brown fox jumps over the lazy dog, and nobody seems to mind.", "en-us+m3"),
    ("Bonjour, je m'appelle Anne et je suis tres contente de vous voir.", "fr-fr"),
]


@pytest.mark.parametrize(("text", "speaker"), SENTENCES)
def test_in_a_sentence_the_mouth_is_mostly_nearly_shut_and_opens_for_vowels(text, speaker):
    speech = voice(text, speaker)
    frames = len(speech) * 25 // SPEECH_RATE
    openness = motion(speech, Fraction(25), frames).openness
    steps = analyse(speech)
    at = np.rint((np.arange(frames) + 0.5) * STEP_RATE / 25).astype(int)
    sound = loudness(speech, frames)
    voiced = (steps.periodicity[at] > 0.5) & (sound > 0.01 * sound.max())

    assert voiced.sum() > 40
    assert (openness[voiced] > 0.2).mean() <= 0.45
    assert (openness[voiced] > 0.5).mean() <= 0.30
    assert openness.max() > 0.8
    assert correlation(openness, sound) >= 0.6


@pytest.mark.parametrize("fps", [Fraction(25), Fraction(30)])
@pytest.mark.parametrize(("text", "speaker"), SENTENCES)
def test_no_two_frames_are_alternately_open_and_shut(text, speaker, fps):
    speech = voice(text, speaker)
    openness = motion(speech, fps, int(len(speech) * fps // SPEECH_RATE)).openness
    state = np.where(openness > 0.2, 1, np.where(openness < 0.05, -1, 0))
    alternating = state[:-3] * state[1:-2] * state[2:-1] * state[3:] * (state[:-3] != state[1:-2])
    alternating *= (state[1:-2] != state[2:-1]) & (state[2:-1] != state[3:])

    assert not alternating.any()
