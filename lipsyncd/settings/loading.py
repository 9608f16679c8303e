"""Read the settings from a file and from the environment."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from lipsyncd.errors import ConfigError
from lipsyncd.jobs.options import OPTIONS, names_of
from lipsyncd.jobs.values import nearest, quoted
from lipsyncd.settings.rules import UNSET
from lipsyncd.settings.sections import FOLDERS, Paths, Queue, Settings, default_storage, home_folder
from lipsyncd.settings.values import QUEUE_KEYS, SECTIONS, SETTINGS, Given, attribute, checked, from_text

SYSTEM_FILE = Path("/etc/lipsyncd/lipsyncd.toml")

# Variables that start like a setting and are none: the file, the failpoint, a secret, and what Kubernetes sets in
# every container beside a service that is called lipsyncd.
_NO_SETTING = r"LIPSYNCD_(CONFIG|FAIL|API_KEY|SERVICE_(HOST|PORT)(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)"
_QUEUE_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"


def load(
    config: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    cwd: Path | None = None,
    system_file: Path = SYSTEM_FILE,
) -> Settings:
    """The effective settings.

    Raises `ConfigError` with every fault: for each one line with the setting, the value, what is allowed, and where.

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
    faults: list[ConfigError] = []
    file = _find_file(config, environ, cwd, system_file, notes)
    path, tables = (file[0], _tables(*file, faults)) if file else (None, {})
    values: dict[str, Any] = {}
    origins = dict.fromkeys(SETTINGS, "default")
    in_file = _in_file(path, tables, faults) if path else ()
    for given in (*in_file, *_in_variables(environ, cwd, faults)):
        with _collecting(faults):
            value = checked(given, environ)
            if value != UNSET:
                values[given.setting.name] = value
                origins[given.setting.name] = given.origin
    if "paths.storage" not in values:
        values["paths.storage"] = default_storage(environ)
        if environ.get("STATE_DIRECTORY"):
            origins["paths.storage"] = "environment STATE_DIRECTORY"

    sections = {
        attribute(name): kind(
            **{item.name: values[full] for item in fields(kind) if (full := f"{name}.{item.name}") in values}
        )
        for name, kind in SECTIONS.items()
    }
    queues = _queues(path, tables, Settings(**sections), environ, faults) if path else ()
    settings = Settings(**sections, queues=queues, file=path, origins=origins)
    if not any(fault.message.startswith(("render.renderers ", f"{path} is not TOML")) for fault in faults):
        faults += renderer_faults(settings)
    faults += [*_folder_faults(settings), *_outbox_faults(settings), *_cluster_faults(settings)]
    if faults:
        raise ConfigError.of(faults)
    return replace(settings, notes=(*notes, *_notes(settings, environ)))


def names_folders(settings: Settings) -> bool:
    """Does a file or a variable decide where the folders are? If none does, a command may follow a running daemon."""
    return settings.file is not None or any(
        origin != "default" for name, origin in settings.origins.items() if name.startswith("paths.")
    )


def with_folders(settings: Settings, folders: Mapping[str, Path], queues: Iterable[str], origin: str) -> Settings:
    """The settings with the folders and queues of a running daemon; `origin` says where they were read."""
    weights = settings.weights
    if settings.origins.get("weights.dir", "default") == "default":
        weights = replace(weights, dir=UNSET)
    return replace(
        settings,
        paths=Paths(**folders, min_free_mb=settings.paths.min_free_mb),
        weights=weights,
        queues=tuple([replace(settings.queue(), name=name) for name in queues]),
        origins={**settings.origins, **{f"paths.{name}": origin for name in folders}},
    )


@contextmanager
def _collecting(faults: list[ConfigError]) -> Iterator[None]:
    """Add the fault that is raised in the block to the others, so that the user learns of all at once."""
    try:
        yield
    except ConfigError as fault:
        faults.append(fault)


# -- where values are read ---------------------------------------------------------------------------------------------


def _find_file(
    config: Path | None, environ: Mapping[str, str], cwd: Path, system_file: Path, notes: list[str]
) -> tuple[Path, bytes] | None:
    """The one settings file that counts, with its content: the first that is there."""
    named = config or environ.get("LIPSYNCD_CONFIG")
    path = cwd / named if named else system_file
    try:
        return path, path.read_bytes()
    except OSError as error:
        if named or not isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise ConfigError(
                f"cannot read {path}: {error.strerror}", remedy="correct its name or its rights"
            ) from None
    return _own_file(personal_file(environ), notes) or _own_file(cwd / "lipsyncd.toml", notes)


