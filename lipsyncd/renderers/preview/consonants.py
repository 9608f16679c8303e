"""Find the consonants that are seen on the lips: closed lips (p b m), and the lower lip under the teeth (f v).

Between two vowels the level falls. What is left of the sound in this dip tells what the lips do:

* p, b and m stop the breath at the lips. What passes is dull: a murmur below 1700 Hz, or silence with a dull burst at
  its end. t, d and n are brighter, k and g have their peak near 2000 Hz; for them the lips stay a little apart.
* f and v hiss weakly and evenly over all frequencies; s, z and sh hiss loudly and high.

Every dip is one event with one verdict, so the lips never hesitate between two shapes.

Owns the verdicts. Leaves vowels and the timing of frames to `voice`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lipsyncd.renderers.voice.analysis import Levels, decibels, smooth

REACH = 16  # steps on either side of a dip within which a vowel has to be
LEAST_DIP_DB = 10.0  # below the quieter of the two vowels
SHORTEST, LONGEST = 3, 22  # steps
SILENCE_DB = -42.0  # below the vowel: the breath is stopped
EASE = 4  # half the width, in steps, of the lips' movement into a shape and out of it
BITTEN = 0.06  # openness at f and v
APART = 0.14  # openness at a consonant that is made behind the lips


@dataclass(frozen=True)
class Consonants:
    """What consonants do to the mouth at each step; all (steps,) float64.

    limit  the greatest openness that they allow, 1 where there is none
    press  0..1, lips pressed together
    bite   0..1, lower lip under the upper teeth
    """

    limit: Levels
    press: Levels
    bite: Levels


@dataclass(frozen=True)
class Bands:
    """The levels in dB that tell consonants apart; each (steps,).

    level   400 to 3500 Hz
    murmur  100 to 400 Hz
    dull    700 to 1700 Hz
    bright  1700 to 3500 Hz
    hiss    3500 to 7900 Hz
    sharp   6000 to 7900 Hz
    """

    level: Levels
    murmur: Levels
    dull: Levels
    bright: Levels
    hiss: Levels
    sharp: Levels


def bands_of(power: Levels) -> Bands:
    """From the mean squares of `analysis.VoiceSteps.bands`, (steps, 16)."""
    parts = ((3, 13), (0, 3), (5, 9), (9, 13), (13, 16), (15, 16))
    return Bands(*(decibels(power[:, first:end].sum(axis=1)) for first, end in parts))


def consonants(power: Levels) -> Consonants:
    """Judge every dip between two vowels."""
    heard = bands_of(power)
    steps = len(heard.level)
    limit, press, bite = np.ones(steps), np.zeros(steps), np.zeros(steps)
    for start, end, vowel_db in _dips(heard.level):
        closed, bitten = _verdict(heard, start, end, vowel_db)
        if closed or bitten:
            last = max(_release(heard.level, start, end, vowel_db), start + 3)
            first = max(min(start, last - 5), 0)  # the lips need time to get there, however short the sound is
            (press if closed else bite)[first:last] = 1.0
            limit[max(first - 1, 0) : last + 2] = 0.0 if closed else BITTEN
        else:
            limit[start:end] = APART
    return Consonants(
        limit=1.0 - smooth(1.0 - limit, EASE),
        press=smooth(press, EASE).clip(0.0, 1.0),
        bite=smooth(bite, EASE).clip(0.0, 1.0),
    )


def _dips(level: Levels) -> Iterator[tuple[int, int, float]]:
    """First step, end and the level of the quieter vowel beside it, of each dip between two vowels."""
    padded = np.pad(level, REACH, constant_values=-100.0)
    around = np.lib.stride_tricks.sliding_window_view(padded, REACH + 1).max(axis=1)
    beside = np.minimum(around[: len(level)], around[REACH:])
    low = level < beside - LEAST_DIP_DB
    edges = np.flatnonzero(np.diff(np.concatenate(([False], low, [False])).astype(np.int8)))
    for start, end in edges.reshape(-1, 2).tolist():
        if SHORTEST <= end - start <= LONGEST:
            yield start, end, float(beside[start:end].min())


def _release(level: Levels, start: int, end: int, vowel_db: float) -> int:
    """The step at which the breath comes back: after a silence its first sound, else the end of the dip."""
    silent = np.flatnonzero(level[start:end] < vowel_db + SILENCE_DB)
    return start + int(silent[-1]) + 1 if len(silent) else end


def _verdict(heard: Bands, start: int, end: int, vowel_db: float) -> tuple[bool, bool]:
    """Whether the lips are closed, and whether the lower lip is under the teeth."""
    release = _release(heard.level, start, end, vowel_db)
    if release < end or heard.level[start:end].min() < vowel_db + SILENCE_DB:
        burst = slice(release, release + 3)
        tilt_db = _mean(heard.dull, burst) - _mean(heard.bright, burst)
        return tilt_db > -3.0 and _mean(heard.hiss, burst) < _mean(heard.dull, burst) + 3.0, False
    whole, edge = slice(start, end), (end - start + 2) // 4
    level, murmur, dull, bright, hiss, sharp = _medians(heard, slice(start + edge, end - edge), vowel_db)
    airy = hiss - float(np.log10(10 ** (dull / 10) + 10 ** (bright / 10)) * 10)
    voiced = murmur > -24.0
    weak_hiss = -48.0 < hiss < -18.0
    if voiced and weak_hiss and -9.0 < airy < 3.5 and hiss - sharp < 8.5 and level < -12.0:
        return False, True  # v
    if not voiced and weak_hiss and -1.5 < airy < 6.0 and dull - bright > -10.0:
        return False, True  # f
    if airy > -4.0 or level > -9.0:
        return False, False  # s, z, sh, h; l, r
    after, vowel = slice(end - 2, end + 3), slice(end + 5, end + 9)
    rise_db = (_mean(heard.dull, after) - _mean(heard.bright, after)) - (
        _mean(heard.dull, vowel) - _mean(heard.bright, vowel)
    )
    level, murmur, dull, bright, _, _ = _medians(
        heard, whole, vowel_db
    )  # the movement into it and out of it tells more
    if murmur - level > 6.5:  # nothing but the murmur is left: b, d, g
        return voiced and (dull - bright > 3.0 or (dull - bright > -12.0 and rise_db > 9.0)), False
    return voiced and murmur - level > 2.8 and dull - bright > 8.0, False  # m; not n, l, r


def _medians(heard: Bands, part: slice, vowel_db: float) -> tuple[float, ...]:
    """The median of each level in a part of the sound, against the vowel beside it, in the order of `Bands`."""
    curves = (heard.level, heard.murmur, heard.dull, heard.bright, heard.hiss, heard.sharp)
    return tuple(float(np.median(curve[part])) - vowel_db for curve in curves)


def _mean(curve: Levels, part: slice) -> float:
    """The mean power of a part of a curve, in dB."""
    inside = curve[part]
    return float(10.0 * np.log10(np.mean(10.0 ** (inside / 10.0)))) if len(inside) else -100.0
