"""Read the settings from a file and from the environment."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from lipsyncd.errors import ConfigError
from lipsyncd.jobs.manifest import nearest, quoted
from lipsyncd.settings.sections import FOLDERS, UNSET, Queue, Settings, default_storage
from lipsyncd.settings.values import QUEUE_KEYS, SECTIONS, SETTINGS, Given, checked, from_text

SYSTEM_FILE = Path("/etc/lipsyncd/lipsyncd.toml")

# Variables that start like a setting and are none: the file, the failpoint, a secret, and what Kubernetes sets in
# every container beside a service that is called lipsyncd.
_NO_SETTING = re.compile(r"LIPSYNCD_(CONFIG|FAIL|API_KEY|SERVICE_(HOST|PORT)(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")
_QUEUE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


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
    for given in (*(_in_file(*file) if file else ()), *_in_variables(environ, cwd)):
        value = checked(given, environ)
        if value != UNSET:
            values[given.setting.name] = value
            origins[given.setting.name] = given.origin
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


# -- where values are read ---------------------------------------------------------------------------------------------


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
    """The file in the working folder, if no other user can have written it: it may name any program to run.

    Checked by the open descriptor, so that the file that is checked is the file that is read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        notes.append(f"{path} ignored: {error.strerror}")
        return None
    with os.fdopen(descriptor, "rb") as file:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            notes.append(f"{path} ignored: it is no regular file")
        elif info.st_uid != os.geteuid():
            notes.append(f"{path} ignored: it belongs to user {info.st_uid}, not to {os.geteuid()}")
        elif info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            notes.append(f"{path} ignored: others may write it; `chmod go-w` it, or name it with --config")
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


def _in_file(path: Path, data: bytes) -> Iterator[Given]:
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
            yield Given(SETTINGS[name], raw, raw, str(path), path.parent)


def _queues(path: Path, data: bytes, settings: Settings, environ: Mapping[str, str]) -> tuple[Queue, ...]:
    """The tables [queue.NAME] of the file. The sections decide what a table leaves open."""
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
            if key not in QUEUE_KEYS:
                remedy = f"did you mean {nearest(key, QUEUE_KEYS)}?"
                raise ConfigError(f"unknown setting queue.{name}.{key}, read from {path}", remedy=remedy)
            named = replace(QUEUE_KEYS[key], section=f"queue.{name}", key=key)
            values[key] = checked(Given(named, raw, raw, str(path), path.parent), environ)
        queues.append(replace(settings.queue(), name=name, **values))
    return tuple(queues)


def _in_variables(environ: Mapping[str, str], cwd: Path) -> Iterator[Given]:
    """The original service's variables first, so that `LIPSYNCD_` ones win over them."""
    own = {setting.variable: setting for setting in SETTINGS.values()}
    original = {setting.rule.variable: setting for setting in SETTINGS.values() if setting.rule.variable}
    for name, setting in (*original.items(), *own.items()):
        if text := environ.get(name, "").strip():
            yield Given(setting, text, from_text(setting, text), f"environment {name}", cwd)
    for name, text in environ.items():
        if name.startswith("LIPSYNCD_") and text.strip() and name not in own and not _is_no_setting(name, text):
            raise _unknown(name, "the environment", own)


def _is_no_setting(name: str, text: str) -> bool:
    kubernetes_port = name == "LIPSYNCD_PORT" and "://" in text
    return kubernetes_port or _NO_SETTING.fullmatch(name) is not None


def _unknown(seen: str, origin: str, known: Mapping[str, object]) -> ConfigError:
    """Proposes the same key in another section, else the most similar name."""
    key = seen.rpartition(".")[2]
    elsewhere = next((name for name in SETTINGS if name.endswith(f".{key}")), None)
    return ConfigError(
        f"unknown setting {quoted(seen)}, read from {origin}",
        remedy=f"did you mean {elsewhere or nearest(seen, known)}?",
    )


def _check_apart(settings: Settings) -> None:
    """Raises `ConfigError` for a folder inside another: results would become inputs, or be removed with others."""
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
        yield "MUSETALK_DIR is set but not needed: lipsyncd uses no checkout of MuseTalk"
    bound, devices = settings.render.max_concurrent_jobs, len(settings.render.devices)
    if bound > devices and settings.origins["render.max_concurrent_jobs"] != "default":
        yield f"render.max_concurrent_jobs is {bound}, an upper bound: one job at a time on each of {devices} device(s)"
