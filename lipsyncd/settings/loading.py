"""Read the settings: from which file, out of which variables, and what to say when one of them is wrong."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from lipsyncd.errors import ConfigError
from lipsyncd.jobs.manifest import nearest, quoted
from lipsyncd.settings.sections import FOLDERS, UNSET, Queue, Rule, Settings, default_storage, home_folder

SYSTEM_FILE = Path("/etc/lipsyncd/lipsyncd.toml")

# Variables that start like a setting and are none: the file, the failpoint, a secret, and what Kubernetes puts into
# every container beside a service that is called lipsyncd.
_NO_SETTING = re.compile(r"LIPSYNCD_(CONFIG|FAIL|API_KEY|SERVICE_(HOST|PORT)(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")
_SWITCH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@dataclass(frozen=True)
class Setting:
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
        return f"LIPSYNCD_{self.section}_{self.key}".upper()

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


def _all_settings() -> Iterator[Setting]:
    for section, kind in SECTIONS.items():
        for item in fields(kind):
            value_kind = Path if isinstance(item.default, Path) else type(item.default)
            yield Setting(section, item.name, value_kind, item.default, item.metadata["rule"])


SECTIONS: Mapping[str, Any] = {
    part.name: part.default_factory for part in fields(Settings) if is_dataclass(part.default_factory)
}
SETTINGS: Mapping[str, Setting] = {setting.name: setting for setting in _all_settings()}

# [queue.NAME] stands in files alone. Its keys mean what the settings of the same rules mean, and default to them.
_QUEUE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_PRIORITY = Setting("queue", "priority", int, 0, Rule("Priority of its jobs.", low=-100, high=100))
_QUEUE_KEYS: Mapping[str, Setting] = {
    "priority": _PRIORITY,
    "renderer": SETTINGS["render.renderer"],
    **{key: SETTINGS[f"output.{key}"] for key in ("stitch", "resolution", "fps")},
}


@dataclass(frozen=True)
class _Said:
    """One value before any check: as it was seen, and as TOML would say it. Relative paths start at `folder`."""

    setting: Setting
    seen: object
    raw: object
    origin: str
    folder: Path


def load(
    config: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    cwd: Path | None = None,
    system_file: Path = SYSTEM_FILE,
) -> Settings:
    """The effective settings. Raises `ConfigError`: one line with the setting, the value, what is allowed, and where.

    config       the file that the caller names; it must exist, as must the one in `$LIPSYNCD_CONFIG`
    environ      a blank variable counts as not set
    cwd          where `lipsyncd.toml` is looked for, and where relative paths from variables start; paths from a
                 file start at the file's folder
    """
    try:
        cwd = (cwd or Path()).absolute()
    except FileNotFoundError:
        raise ConfigError("the working folder does not exist any more", remedy="change to another one") from None
    notes: list[str] = []
    file = _find_file(config, environ, cwd, system_file, notes)
    values: dict[str, Any] = {}
    origins = dict.fromkeys(SETTINGS, "default")
    for said in (*(_said_in_file(*file) if file else ()), *_said_in_variables(environ, cwd)):
        value = _checked(said, environ)
        if value != UNSET:
            values[said.setting.name] = value
            origins[said.setting.name] = said.origin
    if "paths.storage" not in values:
        values["paths.storage"] = default_storage(environ)
        if environ.get("STATE_DIRECTORY"):
            origins["paths.storage"] = "environment STATE_DIRECTORY"

    sections = {
        name: kind(**{item.name: values[full] for item in fields(kind) if (full := f"{name}.{item.name}") in values})
        for name, kind in SECTIONS.items()
    }
    queues = _queues(*file, Settings(**sections), environ) if file else ()
    settings = Settings(**sections, queues=queues, file=file[0] if file else None, origins=origins)
    _check_apart(settings)
    return replace(settings, notes=(*notes, *_notes(settings, environ)))


# -- where values are said ---------------------------------------------------------------------------------------------


def _find_file(
    config: Path | None, environ: Mapping[str, str], cwd: Path, system_file: Path, notes: list[str]
) -> tuple[Path, bytes] | None:
    """The one settings file that counts, with its content."""
    named = config or environ.get("LIPSYNCD_CONFIG")
    path = cwd / named if named else system_file
    try:
        return path, path.read_bytes()
    except OSError as error:
        if named or not isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise ConfigError(
                f"cannot read {path}: {error.strerror}", remedy="correct its name or its rights"
            ) from None
    return _local_file(cwd / "lipsyncd.toml", notes)


def _local_file(path: Path, notes: list[str]) -> tuple[Path, bytes] | None:
    """The file in the working folder, when nobody else can have written it: a stranger's file could name any program.

    Judged by the open descriptor, so that the file that is judged is the file that is read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        notes.append(f"{path} passed over: {error.strerror}")
        return None
    with os.fdopen(descriptor, "rb") as file:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            notes.append(f"{path} passed over: it is no regular file")
        elif info.st_uid != os.geteuid():
            notes.append(f"{path} passed over: it belongs to user {info.st_uid}, not to {os.geteuid()}")
        elif info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            notes.append(f"{path} passed over: others may write it; `chmod go-w` it, or name it with --config")
        else:
            return path, file.read()
    return None


