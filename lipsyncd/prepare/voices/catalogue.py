"""All voices of an installation in one list, and which of them a name means: what `lipsyncd voices` shows.

Leaves the files of Piper to `piper_files` and `piper`, the names to `names`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lipsyncd.errors import LipsyncdError, SpeechNotInstalled
from lipsyncd.prepare import speech
from lipsyncd.prepare.voices import piper, piper_files
from lipsyncd.prepare.voices.names import Voice, espeak_for, no_voice

PIPER, ESPEAK = "Piper", "espeak-ng"
_SHOWN_SPEAKERS = 3
_MOST_SPEAKERS = 1000


@dataclass(frozen=True)
class Listed:
    """One voice: the name by which jobs use it, its language, whose it is, and what else is known of it.

    fault  why it cannot speak, or ""
    """

    name: str
    language: str
    source: str
    gender: str = ""
    speakers: int = 1
    speaker_names: tuple[str, ...] = ()
    fault: str = ""

    @property
    def names(self) -> tuple[str, str]:
        """What it is found by."""
        return self.name, self.language

    @property
    def about(self) -> str:
        """In a few words, for a table; the fault has a line of its own."""
        if self.fault:
            return f"{self.source}, cannot speak"
        if self.speakers > 1:
            some = ", ".join(self.speaker_names[:_SHOWN_SPEAKERS])
            more = "…" if len(self.speaker_names) > _SHOWN_SPEAKERS else ""
            return f"{self.source}, {self.speakers} speakers{f': {some}{more}' if some else ''}"
        return f"{self.source}, {self.gender}" if self.gender else self.source


@dataclass(frozen=True)
class Catalogue:
    """All voices, those of Piper first, and what is missing for more."""

    voices: tuple[Listed, ...]
    notes: tuple[str, ...]
    folder: Path

    def matching(self, wanted: str) -> list[Listed]:
        """The voices of a name, of a language, or of the name of another service. Raises `SpeechFailed` without one.

        Raises `VoiceUnusable` for a voice of Piper that is not there.
        """
        name = _as_tag(wanted.partition("+")[0])
        named = [one for one in self.voices if any(f"{_as_tag(text)}-".startswith(f"{name}-") for text in one.names)]
        return named or [self._meant(wanted)]

    def _meant(self, wanted: str) -> Listed:
        files = speech.find(wanted, self.folder)
        of_espeak = [Voice(one.language, one.name, one.gender) for one in self.voices if one.source == ESPEAK]
        other = espeak_for(wanted.partition("+")[0], of_espeak) if files is None else None
        name = files.name if files is not None else other.language if other is not None else ""
        found = next((voice for voice in self.voices if voice.name == name), None)
        if found is None:
            raise no_voice(wanted)
        return found


def catalogue(folder: Path) -> Catalogue:
    """Look at all voices. Raises `VoiceUnusable` when the folder cannot be read, `JailFailed`."""
    notes = list[str]()
    voices = [*_of_piper(folder, notes)]
    try:
        voices += [Listed(one.language, one.name, ESPEAK, one.gender) for one in speech.voices()]
    except SpeechNotInstalled as error:
        notes.append(str(error))
    return Catalogue(tuple(voices), tuple(notes), folder)


def _of_piper(folder: Path, notes: list[str]) -> Sequence[Listed]:
    names = piper_files.installed(folder)
    if not names:
        return ()
    if importlib.util.find_spec("onnxruntime") is None:
        notes.append(str(piper.not_installed("voices of Piper cannot speak: onnxruntime is not installed")))
    try:
        described = piper.describe(names, folder, speakers=_MOST_SPEAKERS)
    except SpeechNotInstalled as error:
        notes.append(str(error))
        return [Listed(name, "", PIPER, fault="a package is missing") for name in names]
    return [
        Listed(one.name, one.language, PIPER, "", one.speakers, one.names, one.fault or _fault(one.name, folder))
        for one in described
    ]


def _fault(name: str, folder: Path) -> str:
    """What is known of a voice without running it."""
    try:
        files = piper_files.find(name, folder)
        if files is not None:
            files.hashes()
    except LipsyncdError as error:
        return error.message
    return ""


def _as_tag(name: str) -> str:
    """A name in the form of a language tag, for comparison."""
    return name.casefold().replace("_", "-")
