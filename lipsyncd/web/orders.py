"""What clients ask for, read leniently: D-ID's JSON and the original's form become the same `Order`.

Clients copied mistakes out of old examples: `"stitch": "true"`, `"pad_audio": "0.0"`, fields that no longer exist. What
can be understood is; what cannot is refused with the path of the field and the rule.
"""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lipsyncd.errors import BadManifest, BadName, InputError
from lipsyncd.jobs.manifest import MAX_PAD_S, MAX_TEXT_CHARS, MAX_URL_CHARS, Manifest, build, clean_out_name
from lipsyncd.prepare.speech import check_text
from lipsyncd.storage.uploads import Upload
from lipsyncd.web.replies import bad_request, invalid

_SWITCH = {"true": True, "false": False, "1": True, "0": False, "": None}
_ECHOED = (
    "result_format", "fluent", "pad_audio", "logo", "driver_expressions", "align_driver", "auto_match", "sharpen",
    "motion_factor", "normalization_factor", "align_expand_factor",
)  # fmt: skip
# What D-ID's clients may send. Whatever else they send is left alone, and told to the log.
_KNOWN: Mapping[str, frozenset[str]] = {
    "": frozenset(
        (
            "source_url",
            "script",
            "config",
            "user_data",
            "name",
            "webhook",
            "result_url",
            "driver_url",
            "face",
            "persist",
        )
    ),
    "script": frozenset(("type", "audio_url", "input", "provider", "ssml", "subtitles", "reduce_noise")),
    "config": frozenset((*_ECHOED, "stitch", "lipsyncd")),
}
_MOST_USER_DATA = 1000
_ECHO_BYTES = 4096


@dataclass(frozen=True)
class Order:
    """One job that a client asks for.

    image, audio    addresses as the client sent them, or `upload:<id>`
    said            what is kept of the request for later answers; `talk` reads it
    unknown         names of fields that mean nothing here, for the log
    """

    image: str
    audio: str | None = None
    text: str | None = None
    voice: str | None = None
    ssml: bool = False
    name: str = ""
    user_data: str | None = None
    webhook: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    said: Mapping[str, Any] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Equal for equal requests: what an Idempotency-Key is held against."""
        told = {k: v for k, v in self.said.items() if k not in ("created_ms", "base", "uploads")}
        image, audio = told.get("image_sha256", self.image), told.get("audio_sha256", self.audio)
        parts = [image, audio, self.text, self.voice, self.ssml, self.name, self.user_data, self.webhook]
        return hashlib.sha256(
            json.dumps([*parts, self.options, told], sort_keys=True, default=str).encode()
        ).hexdigest()

    def manifest(self, job_id: str) -> Manifest:
        """The manifest of this order. Raises `ApiError` with what its grammar does not allow."""
        fields: dict[str, Any] = {
            "image": self.image,
            "audio": self.audio,
            "text": self.text,
            "voice": self.voice,
            "ssml": self.ssml or None,
            "id": job_id,
            "out_name": self.out_name,
            "user_data": self.user_data,
            "webhook": self.webhook,
            **self.options,
            "rest": dict(self.said),
        }
        try:
            return build({name: value for name, value in fields.items() if value is not None})
        except (BadManifest, BadName, InputError) as error:
            raise bad_request(error.message) from None

    @property
    def out_name(self) -> str:
        """The client's name for it, else the stem of the picture's address."""
        if self.name:
            return clean_out_name(self.name)
        last = str(self.said.get("source_url", "")).partition("?")[0].partition("#")[0].rstrip("/").rpartition("/")[2]
        return clean_out_name(last.rpartition(".")[0] or last or "talk")

    def with_said(self, **more: Any) -> Order:
        return replace(self, said={**self.said, **more})


def job_id_of(owner: str, idempotency_key: str) -> str:
    """The id of the one job that this Idempotency-Key of this key's owner stands for: a UUIDv8 of their SHA-256."""
    told = f"{owner}\0{idempotency_key}".encode("utf-8", "surrogateescape")  # a header holds any bytes
    value = int.from_bytes(hashlib.sha256(told).digest()[:16], "big")
    value = value & ~(0xF << 76) | 0x8 << 76  # version
    value = value & ~(0x3 << 62) | 0x2 << 62  # variant
    return str(uuid.UUID(int=value))


