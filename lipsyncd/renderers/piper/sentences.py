"""Cut a text into sentences of phonemes, each short enough for one run of a voice.

espeak-ng reads a text clause by clause and tells no punctuation; a voice of Piper was trained with it, since it makes
the melody. So the punctuation is taken from the text that each clause covers.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lipsyncd.prepare.voices.espeak import Clause

MOST_SYMBOLS = 400  # in one run: 20 s of sound and 0.9 GB for a voice of medium quality

_ENDS = {".": ".", "。": ".", "．": ".", "…": ".", "।": ".", "?": "?", "？": "?", "؟": "?", "!": "!", "！": "!"}
_PAUSES = {
    **dict.fromkeys(",、，،—–", ","),
    **dict.fromkeys(";；؛", ";"),
    **dict.fromkeys(":：", ":"),
}
_CLOSING = "\"'“”‘’«»‹›()[]{}「」『』 \t\r\n*_-"
_SWITCH = re.compile(r"\([a-z]{2,3}(?:-[a-z0-9-]+)?\)")  # espeak-ng marks words of another language: (en)…(de)
_PARAGRAPH = re.compile(r"\n\s*\n")
_INITIAL = re.compile(r"(?:^|[\s(\"“«])(\w{1,4})\.$")
# Their dot ends no sentence, although a capital letter follows.
_TITLES = frozenset(
    ("dr", "mr", "mrs", "ms", "prof", "st", "jr", "sr", "hr", "fr", "nr", "no", "vs", "ca", "bzw", "sra", "mme", "mgr")
)


@dataclass(frozen=True)
class Sentence:
    """Symbols for one run of a voice. `ends` is False for a part that goes on; `read` is 0 to 1 of the whole text."""

    symbols: str
    ends: bool
    read: float


def from_clauses(clauses: Iterable[Clause], most: int = MOST_SYMBOLS) -> Iterator[Sentence]:
    """Sentences of at most `most` symbols, in the normal form NFD."""
    symbols, read = "", 0.0
    for clause in clauses:
        mark, ends = _mark(clause.text)
        spoken = unicodedata.normalize("NFD", _SWITCH.sub("", clause.phonemes)).strip()
        read = clause.read
        if spoken:
            symbols += spoken + (mark if ends else f"{mark} ")
        for part in _parts(symbols, most)[:-1]:
            yield Sentence(part, False, read)
        symbols = _parts(symbols, most)[-1]
        if ends and symbols.strip():
            yield Sentence(symbols.strip(), True, read)
            symbols = ""
    if symbols.strip():
        yield Sentence(symbols.strip(), True, read)


def from_text(text: str, most: int = MOST_SYMBOLS) -> Iterator[Sentence]:
    """The same for voices that read characters: each sentence in small letters."""
    done = 0
    for found in re.finditer(r".*?(?:[.!?…。！？]+[\"'”’»」』)]*(?:\s+|$|(?<=[。！？]))|\n\s*\n|$)", text, re.DOTALL):
        done += len(found[0])
        symbols = unicodedata.normalize("NFD", " ".join(found[0].casefold().split()))
        parts = _parts(symbols, most)
        for number, part in enumerate(parts, 1):
            if part.strip():
                yield Sentence(part.strip(), number == len(parts), done / max(len(text), 1))


def _parts(symbols: str, most: int) -> list[str]:
    """Cut what is too long, at punctuation if possible, else between words, else anywhere."""
    parts = []
    while len(symbols) > most:
        at = max(symbols.rfind(mark, most // 2, most) for mark in (", ", "; ", ": "))
        at = at + 2 if at > 0 else symbols.rfind(" ", 1, most) + 1
        at = at if at > 0 else most
        parts.append(symbols[:at])
        symbols = symbols[at:]
    return [*parts, symbols]


def _mark(text: str) -> tuple[str, bool]:
    """The punctuation at the end of a clause, and whether a sentence ends there."""
    bare = text.rstrip(_CLOSING)
    last = bare[-1:]
    if last in _ENDS and last:
        title = _INITIAL.search(bare)
        if last == "." and title and (len(title[1]) == 1 or title[1].casefold() in _TITLES):
            return "", False
        return _ENDS[last], True
    if _PARAGRAPH.search(text[len(bare) :]):
        return ".", True
    return _PAUSES.get(last, ""), False