def personal_file(environ: Mapping[str, str]) -> Path | None:
    """The caller's own settings file, in $XDG_CONFIG_HOME or ~/.config; None for a user without a home."""
    given = environ.get("XDG_CONFIG_HOME", "")
    try:
        folder = Path(given) if given.startswith("/") else home_folder(environ) / ".config"
    except ConfigError:
        return None
    return folder.absolute() / "lipsyncd" / "lipsyncd.toml"


def _own_file(path: Path | None, notes: list[str]) -> tuple[Path, bytes] | None:
    """The file, if no other user can have written it: it may name any program to run.

    Checked by the open descriptor, so that the file that is checked is the file that is read.
    """
    if path is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
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


def _tables(path: Path, data: bytes, faults: list[ConfigError]) -> dict[str, Any]:
    import tomllib  # only where there is a file

    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        faults.append(ConfigError(f"{path} is not TOML: {reason}", remedy="correct it there"))
        return {}


def _in_file(path: Path, tables: Mapping[str, Any], faults: list[ConfigError]) -> Iterator[Given]:
    for section, table in tables.items():
        if section == "queue":
            continue
        if section not in SECTIONS:
            faults.append(_unknown(section, str(path), SECTIONS))
            continue
        if not isinstance(table, dict):
            remedy = f"allowed: a table [{section}]"
            faults.append(ConfigError(f"{section} is {quoted(table)}, read from {path}", remedy=remedy))
            continue
        for key, raw in table.items():
            name = f"{section}.{key}"
            if name in SECTIONS:
                yield from _in_file(path, {name: raw}, faults)
            elif name in SETTINGS:
                yield Given(SETTINGS[name], raw, raw, str(path), path.parent)
            else:
                faults.append(_unknown(name, str(path), SETTINGS))


def _queues(
    path: Path, tables: Mapping[str, Any], settings: Settings, environ: Mapping[str, str], faults: list[ConfigError]
) -> tuple[Queue, ...]:
    """The tables [queue.NAME] of the file. The sections decide what a table leaves open."""
    given = tables.get("queue", {})
    if not isinstance(given, dict):
        faults.append(ConfigError(f"queue is {quoted(given)}, read from {path}", remedy="allowed: tables [queue.NAME]"))
        return ()
    queues: list[Queue] = []
    for name, table in given.items():
        with _collecting(faults):
            if re.fullmatch(_QUEUE_NAME, name) is None or name.lower() in {queue.name.lower() for queue in queues}:
                remedy = "allowed: 1 to 64 letters, digits, _ and -, each name once without regard to case"
                raise ConfigError(f"a queue is called {quoted(name)}, read from {path}", remedy=remedy)
            if not isinstance(table, dict):
                what = f"queue.{name} is {quoted(table)}, read from {path}"
                raise ConfigError(what, remedy=f"allowed: [queue.{name}]")
            queues.append(replace(settings.queue(), name=name, **_of_queue(path, name, table, environ, faults)))
    return tuple(queues)


def _of_queue(
    path: Path, name: str, table: Mapping[str, Any], environ: Mapping[str, str], faults: list[ConfigError]
) -> dict[str, Any]:
    """The values in the table of one queue."""
    values = {}
    for key, raw in table.items():
        with _collecting(faults):
            if key not in QUEUE_KEYS:
                remedy = f"did you mean {nearest(key, QUEUE_KEYS)}?"
                raise ConfigError(f"unknown setting queue.{name}.{key}, read from {path}", remedy=remedy)
            named = replace(QUEUE_KEYS[key], section=f"queue.{name}", key=key)
            values[key] = checked(Given(named, raw, raw, str(path), path.parent), environ)
    return values


