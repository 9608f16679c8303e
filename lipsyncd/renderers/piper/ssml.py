"""What a voice of Piper makes of SSML: pauses, sentences, paragraphs and spellings; other tags are left out.

The tags have been checked by `spoken_text`. espeak-ng obeys more of them: Piper's voices have one pitch and one volume.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

_TAG = re.compile(r"<(?P<end>/?)(?P<name>[A-Za-z][A-Za-z0-9:._-]*)(?P<attributes>[^<>]*)>")
_ATTRIBUTE = re.compile(r"""([A-Za-z:_-]+)\s*=\s*(?:"([^"]*)"|'([^']*)')""")
_TIME = re.compile(r"\+?([0-9]{0,6}(?:\.[0-9]{1,6})?)\s*(ms|s)")
_STRENGTHS_S = {"none": 0.0, "x-weak": 0.1, "weak": 0.25, "medium": 0.5, "strong": 1.0, "x-strong": 1.5}
_MOST_PAUSE_S = 30.0
_DIVIDING = ("p", "s")


def parts(text: str) -> Iterator[str | float]:
    """The text in its order: strings to speak, and pauses in seconds."""
    plain, place, alias = "", 0, False
    for tag in _TAG.finditer(text):
        plain += "" if alias else text[place : tag.start()]
        place = tag.end()
        name, attributes = tag["name"].lower(), _attributes(tag["attributes"])
        if name == "sub":
            replaces = not tag["end"] and "alias" in attributes
            plain += f" {attributes['alias']} " if replaces else ""
            alias = replaces and not tag["attributes"].rstrip().endswith("/")
        elif name == "break" and not tag["end"]:
            if plain.strip():
                yield html.unescape(plain)
            plain = ""
            yield _pause_s(attributes)
        elif name in _DIVIDING:
            if plain.strip():
                yield html.unescape(plain)
            plain = ""
    plain += "" if alias else text[place:]
    if plain.strip():
        yield html.unescape(plain)


def _attributes(text: str) -> dict[str, str]:
    return {name.lower(): one or two for name, one, two in _ATTRIBUTE.findall(text)}


def _pause_s(attributes: dict[str, str]) -> float:
    time = _TIME.fullmatch(attributes.get("time", "").strip().lower())
    if time and time[1] not in ("", "."):
        return min(float(time[1]) / (1000 if time[2] == "ms" else 1), _MOST_PAUSE_S)
    return _STRENGTHS_S.get(attributes.get("strength", "medium").lower(), _STRENGTHS_S["medium"])
