"""What a voice is called: names of espeak-ng, of Piper, and of the services whose clients come here.

    en-us, German, en-gb+f3                        espeak-ng: language tag or name, with a variant
    en_US-joe-medium, en_GB-vctk-medium+p225       Piper: name of a file, with a speaker
    de-DE-KatjaNeural, en-US-Wavenet-A             Microsoft, Google: the voice of that language

Pure functions. Leaves the files of Piper to `piper_files`, and the list of espeak-ng to its jailed program.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lipsyncd.errors import SpeechFailed

MAX_VOICE_CHARS = 64

_PIPER = re.compile(r"[a-z]{2,3}_[A-Z]{2}-[^+]+-(?:x_low|low|medium|high)")
_LOCALE_OF_PIPER = re.compile(r"([a-z]{2,3})_([A-Z]{2})(?:-|$)")
# Upper case, or Microsoft's last word, tells them from espeak-ng's own tags, such as `en-gb-scotland`.
_FOREIGN = re.compile(r"([a-z]{2,3})(?:-[A-Z][a-z]{3})?-([A-Z]{2}|[0-9]{3})-.*[A-Z].*")
_FOREIGN_IN_SMALL = re.compile(r"([a-z]{2,3})(?:-[a-z]{4})?-([a-z]{2}|[0-9]{3})-[a-z-]+neural", re.IGNORECASE)
_LOCALE = re.compile(r"[a-z]{2,3}[-_][A-Za-z]{2}")
_QUALITIES = ("high", "medium", "low", "x_low")


@dataclass(frozen=True)
class Voice:
    """One way to speak: its name in espeak-ng, a language tag such as `en-us`, and `male`, `female` or nothing."""

    name: str
    language: str
    gender: str


def espeak_for(wanted: str, offered: Iterable[Voice]) -> Voice | None:
    """The voice of espeak-ng for a language tag, a name of its own, or a name of another service; None without one."""
    offered = list(offered)
    named = {tag.casefold(): voice for voice in offered for tag in (voice.language, voice.name)}
    return named.get(wanted.casefold()) or (nearest(wanted, offered) if _is_foreign(wanted) else None)


def nearest(wanted: str, offered: Iterable[Voice]) -> Voice | None:
    """The voice of the language at the start of a name: `de` for `de-DE-KatjaNeural`."""
    known = sorted(offered, key=lambda voice: len(voice.language), reverse=True)
    tag = wanted.lower().replace("_", "-") + "-"
    return next((voice for voice in known if tag.startswith(voice.language + "-")), None)


def _is_foreign(name: str) -> bool:
    return any(form.fullmatch(name) for form in (_FOREIGN, _FOREIGN_IN_SMALL, _LOCALE))


def is_piper_name(name: str) -> bool:
    """Is it a name as Piper's own files have it, such as `en_US-joe-medium`?"""
    return _PIPER.fullmatch(name) is not None


def piper_for(wanted: str, installed: Callable[[], Iterable[str]]) -> str | None:
    """Of the installed voices of Piper, the one for another service's name; None when it has no voice of the language.

    installed  lists them, and is called for such a name only

    A voice of the same region comes before the others of its language, a better quality before a lower one, then the
    first by name. Only files named as Piper names them have a language: `de_DE-thorsten-high`.
    """
    name = _FOREIGN.fullmatch(wanted) or _FOREIGN_IN_SMALL.fullmatch(wanted)
    if name is None:
        return None
    language, region = name[1].lower(), name[2].upper()
    located = [(one, place) for one in installed() if (place := _LOCALE_OF_PIPER.match(one))]
    of_language = [(one, place[2]) for one, place in located if place[1] == language]
    ranked = sorted(of_language, key=lambda each: (each[1] != region, _rank(each[0]), each[0]))
    return ranked[0][0] if ranked else None


def _rank(name: str) -> int:
    quality = name.rpartition("-")[2]
    return _QUALITIES.index(quality) if quality in _QUALITIES else len(_QUALITIES)


def no_voice(voice: str) -> SpeechFailed:
    return SpeechFailed(
        f"no voice is called {voice[:80]!r}",
        remedy="use a language tag such as en-us, de or fr-fr, or a name that `lipsyncd voices` lists",
    )
