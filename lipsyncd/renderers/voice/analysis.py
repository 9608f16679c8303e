"""Measure a voice 100 times a second: the level in each band of hearing, how periodic the sound is, and its pitch.

Plain numpy on purpose: an analysis that is compiled when it first runs delays the first video, and its last digits
depend on the compiler.

Owns the measurements. Leaves their meaning to `presence`, `emphasis` and the renderers.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers import SPEECH_RATE
from lipsyncd.renderers.audio import Curve, Samples, windows

Levels = NDArray[np.float64]

STEP_RATE = 100  # steps per second of every curve here
HOP = SPEECH_RATE // STEP_RATE  # samples between steps
WINDOW = 512  # samples in one spectrum: 32 ms, about three periods of a low voice
PITCH_WINDOW = 640  # samples in which a period is looked for: 40 ms, three periods of 75 Hz
STEPS_AT_ONCE = 2_000  # 20 s; 35 MB of spectra

# The edges of the bands in Hz, about a third of an octave each where the formants lie.
EDGES_HZ = (100, 200, 300, 400, 550, 700, 900, 1100, 1400, 1700, 2100, 2500, 3000, 3500, 4500, 6000, 7900)
PITCH_HZ = (70, 400)  # the lowest and the highest voice that is followed
PITCH_BAND_HZ = (80.0, 1800.0)  # where the period is looked for: a telephone leaves enough of it
OCTAVE_COST = 0.02  # by which a period of twice the length has to be better
FLOOR = 1e-10  # mean square: -100 dB of full scale


@dataclass(frozen=True)
class VoiceSteps:
    """What was measured at each step.

    bands        (steps, 16) float32, mean square amplitude in each band; 1.0 is a full-scale square wave
    periodicity  (steps,) float32, 0 for noise to 1 for a sound that repeats itself exactly
    pitch_hz     (steps,) float32, the best period's frequency, whatever its periodicity
    """

    bands: Curve
    periodicity: Curve
    pitch_hz: Curve


_last: dict[bytes, VoiceSteps] = {}  # by content


def analyse(speech: Samples) -> VoiceSteps:
    """Measure a voice (N,) int16; it is read in blocks of 20 s, and gives N // 160 + 1 steps.

    The last result is kept: the mouth and the head of a video follow the same voice.
    """
    content = hashlib.blake2b(np.ascontiguousarray(speech).data).digest()
    steps = _last.get(content)
    if steps is None:
        steps = _measured(speech)
        _last.clear()
        _last[content] = steps
    return steps


def _measured(speech: Samples) -> VoiceSteps:
    bands = [band_levels(stretch) for stretch in windows(speech, hop=HOP, width=WINDOW, at_once=STEPS_AT_ONCE)]
    periods = [_periods(stretch) for stretch in windows(speech, hop=HOP, width=PITCH_WINDOW, at_once=STEPS_AT_ONCE)]
    return VoiceSteps(
        bands=np.concatenate(bands),
        periodicity=np.concatenate([periodicity for periodicity, _ in periods]),
        pitch_hz=np.concatenate([pitch_hz for _, pitch_hz in periods]),
    )


def band_levels(stretch: NDArray[np.float32]) -> Curve:
    """The energy in each band at each step of a stretch of `windows`; (steps, 16) float32."""
    hz = np.fft.rfftfreq(WINDOW, 1 / SPEECH_RATE)
    edges = np.asarray(EDGES_HZ)
    member = ((hz[:, None] >= edges[:-1]) & (hz[:, None] < edges[1:])).astype(np.float32)
    hann = _hann(WINDOW)
    scale = np.float32(2.0 / (WINDOW * np.sum(np.square(hann, dtype=np.float64))))  # Parseval
    power: Curve = _power(_cut(stretch, WINDOW) * hann, WINDOW) @ member * scale
    return power


def _periods(stretch: NDArray[np.float32]) -> tuple[Curve, Curve]:
    """Periodicity and pitch at each step of a stretch: the highest peak of the autocorrelation.

    It is divided by the autocorrelation of the window, so a steady tone has 1 at every period.
    Source: P. Boersma, Accurate short-term analysis of the fundamental frequency (1993).
    """
    size = 2 * WINDOW  # holds the window and the longest lag
    hann = _hann(PITCH_WINDOW)
    hz = np.fft.rfftfreq(size, 1 / SPEECH_RATE)
    heard = ((hz >= PITCH_BAND_HZ[0]) & (hz <= PITCH_BAND_HZ[1])).astype(np.float32)
    shortest, longest = SPEECH_RATE // PITCH_HZ[1], SPEECH_RATE // PITCH_HZ[0]
    lags = np.arange(shortest - 1, longest + 2)
    similarity = np.fft.irfft(_power(_cut(stretch, PITCH_WINDOW) * hann, size) * heard, size)[:, : longest + 2]
    of_window = np.fft.irfft(_power(hann[None], size), size)[0, : longest + 2]
    own = np.maximum(similarity[:, :1], PITCH_WINDOW * FLOOR)
    score = similarity[:, lags] / own * (of_window[0] / of_window[lags]).astype(np.float32)
    inner = score[:, 1:-1]
    peak = (inner > score[:, :-2]) & (inner >= score[:, 2:])
    cost = (OCTAVE_COST * np.log2(lags[1:-1] / shortest)).astype(np.float32)
    best = np.argmax(np.where(peak, inner - cost, -1.0), axis=1)
    rows = np.arange(len(score))
    before, here, after = (score[rows, best + side] for side in (0, 1, 2))
    bend = before - 2.0 * here + after
    offset = np.where(peak[rows, best], 0.5 * (before - after) / np.where(bend < 0, bend, -1.0), 0.0)
    periodicity = np.where(peak[rows, best], here, 0.0).clip(0.0, 1.0)
    pitch_hz = SPEECH_RATE / (lags[1:-1][best] + offset)
    return periodicity.astype(np.float32), pitch_hz.astype(np.float32)


def _cut(stretch: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """Every window of a stretch, (steps, width), without copying."""
    return np.lib.stride_tricks.sliding_window_view(stretch, width)[::HOP]


def _power(windows_: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    spectra = np.fft.rfft(windows_, size)
    return np.square(spectra.real) + np.square(spectra.imag)


def _hann(width: int) -> NDArray[np.float32]:
    return np.hanning(width + 1)[:-1].astype(np.float32)


# -- curves ------------------------------------------------------------------------------------------------------------


def decibels(power: NDArray[np.floating]) -> Levels:
    level: Levels = 10.0 * np.log10(np.maximum(power.astype(np.float64), FLOOR))
    return level


def ramp(value: Levels, low: float, high: float) -> Levels:
    """0 up to `low`, 1 from `high` on, linear between."""
    return np.clip((value - low) / (high - low), 0.0, 1.0)


def smooth(curve: Levels, steps: int) -> Levels:
    """Mean weighted with a raised cosine of 2 x steps + 1 steps; same length, with 0 beyond the ends."""
    kernel = np.hanning(2 * steps + 3)[1:-1]
    return np.convolve(curve, kernel / kernel.sum())[steps : steps + len(curve)]
