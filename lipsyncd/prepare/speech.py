"""Speak a text into a WAV file, with espeak-ng or with a program that the operator has configured.

`speak` and `voices` start `espeak_child` in the jail and never load the library themselves. `speak_with` starts the
operator's program, which is trusted more; whatever it leaves behind is ended. The WAV of either is decoded like one
that was dropped into the inbox.

Owns both processes. Leaves the limits of a text to `spoken_text`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lipsyncd.errors import LipsyncdError, SpeechFailed, SpeechNotInstalled
from lipsyncd.log import printable
from lipsyncd.prepare.decoder_process import interpreter, new_files
from lipsyncd.prepare.spoken_text import check_text, without_styles
from lipsyncd.processes import exit_text, give_back_file_limit
from lipsyncd.sandbox import subreaper
from lipsyncd.sandbox.jail import ResourceLimits, end, run_jailed

DEFAULT_VOICE = "en-us"
DEFAULT_WORDS_PER_MINUTE = 165
SLOWEST, FASTEST = 80, 450  # words per minute that espeak-ng can do
MAX_SOUND_S = 610  # a little more than a job may last, so that the job fails with `audio-too-long` and not in silence

_PACKAGE = "espeakng_loader"
_LIMITS = ResourceLimits(cpu_s=120, file_bytes=256 << 20, memory_bytes=1 << 30, memory_files=True)
_QUOTED_BYTES = 300
_OUR_VARIABLES = ("LIPSYNCD_", "CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET", "WATCHDOG_")
_MAX_VOICE_CHARS = 64


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

    Raises `SpeechNotInstalled` without the package, `SpeechFailed` when the text or the voice cannot be spoken. Then no
    file is left behind.
    """
    text = without_styles(text) if ssml else text
    check_text(text, ssml=ssml)
    if not SLOWEST <= words_per_minute <= FASTEST:
        raise SpeechFailed(f"{words_per_minute} words per minute; allowed are {SLOWEST} to {FASTEST}", remedy="")
    if not voice.isprintable() or len(voice) > _MAX_VOICE_CHARS:
        raise no_voice(voice)
    options = [f"--out={target.absolute()}", f"--voice={voice}", f"--wpm={words_per_minute}"]
    if ssml:
        options.append("--ssml")
    with new_files(target.absolute()) as made:
        _run_child(options, text.encode(), timeout_s, writable=made)


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
    """Let the operator's own program speak `text` (UTF-8 on its stdin) into `target` (the WAV on its stdout).

    command  the program and its arguments. Voice, SSML and pace come from strangers too, so they are passed in its
             environment (`SPEECH_VOICE`, `SPEECH_SSML` as 0 or 1, `SPEECH_WORDS_PER_MINUTE`), never as arguments

    Unlike espeak-ng it may use files, devices and the network, since it needs models and perhaps a GPU. It gets none of
    the daemon's own variables, and its output is limited in size. If it takes too long it is killed; once it has ended,
    so is everything that it has started.

    Raises `SpeechNotInstalled` when it cannot be started, `SpeechFailed` when it fails or writes no WAV.
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
            program.communicate(text.encode(), timeout_s)
        except subprocess.TimeoutExpired as error:
            raise SpeechFailed(f"speaking the text took longer than {timeout_s:g} s") from error
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


def voices(*, timeout_s: float = 60.0) -> list[Voice]:
    """Every voice of the library, ordered by language. Raises `SpeechNotInstalled` without the package."""
    listing = _run_child(["--voices"], b"", timeout_s)
    return [Voice(**fields) for fields in json.loads(listing)]


def nearest(wanted: str, offered: Iterable[Voice]) -> Voice | None:
    """The voice for another service's voice name, by the language at its start: `de` for `de-DE-KatjaNeural`."""
    known = sorted(offered, key=lambda voice: len(voice.language), reverse=True)
    tag = wanted.lower().replace("_", "-") + "-"
    return next((voice for voice in known if tag.startswith(voice.language + "-")), None)


def no_voice(voice: str) -> SpeechFailed:
    return SpeechFailed(f"no voice is called {voice[:80]!r}", remedy="use a language tag such as en-us, de or fr-fr")


def _run_child(options: list[str], text: bytes, timeout_s: float, *, writable: Sequence[Path] = ()) -> str:
    package = importlib.util.find_spec(_PACKAGE)
    if package is None or package.origin is None:
        raise SpeechNotInstalled(f"there is no speech: the package {_PACKAGE} is not installed")
    folders = [Path(__file__).resolve().parents[1], Path(package.origin).resolve().parent]
    with tempfile.TemporaryFile() as given:
        given.write(text)
        given.seek(0)
        ended = run_jailed(
            [interpreter(), "-P", "-S", "-m", "lipsyncd.prepare.espeak_child", *options],
            readable=folders,
            writable=writable,
            python_path=[folder.parent for folder in folders],
            limits=_LIMITS,
            stdin=given,
            timeout_s=timeout_s,
        )
    if ended.timed_out:
        raise SpeechFailed(f"speaking the text took longer than {timeout_s:g} s")
    if ended.returncode != 0:
        raise _failure(ended.returncode, printable(ended.stderr_tail.strip()[-_QUOTED_BYTES:]))
    return ended.stdout.decode(errors="replace")


def _failure(status: int, message: str) -> LipsyncdError:
    if status == os.EX_UNAVAILABLE:
        return SpeechNotInstalled(f"there is no speech: {message}")
    if status < 0:
        return SpeechFailed(f"espeak-ng {exit_text(status)} on this text")
    return SpeechFailed(message or f"espeak-ng {exit_text(status)}")
