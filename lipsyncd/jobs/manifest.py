"""The format of a manifest: its fields, the meaning of each, and which names are safe.

A manifest is one small JSON object that makes one job:

    {"image": "anna.png", "audio": "hello.wav", "stitch": true, "fps": 29.97}

`parse` takes any bytes and gives a `Manifest`, or raises an `InputError` that names the field, its value and what is
allowed there. The CLI and the web server use `build` and `to_json`, so the same rules hold for every job.

Owns the rules for file names, output names, ids, addresses and frame rates. Opens no file: the inbox checks whether a
named file exists.
"""

from __future__ import annotations

import codecs
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from lipsyncd.errors import BadManifest, BadName, UnsafePath
from lipsyncd.jobs.job import MAX_AV_OFFSET_MS, MOTIONS, JobSpec
from lipsyncd.jobs.rest_fields import check as check_rest
from lipsyncd.jobs.values import canonical_id, nearest, parse_fps, quoted

if TYPE_CHECKING:
    from fractions import Fraction

MAX_BYTES = 64 * 1024
MAX_DEPTH = 16
MAX_NUMBER_DIGITS = 32
MAX_TEXT_CHARS = 40_000
MAX_USER_DATA_BYTES = 4096
MAX_REST_BYTES = 16 * 1024
MAX_PAD_S = 60.0
MAX_URL_CHARS = 4096
MAX_NAME_BYTES = 200
MAX_FILE_NAME_BYTES = 255  # the limit of Linux file systems
_SAVE_AS_UTF8 = "save the manifest as UTF-8"
_NAME_ALONE = "drop the file into the inbox, and write its name alone"
_DRIVE = re.compile(r"[A-Za-z]:")  # as Windows writes paths


@dataclass(frozen=True)
class Manifest:
    """The fields of one manifest. None: the field is absent, so the settings decide.

    image, audio  a file name in the inbox, an http(s) address, or `upload:<id>`; `classify` tells them apart
    text          spoken in place of `audio`: exactly one of the two is present
    id            the job's id as canonical UUID text; None: intake makes one
    out_name      name of the result, without `.mp4`
    pad_s         seconds of silence after the sound
    user_data     any JSON value, returned unchanged with the result
    rest          fields of a REST request that later responses need (`rest_fields`)
    whole         the files are whole as they lie: a sound that ends early is not waited for
    mac           the proof that REST itself wrote this manifest (`manifest_mac`)
    options       the object under the key "lipsyncd": options that only the renderer reads
    """

    image: str
    audio: str | None = None
    text: str | None = None
    voice: str | None = None
    ssml: bool = False
    id: str | None = None
    out_name: str | None = None
    renderer: str | None = None
    stitch: bool | None = None
    resolution: int | None = None
    fps: Fraction | None = None
    priority: int | None = None
    user_data: Any = None
    webhook: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    pad_s: float | None = None
    rest: Mapping[str, Any] | None = None
    whole: bool = False
    mac: str | None = None
    motion: str | None = None
    av_offset_ms: int | None = None


# -- reading and writing -----------------------------------------------------------------------------------------------


