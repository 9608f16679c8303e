"""For tests of what counts as a voice: noises, hums and music without one, and voices that are hard to hear.

All sounds are (N,) int16, mono, 16 kHz. Everything random comes from a fixed seed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers import SPEECH_RATE

Sound = NDArray[np.int16]
Wave = NDArray[np.float64]  # any amplitude

CHORDS = ((0, 4, 7), (-3, 0, 4), (-7, -3, 0), (-5, -1, 2))  # C, a minor, F, G: semitones from C


def at_level(wave: Wave, level_db: float) -> Sound:
    """A wave scaled to a root mean square in dB of full scale."""
    rms = np.sqrt(np.mean(np.square(wave)))
    return np.rint(wave / rms * 10 ** (level_db / 20) * 32767).clip(-32768, 32767).astype(np.int16)


def mixed(speech: Sound, other: Sound, ratio_db: float) -> Sound:
    """A voice with another sound that is `ratio_db` quieter than the voice's mean."""
    level_db = 20 * np.log10(np.sqrt(np.mean(np.square(speech / 32768.0)))) - ratio_db
    quieter = at_level(np.resize(other, len(speech)).astype(np.float64), level_db)
    return (speech.astype(np.int32) + quieter).clip(-32768, 32767).astype(np.int16)


# -- noise and hum -----------------------------------------------------------------------------------------------------


def noise(seconds: float, slope_db: float = 0.0, seed: int = 1) -> Wave:
    """Noise whose power falls by `slope_db` each octave: 0 white, 3 pink, 6 brown as of wind or a motor."""
    count = round(seconds * SPEECH_RATE)
    spectrum = np.fft.rfft(np.random.default_rng(seed).normal(size=count))
    octaves = np.log2(np.maximum(np.fft.rfftfreq(count, 1 / SPEECH_RATE), 20.0) / 1000)
    return np.fft.irfft(spectrum * 10 ** (-slope_db * octaves / 20), count)


def hum(seconds: float, mains_hz: float, harmonics: int = 12) -> Wave:
    """The hum of a mains lead."""
    at_s = np.arange(round(seconds * SPEECH_RATE)) / SPEECH_RATE
    return np.sum([np.sin(2 * np.pi * k * mains_hz * at_s + k) / k for k in range(1, harmonics + 1)], axis=0)


# -- music -------------------------------------------------------------------------------------------------------------


def note(hz: float, seconds: float, *, decay_s: float, harmonics: int, vibrato: float = 0.0) -> Wave:
    """One note: harmonics that fall by 1 / k, an attack of 10 ms, an exponential decay, an end of 20 ms."""
    at_s = np.arange(round(seconds * SPEECH_RATE)) / SPEECH_RATE
    phase = 2 * np.pi * hz * (at_s + vibrato * np.sin(2 * np.pi * 5.5 * at_s) / (2 * np.pi * 5.5))
    tone = np.sum([np.sin(k * phase) / k for k in range(1, harmonics + 1) if k * hz < 7500], axis=0)
    ends = np.minimum(1.0, np.minimum(at_s / 0.010, (seconds - at_s) / 0.020))
    return tone * np.exp(-at_s / decay_s) * ends


