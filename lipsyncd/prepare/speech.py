"""Speak a text into a WAV file, with the espeak-ng library that the package `espeakng-loader` carries.

The text comes from strangers and the library is C, so it runs only in a child process of its own: `speak` and `voices`
start this same module (`python -m lipsyncd.prepare.speech`) and never load the library themselves. `speak_with` leaves
the speaking to a program that the operator has configured.

Owns the text's limits and the library's C interface. Leaves every other format to the jailed decoder: its WAV is
decoded like one that somebody dropped.
"""

from __future__ import annotations

import argparse
import array
import ctypes
import importlib.util
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import wave
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lipsyncd.errors import LipsyncdError, SpeechFailed, SpeechNotInstalled
from lipsyncd.log import printable
from lipsyncd.processes import exit_text
from lipsyncd.sandbox.jail import ResourceLimits, end, popen_jailed

DEFAULT_VOICE = "en-us"
DEFAULT_WORDS_PER_MINUTE = 165
SLOWEST, FASTEST = 80, 450  # words per minute that espeak-ng can do
MAX_CHARS = 40_000  # with SSML tags
MAX_SPOKEN_CHARS = 10_000  # without them
MAX_SOUND_S = 610  # a little more than a job may last, so that the job fails with `audio-too-long` and not in silence

_PACKAGE = "espeakng_loader"
_LIMITS = ResourceLimits(cpu_s=120, file_bytes=256 << 20, memory_bytes=1 << 30)
_LAST_WORDS_BYTES = 300
_OUR_VARIABLES = ("LIPSYNCD_", "CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET", "WATCHDOG_")
_EX_DATAERR, _EX_UNAVAILABLE = 65, 69  # sysexits.h
_GENDERS = {1: "male", 2: "female"}
_MAX_VOICE_CHARS = 64
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_TAG = re.compile(r"<[^>]*>?")
_TAG_NAME = re.compile(r"</?([A-Za-z][A-Za-z0-9:._-]*)(?=[\s/>])")
# All of SSML 1.1 that shapes speech. Not `audio`: the library opens the file that it names, and may even run a program
# to convert it.
SSML_TAGS = frozenset(
    (
        "speak",
        "voice",
        "prosody",
        "say-as",
        "mark",
        "s",
        "p",
        "phoneme",
        "sub",
        "emphasis",
        "break",
        "lang",
        "w",
        "token",
    )
)


@dataclass(frozen=True)
class Voice:
    """One way to speak: its name in espeak-ng, a language tag such as `en-us`, and `male`, `female` or nothing."""

    name: str
    language: str
    gender: str


def speak(
    text: str,
    target: Path,
    *,
    voice: str = DEFAULT_VOICE,
    words_per_minute: int = DEFAULT_WORDS_PER_MINUTE,
    ssml: bool = False,
    timeout_s: float = 60.0,
) -> None:
    """Write `text` as a 16-bit mono WAV to `target`, at the rate that the voice has (22 050 Hz for nearly all).

    voice  a language tag or a name from `voices`, with an optional variant: `en-us`, `German`, `en-gb+f3`
    ssml   the text carries SSML tags; `SSML_TAGS` are obeyed, any other is refused

    `[[...]]` holds phonemes in espeak-ng's own spelling. A text that would last longer than `MAX_SOUND_S` is cut there.

    Raises `SpeechNotInstalled` without the package, `SpeechFailed` when the text or the voice cannot be spoken.
    """
    check_text(text, ssml=ssml)
    if not SLOWEST <= words_per_minute <= FASTEST:
        raise SpeechFailed(f"{words_per_minute} words per minute; allowed are {SLOWEST} to {FASTEST}", remedy="")
    if not voice.isprintable() or len(voice) > _MAX_VOICE_CHARS:
        raise _no_voice(voice)
    options = [f"--out={target.absolute()}", f"--voice={voice}", f"--wpm={words_per_minute}"]
    if ssml:
        options.append("--ssml")
    _run_child(options, text.encode(), timeout_s, writable=[target.absolute().parent])


