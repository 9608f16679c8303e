"""Pauses of a voice: what counts as one, and the fades. Needs no torch."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lipsyncd.renderers.musetalk.silence import pauses

RATE = 16_000
FPS = Fraction(25)


def voice(*parts: tuple[float, float], seed: int = 0) -> NDArray[np.int16]:
    """Noise of the given (seconds, level in dB of full scale), one part after another."""
    level = np.concatenate([np.full(round(s * RATE), 10 ** (db / 20)) for s, db in parts])
    noise = np.random.default_rng(seed).normal(0, 1, len(level))
    return np.rint(noise * level * 32768).clip(-32768, 32767).astype(np.int16)


def test_a_pause_is_recognised_by_its_level_and_length() -> None:
    speech = voice((1, -20), (0.3, -70), (1, -20), (0.6, -70), (1, -40), (0.6, -45))

    assert pauses(speech).stretches == ((round(2.3 * RATE), round(2.9 * RATE)),)


def test_digital_silence_and_a_quiet_room_are_both_pauses() -> None:
    for level in (-np.inf, -70, -55):
        assert pauses(voice((1, -20), (1, level), (1, -20))).stretches == ((RATE, 2 * RATE),)


def test_speech_is_painted_in_full_and_the_fade_lies_in_the_pause() -> None:
    weights = pauses(voice((1, -20), (1, -70), (1, -20))).weights(FPS, 75)

    assert (weights[:25] == 1).all() and (weights[50:] == 1).all()
    assert weights[25:29].tolist() == [0.75, 0.5, 0.25, 0]
    assert weights[46:50].tolist() == [0, 0.25, 0.5, 0.75]
    assert (weights[28:47] == 0).all()


def test_silence_at_the_ends_has_no_fade_there() -> None:
    weights = pauses(voice((1, -70), (1, -20), (1, -70))).weights(FPS, 76)

    assert (weights[:22] == 0).all() and (weights[53:] == 0).all()
    assert weights[22:25].tolist() == [0.25, 0.5, 0.75]


def test_a_fade_lasts_equally_long_at_every_rate() -> None:
    weights = pauses(voice((1, -20), (1, -70), (1, -20))).weights(Fraction(100), 300)

    assert ((weights > 0) & (weights < 1)).sum() == 24  # 0.12 s on either side


@pytest.mark.parametrize("fps", [Fraction(1), Fraction(24), Fraction(30000, 1001), Fraction(60)], ids=str)
def test_a_silent_voice_shows_only_the_source(fps: Fraction) -> None:
    speech = np.zeros(3 * RATE, np.int16)

    assert (pauses(speech).weights(fps, -(-3 * fps.numerator // fps.denominator)) == 0).all()


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.floats(0.05, 1.5), st.sampled_from([-20.0, -70.0, -np.inf])), min_size=1, max_size=8),
    st.fractions(1, 120, max_denominator=1001),
)
def test_a_frame_with_speech_is_always_painted_in_full(parts: list[tuple[float, float]], fps: Fraction) -> None:
    speech = voice(*parts)
    found = pauses(speech)
    frames = max(-(-len(speech) * fps.numerator // (RATE * fps.denominator)), 1)
    weights = found.weights(fps, frames)
    spoken = np.ones(len(speech), bool)
    for start, end in found.stretches:
        assert end - start >= 0.4 * RATE
        spoken[start:end] = False

    assert weights.shape == (frames,) and weights.dtype == np.float32
    for frame, weight in enumerate(weights):
        first, last = int(frame * RATE / fps), int((frame + 1) * RATE / fps)
        assert 0 <= weight <= 1
        if spoken[first:last].any() and last - first < 0.4 * RATE:
            assert weight == 1, frame
