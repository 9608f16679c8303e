"""Derive the movement of the mouth from a voice: how far it is open, and how wide, at any time.

The level between 400 and 3500 Hz opens the mouth: the energy of vowels lies there, that of closed lips (m, b, v) below.
The distribution among the formants determines the shape. A weak first formant keeps the jaw high (ee, oo), a high
second formant spreads the lips (ee, eh), a low one rounds them (oo, oh).

Curves have 100 steps per second and are sampled at the middle of each frame, so the movement is the same at every frame
rate. Owns the relation of sound and mouth. Leaves pixels to `draw`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers.audio import Curve, Samples, frame_times, windows

Levels = NDArray[np.float64]

STEP_RATE = 100  # steps per second of every curve here
HOP = 160  # samples between steps
WINDOW = 512  # samples in one spectrum: 32 ms, about three periods of a low voice
STEPS_AT_ONCE = 2_000  # 20 s; 2 MB of spectra

# Band edges in Hz: voicing, low and high first formant, second formant low and high, brightness, hiss.
BANDS_HZ = (100, 400, 700, 1100, 1700, 2500, 3500, 7900)
SILENT_DB = -60.0  # relative to full scale; a level below keeps the mouth shut
RANGE_DB = (11.0, 17.0)  # least and greatest range of levels from shut to wide open
ATTACK_S, RELEASE_S = 0.040, 0.090  # from 10 % to 90 % of a step
HISS_OPEN = 0.2  # openness of an s
WIDEST = 1.2  # openness beyond which a mouth looks torn
DIP_S = 0.16  # a closure between vowels is shorter than this on either side
LEAD_S = 0.030  # lips move this much before the sound


@dataclass(frozen=True)
class Motion:
    """The mouth for each frame of the video.

    openness  (frames,) float32, 0 shut to 1 as wide as it gets
    width     (frames,) float32, -1 rounded to +1 spread
    """

    openness: Curve
    width: Curve


def motion(speech: Samples, fps: Fraction, frames: int, *, strength: float = 1.0) -> Motion:
    """The mouth in each frame.

    speech    (N,) int16, mono, 16 kHz; read once, in blocks
    strength  gain of the opening, which is limited to 1.2
    """
    bands = band_levels(speech)
    openness, width = mouth_curves(bands)
    at_s = frame_times(fps, frames) + LEAD_S
    steps_s = np.arange(len(openness)) / STEP_RATE
    return Motion(
        openness=np.minimum(strength * np.interp(at_s, steps_s, openness, right=0.0), WIDEST).astype(np.float32),
        width=np.interp(at_s, steps_s, width, right=0.0).astype(np.float32),
    )


def warm_up() -> None:
    """Import everything, and compile it if it is not cached: the first time takes half a minute of processor time."""
    band_levels(np.zeros(2 * WINDOW, np.float32))


def band_levels(speech: Samples) -> Curve:
    """The energy of the voice in each band, at each step.

    returns  (steps, 7) float32, mean square amplitude, 1.0 is a full-scale square wave
    """
    import librosa  # takes seconds to import, so not with this module

    hz = librosa.fft_frequencies(sr=HOP * STEP_RATE, n_fft=WINDOW)
    edges = np.asarray(BANDS_HZ)
    member = ((hz >= edges[:-1, None]) & (hz < edges[1:, None])).astype(np.float32)
    scale = np.float32(2.0 / (WINDOW * np.sum(np.hanning(WINDOW + 1)[:-1] ** 2)))  # Parseval, for a Hann window
    blocks = []
    for stretch in windows(speech, hop=HOP, width=WINDOW, at_once=STEPS_AT_ONCE):
        spectra = librosa.stft(stretch, n_fft=WINDOW, hop_length=HOP, window="hann", center=False)
        blocks.append((member @ np.square(np.abs(spectra))).T * scale)
    return np.concatenate(blocks)


def mouth_curves(bands: Curve) -> tuple[Levels, Levels]:
    """Openness and width at each step, from `band_levels`."""
    voicing, low_first, high_first, low_second, high_second, bright, hiss = _decibels(bands.T)
    level_db = _summed_db(low_first, high_first, low_second, high_second, bright)
    audible = level_db > SILENT_DB
    if not audible.any():
        return np.zeros(len(bands)), np.zeros(len(bands))

    loud_db, quiet_db = np.percentile(level_db[audible], (95, 20))
    shut_db = max(SILENT_DB, loud_db - np.clip(loud_db - quiet_db, *RANGE_DB))
    level = _ramp(level_db, shut_db, max(loud_db, shut_db + 1.0)) ** 0.8

    first_db = _summed_db(low_first, high_first)
    jaw = 0.55 + 0.45 * _ramp(first_db - voicing, -10.0, 3.0)
    # For s and sh the teeth are nearly together behind spread lips, but the mouth is not shut.
    hissing = _ramp(hiss - level_db, 3.0, 12.0) * _ramp(hiss, loud_db - 30.0, loud_db - 18.0)
    wanted = np.maximum(level * jaw, HISS_OPEN * hissing)
    openness = np.minimum(_attack_release(wanted), _closures(wanted))

    front_db = _summed_db(high_second, bright) - _summed_db(low_first, high_first, low_second)
    hollow_db = _summed_db(high_second, bright) - _summed_db(high_first, low_second)
    spread = np.maximum(_ramp(front_db, -4.0, 4.0), 0.8 * _ramp(hollow_db, 10.0, 30.0))  # eh; ee
    back = _ramp(first_db - _summed_db(low_second, high_second), 8.0, 20.0)  # oh: no second formant above 1100 Hz
    close = _ramp(voicing - first_db, -2.0, 5.0)  # oo: hardly a first formant above 400 Hz
    rounded = np.maximum(back, close) * (1.0 - spread)
    # Consonants have no shape of their own: the width fades with the level, and changes more slowly than the jaw.
    shape = (spread - rounded) * _ramp(level, 0.05, 0.4)
    width = _smooth(shape + (0.7 - shape) * hissing, steps=7)
    return openness, width


def _attack_release(wanted: Levels) -> Levels:
    """One-pole smoothing with a fast attack and a slow release; silence ends at exactly 0."""
    rise, fall = (1.0 - math.exp(-2.2 / (seconds * STEP_RATE)) for seconds in (ATTACK_S, RELEASE_S))
    followed = np.empty(len(wanted))
    now = 0.0
    for step, goal in enumerate(wanted.tolist()):
        now += (rise if goal > now else fall) * (goal - now)
        followed[step] = now = now if now > 1e-3 else 0.0
    return followed


def _closures(wanted: Levels) -> Levels:
    """An upper limit of the openness that falls to 0 where the sound dips between two vowels.

    With smoothing alone the mouth would still be a third open at the end of a short p. Lips close before the sound
    stops and part after it comes back, so the limit is widened by 20 ms on both sides and then smoothed.
    """
    reach = round(DIP_S * STEP_RATE)
    around = np.lib.stride_tricks.sliding_window_view(np.pad(wanted, reach), reach + 1).max(axis=1)
    before, after = around[: len(wanted)], around[reach:]
    dip = (wanted < 0.12) & (np.minimum(before, after) > 0.25)
    widened = np.convolve(dip, np.ones(5), "same") > 0
    return 1.0 - _smooth(widened.astype(np.float64), steps=5)


def _smooth(curve: Levels, steps: int) -> Levels:
    """Mean weighted with a raised cosine of 2 x steps + 1 steps; same length, with 0 beyond the ends."""
    kernel = np.hanning(2 * steps + 3)[1:-1]
    return np.convolve(curve, kernel / kernel.sum())[steps : steps + len(curve)]


def _decibels(power: NDArray[np.floating]) -> Levels:
    level: Levels = 10.0 * np.log10(np.maximum(power.astype(np.float64), 1e-10))
    return level


def _summed_db(*levels_db: Levels) -> Levels:
    """The level of several bands together, in dB."""
    return _decibels(np.sum(10.0 ** (np.stack(levels_db) / 10.0), axis=0))


def _ramp(value: Levels, low: float, high: float) -> Levels:
    """0 up to `low`, 1 from `high` on, linear between."""
    return np.clip((value - low) / (high - low), 0.0, 1.0)
