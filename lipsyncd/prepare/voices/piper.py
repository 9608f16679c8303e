"""Speak with a voice of Piper, in the jail: the daemon's side of `python -m lipsyncd.renderers.piper`.

The daemon hashes the files of a voice and never looks into them. What the jailed process answers is checked like the
answer of a decoder, since the voice may have taken it over.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from lipsyncd.errors import JailFailed, LipsyncdError, SpeechFailed, SpeechNotInstalled, VoiceUnusable, from_reason
from lipsyncd.extras import how_to_install
from lipsyncd.prepare.decoder_process import as_message, installed, interpreter
from lipsyncd.prepare.voices import piper_files
from lipsyncd.prepare.voices.piper_files import PiperFiles
from lipsyncd.prepare.voices.process import Line, follow
from lipsyncd.processes import exit_text, last_line
from lipsyncd.sandbox.jail import ResourceLimits

EXTRA = "voices"
_PACKAGE = Path(__file__).resolve().parents[2]
_CHILD = "lipsyncd.renderers.piper"
# Memory: a voice of high quality with a long sentence takes 1.5 GB of address space.
_LIMITS = ResourceLimits(cpu_s=1200, file_bytes=128 << 20, memory_bytes=3 << 30)
_LONGEST_S = 1500.0
_DESCRIBE_S = 30.0
_REFUSALS = (SpeechFailed, VoiceUnusable, SpeechNotInstalled)
_MOST_MISSING = 20
_TRIES = 2
_AT_A_TIME = 50  # voices in one request, which is an argument
_UNREAD = "its configuration could not be read"


@dataclass(frozen=True)
class PiperVoice:
    """What the configuration of an installed voice says.

    language  such as `en_US` or `en-us`, "" where it is not known
    speakers  how many; `names` are the names of the first ones
    fault     why it cannot speak, or ""
    """

    name: str
    language: str = ""
    speakers: int = 1
    names: tuple[str, ...] = ()
    rate: int = 0
    fault: str = ""


def speak(
    files: PiperFiles,
    text: str,
    target: Path,
    *,
    pace: float,
    ssml: bool,
    most_s: float,
    silence_s: float,
    unwanted: Callable[[], bool],
) -> tuple[tuple[str, str], tuple[str, ...]]:
    """Speak a text, sentence by sentence, into `target`, which exists; returns hashes and notes.

    The hashes are those of the files that spoke, the notes are for the sidecar.

    pace       1 as the voice was trained, 2 twice as fast
    most_s     a longer sound is cut there
    silence_s  the longest time for one sentence, the loading of the voice included

    Raises `SpeechFailed`, `VoiceUnusable`, `SpeechNotInstalled`, `JailFailed`, `SpeakingStopped`.
    """
    for _ in range(_TRIES):
        hashes = files.hashes()
        request = {
            "model": os.fspath(files.model.absolute()),
            "config": os.fspath(files.config.absolute()),
            "hashes": hashes,
            "speaker": files.speaker,
            "out": os.fspath(target.absolute()),
            "pace": pace,
            "ssml": ssml,
            "most_s": most_s,
        }
        last = _run(files, request, text, target, silence_s, unwanted)
        if not last.get("changed"):
            return hashes, _notes(files, last)
    raise VoiceUnusable(f"the files of the voice {files.name} change while they are read", remedy="try again later")


def _run(
    files: PiperFiles,
    request: Mapping[str, Any],
    text: str,
    target: Path,
    silence_s: float,
    unwanted: Callable[[], bool],
) -> Line:
    """The last line of the jailed process."""
    lines: list[Line] = [{}]

    def keep(line: Line) -> None:
        lines[:] = [line]

    sites, libraries = _libraries("espeakng_loader", "numpy", "onnxruntime")
    with tempfile.TemporaryFile() as given:
        given.write(text.encode())
        given.seek(0)
        ended = follow(
            [interpreter(), "-P", "-S", "-m", _CHILD, json.dumps(request)],
            readable=[_PACKAGE, *libraries, Path(request["model"]), Path(request["config"])],
            writable=[target],
            python_path=sites,
            limits=_LIMITS,
            stdin=given,
            silence_s=silence_s,
            longest_s=_LONGEST_S,
            on_line=keep,
            unwanted=unwanted,
        )
    if "fault" in lines[0]:
        raise _refusal(files, lines[0]["fault"])
    if ended.returncode == -signal.SIGKILL:
        raise JailFailed(f"the voice {files.name} was killed from outside, perhaps for want of memory")
    if ended.returncode < 0:
        raise VoiceUnusable(f"the voice {files.name} crashed: it {exit_text(ended.returncode)}")
    if ended.returncode or not (lines[0].get("done") is True or lines[0].get("changed") is True):
        why = as_message(last_line(ended.stderr_tail)) or "no message"
        raise JailFailed(f"the speaker with the voice {files.name} ended early: {why}")
    return lines[0]


def _refusal(files: PiperFiles, fault: object) -> LipsyncdError:
    try:
        reason = {name: as_message(str(fault[name])) for name in ("code", "message", "remedy")}  # type: ignore[index]
    except (TypeError, KeyError):
        reason = {}
    error = from_reason(reason)
    if not isinstance(error, _REFUSALS):
        return JailFailed(f"the speaker with the voice {files.name} gave no answer")
    if isinstance(error, SpeechNotInstalled):
        return not_installed(error.message)
    message = error.message if str(files.model.parent) in error.message else f"the voice {files.name}: {error.message}"
    return type(error)(message, remedy=error.remedy)


def _notes(files: PiperFiles, done: Line) -> tuple[str, ...]:
    missing = done.get("missing")
    if not isinstance(missing, list) or not missing:
        return ()
    symbols = "".join(str(symbol)[:1] for symbol in missing[:_MOST_MISSING])
    return (f"the voice {files.name} has no sound for {as_message(symbols)}",)


def describe(names: Sequence[str], folder: Path, *, speakers: int = 0) -> list[PiperVoice]:
    """What the configurations of voices say, in the order of the names. Raises `JailFailed`.

    speakers  how many names of speakers to read
    """
    described: list[PiperVoice] = []
    for at in range(0, len(names), _AT_A_TIME):
        described += _describe(names[at : at + _AT_A_TIME], folder, speakers)
    return described


def _describe(names: Sequence[str], folder: Path, speakers: int) -> list[PiperVoice]:
    found: dict[str, PiperVoice] = {name: PiperVoice(name, fault=_UNREAD) for name in names}

    def keep(line: Line) -> None:
        if line.get("name") in found:
            found[line["name"]] = _voice_of(line)

    configs = {name: folder.absolute() / f"{name}{piper_files.CONFIG}" for name in names}
    request = {"describe": [{"name": name, "config": os.fspath(path)} for name, path in configs.items()]}
    sites, libraries = _libraries("espeakng_loader", "numpy")  # the package of the child imports numpy
    with tempfile.TemporaryFile() as nothing:
        follow(
            [interpreter(), "-P", "-S", "-m", _CHILD, json.dumps({**request, "names": speakers})],
            readable=[_PACKAGE, *libraries, *(path for path in configs.values() if path.is_file())],
            python_path=sites,
            limits=ResourceLimits(cpu_s=int(_DESCRIBE_S), file_bytes=1, memory_bytes=1 << 30),
            stdin=nothing,
            silence_s=_DESCRIBE_S,
            longest_s=_DESCRIBE_S,
            on_line=keep,
        )
    return list(found.values())


def _voice_of(line: Line) -> PiperVoice:
    """A line of the jailed process, which read files of strangers: nothing else than short printable texts is kept."""
    if line.get("fault"):
        return PiperVoice(line["name"], fault=as_message(str(line["fault"])))
    names = line.get("names")
    speakers, rate = line.get("speakers"), line.get("rate")
    return PiperVoice(
        line["name"],
        as_message(str(line.get("language", ""))),
        speakers if isinstance(speakers, int) else 1,
        tuple(as_message(str(one)) for one in names) if isinstance(names, list) else (),
        rate if isinstance(rate, int) else 0,
    )


def versions() -> str:
    """The versions that decide how a voice sounds, for the comparison of jobs."""
    found = []
    for package in ("onnxruntime", "espeakng-loader"):
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            found.append(f"{package} -")
    return ", ".join(found)


def not_installed(message: str) -> SpeechNotInstalled:
    return SpeechNotInstalled(message, remedy=how_to_install(EXTRA))


def _libraries(*modules: str) -> tuple[list[Path], list[Path]]:
    """The folders that the jailed Python imports from, and what it may read there. Raises `SpeechNotInstalled`."""
    sites, files = [_PACKAGE.parent], list[Path]()
    for module in modules:
        try:
            site, found = installed(module, f"{module}.libs", package=module)
        except JailFailed as error:
            raise not_installed(f"voices of Piper cannot speak: {error.message}") from error
        sites.append(site)
        files += found
    return list(dict.fromkeys(sites)), files
