"""The espeak-ng library: it speaks a text, and reads a text as phonemes for voices of Piper.

Only jailed programs load it, since text comes from strangers and the library is C. The callback that takes its samples
is made by ctypes with `memfd_create`; `phonemes` needs no callback.

Owns the library's C interface. Source: espeak-ng's speak_lib.h.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lipsyncd.errors import SpeechFailed, SpeechNotInstalled
from lipsyncd.prepare.voices.names import Voice, espeak_for, no_voice

_GENDERS = {1: "male", 2: "female"}
_SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT: samples go to a callback, no sound device is opened
_DONT_EXIT = 0x8000
_UTF8, _SSML, _PHONEMES, _END_PAUSE = 0x1, 0x10, 0x100, 0x1000
_IPA = 0x02
_PARAMETER_RATE = 1


class _CVoice(ctypes.Structure):
    """espeak_VOICE."""

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


@dataclass(frozen=True)
class Clause:
    """A part of a text that is read in one breath.

    phonemes  IPA, words separated by blanks
    text      what was read, with the punctuation and white space up to the next clause
    read      how much of the whole text has been read after it, 0 to 1
    """

    phonemes: str
    text: str
    read: float


class Library:
    """The loaded espeak-ng. Raises `SpeechNotInstalled` when it does not load or does not find its data.

    speaks  make the callback for `speak` now, which needs `memfd_create`; `phonemes` needs none
    """

    def __init__(self, *, speaks: bool = False) -> None:
        import espeakng_loader

        try:
            self._c = ctypes.CDLL(espeakng_loader.get_library_path())
            data = espeakng_loader.get_data_path()
        except (OSError, RuntimeError) as error:
            raise SpeechNotInstalled(f"espeak-ng does not load: {error}", remedy="") from error
        self._declare()
        self._variants = Path(data, "voices", "!v")
        self.rate: int = self._c.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(Path(data).parent), _DONT_EXIT)
        if self.rate <= 0:
            raise SpeechNotInstalled(f"espeak-ng finds no data in {data}", remedy="")
        self._take: Callable[[bytes], bool] = lambda _samples: True
        self._callback = _CALLBACK(self._on_samples) if speaks else None  # kept: the library keeps only its address

    def _declare(self) -> None:
        c = self._c
        c.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_CVoice))
        c.espeak_ListVoices.argtypes = (ctypes.c_void_p,)
        c.espeak_SetSynthCallback.argtypes = (_CALLBACK,)
        c.espeak_SetVoiceByName.argtypes = (ctypes.c_char_p,)
        c.espeak_Synth.argtypes = (
            ctypes.c_char_p,
            ctypes.c_size_t,
            ctypes.c_uint,
            ctypes.c_int,
            ctypes.c_uint,
            ctypes.c_uint,
            ctypes.c_void_p,
            ctypes.c_void_p,
        )
        c.espeak_TextToPhonemes.restype = ctypes.c_char_p
        c.espeak_TextToPhonemes.argtypes = (ctypes.POINTER(ctypes.c_void_p), ctypes.c_int, ctypes.c_int)

    # -- voices --------------------------------------------------------------------------------------------------------

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

    def choose(self, wanted: str) -> str:
        """Use the voice of that name or language tag, or the one for another service's name; returns its tag.

        Raises `SpeechFailed` when there is none.
        """
        # Only names of the library's own list are passed on: it would read a path as a voice file.
        base, plus, variant = wanted.partition("+")
        voice = espeak_for(base, self.voices())
        if voice is None or (plus and variant not in os.listdir(self._variants)):
            raise no_voice(wanted)
        if self._c.espeak_SetVoiceByName(f"{voice.name}{plus}{variant}".encode()) != 0:
            raise no_voice(wanted)
        return f"{voice.language}{plus}{variant}"

    # -- speaking ------------------------------------------------------------------------------------------------------

    def speak(
        self, text: bytes, words_per_minute: int, write: Callable[[bytes], None], *, ssml: bool, most_samples: int
    ) -> None:
        """Give the 16-bit samples, at `rate`, to `write` as they come; stops after `most_samples`.

        Call once, after `choose`. Raises `SpeechFailed`, or what `write` raises.
        """
        taken, failures = 0, list[BaseException]()

        def take(samples: bytes) -> bool:
            nonlocal taken
            try:
                write(samples)
            except BaseException as error:  # it cannot pass through the library
                failures.append(error)
            taken += len(samples) // 2
            return taken > most_samples or bool(failures)

        self._take = take
        self._c.espeak_SetSynthCallback(self._callback)
        self._c.espeak_SetParameter(_PARAMETER_RATE, words_per_minute, 0)
        flags = _UTF8 | _PHONEMES | _END_PAUSE | (_SSML if ssml else 0)
        if hasattr(self._c, "espeak_ng_SetRandSeed"):
            self._c.espeak_ng_SetRandSeed(ctypes.c_long(1))  # else by the clock: equal texts would not sound equal
        status = self._c.espeak_Synth(text, len(text) + 1, 0, 1, 0, flags, None, None)
        if failures:
            raise failures[0]
        if status != 0:
            raise SpeechFailed(f"espeak-ng refused the text (error {status})", remedy="")
        if not taken:
            raise SpeechFailed("the text made no sound", remedy="")

    def _on_samples(self, samples: ctypes._Pointer[ctypes.c_short], count: int, _events: int | None) -> int:
        return int(self._take(ctypes.string_at(samples, 2 * count))) if count > 0 and samples else 0

    # -- reading -------------------------------------------------------------------------------------------------------

    def phonemes(self, text: str) -> Iterator[Clause]:
        """Read a text clause by clause, by the rules of the language of the chosen voice."""
        raw = text.encode()
        buffer = ctypes.create_string_buffer(raw)
        start = ctypes.addressof(buffer)
        place = ctypes.c_void_p(start)
        begun = 0  # the library has read one character of the next clause already
        while place.value is not None:
            ipa = self._c.espeak_TextToPhonemes(ctypes.byref(place), _UTF8, _IPA) or b""
            ended = len(raw) if place.value is None else min(place.value - start, len(raw))
            if place.value is not None:
                ended = _before(raw, ended)
            yield Clause(ipa.decode(errors="replace"), raw[begun:ended].decode(errors="replace"), ended / len(raw))
            begun = ended


def _before(raw: bytes, place: int) -> int:
    """Where the character begins that ends at that place."""
    place = max(place - 1, 0)
    while place > 0 and raw[place] & 0xC0 == 0x80:
        place -= 1
    return place