def speak_with(
    command: Sequence[str],
    text: str,
    target: Path,
    *,
    voice: str = DEFAULT_VOICE,
    words_per_minute: int = DEFAULT_WORDS_PER_MINUTE,
    ssml: bool = False,
    timeout_s: float = 60.0,
) -> None:
    """Have the operator's own program speak `text` (UTF-8 on its stdin) into `target` (the WAV on its stdout).

    command  the program and its arguments. `SPEECH_VOICE`, `SPEECH_SSML` (0 or 1) and `SPEECH_WORDS_PER_MINUTE` stand
             in its environment and never in its arguments: they come from strangers too

    It is trusted with files, devices and the network, unlike espeak-ng, since it needs models and perhaps a GPU. It
    gets none of the daemon's own variables and a bound on what it writes. When it takes too long its group is killed.

    Raises `SpeechNotInstalled` when it cannot be started, `SpeechFailed` when it fails or writes no WAV.
    """
    check_text(text, ssml=ssml)
    said = {"SPEECH_VOICE": voice, "SPEECH_SSML": str(int(ssml)), "SPEECH_WORDS_PER_MINUTE": str(words_per_minute)}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OUR_VARIABLES)}
    with target.open("wb") as sound, tempfile.TemporaryFile() as words:
        try:
            program = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=sound,
                stderr=words,
                cwd=target.parent,
                env={**kept, **said},
                start_new_session=True,
            )
        except OSError as error:
            fix = "correct speech.command, or leave it out to speak with espeak-ng"
            raise SpeechNotInstalled(f"{command[0]} does not start: {error.strerror}", remedy=fix) from error
        try:
            for limit, most in ((resource.RLIMIT_FSIZE, _LIMITS.file_bytes), (resource.RLIMIT_CORE, 0)):
                resource.prlimit(program.pid, limit, (most, most))
            program.communicate(text.encode(), timeout_s)
        except subprocess.TimeoutExpired as error:
            raise SpeechFailed(f"speaking the text took longer than {timeout_s:g} s") from error
        finally:
            end(program)
        words.seek(max(0, words.seek(0, os.SEEK_END) - _LAST_WORDS_BYTES))
        last_words = printable(words.read().strip())
    name = Path(command[0]).name
    if program.returncode != 0:
        raise SpeechFailed(f"{name} {exit_text(program.returncode)}{': ' if last_words else ''}{last_words}")
    with target.open("rb") as file:
        head = file.read(12)
    if head[:4] != b"RIFF" or head[8:] != b"WAVE":
        raise SpeechFailed(f"{name} wrote no WAV to its stdout", remedy="correct speech.command")


def voices(*, timeout_s: float = 60.0) -> list[Voice]:
    """Every voice of the library, ordered by language. Raises `SpeechNotInstalled` without the package."""
    listing = _run_child(["--voices"], b"", timeout_s)
    return [Voice(**fields) for fields in json.loads(listing)]


def nearest(wanted: str, offered: Iterable[Voice]) -> Voice | None:
    """The voice whose language a foreign voice name begins with: `de-DE-KatjaNeural` gets the voice of `de`."""
    known = sorted(offered, key=lambda voice: len(voice.language), reverse=True)
    tag = wanted.lower().replace("_", "-") + "-"
    return next((voice for voice in known if tag.startswith(voice.language + "-")), None)


def check_text(text: str, *, ssml: bool = False) -> None:
    """Raise `SpeechFailed` unless the text has something to say, fits the limits, and its SSML is harmless."""
    if len(text) > MAX_CHARS:
        raise SpeechFailed(f"the text has {len(text)} characters; {MAX_CHARS} are allowed", remedy="shorten it")
    spoken = _TAG.sub("", text) if ssml else text
    if len(spoken) > MAX_SPOKEN_CHARS:
        raise SpeechFailed(
            f"the text has {len(spoken)} characters to speak; {MAX_SPOKEN_CHARS} are allowed", remedy="shorten it"
        )
    if not any(char.isalnum() for char in spoken):
        raise SpeechFailed("the text has no letter and no digit to speak")
    if _CONTROL.search(text):
        raise SpeechFailed("the text holds control characters")  # they are commands to the library
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SpeechFailed("the text holds half of a surrogate pair") from error
    if ssml and (fault := next(_ssml_faults(text), None)):
        raise SpeechFailed(f"the SSML {fault}", remedy=f"use only <{'>, <'.join(sorted(SSML_TAGS))}>")


def _no_voice(voice: str) -> SpeechFailed:
    return SpeechFailed(f"no voice is called {voice[:80]!r}", remedy="use a language tag such as en-us, de or fr-fr")


def _ssml_faults(text: str) -> Iterator[str]:
    """Judge each `<` and each `&#` by itself: the library parses more loosely than XML does."""
    for place in re.finditer("<", text):
        name = _TAG_NAME.match(text, place.start())
        if name is None:
            yield f"holds {text[place.start() : place.start() + 20]!r}, which is no tag that is spoken"
        elif name[1] not in SSML_TAGS:
            yield f"holds <{name[1][:40]}>, which is not allowed"
    for place in re.finditer("&#", text):
        number = re.compile(r"&#(?:x([0-9a-fA-F]{1,6})|([0-9]{1,7}));").match(text, place.start())
        if number is None or (int(number[1], 16) if number[1] else int(number[2])) < 0x20:
            yield f"holds {text[place.start() : place.start() + 10]!r}, which is no character to speak"


