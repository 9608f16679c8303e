"""Judge a text before it is spoken: its length, its characters and its SSML tags.

The text comes from strangers. The daemon checks it at acceptance and once more before it starts a speaker; the child
with espeak-ng in it checks what it receives.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from lipsyncd.errors import SpeechFailed

MAX_CHARS = 40_000  # with SSML tags
MAX_SPOKEN_CHARS = 10_000  # without them
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_TAG = re.compile(r"<[^>]*>?")
_STYLE_TAG = re.compile(r"</?mstts:[a-z][a-z-]*(?:\s[^<>]*)?/?>", re.IGNORECASE)
_TAG_NAME = re.compile(r"</?([A-Za-z][A-Za-z0-9:._-]*)(?=[\s/>])")
# The tags of SSML 1.1 that shape speech. Not `audio`: the library would open the file that it names, and may even run
# a program to convert it.
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


def without_styles(text: str) -> str:
    """SSML without the tags of Microsoft's namespace `mstts`, which D-ID's clients send; what they enclose stays.

    Taking a tag away may make another out of what stood around it, so this goes on until there is none.
    """
    while (plain := _STYLE_TAG.sub("", text)) != text:
        text = plain
    return text


def check_text(text: str, *, ssml: bool = False) -> None:
    """Raise `SpeechFailed` unless the text has something to speak, fits the limits, and its SSML is harmless.

    SSML is judged as `without_styles` gives it: pass that on to the library.
    """
    if len(text) > MAX_CHARS:
        raise SpeechFailed(f"the text has {len(text)} characters; {MAX_CHARS} are allowed", remedy="shorten it")
    text = without_styles(text) if ssml else text
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


def _ssml_faults(text: str) -> Iterator[str]:
    """Check each `<` and each `&#` by itself: the library parses more loosely than XML does."""
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
