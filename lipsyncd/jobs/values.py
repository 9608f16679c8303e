"""Values as people write them in manifests, settings and commands: ids, frame rates, and how messages show a wrong one.

Apart from `manifest`, since every command reads settings and few read a manifest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

from lipsyncd.jobs.job import ID_PATTERN

if TYPE_CHECKING:
    from fractions import Fraction

MAX_RATE_TERM = 1_000_000  # a frame rate's numerator: MP4 and ffmpeg count in 32 bits
_ID = rf"tlk_[0-9a-f]{{32}}|{ID_PATTERN}"
_USER = r"(?i)\b(https?:[/\\]*)[^\s\"'/?#]*@"
_QUERY = r"(?i)\b(https?:[^\s\"'?#]*)[?#][^\s\"']*"


def canonical_id(text: str) -> str:
    """Canonical lower-case text of a UUID of any version, also given in upper case or as D-ID's `tlk_` + 32 digits.

    Raises ValueError with what is allowed.
    """
    lower = text.lower()
    digits = lower[4:] if lower.startswith("tlk_") else lower.replace("-", "")
    if not re.fullmatch(_ID, lower):
        raise ValueError("a UUID as 36 characters, or tlk_ and 32 hexadecimal digits")
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def parse_fps(value: object) -> Fraction:
    """An exact frame rate from 1 to 120, from 25, "25", 29.97 or "30000/1001".

    The decimals 23.976, 29.97 and 59.94 mean 24000/1001, 30000/1001 and 60000/1001, and so does any decimal within
    0.0001 of those. A fraction is not changed.

    Raises ValueError with what is allowed.
    """
    from fractions import Fraction

    allowed = "a rate from 1 to 120 as a number or a fraction such as 30000/1001"
    if not isinstance(value, (int, float, str, Fraction)):
        raise ValueError(allowed)
    text = str(value).strip() if isinstance(value, (float, str, Fraction)) or -1000 < value < 1000 else ""
    # Checked before Fraction reads it: Fraction("1e999999999") would compute for hours.
    if not re.fullmatch(r"[0-9]{1,7}/[0-9]{1,7}|[0-9]{1,3}(\.[0-9]{1,20})?", text) or text.rpartition("/")[2] == "0":
        raise ValueError(allowed)
    rate = _rate(text)
    if not 1 <= rate <= 120 or rate.numerator > MAX_RATE_TERM:
        raise ValueError(allowed)
    return rate


@lru_cache(64)  # each job has one, and most have the same
def _rate(text: str) -> Fraction:
    from fractions import Fraction

    return _ntsc(Fraction(text)) if "/" not in text else Fraction(text)


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word most similar to `word` in any case, for "did you mean"."""
    from difflib import get_close_matches  # needed only after a mistake

    spelled = {name.lower(): name for name in known}
    return spelled[get_close_matches(word[:64].lower(), spelled, n=1, cutoff=0.0)[0]]


def quoted(value: object) -> str:
    """A value as an error message shows it: short, on one line, and without control characters for a terminal.

    Addresses are shown without user, password and query, since messages are logged.
    """
    try:
        text = repr(value) if isinstance(value, str) else json.dumps(value, default=repr)
    except (ValueError, RecursionError):  # a number of more than 4300 digits, or nested too deeply
        text = "a value too large to show"
    text = re.sub(_QUERY, r"\1?...", re.sub(_USER, r"\1...@", text))
    return text if len(text) <= 60 else f"{text[:56]} ...{text[-1]}"


def _ntsc(rate: Fraction) -> Fraction:
    from fractions import Fraction

    exact = (Fraction(24000, 1001), Fraction(30000, 1001), Fraction(60000, 1001))
    return next((ntsc for ntsc in exact if abs(ntsc - rate) <= Fraction(1, 10_000)), rate)
