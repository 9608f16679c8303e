"""The program that speaks with a voice of Piper: `python -m lipsyncd.renderers.piper`, jailed by `prepare.voices`.

A request in JSON is its argument, the text comes on stdin, the WAV goes into a file that exists, and stdout gets one
line of JSON for each sentence, so that a caller sees that it works. The last line is the answer or the fault. Both
files of the voice are read whole and must have the hashes of the request, before anything looks into them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lipsyncd.errors import LipsyncdError, SpeechFailed, SpeechNotInstalled
from lipsyncd.extras import how_to_install
from lipsyncd.prepare.spoken_text import MAX_CHARS, check_text, without_styles
from lipsyncd.prepare.voices import piper_files
from lipsyncd.prepare.voices.espeak import Library
from lipsyncd.renderers.piper import sentences, ssml
from lipsyncd.renderers.piper.config import ESPEAK, VoiceConfig, read_config
from lipsyncd.sandbox import seccomp

if TYPE_CHECKING:  # a description needs neither numpy nor onnxruntime
    from lipsyncd.renderers.piper.voice import PiperVoice
    from lipsyncd.renderers.piper.wav import GrowingWav

_BETWEEN_S = 0.2  # sentences
_MOST_NAMES, _MOST_NAME_CHARS = 1000, 6000  # of speakers, in a description
_MOST_MISSING = 20


def main(request: Mapping[str, Any]) -> None:
    """Carry out one request.

    {"describe": [{"name", "config"}, ...], "names"}  the configurations of voices; how many names of speakers to print
    {"model", "config", "hashes", "speaker", "out", "pace", "ssml", "most_s"}  speak the text on stdin
    """
    with contextlib.suppress(OSError):  # a kernel without seccomp filters
        seccomp.give_up("execve", "memfd_create")
    if "describe" in request:
        for voice in request["describe"]:
            _tell(**_described(voice, min(request["names"], _MOST_NAMES)))
    else:
        try:
            _speak(request)
        except LipsyncdError as error:
            _tell(fault=error.reason())
        except MemoryError:
            _tell(fault=SpeechFailed("the voice needs more memory than it may have").reason())


def _tell(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


def _described(voice: Mapping[str, str], most: int) -> dict[str, object]:
    try:
        config = read_config(_read(Path(voice["config"]), piper_files.MAX_CONFIG_BYTES))
    except LipsyncdError as error:
        return {"name": voice["name"], "fault": error.message}
    return {
        "name": voice["name"],
        "language": config.language or config.espeak_voice,
        "speakers": config.speakers,
        "names": list(_shown(config.names, most)),
        "rate": config.rate,
    }


def _shown(names: Iterable[str], most: int) -> Iterator[str]:
    """The first names: so many, and so long in all that the answer for many voices stays short."""
    left = _MOST_NAME_CHARS
    for name in islice(names, most):
        left -= len(name) + 1
        if left < 0:
            return
        yield name


def _speak(request: Mapping[str, Any]) -> None:
    text = sys.stdin.buffer.read(4 * MAX_CHARS + 1).decode(errors="replace")
    text = without_styles(text) if request["ssml"] else text
    check_text(text, ssml=request["ssml"])
    config_bytes = _read(Path(request["config"]), piper_files.MAX_CONFIG_BYTES)
    model = _read(Path(request["model"]), piper_files.MAX_MODEL_BYTES)
    if [hashlib.sha256(data).hexdigest() for data in (model, config_bytes)] != request["hashes"]:
        _tell(changed=True)
        return
    config = read_config(config_bytes)
    speaker = config.speaker(request["speaker"])
    library = _library(config)
    try:
        from lipsyncd.renderers.piper.voice import PiperVoice
        from lipsyncd.renderers.piper.wav import GrowingWav
    except ImportError as error:
        raise SpeechNotInstalled(f"voices of Piper need a package: {error}", remedy=how_to_install("voices")) from error
    voice = PiperVoice(model, config, speaker=speaker, pace=request["pace"])
    del model, config_bytes
    _tell(loaded=True)
    with GrowingWav(Path(request["out"]), config.rate) as wav:
        for facts in _spoken(ssml.parts(text) if request["ssml"] else [text], voice, library, wav):
            _tell(**facts)
            if wav.seconds > request["most_s"]:
                break
    if not wav.level():
        raise SpeechFailed("the text made no sound", remedy="choose a voice of the text's language")
    _tell(done=True, missing=sorted(voice.missing)[:_MOST_MISSING])


def _spoken(
    parts: Iterable[str | float], voice: PiperVoice, library: Library | None, wav: GrowingWav
) -> Iterator[dict[str, object]]:
    """Speak part after part into the file; tells of each sentence and pause."""
    between_s = 0.0
    for part in parts:
        if isinstance(part, float):
            wav.rest(part)
            yield {"seconds": round(wav.seconds, 2)}
            continue
        for sentence in _sentences(part, library):
            wav.rest(between_s)
            wav.add(voice.speak(sentence.symbols))
            between_s = _BETWEEN_S if sentence.ends else 0.0
            yield {"seconds": round(wav.seconds, 2), "read": round(sentence.read, 3)}


def _library(config: VoiceConfig) -> Library | None:
    """espeak-ng with the voice whose rules read the text; None for a voice that reads characters."""
    if config.phonemes != ESPEAK:
        return None
    library = Library()
    library.choose(config.espeak_voice)
    return library


def _sentences(text: str, library: Library | None) -> Iterator[sentences.Sentence]:
    return sentences.from_text(text) if library is None else sentences.from_clauses(library.phonemes(text))


def _read(path: Path, most_bytes: int) -> bytes:
    """All of a file. Raises `VoiceUnusable` for what is none, or too large."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            piper_files.check_size(os.fstat(descriptor), path, most_bytes)
            return file.read(most_bytes)
    except OSError as error:
        raise piper_files.unreadable(path, error) from error


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