def parse(data: bytes, *, max_bytes: int = MAX_BYTES) -> Manifest:
    """The manifest in `data`: JSON in UTF-8, with or without a byte order mark, or in UTF-16 with one.

    Raises `BadManifest`, `BadName` or `UnsafePath`, and nothing else, for any bytes.
    """
    if len(data) > max_bytes:
        raise BadManifest(f"the manifest has {len(data)} bytes, at most {max_bytes} are allowed")
    if not data.strip():
        raise BadManifest("the manifest is empty")
    try:
        fields = json.loads(
            _decoded(data),
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=_finite,
            parse_constant=_constant,
        )
    except UnicodeDecodeError as error:
        raise BadManifest(
            f"the manifest is not UTF-8: {error.reason} at byte {error.start}", remedy=_SAVE_AS_UTF8
        ) from None
    except RecursionError:
        raise BadManifest(f"the manifest is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise BadManifest(f"the manifest is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise BadManifest("the manifest is JSON, but not one object in braces")
    return build(fields)


def build(fields: Mapping[str, Any]) -> Manifest:
    """The manifest with these fields, all checked. A field that is None counts as absent.

    Raises `BadManifest`, `BadName` or `UnsafePath`.
    """
    _check_shape(fields)
    values: dict[str, Any] = {}
    for name, value in fields.items():
        if name not in FIELDS:
            raise BadManifest(f"unknown field {quoted(name)}", remedy=f"did you mean {nearest(name, FIELDS)!r}?")
        if value is not None:
            values[_ATTRIBUTES.get(name, name)] = _read(name, value)
    if "image" not in values:
        raise BadManifest("the manifest names no image")
    if ("audio" in values) == ("text" in values):
        seen = "both audio and text" if "audio" in values else "neither audio nor text"
        raise BadManifest(f"the manifest gives {seen}, allowed is exactly one of the two")
    spoken_only = next((name for name in ("voice", "ssml") if values.get(name) and "text" not in values), None)
    if spoken_only:
        raise BadManifest(f"{spoken_only} goes with text, and the manifest gives audio")
    return Manifest(**values)


def to_json(manifest: Manifest) -> bytes:
    """One line of UTF-8 JSON that `parse` turns into the same manifest again. Raises `BadManifest` when too large."""
    data = json.dumps(fields_of(manifest), ensure_ascii=False, allow_nan=False).encode() + b"\n"
    if len(data) > MAX_BYTES:
        raise BadManifest(f"the manifest would have {len(data)} bytes, at most {MAX_BYTES} are allowed")
    return data


def fields_of(manifest: Manifest) -> dict[str, Any]:
    """The fields that are present, as JSON values: the opposite of `build`."""
    fields = {name: getattr(manifest, _ATTRIBUTES.get(name, name)) for name in FIELDS}
    fields["ssml"] = manifest.ssml or None
    fields["whole"] = manifest.whole or None
    fields["fps"] = None if manifest.fps is None else str(manifest.fps)
    fields["lipsyncd"] = dict(manifest.options) or None
    fields["rest"] = None if manifest.rest is None else dict(manifest.rest)
    if manifest.out_name is not None and manifest.out_name.lower().endswith(".mp4"):
        fields["out_name"] = manifest.out_name + ".mp4"  # parse takes one off
    return {name: value for name, value in fields.items() if value is not None}


# -- values that other modules check, too ------------------------------------------------------------------------------


def classify(source: str) -> Literal["file", "url", "upload"]:
    """The kind of an `image` or `audio` field: the name of a file in the inbox, an address, or an earlier upload."""
    lower = source[:8].lower()
    if lower.startswith(("http://", "https://")):
        return "url"
    return "upload" if lower.startswith("upload:") else "file"


def check_file_name(name: str) -> str:
    """`name` itself, if it can only name a visible file in the inbox. Raises `UnsafePath`."""
    if not name or len(name.encode("utf-8", "surrogateescape")) > MAX_FILE_NAME_BYTES:
        raise UnsafePath(f"{quoted(name)} is not a file name of 1 to {MAX_FILE_NAME_BYTES} bytes")
    if name.startswith(".") and not name.startswith("./"):
        raise UnsafePath(f"{quoted(name)} starts with '.': hidden files and '..' are never read")
    if "/" in name or "\\" in name or "\0" in name or _DRIVE.match(name):
        raise UnsafePath(f"{quoted(name)} is a path, not a file name", remedy=_NAME_ALONE)
    if name != name.rstrip():
        raise UnsafePath(f"{quoted(name)} ends in a blank", remedy="write the name without the blank behind it")
    return name


def check_out_name(name: str) -> str:
    """The stem that a result gets: `name` without one `.mp4`. Raises `BadName` with the reason."""
    stem = name[:-4] if name.lower().endswith(".mp4") else name
    if not stem.strip():
        raise BadName(f"the name {quoted(name)} is empty")
    if (size_bytes := len(stem.encode("utf-8", "surrogatepass"))) > MAX_NAME_BYTES:
        raise BadName(f"the name {quoted(name)} has {size_bytes} bytes")
    if stem[0] in ".-":
        raise BadName(f"the name {quoted(name)} starts with {stem[0]!r}")
    bad = next((char for char in stem if _not_allowed(char)), None)
    if bad is not None:
        raise BadName(f"the name {quoted(name)} contains {bad!r}")
    return stem


def clean_out_name(name: str) -> str:
    """Turn a stem or a title into a valid output name, which `check_out_name` returns unchanged.

    Characters that are not allowed become "_"; a long name is cut between characters; an empty one becomes "job".
    """
    stem = "".join("_" if _not_allowed(char) else char for char in name).strip().lstrip(".- ")
    stem = stem.encode()[:MAX_NAME_BYTES].decode(errors="ignore").rstrip()
    while stem.lower().endswith(".mp4"):
        stem = stem[:-4].rstrip()
    return stem or "job"


def clean_file_name(stem: str) -> str:
    """Turn a stem into one that a manifest can name, with a suffix behind it: `clean_out_name` without path marks."""
    return re.sub(r"[\\:]", "_", clean_out_name(stem))


# -- a function for each field -----------------------------------------------------------------------------------------


def _read(name: str, value: object) -> Any:
    try:
        return FIELDS[name](value)
    except ValueError as error:
        raise BadManifest(f"{name} is {quoted(value)}, allowed is {error}") from None


def _source(value: object) -> str:
    text = _string(value, 1, MAX_URL_CHARS)
    kind = classify(text)
    if kind == "upload":
        return "upload:" + canonical_id(text[len("upload:") :])
    if text[:5].lower() == "file:":
        raise UnsafePath(f"{quoted(text)} is a path, not a file name", remedy=_NAME_ALONE)
    if kind == "url" or "://" in text:
        return _url(text)
    return check_file_name(text)


def _url(value: object) -> str:
    from urllib.parse import urlsplit  # most manifests have no address

    allowed = f"an http or https address of at most {MAX_URL_CHARS} characters, without a user name"
    text = _string(value, 1, MAX_URL_CHARS)
    if any(char.isspace() or not char.isprintable() for char in text):  # urlsplit removes some of them silently
        raise ValueError(allowed)
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc and parts.port != 0
    except ValueError:
        raise ValueError(allowed) from None
    if not usable:
        raise ValueError(allowed)
    return text


def _text(value: object) -> str:
    text = _string(value, 1, MAX_TEXT_CHARS)
    if not text.strip() or "\0" in text:
        raise ValueError("text with something to speak in it, and no NUL character")
    return text


def _plain_name(value: object) -> str:
    """The name of a voice or a renderer."""
    text = _string(value, 1, 64)
    if not text.isprintable() or "/" in text or text[0] in ".-":
        raise ValueError("a name without '/' or control characters that does not start with '.' or '-'")
    return text


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _resolution(value: object) -> int:
    number = _whole(value, 64, 2048)
    if number % 2:
        raise ValueError("an even number from 64 to 2048")
    return number


def _user_data(value: object) -> object:
    plain = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(plain.encode()) > MAX_USER_DATA_BYTES:
        raise ValueError(f"any JSON value of at most {MAX_USER_DATA_BYTES} bytes")
    return value


def _pad_s(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_PAD_S:
        raise ValueError(f"seconds from 0 to {MAX_PAD_S:g}")
    return float(value)


def _rest(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict) or len(json.dumps(value, ensure_ascii=False).encode()) > MAX_REST_BYTES:
        raise ValueError(f"an object of at most {MAX_REST_BYTES} bytes")
    check_rest(value)
    return value


def _mac(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
        raise ValueError("64 hexadecimal digits, which only the REST service can compute")
    return value


def _options(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("an object with options of the renderer")
    return value


def _whole(value: object, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"a whole number from {low} to {high}")
    return value


def _string(value: object, low: int, high: int) -> str:
    if not isinstance(value, str) or not low <= len(value) <= high:
        raise ValueError(f"text of {low} to {high} characters")
    return value


def _motion(value: object) -> str:
    if not isinstance(value, str) or value not in MOTIONS:
        raise ValueError(f"one of {', '.join(MOTIONS)}")
    return value


# Every field of a manifest, with the function that reads it. docs/jobs.md lists the same fields.
FIELDS: Mapping[str, Callable[[object], Any]] = MappingProxyType(
    {
        "image": _source,
        "audio": _source,
        "text": _text,
        "voice": _plain_name,
        "ssml": _flag,
        "id": lambda value: canonical_id(_string(value, 36, 36)),
        "out_name": lambda value: check_out_name(_string(value, 0, MAX_URL_CHARS)),
        "renderer": _plain_name,
        "stitch": _flag,
        "resolution": _resolution,
        "fps": parse_fps,
        "motion": _motion,
        "av_offset_ms": lambda value: _whole(value, -MAX_AV_OFFSET_MS, MAX_AV_OFFSET_MS),
        "priority": lambda value: _whole(value, -100, 100),
        "user_data": _user_data,
        "webhook": _url,
        "lipsyncd": _options,
        "pad_s": _pad_s,
        "rest": _rest,
        "whole": _flag,
        "mac": _mac,
    }
)
_ATTRIBUTES = {"lipsyncd": "options"}  # JSON name -> attribute, where they differ


# -- strict JSON -------------------------------------------------------------------------------------------------------


def _decoded(data: bytes) -> str:
    """The text of a manifest. Windows programs write UTF-16 with a byte order mark, which leaves no doubt.

    Raises `BadManifest` or UnicodeDecodeError.
    """
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):  # the first one begins like UTF-16
        raise BadManifest("the manifest is UTF-32", remedy=_SAVE_AS_UTF8)
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    if b"\0" in data[:4]:
        raise BadManifest("the manifest has NUL bytes, as in UTF-16 without a byte order mark", remedy=_SAVE_AS_UTF8)
    return data.decode("utf-8-sig")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a repeated key: Python silently keeps the last value, other readers keep the first."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise BadManifest(f"{quoted(twice)} is in the manifest twice")
    return fields


def _integer(digits: str) -> int:
    if len(digits) > MAX_NUMBER_DIGITS:
        raise BadManifest(f"a number of {len(digits)} digits, at most {MAX_NUMBER_DIGITS} are allowed")
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if abs(number) == float("inf"):
        raise BadManifest(f"{quoted(digits)} is too large a number")
    return number


def _constant(name: str) -> float:
    raise BadManifest(f"{name} is not a JSON number")


def _check_shape(fields: Mapping[str, Any]) -> None:
    """Check the depth, then that the text can be encoded as UTF-8. Writing JSON recurses, so the depth comes first."""
    level: list[Any] = [fields]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _inside(outer) if isinstance(inner, (dict, list, tuple))]
    if level:
        raise BadManifest(f"the manifest is nested deeper than {MAX_DEPTH} levels")
    try:
        json.dumps(dict(fields), ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        raise BadManifest("the manifest contains half of a surrogate pair, which is not a character") from None


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, Mapping) else value


def _not_allowed(char: str) -> bool:
    """True for characters that no output name may have: separators of paths and lines, control and half characters."""
    return char == "/" or unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")


def with_manifest(spec: JobSpec, manifest: Manifest) -> JobSpec:
    """The job with the manifest's fields in place of the values from the settings."""
    present = {
        "renderer": manifest.renderer,
        "stitch": manifest.stitch,
        "resolution": manifest.resolution,
        "fps": manifest.fps,
        "motion": manifest.motion,
        "av_offset_ms": manifest.av_offset_ms,
        "priority": manifest.priority,
        "out_name": manifest.out_name,
        "name": manifest.out_name,
    }
    changes: dict[str, Any] = {name: value for name, value in present.items() if value is not None}
    return replace(
        spec,
        **changes,
        image_url=manifest.image if classify(manifest.image) != "file" else None,
        audio_url=manifest.audio if manifest.audio is not None and classify(manifest.audio) != "file" else None,
        text=manifest.text,
        voice=manifest.voice,
        ssml=manifest.ssml,
        user_data=manifest.user_data,
        webhook=manifest.webhook,
        options=dict(manifest.options),
        pad_s=manifest.pad_s or 0.0,
        rest=manifest.rest,
    )