def _tables(path: Path, data: bytes) -> dict[str, Any]:
    import tomllib  # only where there is a file

    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} is not TOML: {reason}", remedy="correct it there") from None


def _said_in_file(path: Path, data: bytes) -> Iterator[_Said]:
    for section, table in _tables(path, data).items():
        if section == "queue":
            continue
        if section not in SECTIONS:
            raise _unknown(section, str(path), SECTIONS)
        if not isinstance(table, dict):
            raise ConfigError(f"{section} is {quoted(table)}, read from {path}", remedy=f"allowed: a table [{section}]")
        for key, raw in table.items():
            name = f"{section}.{key}"
            if name not in SETTINGS:
                raise _unknown(name, str(path), SETTINGS)
            yield _Said(SETTINGS[name], raw, raw, str(path), path.parent)


def _queues(path: Path, data: bytes, settings: Settings, environ: Mapping[str, str]) -> tuple[Queue, ...]:
    """The tables [queue.NAME] of the file. What one does not say, the sections decide."""
    tables = _tables(path, data).get("queue", {})
    if not isinstance(tables, dict):
        raise ConfigError(f"queue is {quoted(tables)}, read from {path}", remedy="allowed: tables [queue.NAME]")
    queues: list[Queue] = []
    for name, table in tables.items():
        if _QUEUE_NAME.fullmatch(name) is None or name.lower() in {queue.name.lower() for queue in queues}:
            remedy = "allowed: 1 to 64 letters, digits, _ and -, each name once without regard to case"
            raise ConfigError(f"a queue is called {quoted(name)}, read from {path}", remedy=remedy)
        if not isinstance(table, dict):
            raise ConfigError(f"queue.{name} is {quoted(table)}, read from {path}", remedy=f"allowed: [queue.{name}]")
        values = {}
        for key, raw in table.items():
            if key not in _QUEUE_KEYS:
                remedy = f"did you mean {nearest(key, _QUEUE_KEYS)}?"
                raise ConfigError(f"unknown setting queue.{name}.{key}, read from {path}", remedy=remedy)
            named = replace(_QUEUE_KEYS[key], section=f"queue.{name}", key=key)
            values[key] = _checked(_Said(named, raw, raw, str(path), path.parent), environ)
        queues.append(replace(settings.queue(), name=name, **values))
    return tuple(queues)


def _said_in_variables(environ: Mapping[str, str], cwd: Path) -> Iterator[_Said]:
    """The original service's variables first, so that `LIPSYNCD_` ones win over them."""
    own = {setting.variable: setting for setting in SETTINGS.values()}
    original = {setting.rule.variable: setting for setting in SETTINGS.values() if setting.rule.variable}
    for name, setting in (*original.items(), *own.items()):
        if text := environ.get(name, "").strip():
            yield _Said(setting, text, _from_text(setting, text), f"environment {name}", cwd)
    for name, text in environ.items():
        if name.startswith("LIPSYNCD_") and text.strip() and name not in own and not _is_no_setting(name, text):
            raise _unknown(name, "the environment", own)


def _is_no_setting(name: str, text: str) -> bool:
    kubernetes_port = name == "LIPSYNCD_PORT" and "://" in text
    return kubernetes_port or _NO_SETTING.fullmatch(name) is not None


def _unknown(seen: str, origin: str, known: Mapping[str, object]) -> ConfigError:
    """The same key in another section is what was most likely meant; else the name that looks most like it."""
    key = seen.rpartition(".")[2]
    elsewhere = next((name for name in SETTINGS if name.endswith(f".{key}")), None)
    return ConfigError(
        f"unknown setting {quoted(seen)}, read from {origin}",
        remedy=f"did you mean {elsewhere or nearest(seen, known)}?",
    )


# -- what a value may be -----------------------------------------------------------------------------------------------


def _from_text(setting: Setting, text: str) -> object:
    """A variable's text as a file would say it. Text that makes no such value stays text, and fails its check."""
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


def _checked(said: _Said, environ: Mapping[str, str]) -> Any:
    """The value in its own type. Raises `ConfigError`."""
    try:
        value = _typed(said, environ)
        rule = said.setting.rule
        within = (rule.low is None or value >= rule.low) and (rule.high is None or value <= rule.high)
        if within and (not rule.choices or value in rule.choices) and (rule.check is None or rule.check(value)):
            return value
    except (TypeError, ValueError, OverflowError):
        pass  # the message below says it for all of them
    raise ConfigError(
        f"{said.setting.name} is {quoted(said.seen)}, read from {said.origin}",
        remedy=f"allowed: {said.setting.allowed}",
    )


