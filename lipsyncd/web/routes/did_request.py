"""The body of `POST /talks`: D-ID's JSON becomes an `Order`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lipsyncd.errors import InputError
from lipsyncd.jobs.manifest import MAX_PAD_S, MAX_TEXT_CHARS, MAX_URL_CHARS
from lipsyncd.prepare.spoken_text import check_text
from lipsyncd.web.orders import Fields, Order, address, boolean, text_of, user_data
from lipsyncd.web.replies import bad_request

# The options that later answers repeat as the client sent them.
_ECHOED = (
    "result_format", "fluent", "pad_audio", "logo", "driver_expressions", "align_driver", "auto_match", "sharpen",
    "motion_factor", "normalization_factor", "align_expand_factor",
)  # fmt: skip
# What D-ID's clients may send. All other fields are ignored and logged.
_KNOWN: Mapping[str, frozenset[str]] = {
    "": frozenset((
        "source_url", "script", "config", "user_data", "name", "webhook", "result_url", "driver_url", "face", "persist",
    )),
    "script": frozenset(("type", "audio_url", "input", "provider", "ssml", "subtitles", "reduce_noise")),
    "config": frozenset((*_ECHOED, "stitch", "lipsyncd")),
}  # fmt: skip
_MOST_ECHOED_CHARS = 4096
_MOST_SIDE_PX = 100_000


def read_talk(body: Mapping[str, Any]) -> Order:
    """The order in the body of `POST /talks`. Raises `ApiError` with every field that is wrong."""
    fields = Fields(body)
    source_url = fields.get("source_url", address, required=True)
    script = fields.get("script", _object, required=True)
    kind = None if script is None else fields.get("script.type", _one_of("audio", "text"), required=True)
    audio_url = fields.get("script.audio_url", address, required=True) if kind == "audio" else None
    ssml = bool(fields.get("script.ssml", boolean)) if kind == "text" else False
    text = fields.get("script.input", speakable(ssml=ssml), required=True) if kind == "text" else None
    voice = fields.get("script.provider.voice_id", text_of(256)) if kind == "text" else None
    provider = fields.get("script.provider.type", text_of(256)) if voice else None
    config = fields.get("config", _object) or {}
    stitch = fields.get("config.stitch", boolean)
    pad_s = fields.get("config.pad_audio", _number(0, MAX_PAD_S))
    fields.get("config.result_format", _mp4)
    if body.get("result_url"):
        fields.faults["body.result_url"] = "'result_url' is not available here: download the video from the answer"
    own = fields.get("config.lipsyncd", _object) or {}
    data = fields.get("user_data", user_data)
    webhook = fields.get("webhook", address)
    name = fields.get("name", text_of(1000)) or ""
    persist = bool(fields.get("persist", boolean))
    driver_url = fields.get("driver_url", text_of(MAX_URL_CHARS))
    face = fields.get("face", _face)
    fields.check()
    echo = {key: config[key] for key in _ECHOED if key in config and _is_short(config[key])}
    echo |= {} if pad_s is None else {"pad_audio": pad_s}
    rest = {
        "api": "talks",
        "source_url": source_url,
        "audio_url": audio_url,
        "driver_url": driver_url,
        "name": name or None,
        "config": echo,
        "persist": persist or None,
    }
    return Order(
        image=source_url,
        audio=audio_url,
        text=text,
        voice=voice,
        provider=provider,
        ssml=ssml,
        name=name,
        user_data=data,
        webhook=webhook,
        options=_manifest_options(stitch, pad_s, {"face": face, **own} if face else own),
        rest={key: value for key, value in rest.items() if value is not None},
        unknown=tuple(_unknown(body)),
    )


def _unknown(body: Mapping[str, Any]) -> Iterator[str]:
    """The dotted names of the fields that `_KNOWN` lacks."""
    for place, known in _KNOWN.items():
        inner = body.get(place) if place else body
        names = inner if isinstance(inner, Mapping) else ()
        yield from (f"{place}.{name}".lstrip(".") for name in names if name not in known)


def _manifest_options(stitch: bool | None, pad_s: float | None, own: Mapping[str, Any]) -> dict[str, Any]:
    """D-ID's options and our own ones (`config.lipsyncd`) as fields of a manifest."""
    ours = ("renderer", "resolution", "fps", "motion", "av_offset_ms", "priority")
    plain = {key: own[key] for key in ours if key in own}
    others = {key: value for key, value in own.items() if key not in plain}
    return {"stitch": stitch, "pad_s": pad_s, **plain, "lipsyncd": others or None}


def read_json(body: bytes) -> dict[str, Any]:
    """The JSON object in a body, whatever its Content-Type is. Raises `ApiError`."""
    if not body.strip():
        raise bad_request("the body is empty; send a JSON object")
    try:
        value = json.loads(body, parse_constant=_no_number)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise bad_request("the body contains half of a surrogate pair, which is not a character") from None
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise bad_request(f"the body is not JSON: {reason}") from None
    if not isinstance(value, dict):
        raise bad_request("the body is JSON, but not an object in braces")
    return value


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


# -- readers of values: each returns the value, or raises ValueError with the rule -------------------------------------


def _number(low: float, high: float) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not low <= number <= high:
            raise ValueError(f"must be a number from {low:g} to {high:g}")
        return number

    return read


def _object(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("must be an object")
    return value


def _one_of(*words: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return str(value)

    return read


def speakable(*, ssml: bool) -> Callable[[Any], str]:
    """Text to speak, checked now by the rules of the speech step, which would refuse it later."""

    def read(value: Any) -> str:
        text = text_of(MAX_TEXT_CHARS)(value)
        try:
            check_text(text, ssml=ssml)
        except InputError as error:
            raise ValueError(f"cannot be spoken: {error.message}") from None
        return text

    return read


def _mp4(value: Any) -> str:
    if str(value).lower().lstrip(".") != "mp4":
        raise ValueError("must be mp4: no other container is made here")
    return "mp4"


def _face(value: Any) -> str | None:
    """D-ID's choice of a face as the option `face`: the point in its middle. None for what has no place.

    Its clients copy an entry of the faces that `POST /images` answered; later versions of the API ignore the field.
    """
    try:
        (left, top), size = value["top_left"], value["size"]
        middle = [start + size / 2 for start in (left, top)]
        inside = all(0 <= number < _MOST_SIDE_PX for number in middle)
    except (KeyError, TypeError, ValueError):
        return None
    return f"{middle[0]:.0f},{middle[1]:.0f}" if inside else None


def _is_short(value: Any) -> bool:
    return len(json.dumps(value)) <= _MOST_ECHOED_CHARS
