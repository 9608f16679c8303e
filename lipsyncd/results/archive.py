"""Where the inputs of ended jobs go: a folder each under failed/ or archive/, and back again for a retry.

    failed/<UTC>-<stem>/     the inputs under their own names, job.json, reason.json
    archive/<day>/<id>/      the inputs under their own names, job.json; reason.json of a cancelled job

A folder appears whole or not at all: it is filled under a hidden name on the same file system, fsynced, and renamed.
"""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path

from lipsyncd.jobs.job import JobSpec, SourceFile
from lipsyncd.jobs.manifest import clean_out_name
from lipsyncd.storage.failpoints import reach
from lipsyncd.storage.files import (
    copy_hashed,
    fsync_folder,
    open_regular,
    read_json,
    remove_tree,
    rename_no_replace,
    umask,
    write_new,
)
from lipsyncd.storage.folders import HIDDEN

_OWN_NAMES = ("job.json", "reason.json")
_ROLE = re.compile(r"image|audio|manifest|extra-\d{1,6}")
_MODE = 0o640
_NAME_TRIES = 1000


def failed_name(spec: JobSpec, at_ms: int) -> str:
    """The name of a failed job's folder: the time, then the stem, so that folders sort by time."""
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y%m%dT%H%M%SZ}-{clean_out_name(spec.name)}"


def archived_name(spec: JobSpec) -> str:
    """A folder for each day, and in it one for each job."""
    return f"{datetime.fromtimestamp(spec.accepted_ms / 1000, UTC):%Y-%m-%d}/{spec.id}"


def put(root: Path, name: str, spec: JobSpec, spooled: Path, *, reason: bytes | None = None) -> Path:
    """Copy a job's inputs from its spool folder to `root/name`; gives the folder. A repeated call finds the first one.

    Another job's folder of that name is left alone: this one's name ends with "-2", "-3", ...
    """
    hidden = root / HIDDEN / f"{spec.id}.keep"
    remove_tree(hidden)
    hidden.mkdir(parents=True)
    roles = {_kept_name(spec, source): source.role for source in spec.sources}  # one name when both roles name one file
    for kept_name, role in roles.items():
        _copy(spooled / role, hidden / kept_name)
    write_new(hidden / "job.json", (json.dumps(spec.to_json(), indent=1) + "\n").encode(), mode=_MODE)
    if reason is not None:
        write_new(hidden / "reason.json", reason, mode=_MODE)
    hidden.chmod(0o770 & ~umask())
    fsync_folder(hidden)
    reach("keep-filled")
    for number in range(1, _NAME_TRIES):
        target = root / (name if number == 1 else f"{name}-{number}")
        _make_day(target.parent, root)
        if (read_json(target / "job.json") or {}).get("id") == spec.id:
            remove_tree(hidden)
            return target
        try:
            rename_no_replace(hidden, target)
        except FileExistsError:
            continue
        fsync_folder(target.parent)
        reach("keep-shown")
        return target
    raise FileExistsError(f"no free folder like {root / name} in {_NAME_TRIES} tries")


def _make_day(folder: Path, root: Path) -> None:
    """The folder that job folders lie in: `root` itself, or a new day of the archive, whose name must be durable."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        fsync_folder(root)


def take_back(kept: Path, spec: JobSpec, spooled: Path) -> None:
    """Copy the inputs of a kept job into a spool folder again."""
    for source in spec.sources:
        _copy(kept / _kept_name(spec, source), spooled / source.role)


def spec_of(kept: Path) -> JobSpec | None:
    """The spec of the job in that folder; None when the folder is gone or damaged.

    Other users can write there: a file that names files outside of it counts as damaged.
    """
    data = read_json(kept / "job.json")
    try:
        spec = None if data is None else JobSpec.from_json(data)
    except (KeyError, TypeError, ValueError):
        return None
    plain = spec is not None and all(_ROLE.fullmatch(s.role) and _is_plain(s.name) for s in spec.sources)
    return spec if plain else None


def _is_plain(name: str) -> bool:
    return "/" not in name and "\0" not in name and name not in ("", ".", "..")


def names_of(spec: JobSpec) -> set[str]:
    """Every file name that `put` may have made in that job's folder."""
    return {*(_kept_name(spec, source) for source in spec.sources), *_OWN_NAMES}


def _kept_name(spec: JobSpec, source: SourceFile) -> str:
    """The name that a file had in the inbox, unless it is one of ours: then with "input-" before it."""
    name, taken = source.name, {other.name for other in spec.sources} | set(_OWN_NAMES)
    if name in _OWN_NAMES:
        while name in taken:
            name = f"input-{name}"
    return name


def _copy(source: Path, target: Path) -> None:
    descriptor = open_regular(source)
    try:
        copy_hashed(descriptor, target, mode=_MODE)
    finally:
        os.close(descriptor)