def _typed(said: _Said, environ: Mapping[str, str]) -> Any:
    """The raw value as the setting's own type. Raises TypeError, or OverflowError for an endless integer."""
    kind, raw = said.setting.kind, said.raw
    if isinstance(raw, bool) is not (kind is bool):  # Python counts true as a number
        raise TypeError
    if kind in (bool, int) and isinstance(raw, kind):
        return raw
    if kind is float and isinstance(raw, (int, float)) and math.isfinite(raw):
        return float(raw)
    if kind is str and said.setting.rule.number and isinstance(raw, (int, float)):
        return str(raw)
    if kind is tuple and isinstance(raw, list) and all(isinstance(part, str) and part.isprintable() for part in raw):
        return tuple(raw)
    if kind is str and isinstance(raw, str) and raw.isprintable():
        return raw
    if kind is Path and isinstance(raw, str) and "\0" not in raw:
        at_home = raw == "~" or raw.startswith("~/")
        return (home_folder(environ) / raw[2:] if at_home else said.folder / raw) if raw else UNSET
    raise TypeError


def _check_apart(settings: Settings) -> None:
    """A folder inside another would make results into inputs, or let one clean-up remove what another one keeps."""
    real = {name: Path(os.path.realpath(getattr(settings.paths, name))) for name in FOLDERS}
    for one, other in combinations(FOLDERS, 2):
        if real[one] == real[other] or real[one] in real[other].parents or real[other] in real[one].parents:
            blamed, kept = (one, other) if settings.origins[f"paths.{other}"] == "default" else (other, one)
            raise ConfigError(
                f"paths.{blamed} is {quoted(str(getattr(settings.paths, blamed)))}, "
                f"read from {settings.origins[f'paths.{blamed}']}",
                remedy=f"allowed: a folder apart from paths.{kept}, which is {str(real[kept])!r}",
            )


def _notes(settings: Settings, environ: Mapping[str, str]) -> Iterator[str]:
    if environ.get("MUSETALK_DIR"):
        yield "MUSETALK_DIR is set and not needed: no checkout of MuseTalk is used"
    bound, devices = settings.render.max_concurrent_jobs, len(settings.render.devices)
    if bound > devices and settings.origins["render.max_concurrent_jobs"] != "default":
        yield f"render.max_concurrent_jobs is {bound}, an upper bound: one job at a time on each of {devices} device(s)"


# -- showing them ------------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """One setting for `lipsyncd config`; `value` is plain JSON."""

    name: str
    value: str | int | float | bool | list[str]
    origin: str
    help: str


def describe(settings: Settings) -> list[Row]:
    """Every effective value and where it came from, in the order of the reference."""
    rows = []
    for name, setting in SETTINGS.items():
        value = getattr(getattr(settings, setting.section), setting.key)
        plain = str(value) if setting.kind is Path else list(value) if setting.kind is tuple else value
        rows.append(Row(name, plain, settings.origins.get(name, "default"), setting.rule.help))
    for queue in settings.queues:
        for key, setting in _QUEUE_KEYS.items():
            rows.append(Row(f"queue.{queue.name}.{key}", getattr(queue, key), str(settings.file), setting.rule.help))
    return rows


def reference_toml() -> str:
    """The text of `lipsyncd.toml`: every setting at its default, under its help."""
    lines = [
        "# Every setting of lipsyncd at its default. Copy what you change; what is left out stays as it is here.",
        "# Any of them can also be given as LIPSYNCD_<SECTION>_<KEY>, for example LIPSYNCD_RENDER_RENDERER=preview.",
        "# A name in capitals is the original service's variable for the same; where both are set, LIPSYNCD_ wins.",
        "# Relative paths start at the folder of this file.",
    ]
    for section, kind in SECTIONS.items():
        lines += ["", f"# {kind.__doc__}", f"[{section}]"]
        for setting in SETTINGS.values():
            if setting.section == section:
                lines += ["", f"# {setting.rule.help}", *_fine_print(setting)]
                lines.append(f"{setting.key} = {_toml(setting.default)}")
    lines += [
        "",
        "# A folder in the inbox whose jobs have a priority and options of their own; their videos go to the folder of",
        "# the same name in the outbox. Any number of them; what one leaves out, the sections above decide.",
        "# [queue.urgent]",
        "# priority = 50  (from -100 to 100)",
        *(f"# {key} = {_toml(setting.default)}" for key, setting in _QUEUE_KEYS.items() if key != "priority"),
    ]
    return "\n".join(lines) + "\n"


def _fine_print(setting: Setting) -> list[str]:
    """What is allowed, where the default does not say it already, and the original service's name."""
    plain = setting.kind in (bool, Path) or setting.allowed == "text"
    parts = ([] if plain else [setting.allowed]) + ([setting.rule.variable] if setting.rule.variable else [])
    return [f"# ({'; '.join(parts)})"] if parts else []


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(part) for part in value) + "]"
    return json.dumps("" if value == UNSET else value, ensure_ascii=False)
