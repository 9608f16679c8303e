"""When the eyes blink, and how far the lids are closed in each frame."""

from __future__ import annotations

import numpy as np

from lipsyncd.renderers.motion.easing import Values, smoothstep

EVERY_S = (2.0, 6.0)
FIRST_S = (0.8, 3.0)
DOUBLE, DOUBLE_AFTER_S = 0.15, 0.33  # how often a second blink follows, and after which time
DOWN_S, SHUT_S, UP_S = 0.10, 0.04, 0.15  # shut for at least one frame of a video of 25 frames per second
STRESSED, LATER_S, MOST_LATER_S = 0.5, 0.08, 0.8  # from which emphasis on a blink waits; in steps, up to this time


def blink_starts(at_s: Values, emphasis: Values, seed: int) -> list[float]:
    """The times at which lids begin to close. All blinks end before the last frame."""
    random = np.random.default_rng([seed, 1])  # not the numbers of the head
    starts: list[float] = []
    if not len(at_s):
        return starts
    end = float(at_s[-1]) - (DOWN_S + SHUT_S + UP_S)
    start = float(at_s[0]) + random.uniform(*FIRST_S)
    while start < end:
        start = _not_stressed(start, at_s, emphasis)
        starts.append(start)
        if random.uniform() < DOUBLE:
            starts.append(start + DOUBLE_AFTER_S)
        start = starts[-1] + random.uniform(*EVERY_S)
    return [start for start in starts if start < end]


def lid_closure(at_s: Values, starts: list[float]) -> Values:
    """How far the lids are closed in each frame: 0 open to 1 shut."""
    closure = np.zeros(len(at_s))
    for start in starts:
        since = at_s - start
        down, up = since / DOWN_S, 1.0 - (since - DOWN_S - SHUT_S) / UP_S
        closure = np.maximum(closure, smoothstep(np.minimum(down, up)))
    return closure


def _not_stressed(start: float, at_s: Values, emphasis: Values) -> float:
    """The first time from `start` on at which lids may be shut: not in the middle of a stressed vowel."""
    for wait in np.arange(0, MOST_LATER_S, LATER_S):
        if np.interp(start + wait + DOWN_S, at_s, emphasis) < STRESSED:
            return start + float(wait)
    return start
