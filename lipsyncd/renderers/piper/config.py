"""`NAME.onnx.json`: how a voice of Piper is used, read with every value checked, since a stranger may have written it.

Source: the files of rhasspy/piper-voices, and TRAINING.md of Piper.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lipsyncd.errors import SpeechFailed, VoiceUnusable

ESPEAK, TEXT = "espeak", "text"  # of `phoneme_type`: phonemes of espeak-ng, or the characters of the text
START, PAD, END = "^", "_", "$"
_MOST_SPEAKERS = 10_000
_MOST_SYMBOLS = 10_000
_MOST_IDS = 16  # of one symbol
_MOST_SHOWN = 40  # characters of a value in a message


@dataclass(frozen=True)
class VoiceConfig:
    """How a voice is used.

    rate          samples a second
    phonemes      `ESPEAK` or `TEXT`
    espeak_voice  whose rules read the text
    ids           the numbers of each symbol, which is one character
    noise, noise_width  how much sound and rhythm vary
    length        how long each sound takes, 1 is as it was trained
    speakers      how many there are; the first is 0
    names         of the speakers, where they have some
    language      as the file says it, such as `en_US`, or ""
    """

    rate: int
    phonemes: str
    espeak_voice: str
    ids: Mapping[str, tuple[int, ...]]
    noise: float
    noise_width: float
    length: float
    speakers: int
    names: Mapping[str, int]
    language: str

    def speaker(self, wanted: str) -> int:
        """The number of a speaker: by name, else by number; "" is the first. Raises `SpeechFailed`."""
        if not wanted:
            return 0
        if wanted in self.names:
            return self.names[wanted]
        if wanted.isascii() and wanted.isdigit() and len(wanted) < 6 and int(wanted) < self.speakers:
            return int(wanted)
        have = f"0 to {self.speakers - 1}" if self.speakers > 1 else "none to choose from"
        some = ", ".join(list(self.names)[:5])
        raise SpeechFailed(
            f"the voice has no speaker {wanted[:_MOST_SHOWN]!r}",
            remedy=f"its speakers are {have}{f', by name {some}' if some else ''}{'…' if len(self.names) > 5 else ''}",
        )


def read_config(data: bytes) -> VoiceConfig:
    """Read a configuration. Raises `VoiceUnusable` with the field, its value, and what is allowed."""
    try:
        whole = json.loads(data)
    except (ValueError, RecursionError):
        raise VoiceUnusable("its configuration is no JSON") from None
    if not isinstance(whole, dict):
        raise VoiceUnusable("its configuration is no JSON object")
    audio, espeak = _object(whole, "audio"), _object(whole, "espeak")
    inference, language = _object(whole, "inference"), _object(whole, "language")
    kind = whole.get("phoneme_type", ESPEAK)
    if kind not in (ESPEAK, TEXT):
        raise _wrong("phoneme_type", kind, f"{ESPEAK} or {TEXT}")
    ids = _ids(whole.get("phoneme_id_map"))
    speakers = _whole("num_speakers", whole.get("num_speakers", 1), 1, _MOST_SPEAKERS)
    return VoiceConfig(
        rate=_whole("audio.sample_rate", audio.get("sample_rate"), 8000, 48_000),
        phonemes=kind,
        espeak_voice=_text("espeak.voice", espeak.get("voice", "")) if kind == ESPEAK else "",
        ids=ids,
        noise=_number("inference.noise_scale", inference.get("noise_scale", 0.667), 0, 2),
        noise_width=_number("inference.noise_w", inference.get("noise_w", 0.8), 0, 2),
        length=_number("inference.length_scale", inference.get("length_scale", 1), 0.1, 10),
        speakers=speakers,
        names=_names(whole.get("speaker_id_map") or {}, speakers),
        language=_text("language.code", language.get("code", "")),
    )


def _object(whole: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = whole.get(name, {})
    if not isinstance(value, dict):
        raise _wrong(name, value, "an object")
    return value


def _ids(value: object) -> Mapping[str, tuple[int, ...]]:
    """Symbols of one character each, as they are looked up; Piper's maps have no others."""
    if not isinstance(value, dict) or len(value) > _MOST_SYMBOLS:
        raise _wrong("phoneme_id_map", type(value).__name__, f"an object of at most {_MOST_SYMBOLS} symbols")
    ids = {}
    for symbol, numbers in value.items():
        if not isinstance(numbers, list) or not 0 < len(numbers) <= _MOST_IDS:
            raise _wrong(f"phoneme_id_map of {symbol[:8]!r}", numbers, f"a list of 1 to {_MOST_IDS} numbers")
        ids[symbol] = tuple(_whole(f"phoneme_id_map of {symbol[:8]!r}", number, 0, 1 << 20) for number in numbers)
    if missing := [symbol for symbol in (START, PAD, END) if symbol not in ids]:
        raise _wrong("phoneme_id_map", f"without {missing[0]}", f"a map with {START}, {PAD} and {END}")
    return ids


def _names(value: object, speakers: int) -> Mapping[str, int]:
    if not isinstance(value, dict) or len(value) > _MOST_SPEAKERS:
        raise _wrong("speaker_id_map", type(value).__name__, f"an object of at most {_MOST_SPEAKERS} speakers")
    return {
        name: _whole("speaker_id_map", number, 0, speakers - 1) for name, number in value.items() if name.isprintable()
    }


def _whole(name: str, value: object, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise _wrong(name, value, f"a whole number from {low} to {high}")
    return value


def _number(name: str, value: object, low: float, high: float) -> float:
    number = math.nan if isinstance(value, bool) or not isinstance(value, (int, float)) else float(value)
    if not low <= number <= high:
        raise _wrong(name, value, f"a number from {low:g} to {high:g}")
    return number


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or len(value) > _MOST_SHOWN or not value.isprintable():
        raise _wrong(name, value, f"text of at most {_MOST_SHOWN} characters")
    return value


def _wrong(name: str, value: object, allowed: str) -> VoiceUnusable:
    return VoiceUnusable(f"{name} in its configuration is {value!r:.{_MOST_SHOWN}}; allowed is {allowed}")
