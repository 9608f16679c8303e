"""Compare voices that speak text: cost, pitch, spectrum, and how much of it a recogniser of speech understands.

    python -m benchmarks.voices                 # espeak-ng, and Joe, who comes with the tests
    pip install pocketsphinx                    # for the last column, which is "-" without it

The sentences are the first list of Harvard sentences (IEEE, 1969). Times are those of the processor.
"""

from __future__ import annotations

import re
import resource
import tempfile
import time
import wave
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray

from lipsyncd.prepare.speech import speak
from lipsyncd.renderers import SPEECH_RATE
from lipsyncd.renderers.voice.analysis import EDGES_HZ, analyse
from tests.kits.media.voice_kit import put_joe

SENTENCES = (
    "The birch canoe slid on the smooth planks.",
    "Glue the sheet to the dark blue background.",
    "It is easy to tell the depth of a well.",
    "These days a chicken leg is a rare dish.",
    "Rice is often served in round bowls.",
    "The juice of lemons makes fine punch.",
    "The box was thrown beside the parked truck.",
    "The hogs were fed chopped corn and garbage.",
    "Four hours of steady work faced us.",
    "A large size in stockings is hard to sell.",
)
VOICES = ("en-us", "en-us+f3", "en_US-joe-medium")
VOICED = 0.7  # periodicity
EDGES = (100, 550, 1700, 3500, 7900)  # Hz: pitch and first formant, second, third, hiss


@dataclass(frozen=True)
class Figures:
    """bands (16,): the mean level in each band of `EDGES_HZ`, in dB of the whole."""

    seconds: float
    cpu_s: float
    pitch_hz: float
    spread: float  # semitones between the tenth and the ninetieth percentile
    steadiness: float  # median periodicity of voiced steps
    bands: NDArray[np.float64]
    wrong_words: str


def heard(path: Path) -> NDArray[np.int16]:
    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32)
        return np.asarray(soxr.resample(samples, file.getframerate(), SPEECH_RATE).clip(-32768, 32767), np.int16)


def measure(voice: str, folder: Path) -> Figures:
    sounds, cpu_s = [], 0.0
    for number, sentence in enumerate(SENTENCES):
        target = folder / f"{voice}{number}.wav"
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        speak(sentence, target, voice=voice, folder=folder)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s += after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        sounds.append(heard(target))
    steps = analyse(np.concatenate(sounds))
    voiced = (steps.periodicity > VOICED) & (steps.bands.sum(axis=1) > 1e-4)
    low, middle, high = np.percentile(steps.pitch_hz[voiced], (10, 50, 90))
    return Figures(
        seconds=sum(map(len, sounds)) / SPEECH_RATE,
        cpu_s=cpu_s,
        pitch_hz=float(middle),
        spread=float(12 * np.log2(high / low)),
        steadiness=float(np.median(steps.periodicity[voiced])),
        bands=10 * np.log10(steps.bands.mean(axis=0) / steps.bands.mean(axis=0).sum()),
        wrong_words=transcribed(sounds),
    )


def transcribed(sounds: list[NDArray[np.int16]]) -> str:
    """How many words a recogniser gets wrong, of all."""
    try:
        from pocketsphinx import Decoder
    except ImportError:
        return "-"
    wrong = 0
    decoder = Decoder(samprate=SPEECH_RATE, loglevel="FATAL")
    for sentence, sound in zip(SENTENCES, sounds, strict=True):
        decoder.start_utt()
        decoder.process_raw(sound.tobytes(), full_utt=True)
        decoder.end_utt()
        wrong += distance(words(sentence), words(decoder.hyp().hypstr if decoder.hyp() else ""))
    return f"{wrong} of {sum(len(words(sentence)) for sentence in SENTENCES)}"


def words(text: str) -> list[str]:
    return re.sub(r"[^a-z' ]", "", re.sub(r"\(\d\)", "", text.lower())).split()


def distance(one: list[str], other: list[str]) -> int:
    """Words to add, leave out or replace (Levenshtein)."""
    row = list(range(len(other) + 1))
    for number, word in enumerate(one, 1):
        corner, row[0] = row[0], number
        for at, seen in enumerate(other, 1):
            corner, row[at] = row[at], min(row[at] + 1, row[at - 1] + 1, corner + (word != seen))
    return row[-1]


def summed(bands: NDArray[np.float64]) -> str:
    """The level between each two of `EDGES`, in dB of the whole."""
    power, edges = 10 ** (bands / 10), np.array(EDGES_HZ[:-1])
    parts = [power[(edges >= low) & (edges < high)].sum() for low, high in pairwise(EDGES)]
    return ", ".join(f"{10 * np.log10(part):.0f}" for part in parts)


def long_text(folder: Path) -> str:
    """What ten minutes cost, in one child."""
    text = f"{' '.join(SENTENCES)} " * 25
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    speak(text[:9_900], folder / "long.wav", voice=VOICES[-1], folder=folder)
    took_s, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = len(heard(folder / "long.wav")) / SPEECH_RATE
    cpu_s = after.ru_utime - before.ru_utime
    return (
        f"{seconds:.0f} s of speech: {cpu_s / seconds:.2f} of it on one core ({took_s:.0f} s on this machine), "
        f"{after.ru_maxrss / 1024:.0f} MB at the peak"
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        put_joe(folder)
        found = {voice: measure(voice, folder) for voice in VOICES}
        print("| voice | s of speech | CPU s | pitch, Hz | spread, semitones | steadiness | bands, dB | wrong words |")
        for voice, f in found.items():
            print(
                f"| `{voice}` | {f.seconds:.1f} | {f.cpu_s:.1f} | {f.pitch_hz:.0f} | {f.spread:.1f} | "
                f"{f.steadiness:.3f} | {summed(f.bands)} | {f.wrong_words} |"
            )
        for one, other in combinations(VOICES, 2):
            apart = float(np.sqrt(np.mean(np.square(found[one].bands - found[other].bands))))
            print(f"{one} and {other}: {apart:.1f} dB apart")
        print(long_text(folder))


if __name__ == "__main__":
    main()
