"""Every single setting: its kind, its rule, and the checks that turn a given value into one of its own kind."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from lipsyncd.errors import ConfigError
from lipsyncd.jobs.values import quoted
from lipsyncd.settings.rules import UNSET, Rule
from lipsyncd.settings.section import Section
from lipsyncd.settings.sections import Settings, home_folder

_SWITCH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


class Setting(Section):
    """One setting: a field of a section, with its rule. `kind` is bool, int, float, str, tuple or Path."""

    section: str
    key: str
    kind: type
    default: Any
    rule: Rule

    @property
    def name(self) -> str:
        return f"{self.section}.{self.key}"

    @property
    def variable(self) -> str:
        return f"LIPSYNCD_{attribute(self.section)}_{self.key}".upper()

    @property
    def allowed(self) -> str:
        """What its value may be, for people."""
        rule = self.rule
        if rule.allowed or rule.choices:
            return rule.allowed or f"one of {', '.join(rule.choices)}"
        noun = {bool: "true or false", int: "a whole number", float: "a number", str: "text", tuple: "a list of texts"}
        low = "" if rule.low is None else f" from {rule.low:g}"
        high = " up" if low and rule.high is None else "" if rule.high is None else f" to {rule.high:g}"
        return noun.get(self.kind, "the path of a folder") + low + high


def attribute(section: str) -> str:
    """The attribute of `Settings` that holds a section: `executor_ray` holds [executor.ray]."""
    return section.replace(".", "_")


def _all_settings() -> Iterator[Setting]:
    for section, kind in SECTIONS.items():
        for item in fields(kind):
            value_kind = Path if isinstance(item.default, Path) else type(item.default)
            yield Setting(section, item.name, value_kind, item.default, item.metadata["rule"])


SECTIONS: Mapping[str, Any] = {
    part.name.replace("_", "."): part.default_factory for part in fields(Settings) if is_dataclass(part.default_factory)
}
SETTINGS: Mapping[str, Setting] = {setting.name: setting for setting in _all_settings()}

# The keys of [queue.NAME] mean what the settings of the same rules mean, and default to them.
_PRIORITY = Setting("queue", "priority", int, 0, Rule("Priority of its jobs.", low=-100, high=100))
QUEUE_KEYS: Mapping[str, Setting] = {
    "priority": _PRIORITY,
    "renderer": SETTINGS["render.renderer"],
    **{key: SETTINGS[f"output.{key}"] for key in ("stitch", "resolution", "fps", "motion", "av_offset_ms")},
}


class Given(Section):
    """One value before any check.

    seen    as it was written
    raw     as TOML would give it
    origin  where it was read
    folder  where a relative path starts
    """

    setting: Setting
    seen: object
    raw: object
    origin: str
    folder: Path


def from_text(setting: Setting, text: str) -> object:
    """A variable's text as TOML would give it. Text that is no such value stays text, and fails its check."""
    try:
        if setting.kind is bool:
            return _SWITCH.get(text.lower(), text)
        if setting.kind in (int, float):
            return setting.kind(text)
    except ValueError:
        return text
    if setting.kind is tuple:
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def checked(given: Given, environ: Mapping[str, str]) -> Any:
    """The value in its own type. Raises `ConfigError`."""
    try:
        value, rule = _typed(given, environ), given.setting.rule
        if rule.plain is not None:
            value = rule.plain(value)
        within = (rule.low is None or value >= rule.low) and (rule.high is None or value <= rule.high)
        if within and (not rule.choices or value in rule.choices) and (rule.check is None or rule.check(value)):
            return value
    except (TypeError, ValueError, OverflowError):
        pass  # one message for all of them follows
    raise ConfigError(
        f"{given.setting.name} is {quoted(given.seen)}, read from {given.origin}",
        remedy=f"allowed: {given.setting.allowed}",
    )


def _typed(given: Given, environ: Mapping[str, str]) -> Any:
    """The raw value as the setting's own type. Raises TypeError, or OverflowError for an endless integer."""
    kind, raw = given.setting.kind, given.raw
    if isinstance(raw, bool) is not (kind is bool):  # Python counts true as a number
        raise TypeError
    if kind in (bool, int) and isinstance(raw, kind):
        return raw
    if kind is float and isinstance(raw, (int, float)) and math.isfinite(raw):
        return float(raw)
    if kind is str and given.setting.rule.number and isinstance(raw, (int, float)):
        return str(raw)
    if kind is tuple and isinstance(raw, list) and all(isinstance(part, str) and part.isprintable() for part in raw):
        return tuple(raw)
    if kind is str and isinstance(raw, str) and raw.isprintable():
        return raw
    if kind is Path and isinstance(raw, str) and "\0" not in raw:
        at_home = raw == "~" or raw.startswith("~/")
        return (home_folder(environ) / raw[2:] if at_home else given.folder / raw) if raw else UNSET
    raise TypeError