def _run_child(options: list[str], text: bytes, timeout_s: float, *, writable: Sequence[Path] = ()) -> str:
    package = importlib.util.find_spec(_PACKAGE)
    if package is None or package.origin is None:
        raise SpeechNotInstalled(f"there is no speech: the package {_PACKAGE} is not installed")
    folders = [Path(__file__).resolve().parents[1], Path(package.origin).resolve().parent]
    # The interpreter itself: that of a virtual environment would look for that environment's files.
    python = getattr(sys, "_base_executable", sys.executable)
    child = popen_jailed(
        [python, "-P", "-S", "-m", "lipsyncd.prepare.speech", *options],
        readable=folders,
        writable=writable,
        python_path=[folder.parent for folder in folders],
        limits=_LIMITS,
        stdout=subprocess.PIPE,
    )
    try:
        listing, said = child.communicate(text, timeout_s)
    except subprocess.TimeoutExpired as error:
        raise SpeechFailed(f"speaking the text took longer than {timeout_s:g} s") from error
    finally:
        end(child)
    if child.returncode != 0:
        raise _failure(child.returncode, said.decode(errors="replace").strip()[-300:])
    return listing.decode()


def _failure(status: int, said: str) -> LipsyncdError:
    if status == _EX_UNAVAILABLE:
        return SpeechNotInstalled(f"there is no speech: {said}")
    if status < 0:
        return SpeechFailed(f"espeak-ng {exit_text(status)} on this text")
    return SpeechFailed(said or f"espeak-ng {exit_text(status)}")


# -- the child: the only place where the library is loaded -------------------------------------------------------------

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
        # Only a name out of the library's own list gets through: the library would read a path as a voice file.
        base, plus, variant = wanted.partition("+")
        named = {tag.casefold(): voice.name for voice in self.voices() for tag in (voice.language, voice.name)}
        if base.casefold() not in named or (plus and variant not in os.listdir(self._variants)):
            raise _no_voice(wanted)
        return named[base.casefold()] + plus + variant

    def speak(self, text: bytes, voice: str, words_per_minute: int, *, ssml: bool) -> array.array[int]:
        """16-bit samples at `rate`. Raises `SpeechFailed`."""
        if self._c.espeak_SetVoiceByName(self._full_name(voice).encode()) != 0:
            raise _no_voice(voice)
        self._c.espeak_SetParameter(_PARAMETER_RATE, words_per_minute, 0)
        samples = array.array("h")

        def take(wave_data: ctypes._Pointer[ctypes.c_short], count: int, _events: int | None) -> int:
            if count > 0 and wave_data:
                samples.frombytes(ctypes.string_at(wave_data, 2 * count))
            return int(len(samples) > MAX_SOUND_S * self.rate)

        callback = _CALLBACK(take)
        self._c.espeak_SetSynthCallback(callback)
        flags = _UTF8 | _PHONEMES | _END_PAUSE | (_SSML if ssml else 0)
        status = self._c.espeak_Synth(text, len(text) + 1, 0, 1, 0, flags, None, None)
        if status != 0:
            raise SpeechFailed(f"espeak-ng refused the text (error {status})", remedy="")
        if not samples:
            raise SpeechFailed("the text made no sound", remedy="")
        return samples


def _child(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lipsyncd.prepare.speech", description="Speak UTF-8 text from stdin."
    )
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--out", type=Path, metavar="FILE.wav")
    task.add_argument("--voices", action="store_true", help="print the voices as JSON")
    parser.add_argument("--voice", default=DEFAULT_VOICE)
    parser.add_argument("--wpm", type=int, default=DEFAULT_WORDS_PER_MINUTE)
    parser.add_argument("--ssml", action="store_true")
    given = parser.parse_args(arguments)
    try:
        library = _Library()
        if given.voices:
            print(json.dumps([asdict(voice) for voice in library.voices()]))
            return 0
        text = sys.stdin.buffer.read(4 * MAX_CHARS + 1).decode()
        check_text(text, ssml=given.ssml)
        samples = library.speak(text.encode(), given.voice, given.wpm, ssml=given.ssml)
        with wave.open(str(given.out), "wb") as file:
            file.setparams((1, 2, library.rate, 0, "NONE", ""))
            file.writeframes(samples.tobytes())
    except (SpeechFailed, OSError, UnicodeDecodeError) as error:
        print(getattr(error, "message", error), file=sys.stderr)
        return _EX_DATAERR
    except SpeechNotInstalled as error:
        print(error.message, file=sys.stderr)
        return _EX_UNAVAILABLE
    return 0


if __name__ == "__main__":
    sys.exit(_child())
