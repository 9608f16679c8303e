"""An order: one job that a client requests, whichever API it used, and the leniency with which its fields are read.

Clients have copied mistakes out of old examples: `"stitch": "true"`, `"pad_audio": "0.0"`, fields that no longer exist.
What can be understood is accepted; everything else is refused with the path of the field and the rule.

`routes.did_request`, `routes.original_request` and `routes.jobs_request` read the three kinds of requests.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from lipsyncd.errors import BadManifest, BadName, InputError
from lipsyncd.jobs.manifest import MAX_URL_CHARS, Manifest, build, clean_out_name
from lipsyncd.web.replies import bad_request, invalid

_BOOLEANS = {"true": True, "false": False, "1": True, "0": False, "": None}
_MOST_USER_DATA = 1000


@dataclass(frozen=True)
class Order:
    """One job that a client requests.

    image, audio    addresses as the client sent them, or `upload:<id>`
    provider        the service whose voice it names
    rest            what is kept of the request for later answers (`jobs.rest_fields`)
    unknown         names of fields that mean nothing here, for the log
    """

    image: str
    audio: str | None = None
    text: str | None = None
    voice: str | None = None
    provider: str | None = None
    ssml: bool = False
    name: str = ""
    user_data: str | None = None
    webhook: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    rest: Mapping[str, Any] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Equal for equal requests; an Idempotency-Key stands for one of them."""
        unlike = {"created_ms", "base", "uploads", "tenant"}
        for hashed, url in (("image_sha256", "source_url"), ("audio_sha256", "audio_url")):
            unlike |= {url} if hashed in self.rest else set()  # the address of an upload, which is new each time
        rest = {k: v for k, v in self.rest.items() if k not in unlike}
        image, audio = rest.get("image_sha256", self.image), rest.get("audio_sha256", self.audio)
        parts = [image, audio, self.text, self.voice, self.ssml, self.name, self.user_data, self.webhook]
        return hashlib.sha256(
            json.dumps([*parts, self.options, rest], sort_keys=True, default=str).encode()
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
            "rest": dict(self.rest),
        }
        try:
            return build({name: value for name, value in fields.items() if value is not None})
        except (BadManifest, BadName, InputError) as error:
            raise bad_request(error.message) from None

    @property
    def out_name(self) -> str:
        """The client's name for the video, else the stem of the picture's address."""
        if self.name:
            return clean_out_name(self.name)
        last = str(self.rest.get("source_url", "")).partition("?")[0].partition("#")[0].rstrip("/").rpartition("/")[2]
        return clean_out_name(last.rpartition(".")[0] or last or "talk")

    def with_rest(self, **more: Any) -> Order:
        return replace(self, rest={**self.rest, **more})


# -- fields ------------------------------------------------------------------------------------------------------------


class Fields:
    """Reads the fields of a request one by one and collects the faults, so that a client learns of all of them."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self.faults: dict[str, str] = {}

    def get(self, path: str, read: Callable[[Any], Any], *, required: bool = False) -> Any:
        """The value at a dotted path, as `read` gives it; None for a field that is missing, empty or wrong."""
        value: Any = self.values
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
        """Raise `ApiError` with every fault that was found."""
        if self.faults:
            raise invalid(self.faults)


# Readers of values: each returns the value, or raises ValueError with the rule.


def boolean(value: Any) -> bool | None:
    """true, false, and the same as text or number: `bool("false")` would be True."""
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if isinstance(value, (str, int)) and text in _BOOLEANS:
        return _BOOLEANS[text]
    raise ValueError("must be true or false")


def address(value: Any) -> str:
    """An http or https URL."""
    if not isinstance(value, str) or not value.lower().startswith(("http://", "https://")):
        raise ValueError("must be an http or https URL")
    try:
        urlsplit(value).hostname  # noqa: B018 - it raises for brackets without an IPv6 address
    except ValueError:
        raise ValueError("must be an http or https URL with a valid host") from None
    if len(value) > MAX_URL_CHARS or any(char.isspace() or not char.isprintable() for char in value):
        raise ValueError(f"must be an http or https URL of at most {MAX_URL_CHARS} characters without white space")
    return value


def user_data(value: Any) -> str:
    """The client's own text, which every answer repeats."""
    text = value if isinstance(value, str) else json.dumps(value)
    if not text.strip() or len(text) > _MOST_USER_DATA:
        raise ValueError(f"must be text of 1 to {_MOST_USER_DATA} characters, not only white space")
    return text


def text_of(most: int) -> Callable[[Any], str]:
    """Reads text of at most so many characters."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or len(value) > most:
            raise ValueError(f"must be text of at most {most} characters")
        return value

    return read


def whole_number(value: Any) -> int:
    """A whole number, also as text."""
    try:
        return int(str(value).strip()[:20])
    except ValueError:
        raise ValueError("must be a whole number") from None
