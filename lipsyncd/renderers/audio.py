"""What every renderer needs of the voice: which samples belong to each video frame, and how loud they are.

Frame times are exact fractions until the very end. A rate of 30000/1001 rounded to 29.97 would be off by one frame
after nine hours; rounded to 29, after one second.

Owns the mapping between samples and frames. Leaves the analysis of the sound to the renderers.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers import SPEECH_RATE

Samples = NDArray[np.int16]  # (N,) mono at SPEECH_RATE
Curve = NDArray[np.float32]

FULL_SCALE = 32_768.0
FRAMES_AT_ONCE = 1_024


def frame_bounds(fps: Fraction, frames: int) -> NDArray[np.int64]:
    """The first sample of each frame, and the first one after the last frame.

    returns  (frames + 1,) int64: frame i covers the samples from [i] up to but not including [i + 1]
    """
    index = np.arange(frames + 1, dtype=np.int64)
    return index * (SPEECH_RATE * fps.denominator) // fps.numerator


def frame_times(fps: Fraction, frames: int) -> NDArray[np.float64]:
    """The middle of each frame's time on the screen, in seconds, as (frames,) float64."""
    index = np.arange(frames, dtype=np.int64)
    return (2 * index + 1) * fps.denominator / (2 * fps.numerator)


def frame_level(speech: Samples, fps: Fraction, frames: int) -> Curve:
    """How loud the voice is during each frame.

    speech   (N,) int16; frames after its end are silent
    returns  (frames,) float32: root mean square, 1.0 is full scale
    """
    bounds = np.minimum(frame_bounds(fps, frames), len(speech))
    level = np.zeros(frames, np.float32)
    for first in range(0, frames, FRAMES_AT_ONCE):
        edges = bounds[first : first + FRAMES_AT_ONCE + 1]
        power = np.square(speech[edges[0] : edges[-1]] / FULL_SCALE, dtype=np.float64)
        total = np.concatenate(([0.0], np.cumsum(power)))[edges - edges[0]]
        level[first : first + len(edges) - 1] = np.sqrt(np.diff(total) / np.maximum(np.diff(edges), 1))
    return level


def shifted(speech: Samples, later_ms: int) -> Samples:
    """The same voice this much later, or earlier if it is negative; equally long, filled up with silence.

    speech   (N,) int16
    returns  (N,) int16; the very array without a shift
    """
    later = later_ms * SPEECH_RATE // 1000
    if later == 0:
        return speech
    moved = np.zeros_like(speech, subok=False)
    if later > 0:
        moved[later:] = speech[: len(speech) - later] if later < len(speech) else 0
    else:
        moved[: max(len(speech) + later, 0)] = speech[-later:]
    return moved


def windows(speech: Samples, *, hop: int, width: int, at_once: int) -> Iterator[NDArray[np.float32]]:
    """The voice in overlapping stretches, so that an analysis needs memory for only one at a time.

    hop      samples from one analysis window to the next
    width    samples in one window; the first window is centred on sample 0
    at_once  windows in one stretch
    returns  float32 arrays in -1..1 of (k - 1) x hop + width samples, k <= at_once, padded with silence at both ends.
             Together they hold `len(speech) // hop + 1` windows.
    """
    count = len(speech) // hop + 1
    for first in range(0, count, at_once):
        k = min(at_once, count - first)
        start = first * hop - width // 2
        stop = start + (k - 1) * hop + width
        stretch = np.zeros(stop - start, np.float32)
        low, high = max(start, 0), min(stop, len(speech))
        if low < high:
            stretch[low - start : high - start] = speech[low:high] / np.float32(FULL_SCALE)
        yield stretch