def read_json(body: bytes) -> dict[str, Any]:
    """The JSON object in a body, whatever its header calls it. Raises `ApiError`."""
    if not body.strip():
        raise bad_request("the body is empty; send a JSON object")
    try:
        said = json.loads(body, parse_constant=_no_number)
        json.dumps(said, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise bad_request("the body contains half of a surrogate pair, which is no character") from None
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise bad_request(f"the body is not JSON: {reason}") from None
    if not isinstance(said, dict):
        raise bad_request("the body is JSON, but not an object in braces")
    return said


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


# -- D-ID --------------------------------------------------------------------------------------------------------------


class _Fields:
    """Reads fields one by one and collects what is wrong with them, so that a client learns all of it at once."""

    def __init__(self, said: Mapping[str, Any]) -> None:
        self.said = said
        self.faults: dict[str, str] = {}

    def get(self, path: str, read: Callable[[Any], Any], *, required: bool = False) -> Any:
        value: Any = self.said
        for step in path.split("."):
            value = value.get(step) if isinstance(value, Mapping) else None
        name = path.rpartition(".")[2]
        if value is None or value == "":
            if required:
                self.faults[f"body.{path}"] = f"'{name}' is required"
            return None
        try:
            return read(value)
        except ValueError as error:
            self.faults[f"body.{path}"] = f"'{name}' {error}"
            return None

    def check(self) -> None:
        if self.faults:
            raise invalid(self.faults)


def read_talk(said: Mapping[str, Any]) -> Order:
    """The order in the body of `POST /talks`. Raises `ApiError` with every field that is wrong."""
    fields = _Fields(said)
    source_url = fields.get("source_url", _address, required=True)
    script = fields.get("script", _object, required=True)
    kind = None if script is None else fields.get("script.type", _one_of("audio", "text"), required=True)
    audio_url = fields.get("script.audio_url", _address, required=True) if kind == "audio" else None
    ssml = bool(fields.get("script.ssml", flag)) if kind == "text" else False
    text = fields.get("script.input", _words(ssml=ssml), required=True) if kind == "text" else None
    voice = fields.get("script.provider.voice_id", _text(256)) if kind == "text" else None
    config = fields.get("config", _object) or {}
    stitch = fields.get("config.stitch", flag)
    pad_s = fields.get("config.pad_audio", _number(0, MAX_PAD_S))
    fields.get("config.result_format", _format)
    if said.get("result_url"):
        fields.faults["body.result_url"] = "'result_url' is not available here: download the video from the answer"
    own = fields.get("config.lipsyncd", _object) or {}
    user_data = fields.get("user_data", _user_data)
    webhook = fields.get("webhook", _address)
    name = fields.get("name", _text(1000)) or ""
    persist = bool(fields.get("persist", flag))
    driver_url = fields.get("driver_url", _text(MAX_URL_CHARS))
    fields.check()
    echo = {key: config[key] for key in _ECHOED if key in config and _is_short(config[key])}
    echo |= {} if pad_s is None else {"pad_audio": pad_s}
    kept = {
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
        ssml=ssml,
        name=name,
        user_data=user_data,
        webhook=webhook,
        options=_manifest_options(stitch, pad_s, own),
        said={key: value for key, value in kept.items() if value is not None},
        unknown=tuple(_unknown(said)),
    )


def _unknown(said: Mapping[str, Any]) -> Iterator[str]:
    for place, known in _KNOWN.items():
        inner = said.get(place) if place else said
        names = inner if isinstance(inner, Mapping) else ()
        yield from (f"{place}.{name}".lstrip(".") for name in names if name not in known)


def _manifest_options(stitch: bool | None, pad_s: float | None, own: Mapping[str, Any]) -> dict[str, Any]:
    """D-ID's options and our own ones (`config.lipsyncd`) as fields of a manifest."""
    plain = {key: own[key] for key in ("renderer", "resolution", "fps", "priority") if key in own}
    rest = {key: value for key, value in own.items() if key not in plain}
    return {"stitch": stitch, "pad_s": pad_s, **plain, "lipsyncd": rest or None}


# -- the original service ----------------------------------------------------------------------------------------------


def read_generate(fields: Mapping[str, str], image: Upload | None, audio: Upload | None) -> Order:
    """The order in the form of `POST /generate-video`; `image` and `audio` are the files in it, stored as uploads.

    Raises `ApiError` with every field that is wrong.
    """
    said = _Fields(fields)
    source_url, audio_url = said.get("source_url", _address), said.get("audio_url", _address)
    for role, file, url, names in (
        ("source_image", image, source_url, "source_image or source_url"),
        ("audio_data", audio, audio_url, "audio_data or audio_url"),
    ):
        if (file is None) == (url is None) and not said.faults:
            said.faults[f"body.{role}"] = f"send exactly one of {names}"
    own = {
        "stitch": said.get("stitch", flag),
        "resolution": said.get("resolution", _whole),
        "fps": fields.get("fps") or None,
        "renderer": fields.get("renderer") or None,
    }
    user_data, webhook = said.get("user_data", _user_data), said.get("webhook", _address)
    said.check()
    kept = {
        "api": "generate-video",
        "source_url": source_url,
        "audio_url": audio_url,
        "name": image.name.rpartition(".")[0] if image else None,
        "image_sha256": image.sha256 if image else None,
        "audio_sha256": audio.sha256 if audio else None,
    }
    return Order(
        image=image.reference if image else source_url,
        audio=audio.reference if audio else audio_url,
        name=image.name.rpartition(".")[0] if image else "",
        user_data=user_data,
        webhook=webhook,
        options={key: value for key, value in own.items() if value is not None},
        said={key: value for key, value in kept.items() if value is not None},
    )


# -- readers: each gives a value, or raises ValueError with the rule ---------------------------------------------------


def flag(value: Any) -> bool | None:
    """true, false, and the same as text or number: `bool("false")` would be True."""
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if isinstance(value, (str, int)) and text in _SWITCH:
        return _SWITCH[text]
    raise ValueError("must be true or false")


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


def _whole(value: Any) -> int:
    try:
        return int(str(value).strip()[:20])
    except ValueError:
        raise ValueError("must be a whole number") from None


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


def _text(most: int) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if not isinstance(value, str) or len(value) > most:
            raise ValueError(f"must be text of at most {most} characters")
        return value

    return read


def _words(*, ssml: bool) -> Callable[[Any], str]:
    """Text to speak, judged now by the rules of the speaker, which would refuse it later."""

    def read(value: Any) -> str:
        text = _text(MAX_TEXT_CHARS)(value)
        try:
            check_text(text, ssml=ssml)
        except InputError as error:
            raise ValueError(f"cannot be spoken: {error.message}") from None
        return text

    return read


def _user_data(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    if not text.strip() or len(text) > _MOST_USER_DATA:
        raise ValueError(f"must be text of 1 to {_MOST_USER_DATA} characters, not only white space")
    return text


def _address(value: Any) -> str:
    if not isinstance(value, str) or not value.lower().startswith(("http://", "https://")):
        raise ValueError("must be an http or https URL")
    if len(value) > MAX_URL_CHARS or any(char.isspace() or not char.isprintable() for char in value):
        raise ValueError(f"must be an http or https URL of at most {MAX_URL_CHARS} characters without white space")
    return value


def _format(value: Any) -> str:
    if str(value).lower().lstrip(".") != "mp4":
        raise ValueError("must be mp4: no other container is made here")
    return "mp4"


def _is_short(value: Any) -> bool:
    return len(json.dumps(value)) <= _ECHO_BYTES
