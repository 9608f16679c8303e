"""Tell a voice from everything else that a microphone hears, at every step, and take the steady background away.

Three things mark speech, and each is looked for in the second and a half around a step:

* Its level rises over the background, syllable by syllable. What lasts longer than three seconds without a dip is the
  background: noise, a hum, a held chord.
* Its spectrum moves: formants wander from sound to sound, in a whisper too. A drum decays in one colour, and a noise
  that swells and fades has the same colour all the time.
* Its pitch glides. A note stands still until the next one.

A doubtful sound counts as a voice rather than not: a mouth that stays shut for a speaker is the worse fault.

Owns the verdict. Leaves the measurements to `analysis` and the movement to the callers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers.voice.analysis import STEP_RATE, Levels, VoiceSteps, decibels, ramp, smooth

SILENT_DB = -60.0  # of full scale; a level below is silence
VOWELS = slice(3, 13)  # the bands from 400 to 3500 Hz
COLOUR = slice(2, 14)  # the bands from 300 to 4500 Hz, whose balance is the colour of a sound
DARK, BRIGHT = slice(3, 7), slice(9, 13)  # 400 to 1100 Hz, 1700 to 3500 Hz
BACKGROUND_STEPS = 130  # before and after, in which the lowest level is that of the background
AROUND_STEPS = 75  # before and after, from which a step is judged
LEAST_STEPS = 6  # a shorter sound is a click
RANGE_DB = 20.0  # below the loudest sound within a second: what is quieter says nothing
PERIODIC = 0.7
CHANGE_STEPS = 4  # before and after, over which colour and level change


@dataclass(frozen=True)
class Presence:
    """What is left of a recording when everything but the voice is taken away.

    bands  (steps, 16) float64, mean square in each band of `analysis`, without the background
    voice  (steps,) float64, 0 where there is no speech to 1 where there is; pauses between words belong to speech
    """

    bands: Levels
    voice: Levels


def presence(steps: VoiceSteps) -> Presence:
    """Judge every step of a recording."""
    bands = _mean(steps.bands.astype(np.float64), 3)
    gliding = _gliding(steps)
    background = _background(steps, gliding)
    quiet = _background_level(steps, gliding)
    total = bands[:, VOWELS].sum(axis=1)
    heard = total > 3.0 * quiet
    level_db = decibels(np.maximum(total - 1.5 * quiet, 0.0))
    heard &= level_db > np.maximum(SILENT_DB, _highest(level_db, STEP_RATE) - RANGE_DB)
    heard = _without_clicks(heard)

    colour = np.maximum(bands[:, COLOUR], 2.5 * background[:, COLOUR])
    changes = ramp(_colour_change(colour, level_db), 2.5, 5.0)
    dark_db, bright_db = decibels(bands[:, DARK].sum(axis=1)), decibels(bands[:, BRIGHT].sum(axis=1))
    formants = _around(ramp(bright_db - dark_db, -50.0, -35.0), heard)
    glides = _around(gliding, heard) * formants
    moves = _around(changes, heard)
    verdict = np.maximum(ramp(moves + 0.5 * glides, 0.48, 0.6), ramp(glides, 0.35, 0.5))
    verdict = np.where(_around(heard, np.ones_like(heard)) > 0.01, verdict, 0.0)
    clean = steps.bands - 2.0 * background
    return Presence(bands=np.maximum(clean, 0.0), voice=smooth(_highest(verdict, 12), 8).clip(0.0, 1.0))


def _gliding(steps: VoiceSteps) -> Levels:
    """1 where a periodic sound changes its pitch as voices do, by 0.03 to 3 semitones in 40 ms."""
    notes = 12.0 * np.log2(steps.pitch_hz.astype(np.float64))
    moved = np.abs(_change(notes, 2))
    return ramp(moved, 0.03, 0.1) * (moved < 3.0) * (steps.periodicity > PERIODIC)


def _background(steps: VoiceSteps, gliding: Levels) -> Levels:
    """The steady part of each band; (steps, 16)."""
    return np.stack([_steady(band, gliding) for band in steps.bands.T.astype(np.float64)], axis=1)


def _background_level(steps: VoiceSteps, gliding: Levels) -> Levels:
    """The steady part of all vowels' bands together, which fluctuates less than each of them; (steps,)."""
    return _steady(steps.bands[:, VOWELS].sum(axis=1, dtype=np.float64), gliding)


def _steady(power: Levels, gliding: Levels) -> Levels:
    """The lowest mean over 50 ms within the surroundings. A gliding voice is no background, however long it lasts."""
    mean = _mean(power[:, None], 5)[:, 0]
    voice = smooth(gliding, 20) > 0.35
    lowest = -_highest(-np.where(voice, np.inf, mean), BACKGROUND_STEPS)
    return np.where(np.isfinite(lowest), lowest, 0.0)


def _colour_change(colour: Levels, level_db: Levels) -> Levels:
    """How much the balance of the bands changes within 80 ms, in dB; what is 25 dB below the whole is not heard."""
    least = 10 ** ((level_db[:, None] - 25.0) / 10.0) / colour.shape[1]
    colour_db = decibels(colour + least)
    colour_db -= colour_db.mean(axis=1, keepdims=True)
    change: Levels = np.sqrt(np.mean(np.square(_change(colour_db, CHANGE_STEPS)), axis=1))
    return change


def _around(curve: NDArray[np.generic], heard: NDArray[np.generic]) -> Levels:
    """The mean of a curve over the sounds around each step, the nearer the weightier; 0 where there is none."""
    kernel = np.hanning(2 * AROUND_STEPS + 3)[1:-1]
    here = slice(AROUND_STEPS, AROUND_STEPS + len(curve))
    weight = np.convolve(heard.astype(np.float64), kernel)[here]
    total = np.convolve(np.where(heard, curve, 0).astype(np.float64), kernel)[here]
    return total / np.maximum(weight, 1.0)


def _without_clicks(heard: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Drop every sound of fewer than `LEAST_STEPS` steps."""
    kept = heard.copy()
    edges = np.flatnonzero(np.diff(np.concatenate(([False], heard, [False])).astype(np.int8)))
    for start, end in edges.reshape(-1, 2):
        if end - start < LEAST_STEPS:
            kept[start:end] = False
    return kept


def _change(curve: Levels, reach: int) -> Levels:
    """The difference between `reach` steps later and `reach` steps earlier; 0 at the ends."""
    change = np.zeros(curve.shape)
    if len(curve) > 2 * reach:
        change[reach:-reach] = curve[2 * reach :] - curve[: -2 * reach]
    return change


def _mean(curves: Levels, steps: int) -> Levels:
    """The mean over an odd number of steps, for each column."""
    half = steps // 2
    padded = np.pad(curves, ((half + 1, half), (0, 0)))
    total = np.cumsum(padded, axis=0)
    mean: Levels = (total[steps:] - total[:-steps]) / steps
    return np.maximum(mean, 0.0)


def _highest(curve: Levels, reach: int) -> Levels:
    """The maximum within `reach` steps on either side."""
    padded = np.pad(curve, reach, mode="edge")
    highest: Levels = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1).max(axis=1)
    return highest
