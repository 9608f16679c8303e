"""The program that loads espeak-ng and speaks one text: `python -m lipsyncd.prepare.espeak_child`, jailed by `speech`.

The text comes from strangers and the library is C, so no other module loads it. The text is read from stdin; the voices
are printed as JSON. The exit status is 65 when the text or the voice cannot be spoken, 69 without a library that works.

The callback that takes the samples is made with `memfd_create`, by ctypes. Before the text is read, the process gives
up that call, and `execve` with it: a file in memory lies in no folder, so that Landlock would let it run.

Owns the library's C interface.
"""

from __future__ import annotations

import argparse
import array
import contextlib
import ctypes
import json
import os
import sys
import wave
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from lipsyncd.errors import SpeechFailed, SpeechNotInstalled
from lipsyncd.prepare.speech import DEFAULT_VOICE, DEFAULT_WORDS_PER_MINUTE, MAX_SOUND_S, Voice, no_voice
from lipsyncd.prepare.spoken_text import MAX_CHARS, check_text, without_styles
from lipsyncd.sandbox import seccomp

_GENDERS = {1: "male", 2: "female"}
_SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT: samples go to a callback, no sound device is opened
_DONT_EXIT = 0x8000
_UTF8, _SSML, _PHONEMES, _END_PAUSE = 0x1, 0x10, 0x100, 0x1000
_PARAMETER_RATE = 1


class _CVoice(ctypes.Structure):
    """espeak_VOICE of espeak-ng's speak_lib.h."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_void_p),  # one byte of priority, then the tag, for each; the list ends with a zero byte
        ("identifier", ctypes.c_char_p),
        ("gender", ctypes.c_ubyte),
        ("age", ctypes.c_ubyte),
        ("variant", ctypes.c_ubyte),
        ("reserved", ctypes.c_ubyte),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    )


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class _Library:
    """The loaded espeak-ng. Raises `SpeechNotInstalled` when it does not load or does not find its data."""

    def __init__(self) -> None:
        import espeakng_loader

        try:
            self._c = ctypes.CDLL(espeakng_loader.get_library_path())
            data = espeakng_loader.get_data_path()
        except (OSError, RuntimeError) as error:
            raise SpeechNotInstalled(f"espeak-ng does not load: {error}", remedy="") from error
        self._c.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_CVoice))
        self._c.espeak_ListVoices.argtypes = (ctypes.c_void_p,)
        self._c.espeak_SetSynthCallback.argtypes = (_CALLBACK,)
        self._c.espeak_SetVoiceByName.argtypes = (ctypes.c_char_p,)
        self._c.espeak_Synth.argtypes = (
            ctypes.c_char_p,
            ctypes.c_size_t,
            ctypes.c_uint,
            ctypes.c_int,
            ctypes.c_uint,
            ctypes.c_uint,
            ctypes.c_void_p,
            ctypes.c_void_p,
        )
        self._variants = Path(data, "voices", "!v")
        self.rate: int = self._c.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(Path(data).parent), _DONT_EXIT)
        if self.rate <= 0:
            raise SpeechNotInstalled(f"espeak-ng finds no data in {data}", remedy="")
        self._samples = array.array("h")
        self._callback = _CALLBACK(self._take)  # kept, since the library keeps only its address
        self._c.espeak_SetSynthCallback(self._callback)

    def _take(self, wave_data: ctypes._Pointer[ctypes.c_short], count: int, _events: int | None) -> int:
        if count > 0 and wave_data:
            self._samples.frombytes(ctypes.string_at(wave_data, 2 * count))
        return int(len(self._samples) > MAX_SOUND_S * self.rate)

    def voices(self) -> Iterator[Voice]:
        listed = self._c.espeak_ListVoices(None)
        index = 0
        while listed[index]:
            voice = listed[index].contents
            index += 1
            if voice.identifier.startswith(b"mb/"):  # needs the program mbrola and its recordings
                continue
            language = ctypes.string_at(voice.languages + 1).decode()
            yield Voice(voice.name.decode(), language, _GENDERS.get(voice.gender, ""))

    def _full_name(self, wanted: str) -> str:
        # Only names of the library's own list are passed on: it would read a path as a voice file.
        base, plus, variant = wanted.partition("+")
        named = {tag.casefold(): voice.name for voice in self.voices() for tag in (voice.language, voice.name)}
        if base.casefold() not in named or (plus and variant not in os.listdir(self._variants)):
            raise no_voice(wanted)
        return named[base.casefold()] + plus + variant

    def speak(self, text: bytes, voice: str, words_per_minute: int, *, ssml: bool) -> array.array[int]:
        """16-bit samples at `rate`; to be called once. Raises `SpeechFailed`."""
        if self._c.espeak_SetVoiceByName(self._full_name(voice).encode()) != 0:
            raise no_voice(voice)
        self._c.espeak_SetParameter(_PARAMETER_RATE, words_per_minute, 0)
        flags = _UTF8 | _PHONEMES | _END_PAUSE | (_SSML if ssml else 0)
        status = self._c.espeak_Synth(text, len(text) + 1, 0, 1, 0, flags, None, None)
        if status != 0:
            raise SpeechFailed(f"espeak-ng refused the text (error {status})", remedy="")
        if not self._samples:
            raise SpeechFailed("the text made no sound", remedy="")
        return self._samples


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lipsyncd.prepare.espeak_child", description="Speak UTF-8 text from stdin."
    )
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--out", type=Path, metavar="FILE.wav")
    task.add_argument("--voices", action="store_true", help="print the voices as JSON")
    parser.add_argument("--voice", default=DEFAULT_VOICE)
    parser.add_argument("--wpm", type=int, default=DEFAULT_WORDS_PER_MINUTE)
    parser.add_argument("--ssml", action="store_true")
    options = parser.parse_args(arguments)
    try:
        library = _Library()
        if options.voices:
            print(json.dumps([asdict(voice) for voice in library.voices()]))
            return 0
        with contextlib.suppress(OSError):  # a kernel without seccomp filters
            seccomp.give_up("execve", "memfd_create")
        text = sys.stdin.buffer.read(4 * MAX_CHARS + 1).decode()
        text = without_styles(text) if options.ssml else text
        check_text(text, ssml=options.ssml)
        samples = library.speak(text.encode(), options.voice, options.wpm, ssml=options.ssml)
        with wave.open(str(options.out), "wb") as file:
            file.setparams((1, 2, library.rate, 0, "NONE", ""))
            file.writeframes(samples.tobytes())
    except (SpeechFailed, OSError, UnicodeDecodeError) as error:
        print(getattr(error, "message", error), file=sys.stderr)
        return os.EX_DATAERR
    except SpeechNotInstalled as error:
        print(error.message, file=sys.stderr)
        return os.EX_UNAVAILABLE
    return 0


if __name__ == "__main__":
    sys.exit(main())
