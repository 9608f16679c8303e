"""Requests under `/jobs`: a new job, a priority, and which jobs a client wants listed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from lipsyncd.jobs.job import JobState
from lipsyncd.jobs.values import canonical_id, nearest
from lipsyncd.storage.uploads import Upload
from lipsyncd.web.orders import Fields, Order, address, boolean, text_of, user_data, whole_number
from lipsyncd.web.replies import bad_request, invalid
from lipsyncd.web.routes.did_request import read_json, speakable
from lipsyncd.web.views.pages import Filters

_MOST_NAME_CHARS = 200
_MOST_TIME_CHARS = 40
_HIGHEST = 100
_MOST_DIGITS = 18
# The fields of a new job besides its sources. `options` are those of the renderer.
_OPTIONS = ("renderer", "stitch", "resolution", "fps", "motion", "av_offset_ms", "priority", "pad_s")
_SOURCES = ("image_url", "image_of", "audio_url", "audio_of", "text", "voice", "ssml")
_FIELDS = (*_SOURCES, "name", "user_data", "webhook", *_OPTIONS, "options")
EARLIER = "job:"  # in an order: the same input of the job with the id that follows


def read_order(body: Mapping[str, Any], image: Upload | None = None, audio: Upload | None = None) -> Order:
    """The order in a form or in JSON; `image` and `audio` are the files of a form, stored as uploads.

    An input of an earlier job is named by `EARLIER` and its id, which no manifest may have.
    Values may be text in both, as forms send them. Raises `ApiError` with every field that is wrong.
    """
    fields = Fields(body)
    for unknown in sorted(body.keys() - {*_FIELDS}):
        near = f"{unknown}_url" if unknown in ("image", "audio") else nearest(unknown, _FIELDS)
        fields.faults[f"body.{unknown[:60]}"] = f"{unknown[:60]!r} is no field of a job; did you mean {near!r}?"
    image_url, audio_url = fields.get("image_url", address), fields.get("audio_url", address)
    image_of, audio_of = fields.get("image_of", _earlier), fields.get("audio_of", _earlier)
    ssml = bool(fields.get("ssml", boolean))
    text = fields.get("text", speakable(ssml=ssml))
    pictures = (image, body.get("image_url"), body.get("image_of"))
    _check_sources(fields, pictures, (audio, body.get("audio_url"), body.get("audio_of"), body.get("text")))
    options = {
        "renderer": fields.get("renderer", text_of(64)),
        "stitch": fields.get("stitch", boolean),
        "resolution": fields.get("resolution", whole_number),
        "fps": body.get("fps") or None,
        "motion": fields.get("motion", text_of(64)),
        "av_offset_ms": fields.get("av_offset_ms", whole_number),
        "priority": fields.get("priority", whole_number),
        "pad_s": fields.get("pad_s", _seconds),
        "lipsyncd": fields.get("options", _object),
    }
    name, voice = fields.get("name", text_of(1000)), fields.get("voice", text_of(256))
    data, webhook = fields.get("user_data", user_data), fields.get("webhook", address)
    fields.check()
    name = name or (image.name.rpartition(".")[0] if image else "")
    rest = {
        "api": "jobs",
        "source_url": image_url,
        "audio_url": audio_url,
        "name": name or None,
        "image_sha256": image.sha256 if image else None,
        "audio_sha256": audio.sha256 if audio else None,
    }
    return Order(
        image=image.reference if image else image_of or image_url,
        audio=audio.reference if audio else audio_of or audio_url,
        text=text,
        voice=voice,
        ssml=ssml,
        name=name,
        user_data=data,
        webhook=webhook,
        options={key: value for key, value in options.items() if value is not None},
        rest={key: value for key, value in rest.items() if value is not None},
    )


def _check_sources(fields: Fields, pictures: tuple[Any, ...], sounds: tuple[Any, ...]) -> None:
    """A job has one picture, and one sound or text."""
    for name, given, either in (
        ("image", pictures, "the file 'image' of a form, 'image_url', or 'image_of'"),
        ("audio", sounds, "the file 'audio' of a form, 'audio_url', 'audio_of', or 'text'"),
    ):
        if sum(value not in (None, "") for value in given) != 1:
            fields.faults.setdefault(f"body.{name}", f"send exactly one of {either}")


def read_priority(body: bytes) -> int:
    """The number in `{"priority": 10}`. Raises `ApiError`."""
    value = read_json(body).get("priority")
    if type(value) is not int or not -_HIGHEST <= value <= _HIGHEST:
        raise invalid({"body.priority": f"'priority' must be a whole number from {-_HIGHEST} to {_HIGHEST}"})
    return value


def _earlier(value: Any) -> str:
    """A reference to an earlier job."""
    try:
        return EARLIER + canonical_id(value if isinstance(value, str) else "")
    except ValueError as error:
        raise ValueError(f"must be the id of a job: {error}") from None


def _seconds(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError("must be a number of seconds") from None


def _object(value: Any) -> Mapping[str, Any]:
    """An object, or its JSON as a form sends it."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, dict):
        raise ValueError("must be an object with options of the renderer")
    return value


def read_since(request: web.Request) -> int | None:
    """The number in `?since=NUMBER`, the `change` of an earlier answer. Raises 400 for anything else."""
    text = request.query.get("since", "")
    if text and not (text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS):
        raise bad_request(f"since is {text[:_MOST_TIME_CHARS]!r}; send the number 'change' of an earlier answer")
    return int(text) if text else None


# -- the list ----------------------------------------------------------------------------------------------------------


def read_filters(request: web.Request) -> Filters:
    """`?state=failed,cancelled&name=anna&queue=news&since=2026-11-30`. Raises 400 with what is allowed."""
    words = [word.strip() for text in request.query.getall("state", []) for word in text.split(",") if word.strip()]
    for word in words:
        if word not in list(JobState):
            raise bad_request(
                f"state is {word[:40]!r}; allowed is one of {', '.join(JobState)}, or several with commas"
            )
    name = request.query.get("name", "")
    if len(name) > _MOST_NAME_CHARS:
        raise bad_request(f"name has {len(name)} characters; allowed are {_MOST_NAME_CHARS}")
    since = request.query.get("since")
    states = tuple(dict.fromkeys(map(JobState, words)))
    return Filters(states, name, request.query.get("queue"), None if since is None else _ms(since))


def _ms(text: str) -> int:
    """A time in ISO 8601 as milliseconds since 1970; without a time zone it is UTC."""
    try:
        at = datetime.fromisoformat(text[:_MOST_TIME_CHARS])
        return round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        pass
    raise bad_request(
        f"since is {text[:_MOST_TIME_CHARS]!r}; write a time as the answers do, such as 2026-11-30T08:00:00Z "
        "(and a + as %2B)"
    )
