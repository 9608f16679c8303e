"""The lock list: every file of weights in use, pinned by revision, size and SHA-256.

Owns the grammar of `lock.json`, and of the list that an operator writes for other weights (`weights.lock`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

from lipsyncd.errors import ConfigError
from lipsyncd.jobs.options import effective
from lipsyncd.settings.sections import LOCK_LIST

DTYPES = ("float16", "float32")
EXTRAS = ("parity",)


@dataclass(frozen=True)
class Weight:
    """One file of the list.

    name            its name in commands and messages
    repository      owner/name on the hub; revision: 40 hex digits; path: of the file in the repository
    file            its path in the folder of weights, as in the original's `models/`
    becomes         the safetensors file to convert a pickle to, "" for a file that is used unchanged
    dtype           of the floating-point tensors in that safetensors file
    becomes_sha256  of that safetensors file; "" if unknown: then it is used only where this machine has converted it
    only_for        the renderer's options that need it; empty: every render needs it
    extra           the option whose renders open it where it is there, and wait for nothing where it is not; it is
                    pulled on request (`models pull --parity`). "" for all others
    """

    name: str
    repository: str
    revision: str
    path: str
    file: str
    size_bytes: int
    sha256: str
    licence: str
    purpose: str
    becomes: str = ""
    dtype: str = ""
    becomes_sha256: str = ""
    only_for: Mapping[str, str] = field(default_factory=dict)
    extra: str = ""

    @property
    def used_file(self) -> str:
        """The file that a renderer opens."""
        return self.becomes or self.file

    @property
    def optional(self) -> bool:
        return bool(self.only_for or self.extra)

    def needed(self, options: Mapping[str, object]) -> bool:
        """Does a render with these options fail without it?"""
        given = effective(options)
        return not self.extra and all(given.get(key) == value for key, value in self.only_for.items())

    def welcome(self, options: Mapping[str, object]) -> bool:
        """Does a render with these options open it where it is there?"""
        return bool(self.extra) and options.get(self.extra) is True

    @property
    def source(self) -> tuple[object, ...]:
        """What two entries share that are converted from the same file."""
        return self.repository, self.revision, self.path, self.file, self.size_bytes, self.sha256


def read_lock(path: Path = LOCK_LIST) -> tuple[Weight, ...]:
    """The weights of a lock list, in its order. Raises `ConfigError`, which names the entry and the field."""
    try:
        entries = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"the lock list {path} cannot be read: {error}") from None
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"the lock list {path} is not a JSON array of weights")
    weights = tuple(_weight(entry, f"{path}, entry {n}") for n, entry in enumerate(entries, start=1))
    for attribute in ("name", "used_file"):
        seen = [getattr(weight, attribute) for weight in weights]
        if twice := next((value for value in seen if seen.count(value) > 1), None):
            raise ConfigError(f"the lock list {path} names {twice} twice")
    for weight in weights:
        same = [other for other in weights if other.file == weight.file]
        # A pickle may be converted twice, to files of different precision.
        if len(same) > 1 and not all(other.becomes and other.source == weight.source for other in same):
            raise ConfigError(f"the lock list {path} names {weight.file} twice")
    return weights


def _weight(entry: Any, where: str) -> Weight:
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: not an object")
    known = {item.name for item in fields(Weight)}
    needed = {item.name for item in fields(Weight) if item.default is MISSING and item.default_factory is MISSING}
    if wrong := sorted(entry.keys() - known) or sorted(needed - entry.keys()):
        raise ConfigError(f"{where}: {wrong[0]} is {'unknown' if wrong[0] not in known else 'missing'}")
    for name, value in entry.items():
        if not _RULES.get(name, _is_text)(value):
            raise ConfigError(f"{where}: {name} cannot be {value!r}")
    weight = Weight(**entry)
    if bool(weight.becomes) != bool(weight.dtype):
        raise ConfigError(f"{where}: give becomes and dtype together, or neither")
    if weight.becomes_sha256 and not weight.becomes:
        raise ConfigError(f"{where}: becomes_sha256 without becomes")
    return weight


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_inside(value: object) -> bool:
    """Is it a relative path that stays inside the folder and has no hidden part?"""
    parts = PurePosixPath(value).parts if isinstance(value, str) and _is_text(value) else ()
    return bool(parts) and "\\" not in str(value) and not any(part.startswith((".", "/")) for part in parts)


def _is_hex(digits: int) -> Any:
    return lambda value: isinstance(value, str) and re.fullmatch(rf"[0-9a-f]{{{digits}}}", value) is not None


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _are_options(value: object) -> bool:
    return isinstance(value, dict) and all(_is_text(key) and _is_text(setting) for key, setting in value.items())


_RULES: Mapping[str, Any] = {
    "name": lambda value: isinstance(value, str) and re.fullmatch(r"[a-z][a-z0-9-]*", value) is not None,
    "repository": lambda value: isinstance(value, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", value) is not None,
    "revision": _is_hex(40),
    "path": _is_inside,
    "file": _is_inside,
    "size_bytes": _is_size,
    "sha256": _is_hex(64),
    "becomes": lambda value: _is_inside(value) and value.endswith(".safetensors"),
    "becomes_sha256": _is_hex(64),
    "dtype": lambda value: value in DTYPES,
    "only_for": _are_options,
    "extra": lambda value: value in EXTRAS,
}
