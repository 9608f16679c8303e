"""What counts as a voice: everything that speaks moves the mouth, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from lipsyncd.renderers import SPEECH_RATE
from lipsyncd.renderers.preview.voice import motion
from lipsyncd.renderers.voice.analysis import analyse, decibels
from lipsyncd.renderers.voice.presence import presence
from tests.kits.media.preview_kit import best_lag, correlation, loudness, silence, voice
from tests.kits.media.sound_kit import (
    Sound,
    Wave,
    at_level,
    band,
    chords,
    drums,
    faster,
    hoarse,
    hum,
    melody,
    mixed,
    noise,
    telephone,
    whispered,
)

FPS = Fraction(25)
STELLA = "Please call Stella. Ask her to bring these things with her from the store."

NOT_VOICES: dict[str, Callable[[], Sound]] = {
    **{
        f"{name} noise at {level} dB": lambda slope=slope, level=level: at_level(noise(4, slope), level)
        for name, slope in (("white", 0.0), ("pink", 3.0), ("brown", 6.0))
        for level in (-43, -30, -15)
    },
    "one second of noise": lambda: at_level(noise(1), -25),
    "noise that begins and ends": lambda: np.concatenate([silence(1), at_level(noise(2), -25), silence(1)]),
    "noise that swells four times a second": lambda: at_level(swelling(noise(4)), -25),
    "a hum of 50 Hz": lambda: at_level(hum(4, 50), -25),
    "a hum of 60 Hz with noise": lambda: at_level(hum(4, 60) / 2 + 0.3 * noise(4), -25),
    "a pure hum": lambda: at_level(hum(4, 100, harmonics=1), -20),
    "an organ": lambda: at_level(chords(6, decay_s=30), -20),
    "a piano": lambda: at_level(chords(6, decay_s=0.4), -20),
    "quick chords": lambda: at_level(chords(6, beat_s=0.25, decay_s=0.2, harmonics=15), -20),
    "strings": lambda: at_level(chords(6, beat_s=1, decay_s=30, harmonics=20, vibrato=0.008), -20),
    "a flute": lambda: at_level(melody(6, harmonics=3), -20),
    "a synthesiser": lambda: at_level(melody(6, harmonics=20, octave=-1), -20),
    "a bass": lambda: at_level(melody(6, beat_s=0.5, harmonics=10, octave=-2), -20),
    "drums": lambda: at_level(drums(6), -20),
    "fast drums": lambda: at_level(drums(6, beat_s=0.15, seed=4), -20),
    "a band": lambda: at_level(band(6), -20),
}

VOICES: dict[str, Callable[[], Sound]] = {
    **{
        f"espeak {speaker}": lambda speaker=speaker: voice(STELLA, f"en-us+{speaker}")
        for speaker in ("m7", "f5", "croak", "whisper", "grandpa", "klatt")
    },
    "a telephone": lambda: telephone(voice(STELLA)),
    "a child": lambda: faster(voice(STELLA, "en-us+f3"), 1.35),
    "a low voice": lambda: faster(voice(STELLA), 0.8),
    "a hoarse voice": lambda: hoarse(voice(STELLA)),
    "a whisper": lambda: whispered(voice(STELLA)),
    "a whisper over noise": lambda: mixed(whispered(voice(STELLA)), at_level(noise(6), -20), 15),
    "one word": lambda: voice("Yes!"),
    **{
        f"a voice {ratio} dB over {name}": lambda other=other, ratio=ratio: over(other(6), ratio)
        for name, other in (("noise", noise), ("chords", chords), ("a band", band))
        for ratio in (20, 10)
    },
}


def over(other: Wave, ratio_db: float) -> Sound:
    return mixed(voice(STELLA), at_level(other, -20), ratio_db)


def swelling(wave: Wave) -> Wave:
    return wave * (1 + 0.9 * np.sin(2 * np.pi * 4 * np.arange(len(wave)) / SPEECH_RATE))


def openness_of(speech: Sound) -> np.ndarray:
    return motion(speech, FPS, -(-len(speech) * 25 // SPEECH_RATE)).openness


@pytest.mark.parametrize("name", NOT_VOICES)
def test_what_is_not_a_voice_keeps_the_mouth_shut(name):
    moves = motion(NOT_VOICES[name](), FPS, 150)

    assert moves.openness.max() < 0.05
    assert max(moves.press.max(), moves.bite.max(), np.abs(moves.width).max()) < 0.05


@pytest.mark.parametrize("name", VOICES)
def test_every_voice_opens_the_mouth(name):
    speech = VOICES[name]()
    steps = analyse(speech)
    heard = presence(steps).voice
    level_db = decibels(steps.bands[:, 3:13].sum(axis=1))
    loud = level_db > level_db.max() - 15

    assert heard[loud].mean() > 0.9
    assert openness_of(speech).max() > 0.7


@pytest.mark.parametrize("name", ["a telephone", "a child", "a hoarse voice", "a whisper", "a voice 10 dB over noise"])
def test_the_mouth_follows_a_voice_that_is_hard_to_hear(name):
    speech = VOICES[name]()
    openness = openness_of(speech)
    sound = loudness(speech, len(openness))

    assert correlation(openness, sound) > 0.6
    assert best_lag(openness, sound) in (-1, 0)


def test_the_mouth_is_shut_in_the_pauses_of_a_noisy_recording():
    clean = np.concatenate([silence(1), voice(STELLA), silence(2), voice(STELLA), silence(1)])
    noisy = mixed(clean, at_level(noise(4), -20), 20)
    quiet = loudness(clean, len(openness_of(clean))) < 1e-4
    quiet &= np.convolve(~quiet, np.ones(11), "same") == 0  # away from the words

    assert quiet.sum() > 60
    assert openness_of(noisy)[quiet].max() < 0.05


def test_a_voice_between_two_pieces_of_music_is_the_only_one_that_speaks():
    music = at_level(band(4), -20)
    speech = np.concatenate([music, silence(0.5), voice(STELLA), silence(0.5), music])
    openness = openness_of(speech)
    before, after = 100, len(openness) - 100

    assert openness[before:after].max() > 0.8
    assert openness[: before - 10].max() < 0.05
    assert openness[after + 10 :].max() < 0.05
