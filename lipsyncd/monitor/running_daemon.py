"""The pointer of a running daemon: how a command in a second terminal finds a daemon with folders of its own.

A daemon whose folders come from a variable or from a file named on its command line is invisible to a command that has
neither. So it writes its folders into a small file: below $RUNTIME_DIRECTORY (systemd's, for a service), else
$XDG_RUNTIME_DIR (a login's), else /run/lipsyncd (root's). A command believes that file only if no other user can have
written it and the daemon's lock is held.

Owns that file. `cli.app` decides when a command may follow it.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lipsyncd.monitor.held_lock import is_held
from lipsyncd.settings.sections import FOLDERS, Settings
from lipsyncd.storage.files import json_object, write_json

SYSTEM_FOLDER = Path("/run/lipsyncd")
SERVICE_USER = "lipsyncd"
_NAME = "lipsyncd-daemon.json"
_MOST_BYTES = 64 * 1024
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True)
class RunningDaemon:
    """What a pointer says: the pointer's own path, the daemon's folders by the names in [paths], and its queues."""

    pointer: Path
    paths: Mapping[str, Path]
    queues: tuple[str, ...]


class Pointer:
    """The pointer that this daemon has written. `remove` takes it away, unless it is another daemon's by now."""

    def __init__(self, path: Path, content: Mapping[str, Any]) -> None:
        self._path = path
        self._content = dict(content)

    def remove(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            if json.loads(self._path.read_bytes()) == self._content:
                self._path.unlink()


def leave_pointer(settings: Settings, environ: Mapping[str, str] = os.environ) -> Pointer | None:
    """Write the pointer of this daemon, which holds its lock. None where there is no place for one.

    The pointer of another daemon that runs stays: who has two names the folders of each.
    """
    folder = _own_folder(environ)
    if folder is None:
        return None
    found = _read(folder)
    if found is not None and found.paths["state"] != settings.paths.state and is_held(found.paths["state"]):
        return None
    content = {
        "pid": os.getpid(),
        "paths": {name: str(getattr(settings.paths, name)) for name in ("storage", *FOLDERS)},
        "queues": [queue.name for queue in settings.queues],
    }
    try:
        write_json(folder / _NAME, content, mode=0o644)
        (folder / _NAME).chmod(0o644)  # a service has a stricter umask
    except OSError:
        return None  # a convenience: the daemon runs without it
    return Pointer(folder / _NAME, content)


def find_daemon(environ: Mapping[str, str] = os.environ, system_folder: Path = SYSTEM_FOLDER) -> RunningDaemon | None:
    """The daemon that a believable pointer names and whose lock is held; the caller's own comes first."""
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    folders = [*([Path(runtime)] if runtime.startswith("/") else []), system_folder]
    for folder in folders:
        found = _read(folder, also=_service_user() if folder == system_folder else None)
        if found is not None and is_held(found.paths["state"]):
            return found
    return None


def _own_folder(environ: Mapping[str, str]) -> Path | None:
    """Where this process leaves its pointer: a folder that is its own, and that no other user may write."""
    for name in ("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"):
        folder = environ.get(name, "").partition(":")[0]
        if folder.startswith("/"):
            return Path(folder) if _is_trusted(Path(folder), {os.geteuid()}, stat.S_ISDIR) else None
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):
            SYSTEM_FOLDER.mkdir(mode=0o755, exist_ok=True)
            return SYSTEM_FOLDER if _is_trusted(SYSTEM_FOLDER, {0}, stat.S_ISDIR) else None
    return None


def _read(folder: Path, *, also: int | None = None) -> RunningDaemon | None:
    """The pointer in a folder; None unless folder and file belong to the caller, to root, or to the user `also`.

    The file is checked by its open descriptor, so what was checked is what is read.
    """
    owners = {os.geteuid(), 0} | ({also} if also is not None else set())
    if not _is_trusted(folder, owners, stat.S_ISDIR):
        return None
    try:
        descriptor = os.open(folder / _NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        info = os.fstat(descriptor)
        if not (stat.S_ISREG(info.st_mode) and info.st_uid in owners and not info.st_mode & _OTHERS_MAY_WRITE):
            return None
        return _parsed(folder / _NAME, file.read(_MOST_BYTES))


def _is_trusted(path: Path, owners: set[int], is_kind: Any) -> bool:
    try:
        info = path.lstat()
    except OSError:
        return False
    return is_kind(info.st_mode) and info.st_uid in owners and not info.st_mode & _OTHERS_MAY_WRITE


def _parsed(pointer: Path, content: bytes) -> RunningDaemon | None:
    found = json_object(content) or {}
    paths, queues = found.get("paths"), found.get("queues")
    if not isinstance(paths, dict) or not isinstance(queues, list):
        return None
    names = ("storage", *FOLDERS)
    if not all(isinstance(paths.get(name), str) and paths[name].startswith("/") for name in names):
        return None
    if not all(isinstance(name, str) for name in queues):
        return None
    return RunningDaemon(pointer, {name: Path(paths[name]) for name in names}, tuple(queues))


def _service_user() -> int | None:
    import pwd

    with contextlib.suppress(KeyError):
        return pwd.getpwnam(SERVICE_USER).pw_uid
    return None
