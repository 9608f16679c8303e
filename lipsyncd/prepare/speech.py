"""Speak a text into a WAV file, with espeak-ng, a voice of Piper, or a program that the operator has configured.

`speak` and `voices` start jailed programs and never load a library themselves. `speak_with` starts the operator's
program, which is trusted more; whatever it leaves behind is ended. The WAV of each is decoded like one that was dropped
into the inbox.

Owns these processes. Leaves the limits of a text to `spoken_text`, and the files of Piper to `voices.piper`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lipsyncd.errors import LipsyncdError, SpeechFailed, SpeechNotInstalled
from lipsyncd.extras import how_to_install
from lipsyncd.log import printable
from lipsyncd.prepare.decoder_process import interpreter, new_files
from lipsyncd.prepare.spoken_text import check_text, without_styles
from lipsyncd.prepare.voices import piper, piper_files
from lipsyncd.prepare.voices.names import MAX_VOICE_CHARS, Voice, no_voice
from lipsyncd.prepare.voices.process import Line, SpeakingStopped, follow
from lipsyncd.processes import exit_text, give_back_file_limit
from lipsyncd.sandbox import subreaper
from lipsyncd.sandbox.jail import ResourceLimits, end, run_jailed

DEFAULT_VOICE = "en-us"
DEFAULT_WORDS_PER_MINUTE = 165
SLOWEST, FASTEST = 80, 450  # words per minute that espeak-ng can do
MAX_SOUND_S = 610  # a little more than a job may last, so that the job fails with `audio-too-long` and not in silence

_PACKAGE = "espeakng_loader"
_CHILD = "lipsyncd.prepare.espeak_child"
_LIMITS = ResourceLimits(cpu_s=120, file_bytes=256 << 20, memory_bytes=1 << 30, memory_files=True)
_QUOTED_BYTES = 300
_LOOK_S = 0.1  # how soon the operator's program ends when it is no longer wanted
_OUR_VARIABLES = ("LIPSYNCD_", "CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET", "WATCHDOG_")
_NOBODY = Path("/nonexistent")  # no folder of voices


@dataclass(frozen=True)
class Spoken:
    """Which voice spoke a text, what makes it equal to another one (`identity`), and notes for the sidecar."""

    voice: str
    identity: str
    notes: tuple[str, ...] = ()


def speak(
    text: str,
    target: Path,
    *,
    voice: str = DEFAULT_VOICE,
    words_per_minute: int = DEFAULT_WORDS_PER_MINUTE,
    ssml: bool = False,
    timeout_s: float = 60.0,
    folder: Path | None = None,
    unwanted: Callable[[], bool] = lambda: False,
) -> Spoken:
    """Write `text` as a 16-bit mono WAV to `target`, at the rate that the voice has (22 050 Hz for nearly all).

    voice      a voice of espeak-ng, by language tag or name, with an optional variant: `en-us`, `German`, `en-gb+f3`;
               one of Piper's in `folder`, with an optional speaker: `en_GB-vctk-medium+p225`; or another service's,
               which stands for the voice of its language: `de-DE-KatjaNeural`
    ssml       the text carries SSML tags; `SSML_TAGS` are obeyed, as far as the voice can, any other is refused
    timeout_s  the longest time for the whole text (espeak-ng) or for each sentence (Piper)
    unwanted   asked all the time: True ends the speaking

    `[[...]]` holds phonemes in espeak-ng's own spelling, for its voices. A text that would last longer than
    `MAX_SOUND_S` is cut there.

    Raises `SpeechNotInstalled` without a package, `SpeechFailed` when the text or the voice cannot be spoken,
    `VoiceUnusable` when a voice of Piper is missing or damaged, `SpeakingStopped`. Then no file is left behind.
    """
    text = without_styles(text) if ssml else text
    check_text(text, ssml=ssml)
    if not SLOWEST <= words_per_minute <= FASTEST:
        raise SpeechFailed(f"{words_per_minute} words per minute; allowed are {SLOWEST} to {FASTEST}", remedy="")
    files = find(voice, folder)
    target = target.absolute()
    with new_files(target):
        if files is None:
            options = [
                f"--out={target}",
                f"--voice={voice}",
                f"--wpm={words_per_minute}",
                *(["--ssml"] if ssml else []),
            ]
            spoken = _speak_with_espeak(options, text.encode(), timeout_s, target, unwanted)
            return Spoken(spoken, _identity([voice], words_per_minute), _replaced(voice, spoken))
        hashes, notes = piper.speak(
            files,
            text,
            target,
            pace=words_per_minute / DEFAULT_WORDS_PER_MINUTE,
            ssml=ssml,
            most_s=MAX_SOUND_S,
            silence_s=timeout_s,
            unwanted=unwanted,
        )
    who = _identity([files.shown, *hashes], words_per_minute)
    return Spoken(files.shown, who, (*_replaced(voice, files.shown), *notes))


def find(voice: str, folder: Path | None) -> piper_files.PiperFiles | None:
    """The voice of Piper that a name means; None for a name that espeak-ng has to know.

    Raises `SpeechFailed` for what can be no name, `VoiceUnusable` for a voice of Piper that is missing.
    """
    if not voice.isprintable() or len(voice) > MAX_VOICE_CHARS:
        raise no_voice(voice)
    return piper_files.find(voice, folder or _NOBODY)


def identity(voice: str, words_per_minute: int, folder: Path | None) -> str:
    """Equal where a text sounds the same: the voice with the hashes of its files, the pace, the versions.

    Raises what `find` raises, and `VoiceUnusable` when the files cannot be read.
    """
    files = find(voice, folder)
    return _identity([voice] if files is None else [files.shown, *files.hashes()], words_per_minute)


def identity_with(command: Sequence[str], voice: str, words_per_minute: int) -> str:
    """The same for `speak_with`."""
    return json.dumps([*command, voice, words_per_minute])


def _identity(who: Sequence[str], words_per_minute: int) -> str:
    return json.dumps([*who, words_per_minute, piper.versions()])


def _replaced(wanted: str, spoke: str) -> tuple[str, ...]:
    """A note where another voice spoke than the one that was named: only a foreign name is replaced."""
    same = wanted.casefold() == spoke.casefold() or " " in wanted or "-" not in wanted
    return () if same else (f"the voice {wanted} is not here: {spoke} spoke",)


def speak_with(
    command: Sequence[str],
    text: str,
    target: Path,
    *,
    voice: str = DEFAULT_VOICE,
    words_per_minute: int = DEFAULT_WORDS_PER_MINUTE,
    ssml: bool = False,
    timeout_s: float = 60.0,
    unwanted: Callable[[], bool] = lambda: False,
) -> Spoken:
    """Let the operator's own program speak `text` (UTF-8 on its stdin) into `target` (the WAV on its stdout).

    command  the program and its arguments. Voice, SSML and pace come from strangers too, so they are passed in its
             environment (`SPEECH_VOICE`, `SPEECH_SSML` as 0 or 1, `SPEECH_WORDS_PER_MINUTE`), never as arguments

    Unlike espeak-ng it may use files, devices and the network, since it needs models and perhaps a GPU. It gets none of
    the daemon's own variables, and its output is limited in size. If it takes too long it is killed; once it has ended,
    so is everything that it has started.

    Raises `SpeechNotInstalled` when it cannot be started, `SpeechFailed` when it fails or writes no WAV,
    `SpeakingStopped`.
    """
    text = without_styles(text) if ssml else text
    check_text(text, ssml=ssml)
    request = {"SPEECH_VOICE": voice, "SPEECH_SSML": str(int(ssml)), "SPEECH_WORDS_PER_MINUTE": str(words_per_minute)}
    mark = subreaper.new_mark()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OUR_VARIABLES)}
    with target.open("wb") as sound, tempfile.TemporaryFile() as errors:
        try:
            program = subreaper.start(
                lambda: subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=sound,
                    stderr=errors,
                    cwd=target.parent,
                    env={**kept, **request, subreaper.MARK: mark},
                    start_new_session=True,
                ),
                mark,
            )
        except OSError as error:
            fix = "correct speech.command, or leave it out to speak with espeak-ng"
            raise SpeechNotInstalled(f"{command[0]} does not start: {error.strerror}", remedy=fix) from error
        give_back_file_limit(program.pid)
        try:
            for limit, most in ((resource.RLIMIT_FSIZE, _LIMITS.file_bytes), (resource.RLIMIT_CORE, 0)):
                resource.prlimit(program.pid, limit, (most, most))
            _give(program, text.encode(), timeout_s, unwanted)
        finally:
            end(program)
            subreaper.sweep()
        errors.seek(max(0, errors.seek(0, os.SEEK_END) - _QUOTED_BYTES))
        quoted = printable(errors.read().strip())
    name = Path(command[0]).name
    if program.returncode != 0:
        raise SpeechFailed(f"{name} {exit_text(program.returncode)}{': ' if quoted else ''}{quoted}")
    with target.open("rb") as file:
        head = file.read(12)
    if head[:4] != b"RIFF" or head[8:] != b"WAVE":
        raise SpeechFailed(f"{name} wrote no WAV to its stdout", remedy="correct speech.command")
    return Spoken(voice, identity_with(command, voice, words_per_minute))


def _give(program: subprocess.Popen[bytes], text: bytes, timeout_s: float, unwanted: Callable[[], bool]) -> None:
    """Give a program its text and wait for its end. Raises `SpeechFailed` after the time, `SpeakingStopped`."""
    deadline, given = time.monotonic() + timeout_s, text or None
    while True:
        try:
            program.communicate(given, _LOOK_S)
        except subprocess.TimeoutExpired:
            given = None  # it goes on with what it has not written yet
            if unwanted():
                raise SpeakingStopped from None
            if time.monotonic() > deadline:
                raise SpeechFailed(f"speaking the text took longer than {timeout_s:g} s") from None
        else:
            return


def voices(*, timeout_s: float = 60.0) -> list[Voice]:
    """Every voice of the library, ordered by language. Raises `SpeechNotInstalled` without the package."""
    listing = _run_child(["--voices"], timeout_s)
    return [Voice(**fields) for fields in json.loads(listing)]


def _speak_with_espeak(
    options: list[str], text: bytes, timeout_s: float, target: Path, unwanted: Callable[[], bool]
) -> str:
    """Let the child speak; returns the voice that it chose."""
    lines: list[Line] = []
    folders = _folders()
    with tempfile.TemporaryFile() as given:
        given.write(text)
        given.seek(0)
        ended = follow(
            [interpreter(), "-P", "-S", "-m", _CHILD, *options],
            readable=folders,
            writable=[target],
            python_path=[folder.parent for folder in folders],
            limits=_LIMITS,
            stdin=given,
            silence_s=timeout_s,
            longest_s=timeout_s,
            on_line=lines.append,
            unwanted=unwanted,
        )
    if ended.returncode != 0:
        raise _failure(ended.returncode, printable(ended.stderr_tail.strip()[-_QUOTED_BYTES:]))
    return printable(str(lines[-1].get("voice", "")))[:MAX_VOICE_CHARS] if lines else ""


def _run_child(options: list[str], timeout_s: float) -> str:
    folders = _folders()
    ended = run_jailed(
        [interpreter(), "-P", "-S", "-m", _CHILD, *options],
        readable=folders,
        python_path=[folder.parent for folder in folders],
        limits=_LIMITS,
        timeout_s=timeout_s,
    )
    if ended.timed_out:
        raise SpeechFailed(f"listing the voices took longer than {timeout_s:g} s")
    if ended.returncode != 0:
        raise _failure(ended.returncode, printable(ended.stderr_tail.strip()[-_QUOTED_BYTES:]))
    return ended.stdout.decode(errors="replace")


def _folders() -> list[Path]:
    """The package and the library. Raises `SpeechNotInstalled`."""
    package = importlib.util.find_spec(_PACKAGE)
    if package is None or package.origin is None:
        raise SpeechNotInstalled(
            f"there is no speech: the package {_PACKAGE} is not installed", remedy=how_to_install("tts")
        )
    return [Path(__file__).resolve().parents[1], Path(package.origin).resolve().parent]


def _failure(status: int, message: str) -> LipsyncdError:
    if status == os.EX_UNAVAILABLE:
        return SpeechNotInstalled(f"there is no speech: {message}")
    if status < 0:
        return SpeechFailed(f"espeak-ng {exit_text(status)} on this text")
    return SpeechFailed(message or f"espeak-ng {exit_text(status)}")