def _in_variables(environ: Mapping[str, str], cwd: Path, faults: list[ConfigError]) -> Iterator[Given]:
    """The original service's variables first, so that `LIPSYNCD_` ones win over them."""
    own = {setting.variable: setting for setting in SETTINGS.values()}
    original = {setting.rule.variable: setting for setting in SETTINGS.values() if setting.rule.variable}
    for name, setting in (*original.items(), *own.items()):
        if text := environ.get(name, "").strip():
            yield Given(setting, text, from_text(setting, text), f"environment {name}", cwd)
    for name, text in environ.items():
        if name.startswith("LIPSYNCD_") and text.strip() and name not in own and not _is_no_setting(name, text):
            faults.append(_unknown(name, "the environment", own))


def _is_no_setting(name: str, text: str) -> bool:
    kubernetes_port = name == "LIPSYNCD_PORT" and "://" in text
    return kubernetes_port or re.fullmatch(_NO_SETTING, name) is not None


def _unknown(seen: str, origin: str, known: Mapping[str, object]) -> ConfigError:
    """Proposes the same key in another section, else the most similar name."""
    key = seen.rpartition(".")[2]
    elsewhere = next((name for name in SETTINGS if name.endswith(f".{key}")), None)
    return ConfigError(
        f"unknown setting {quoted(seen)}, read from {origin}",
        remedy=f"did you mean {elsewhere or nearest(seen, known)}?",
    )


def renderer_faults(settings: Settings) -> Iterator[ConfigError]:
    """The renderers of the sections and of the queues that there are not: they would fail every job."""
    named = {"render.renderer": (settings.render.renderer, settings.origins.get("render.renderer", "default"))}
    for queue in settings.queues:
        if queue.renderer != settings.render.renderer:
            named[f"queue.{queue.name}.renderer"] = (queue.renderer, str(settings.file))
    known = sorted({*OPTIONS, *names_of(settings.render.renderers)})
    for setting, (renderer, origin) in named.items():
        if renderer not in known:
            yield ConfigError(
                f"{setting} is {quoted(renderer)}, read from {origin}",
                remedy=f"allowed: one of {', '.join(known)}; render.renderers adds others",
            )


def _folder_faults(settings: Settings) -> Iterator[ConfigError]:
    """The folders that lie inside another one: results would become inputs, or be removed with others."""
    real = {name: Path(os.path.realpath(getattr(settings.paths, name))) for name in FOLDERS}
    for one, other in combinations(FOLDERS, 2):
        if real[one] == real[other] or real[one] in real[other].parents or real[other] in real[one].parents:
            blamed, kept = (one, other) if settings.origins[f"paths.{other}"] == "default" else (other, one)
            yield ConfigError(
                f"paths.{blamed} is {quoted(str(getattr(settings.paths, blamed)))}, "
                f"read from {settings.origins[f'paths.{blamed}']}",
                remedy=f"allowed: a folder apart from paths.{kept}, which is {str(real[kept])!r}",
            )


def _outbox_faults(settings: Settings) -> Iterator[ConfigError]:
    """A queue's folder in the outbox that is the one for REST, too, where the file server knows no upper case."""
    folder, origin = settings.web.outbox_folder, settings.origins["web.outbox_folder"]
    if folder.lower() in {queue.name.lower() for queue in settings.queues}:
        remedy = "allowed: a name that no queue has"
        yield ConfigError(f"web.outbox_folder is {quoted(folder)}, read from {origin}", remedy=remedy)


def _cluster_faults(settings: Settings) -> Iterator[ConfigError]:
    """A cluster without a shared folder, or with one that is another folder of ours."""
    share, folders = settings.roots.share, [getattr(settings.paths, name) for name in FOLDERS]
    if settings.executor.kind == "ray" and (share == UNSET or share in folders):
        origin = settings.origins["roots.share"]
        seen = "" if share == UNSET else str(share)
        remedy = "allowed: a folder that all machines of the cluster mount, apart from the daemon's other folders"
        yield ConfigError(f"roots.share is {quoted(seen)}, read from {origin}", remedy=remedy)


def _notes(settings: Settings, environ: Mapping[str, str]) -> Iterator[str]:
    if environ.get("MUSETALK_DIR"):
        yield "MUSETALK_DIR is set but not needed: lipsyncd uses no checkout of MuseTalk"
    bound, devices = settings.render.max_concurrent_jobs, len(settings.render.devices)
    if bound > devices and settings.origins["render.max_concurrent_jobs"] != "default":
        yield f"render.max_concurrent_jobs is {bound}, an upper bound: one job at a time on each of {devices} device(s)"
