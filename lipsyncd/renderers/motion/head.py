"""How a head moves over time: turns, drift, nods, lifted brows, and breath.

Each slow movement is a sum of sines whose periods have no common multiple, so it does not repeat. Time passes more
slowly for them in a pause of the voice. Nods and brows follow emphasis. All of it is zero in the first and in the last
frame, follows from the seed alone, and stays within the limits of its kind.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers.motion.easing import Values, smoothstep
from lipsyncd.renderers.motion.field import WAYS

Curve = NDArray[np.float32]  # one value for each frame

PERIODS_S = (8.3, 5.1, 3.2)  # each changed by up to a tenth by the seed
SHARES = (0.55, 0.30, 0.15)
BREATH_S = 4.0
EASE_S = 1.2  # to and from the first and last frame
CALM_BELOW_S = 4.0  # a shorter video moves less, since there is less time for the same way

PACE_IN_PAUSE = 0.25
PACE_SMOOTH_S = 0.35
NOD_FROM, NOD_APART_S, NOD_DOWN_S, NOD_UP_S = 0.45, 0.80, 0.20, 0.42
LIFT_FROM, LIFT_APART_S, LIFT_UP_S, LIFT_DOWN_S = 0.60, 2.0, 0.22, 0.50


@dataclass(frozen=True)
class Limits:
    """The most that a head moves: degrees, and shares of its size."""

    yaw_deg: float
    pitch_deg: float
    nod_deg: float  # of the pitch
    roll_deg: float
    drift: float
    brows: float
    breath: float


LIMITS = {
    "subtle": Limits(yaw_deg=3.0, pitch_deg=2.0, nod_deg=1.0, roll_deg=1.5, drift=0.01, brows=0.012, breath=0.0045),
    "lively": Limits(yaw_deg=6.0, pitch_deg=4.0, nod_deg=2.2, roll_deg=3.0, drift=0.02, brows=0.020, breath=0.0045),
}


def head_numbers(at_s: Values, limits: Limits, seed: int, emphasis: Values, speaking: Values) -> NDArray[np.float32]:
    """The numbers of each frame, as `field.WAYS` lists them.

    at_s      (frames,) seconds, increasing
    emphasis  (frames,) 0 to 1; speaking likewise, 0 in pauses
    returns   (frames, ways) float32
    """
    random = np.random.default_rng(seed)
    numbers = np.zeros((len(at_s), len(WAYS)))
    if len(at_s) < 3:
        return numbers.astype(np.float32)
    pace_s = _paced(at_s, speaking)
    yaw, pitch, roll, right, down = (_wander(pace_s, random) for _ in range(5))
    breath = _breath(at_s, random)
    way = dict(zip(WAYS, numbers.T, strict=True))
    way["yaw"] += np.radians(limits.yaw_deg) * yaw
    way["pitch"] += np.radians(limits.pitch_deg - limits.nod_deg) * pitch
    way["pitch"] += np.radians(limits.nod_deg) * _nods(at_s, emphasis, random)
    way["roll"] += np.radians(limits.roll_deg) * (0.65 * roll + 0.35 * yaw)  # a head that turns also leans
    way["right"] += limits.drift * 0.8 * (0.5 * right + 0.5 * yaw)
    way["down"] += limits.drift * 0.6 * down
    way["brows"] += limits.brows * _lifts(at_s, emphasis, random)
    way["breath"] += limits.breath * breath
    return (numbers * _presence(at_s)[:, None]).astype(np.float32)


def _presence(at_s: Values) -> Values:
    """0 in the first and last frame, 1 between, and less where the whole video is short."""
    since, left = at_s - at_s[0], at_s[-1] - at_s
    length = float(at_s[-1] - at_s[0])
    ease = min(EASE_S, length / 2)
    return smoothstep(since / ease) * smoothstep(left / ease) * min(length / CALM_BELOW_S, 1.0)


def _paced(at_s: Values, speaking: Values) -> Values:
    """The time that passes for slow movements: slower in pauses."""
    pace = PACE_IN_PAUSE + (1 - PACE_IN_PAUSE) * _smoothed(speaking, at_s, PACE_SMOOTH_S)
    return np.concatenate(([0.0], np.cumsum(np.diff(at_s) * pace[1:])))


def _smoothed(curve: Values, at_s: Values, spread_s: float) -> Values:
    spread = max(spread_s / float(at_s[1] - at_s[0]), 0.1)
    steps = np.arange(-int(3 * spread) - 1, int(3 * spread) + 2)
    kernel = np.exp(-0.5 * (steps / spread) ** 2)
    padded = np.pad(curve, len(steps) // 2, mode="edge")
    smooth: Values = np.convolve(padded, kernel / kernel.sum(), "valid")
    return smooth


def _wander(at_s: Values, random: np.random.Generator) -> Values:
    """A slow curve within -1..1."""
    periods = np.array(PERIODS_S) * random.uniform(0.9, 1.1, len(PERIODS_S))
    phases = random.uniform(0, 2 * np.pi, len(PERIODS_S))
    curve = np.zeros(len(at_s))
    for share, period, phase in zip(SHARES, periods, phases, strict=True):
        curve += share * np.sin(2 * np.pi / period * at_s + phase)
    return curve


def _breath(at_s: Values, random: np.random.Generator) -> Values:
    """How far the chest has fallen, 0 to 1."""
    turns: Values = (at_s - at_s[0]) / (BREATH_S * random.uniform(0.95, 1.05))
    fallen: Values = 0.5 - 0.5 * np.cos(2 * np.pi * turns)
    return fallen


def _nods(at_s: Values, emphasis: Values, random: np.random.Generator) -> Values:
    """Short movements down, lowest at the peaks of emphasis: 0 to 1."""
    curve = np.zeros(len(at_s))
    for peak in _peaks(at_s, emphasis, NOD_FROM, NOD_APART_S):
        size = float(emphasis[peak]) * random.uniform(0.6, 1.0)
        curve = np.maximum(curve, size * _bump(at_s - at_s[peak], NOD_DOWN_S, NOD_UP_S))
    return curve


def _lifts(at_s: Values, emphasis: Values, random: np.random.Generator) -> Values:
    """How far the brows are lifted at strong emphasis: 0 to 1."""
    curve = np.zeros(len(at_s))
    for peak in _peaks(at_s, emphasis, LIFT_FROM, LIFT_APART_S):
        size = float(emphasis[peak]) * random.uniform(0.5, 1.0)
        curve = np.maximum(curve, size * _bump(at_s - at_s[peak], LIFT_UP_S, LIFT_DOWN_S))
    return curve


def _bump(since_s: Values, rise_s: float, fall_s: float) -> Values:
    return np.minimum(smoothstep(1 + since_s / rise_s), smoothstep(1 - since_s / fall_s))


def _peaks(at_s: Values, curve: Values, least: float, apart_s: float) -> list[int]:
    """The frames of the largest values of a curve, each at least `apart_s` from every larger one, in order."""
    inner = np.concatenate(([-1.0], curve, [-1.0]))
    tops = np.flatnonzero((curve >= least) & (curve >= inner[:-2]) & (curve > inner[2:]))
    chosen: list[int] = []
    for top in sorted(tops.tolist(), key=lambda i: (-curve[i], i)):
        if all(abs(at_s[top] - at_s[other]) >= apart_s for other in chosen):
            chosen.append(top)
    return sorted(chosen)
