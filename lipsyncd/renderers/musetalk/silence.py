"""Pauses of a voice, in which the mouth of the source picture is shown.

The networks move lips in silence, too: Whisper's features hardly depend on the level, so a distant fan looks like a
word. Pauses are therefore found by their absolute level. In a pause the features are those of digital silence, the
picture fades to the source, and the networks do not run.

Owns what counts as a pause. Leaves the features to `audio_features`.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers import SPEECH_RATE
from lipsyncd.renderers.audio import Samples, frame_level

LEVELS_PER_S = 50
QUIET = 10 ** (-50 / 20)  # root mean square below which 20 ms count as silent: -50 dB of full scale
LEAST_S = 0.4  # a shorter gap belongs to the word around it
FADE_FRAMES = 3  # between the painted face and the source, and at least FADE_S
FADE_S = 0.12


@dataclass(frozen=True)
class Pauses:
    """The pauses of one voice of `samples` samples.

    stretches  (first sample, first sample after the pause) of each, in order
    """

    stretches: tuple[tuple[int, int], ...]
    samples: int

    def weights(self, fps: Fraction, frames: int) -> NDArray[np.float32]:
        """The opacity of the painted face in each frame: 1 in speech, 0 in a pause, with a fade at its ends.

        returns  (frames,) float32. The fade lies inside the pause, so speech is painted in full. There is no fade where
                 the video begins or ends in a pause.
        """
        weights = np.ones(frames, np.float32)
        steps = max(FADE_FRAMES, round(FADE_S * fps)) + 1
        for start, end in self.stretches:
            first = -(-start * fps.numerator // (SPEECH_RATE * fps.denominator))
            last = frames if end >= self.samples else end * fps.numerator // (SPEECH_RATE * fps.denominator)
            away = np.full(max(last - first, 0), steps)
            if start > 0:
                away = np.minimum(away, np.arange(1, len(away) + 1))
            if end < self.samples:
                away = np.minimum(away, np.arange(len(away), 0, -1))
            weights[first:last] = (1 - away / steps)[: frames - first]
        return weights


NONE = Pauses((), 0)


def pauses(speech: Samples) -> Pauses:
    """Every part of a voice (N,) int16 that is silent for `LEAST_S` or longer."""
    steps = -(-len(speech) * LEVELS_PER_S // SPEECH_RATE)
    quiet = frame_level(speech, Fraction(LEVELS_PER_S), steps) < QUIET
    edges = np.flatnonzero(np.diff(np.concatenate(([False], quiet, [False])).astype(np.int8)))
    step = SPEECH_RATE // LEVELS_PER_S
    found = ((int(a) * step, min(int(b) * step, len(speech))) for a, b in edges.reshape(-1, 2))
    return Pauses(tuple((a, b) for a, b in found if b - a >= LEAST_S * SPEECH_RATE), len(speech))
