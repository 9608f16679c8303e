"""The files of Piper's voices, as the daemon sees them: names, sizes and hashes, never what is in them.

A voice is `NAME.onnx` with `NAME.onnx.json` in the folder `speech.voices`. A stranger may have made it: both
files are read in the jail only, and their hashes tell there whether they are the ones that were looked at here.

Leaves the content of both to `renderers.piper`.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from lipsyncd.errors import VoiceUnusable
from lipsyncd.prepare.voices.names import is_piper_name, piper_for

MODEL, CONFIG = ".onnx", ".onnx.json"
MAX_MODEL_BYTES = 256 << 20  # Piper's largest have 126 MB
MAX_CONFIG_BYTES = 1 << 20
MAX_VOICES = 1000
_BLOCK_BYTES = 1 << 20
_hashes: dict[tuple[int, ...], str] = {}  # by everything that changes with the file's content


@dataclass(frozen=True)
class PiperFiles:
    """The two files of one voice. `speaker` is a number or a name of one of its speakers, or "" for the first."""

    name: str
    model: Path
    config: Path
    speaker: str = ""

    @property
    def shown(self) -> str:
        """The voice's name with its speaker, as jobs name it."""
        return f"{self.name}+{self.speaker}" if self.speaker else self.name

    def hashes(self) -> tuple[str, str]:
        """SHA-256 of model and configuration. Raises `VoiceUnusable`."""
        return sha256_of(self.model, MAX_MODEL_BYTES), sha256_of(self.config, MAX_CONFIG_BYTES)


def installed(folder: Path) -> list[str]:
    """The names of the voices in that folder, sorted; none when there is no such folder. Raises `VoiceUnusable`."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise VoiceUnusable(
            f"speech.voices is {folder}, which cannot be read: {error.strerror}",
            remedy="give the daemon's user the right to read it, or correct speech.voices",
        ) from error
    there = set(names)
    voices = sorted(name.removesuffix(CONFIG) for name in there if name.endswith(CONFIG) and len(name) > len(CONFIG))
    return [name for name in voices if name + MODEL in there and not name.startswith(".")][:MAX_VOICES]


def find(wanted: str, folder: Path) -> PiperFiles | None:
    """The voice of Piper that a name means; None when it means none, and espeak-ng has to know it.

    wanted  `NAME`, `NAME+SPEAKER`, or the name of a voice of another service, of the language of a voice here

    Raises `VoiceUnusable` for a name of Piper's form that is not there, or only half.
    """
    name, _, speaker = wanted.partition("+")
    if not name or "/" in name or "\0" in name or name.startswith("."):
        return None
    model, config = folder / f"{name}{MODEL}", folder / f"{name}{CONFIG}"
    there = [path for path in (model, config) if os.path.lexists(path)]
    if len(there) == 2:
        return PiperFiles(name, model, config, speaker)
    if there:
        missing = config if there == [model] else model
        raise VoiceUnusable(f"the voice {name} is not whole: {missing} is missing", remedy=f"put {missing.name} there")
    if is_piper_name(name):
        installed(folder)  # a folder that cannot be read is the better reason
        raise VoiceUnusable(f"there is no voice {name} in {folder}")
    return None if (other := piper_for(wanted, lambda: installed(folder))) is None else find(other, folder)


def sha256_of(path: Path, most_bytes: int) -> str:
    """The hash of a file, remembered until the file changes. Raises `VoiceUnusable` unless it is one of that size."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            return _hash(descriptor, path, most_bytes)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> VoiceUnusable:
    return VoiceUnusable(
        f"{path} cannot be read: {error.strerror}", remedy="give the daemon's user the right to read it"
    )


def _hash(descriptor: int, path: Path, most_bytes: int) -> str:
    seen = os.fstat(descriptor)
    check_size(seen, path, most_bytes)
    key = (seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)
    if key not in _hashes:
        digest = hashlib.sha256()
        left = most_bytes + 1
        while left > 0 and (block := os.read(descriptor, min(left, _BLOCK_BYTES))):
            digest.update(block)
            left -= len(block)
        if len(_hashes) > 2 * MAX_VOICES:
            _hashes.clear()
        _hashes[key] = digest.hexdigest()
    return _hashes[key]


def check_size(seen: os.stat_result, path: Path, most_bytes: int) -> None:
    """Raise `VoiceUnusable` unless it is a file with content, of at most that size."""
    if not stat.S_ISREG(seen.st_mode):
        raise VoiceUnusable(f"{path} is no regular file", remedy="put the file itself there")
    if not 0 < seen.st_size <= most_bytes:
        limit = f"{most_bytes >> 20} MiB are allowed" if seen.st_size else "it is empty"
        raise VoiceUnusable(f"{path} has {seen.st_size} bytes; {limit}", remedy="download the voice again")