def chords(
    seconds: float, *, beat_s: float = 0.5, decay_s: float = 0.6, harmonics: int = 8, vibrato: float = 0.0
) -> Wave:
    """Chords of three notes around middle C, a new one every second beat."""
    track = np.zeros(round(seconds * SPEECH_RATE))
    for beat in range(int(seconds / beat_s)):
        for semitone in CHORDS[beat // 2 % 4]:
            _add(
                track, beat * beat_s, note(_hz(semitone), beat_s, decay_s=decay_s, harmonics=harmonics, vibrato=vibrato)
            )
    return track


def melody(seconds: float, *, beat_s: float = 0.25, harmonics: int = 6, vibrato: float = 0.0, octave: int = 0) -> Wave:
    """A single line of notes, as of a flute (few harmonics) or a synthesiser (many)."""
    steps = np.random.default_rng(4).choice([0, 2, 4, 5, 7, 9, 11, 12], int(seconds / beat_s))
    track = np.zeros(round(seconds * SPEECH_RATE))
    for beat, semitone in enumerate(steps.tolist()):
        hz = _hz(semitone + 12 * octave)
        _add(track, beat * beat_s, note(hz, beat_s, decay_s=0.8, harmonics=harmonics, vibrato=vibrato))
    return track


def drums(seconds: float, *, beat_s: float = 0.25, seed: int = 2) -> Wave:
    """Bass drum, snare and hi-hat in turn."""
    random, track = np.random.default_rng(seed), np.zeros(round(seconds * SPEECH_RATE))
    at_s = np.arange(round(0.4 * SPEECH_RATE)) / SPEECH_RATE
    for beat in range(int(seconds / beat_s)):
        if beat % 4 == 0:
            sweep = 2 * np.pi * np.cumsum(50 + 110 * np.exp(-at_s / 0.03)) / SPEECH_RATE
            _add(track, beat * beat_s, np.sin(sweep) * np.exp(-at_s / 0.12))
        elif beat % 4 == 2:
            skin = np.sin(2 * np.pi * 190 * at_s) * np.exp(-at_s / 0.06)
            _add(track, beat * beat_s, 0.5 * skin + 0.4 * random.normal(size=len(at_s)) * np.exp(-at_s / 0.08))
        hiss = np.diff(random.normal(size=len(at_s) + 1), n=1) * np.exp(-at_s / 0.025)
        _add(track, beat * beat_s, 0.15 * hiss)
    return track


def band(seconds: float) -> Wave:
    """Chords, a bass and drums together."""
    bass = melody(seconds, beat_s=0.5, harmonics=10, octave=-2)
    return 0.4 * chords(seconds) + 0.5 * bass + 0.8 * drums(seconds)


def _hz(semitones: float) -> float:
    return float(261.63 * 2 ** (semitones / 12))


def _add(track: Wave, at_s: float, sound: Wave) -> None:
    start = round(at_s * SPEECH_RATE)
    part = track[start : start + len(sound)]
    part += sound[: len(part)]


# -- voices that are hard to hear --------------------------------------------------------------------------------------


def telephone(speech: Sound) -> Sound:
    """300 to 3400 Hz."""
    spectrum = np.fft.rfft(speech.astype(np.float64))
    hz = np.fft.rfftfreq(len(speech), 1 / SPEECH_RATE)
    passed = np.clip((hz - 250) / 100, 0, 1) * np.clip((3600 - hz) / 300, 0, 1)
    return np.rint(np.fft.irfft(spectrum * passed, len(speech))).clip(-32768, 32767).astype(np.int16)


def faster(speech: Sound, factor: float) -> Sound:
    """Played at another speed: formants and pitch rise together, as a child's do."""
    at = np.arange(0, len(speech) - 1, factor)
    return np.rint(np.interp(at, np.arange(len(speech)), speech)).astype(np.int16)


def hoarse(speech: Sound, share: float = 0.7, seed: int = 6) -> Sound:
    """A voice of whose periods most is lost: random signs break the period and leave the formants."""
    return _revoiced(speech, share, seed)


def whispered(speech: Sound, seed: int = 7) -> Sound:
    """The same words without any voice: noise through the speech's own spectra."""
    return _revoiced(speech, 1.0, seed)


def _revoiced(speech: Sound, share: float, seed: int) -> Sound:
    """Replace a share of the fine structure by noise, in windows of 32 ms; the smoothed spectra stay."""
    size, hop = 512, 128
    random = np.random.default_rng(seed)
    wave = np.concatenate([np.zeros(size), speech.astype(np.float64), np.zeros(size)])
    out, hann = np.zeros(len(wave)), np.hanning(size + 1)[:-1]
    for start in range(0, len(wave) - size, hop):
        piece = np.fft.rfft(wave[start : start + size] * hann)
        envelope = np.sqrt(np.convolve(np.abs(piece) ** 2, np.hanning(13) / 6, "same"))
        breath = envelope * np.fft.rfft(random.normal(size=size) * hann) / np.sqrt(size * 0.375)
        out[start : start + size] += np.fft.irfft((1 - share) * piece + share * breath, size) * hann
    whole = out[size:-size] / 1.5
    return np.rint(whole).clip(-32768, 32767).astype(np.int16)
