"""Derive the movement of the mouth from a voice, for every frame.

What is not a voice is taken away first (`renderers.voice.presence`). The level between 400 and 3500 Hz opens the mouth:
the energy of vowels lies there, that of closed lips below. The distribution among the formants determines the shape. A
weak first formant keeps the jaw high (ee, oo), a high second formant spreads the lips (ee, eh), a low one rounds them
(oo, oh). Consonants close the lips or put the lower one under the teeth (`consonants`).

Curves have 100 steps per second and are sampled at the middle of each frame, so the movement is the same at every frame
rate. Owns the relation of sound and mouth. Leaves pixels to `draw`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers.audio import Curve, Samples, frame_times
from lipsyncd.renderers.preview.consonants import consonants
from lipsyncd.renderers.voice.analysis import STEP_RATE, Levels, VoiceSteps, analyse, decibels, ramp, smooth
from lipsyncd.renderers.voice.presence import Presence, presence

# Bands of `analysis`: below the first formant; low and high first and second formant; brightness; hiss.
GROUPS = ((0, 3), (3, 5), (5, 7), (7, 9), (9, 11), (11, 13), (13, 16))
SILENT_DB = -60.0  # relative to full scale; a level below keeps the mouth shut
RANGE_DB = (10.5, 12.0)  # least and greatest range of levels from shut to wide open
ATTACK_S, RELEASE_S = 0.040, 0.070  # from 10 % to 90 % of a step
HISS_OPEN = 0.2  # openness of an s
CLOSE_OPEN = 0.16  # least openness of a vowel: nearly all sound of oo and ee lies below the band that opens the mouth
WIDEST = 1.2  # openness beyond which a mouth looks torn
LEAD_S = 0.030  # lips move this much before the sound


@dataclass(frozen=True)
class Motion:
    """The mouth for each frame of the video; all (frames,) float32.

    openness  0 shut to 1 as wide as it gets, at most 1.2
    width     -1 rounded to +1 spread
    press     0 to 1: lips pressed together, as for p, b and m
    bite      0 to 1: lower lip under the upper teeth, as for f and v
    """

    openness: Curve
    width: Curve
    press: Curve
    bite: Curve


@dataclass(frozen=True)
class MouthCurves:
    """The same as `Motion` at each step of the analysis; all (steps,) float64."""

    openness: Levels
    width: Levels
    press: Levels
    bite: Levels


def motion(speech: Samples, fps: Fraction, frames: int, *, strength: float = 1.0) -> Motion:
    """The mouth in each frame.

    speech    (N,) int16, mono, 16 kHz; read once, in blocks
    strength  gain of the opening, which is limited to 1.2
    """
    curves = mouth_curves(analyse(speech))
    at_s = frame_times(fps, frames) + LEAD_S
    steps_s = np.arange(len(curves.openness)) / STEP_RATE

    def sampled(curve: Levels) -> Curve:
        return np.interp(at_s, steps_s, curve, right=0.0).astype(np.float32)

    return Motion(
        openness=np.minimum(strength * sampled(curves.openness), np.float32(WIDEST)),
        width=sampled(curves.width),
        press=sampled(curves.press),
        bite=sampled(curves.bite),
    )


def mouth_curves(steps: VoiceSteps) -> MouthCurves:
    """The mouth at each step of a recording."""
    present = presence(steps)
    level_db = decibels(present.bands[:, 3:13].sum(axis=1))
    spoken = (level_db > SILENT_DB) & (present.voice > 0.5)
    if not spoken.any():
        shut = np.zeros(len(level_db))
        return MouthCurves(shut, shut, shut, shut)
    loud_db, quiet_db = (float(level) for level in np.percentile(level_db[spoken], (95, 20)))
    shut_db = max(SILENT_DB, loud_db - float(np.clip(loud_db - quiet_db, *RANGE_DB)))
    level = ramp(level_db, shut_db, max(loud_db, shut_db + 1.0)) * present.voice
    humming = _humming(present, spoken)
    wanted, width = _vowels(present, level_db, level, loud_db, humming)
    lips = consonants(present.bands)
    close = _attack_release(CLOSE_OPEN * humming * (1.0 - lips.press))
    openness = np.minimum(np.maximum(_attack_release(wanted), close), lips.limit)
    return MouthCurves(openness, width, lips.press * present.voice, lips.bite * present.voice)


def _vowels(
    present: Presence, level_db: Levels, level: Levels, loud_db: float, humming: Levels
) -> tuple[Levels, Levels]:
    """The openness that the sound asks for, and the width, at each step."""
    voicing, low_first, high_first, low_second, high_second, bright, hiss = (
        decibels(present.bands[:, first:end].sum(axis=1)) for first, end in GROUPS
    )
    first_db = _summed_db(low_first, high_first)
    front_db = _summed_db(high_second, bright) - _summed_db(low_first, high_first, low_second)
    hollow_db = _summed_db(high_second, bright) - _summed_db(high_first, low_second)
    spread = np.maximum(ramp(front_db, -4.0, 4.0), 0.8 * ramp(hollow_db, 8.0, 26.0))  # eh; ee
    back = ramp(first_db - _summed_db(low_second, high_second), 8.0, 20.0)  # oh: no second formant above 1100 Hz
    close = ramp(voicing - first_db, -4.0, 2.0)  # oo: hardly a first formant above 400 Hz
    rounded = np.maximum(back, close) * (1.0 - spread)
    jaw = 0.43 + 0.57 * ramp(first_db - voicing, -6.0, 4.0)
    # For s and sh the teeth are nearly together behind spread lips, but the mouth is not shut.
    hissing = ramp(hiss - level_db, 3.0, 12.0) * ramp(hiss, loud_db - 30.0, loud_db - 18.0) * present.voice
    wanted = np.maximum(_eased(level**1.5) * jaw, HISS_OPEN * hissing)
    # Consonants have no shape of their own: the width fades with the level, and changes more slowly than the jaw.
    shape = (spread - rounded) * np.maximum(ramp(level, 0.05, 0.4), 0.8 * humming)
    return wanted, smooth(shape + (0.7 - shape) * hissing, steps=7)


def _humming(present: Presence, spoken: NDArray[np.bool_]) -> Levels:
    """1 where the voice itself is nearly as loud as in the recording's loudest vowels, whatever the mouth's shape."""
    voiced_db = decibels(present.bands[:, : GROUPS[2][1]].sum(axis=1))
    loud_db = float(np.percentile(voiced_db[spoken], 95))
    return ramp(voiced_db, loud_db - 14.0, loud_db - 8.0) * present.voice


def _eased(level: Levels) -> Levels:
    """Quiet sounds open the mouth less than in proportion, loud ones fully."""
    return np.square(level) * (3.0 - 2.0 * level)


def _attack_release(wanted: Levels) -> Levels:
    """One-pole smoothing with a fast attack and a slow release; silence ends at exactly 0."""
    rise, fall = (1.0 - math.exp(-2.2 / (seconds * STEP_RATE)) for seconds in (ATTACK_S, RELEASE_S))
    followed = np.empty(len(wanted))
    now = 0.0
    for step, goal in enumerate(wanted.tolist()):
        now += (rise if goal > now else fall) * (goal - now)
        followed[step] = now = now if now > 1e-3 else 0.0
    return followed


def _summed_db(*levels_db: Levels) -> Levels:
    """The level of several bands together, in dB."""
    return decibels(np.sum(10.0 ** (np.stack(levels_db) / 10.0), axis=0))
