"""Which syllables of a voice are stressed, and where it speaks or pauses: what nods, brows and stillness follow.

A stressed syllable is louder, higher or begins more suddenly than those around it. Each is measured against the last
and the next two seconds, so a calm speaker nods as often as an excited one.

Owns the measure. Leaves the movements to the renderers' motion.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from lipsyncd.renderers.audio import Curve, Samples, frame_times
from lipsyncd.renderers.voice.analysis import STEP_RATE, Levels, VoiceSteps, analyse, decibels, ramp, smooth
from lipsyncd.renderers.voice.presence import presence

SILENT_DB = -55.0  # of full scale
VOWELS = slice(3, 13)  # the bands from 400 to 3500 Hz
SYLLABLE_STEPS = 6  # half the width, in steps, of the smoothing that leaves one hill for each syllable
AROUND_STEPS = 2 * STEP_RATE  # before and after, to which a syllable is compared
LEAST_STRESS = 0.2  # of the three hills together; a voice without any gets no nods
PAUSE_S = 0.35  # a shorter gap belongs to the sentence
BEGIN_S, END_S = 0.2, 0.5  # in which `speaking` rises and falls


@dataclass(frozen=True)
class Emphasis:
    """The delivery of a voice, for each frame of the video.

    stress    (frames,) float32, 0 to 1: hills of about 200 ms, high at stressed syllables, 0 in a pause
    speaking  (frames,) float32, 0 in a pause to 1 in a sentence, changing over some tenths of a second
    pitch     (frames,) float32, semitones above the voice's own median, smoothed, 0 where it has no pitch
    """

    stress: Curve
    speaking: Curve
    pitch: Curve


def emphasis(speech: Samples, fps: Fraction, frames: int) -> Emphasis:
    """The delivery in each frame; frames after the end of the sound are a pause.

    speech  (N,) int16, mono, 16 kHz; read once, in blocks
    """
    steps = analyse(speech)
    spoken = _spoken(steps)
    pitch = _semitones(steps, spoken)
    curves = (_stress(steps, spoken, pitch), _speaking(spoken), pitch)
    at_s, steps_s = frame_times(fps, frames), np.arange(len(spoken)) / STEP_RATE
    sampled = (np.interp(at_s, steps_s, curve, right=0.0).astype(np.float32) for curve in curves)
    return Emphasis(*sampled)


def _spoken(steps: VoiceSteps) -> Levels:
    """1 where a voice can be in a syllable, else 0; music and noise are a pause."""
    present = presence(steps)
    level_db = decibels(present.bands[:, VOWELS].sum(axis=1))
    heard = (level_db > SILENT_DB) & (present.voice > 0.5)
    if not heard.any():
        return np.zeros(len(level_db))
    least_db = float(np.percentile(level_db[heard], 95)) - 25.0
    return (heard & (level_db > least_db)).astype(np.float64)


def _semitones(steps: VoiceSteps, spoken: Levels) -> Levels:
    """Pitch against the median of the whole voice; carried on through consonants, 0 in pauses."""
    known = (steps.periodicity > 0.7) & (spoken > 0)
    if not known.any():
        return np.zeros(len(spoken))
    notes = 12.0 * np.log2(steps.pitch_hz.astype(np.float64))
    middle = float(np.median(notes[known]))
    known &= np.abs(notes - middle) < 10.0  # beyond, the period was mistaken for its double or half
    if not known.any():
        return np.zeros(len(spoken))
    where = np.arange(len(notes))
    carried = np.interp(where, where[known], notes[known] - middle)
    return smooth(carried * smooth(spoken, 10), SYLLABLE_STEPS)


def _stress(steps: VoiceSteps, spoken: Levels, pitch: Levels) -> Levels:
    """Hills of level, of pitch and of sudden beginnings, each against its surroundings."""
    loud_db = decibels(steps.bands[:, VOWELS].sum(axis=1))
    if not spoken.any():
        return np.zeros(len(spoken))
    loud_db = np.maximum(loud_db, loud_db.max() - 40.0)
    hills = smooth(loud_db - loud_db.min(), SYLLABLE_STEPS)
    onset = np.maximum(np.concatenate((np.zeros(8), hills[8:] - hills[:-8])), 0.0)
    parts = (0.45 * _against(hills, spoken), 0.3 * _against(pitch, spoken), 0.25 * _against(smooth(onset, 4), spoken))
    total = smooth(np.sum(parts, axis=0) * spoken, SYLLABLE_STEPS)
    strongest = np.maximum(_highest(total), LEAST_STRESS)
    return ramp(total / strongest, 0.5, 1.0)


def _against(curve: Levels, spoken: Levels) -> Levels:
    """Where a curve stands between the mean and the maximum of its surroundings: 0 at the mean, 1 at the top."""
    width = 2 * AROUND_STEPS + 1
    ones = np.ones(width)
    count = np.maximum(np.convolve(spoken, ones)[AROUND_STEPS : AROUND_STEPS + len(curve)], 1.0)
    mean = np.convolve(curve * spoken, ones)[AROUND_STEPS : AROUND_STEPS + len(curve)] / count
    top = _highest(np.where(spoken > 0, curve, mean))
    span = np.maximum(top - mean, 0.5)
    return np.clip((curve - mean) / span, 0.0, 1.0) * spoken


def _highest(curve: Levels) -> Levels:
    """The maximum of the surroundings of each step."""
    padded = np.pad(curve, AROUND_STEPS, mode="edge")
    highest: Levels = np.lib.stride_tricks.sliding_window_view(padded, 2 * AROUND_STEPS + 1).max(axis=1)
    return highest


def _speaking(spoken: Levels) -> Levels:
    """Gaps shorter than `PAUSE_S` are closed; then slow beginnings and slower ends."""
    half = round(PAUSE_S * STEP_RATE / 2)
    widened = np.convolve(spoken, np.ones(2 * half + 1))[half : half + len(spoken)] > 0
    rise, fall = 1.0 / (BEGIN_S * STEP_RATE), 1.0 / (END_S * STEP_RATE)
    now, followed = 0.0, np.empty(len(spoken))
    for step, on in enumerate(widened.tolist()):
        now = min(now + rise, 1.0) if on else max(now - fall, 0.0)
        followed[step] = now
    return np.square(followed) * (3.0 - 2.0 * followed)
