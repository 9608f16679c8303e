"""Where the inputs of ended jobs go: a folder each under failed/ or archive/, and back again for a retry.

    failed/<UTC>-<stem>/     the inputs under their own names, job.json, reason.json
    archive/<day>/<id>/      the inputs under their own names, job.json; reason.json of a cancelled job

A folder appears whole or not at all: it is filled in our hidden folder, where no one else can reach it, fsynced, and
renamed. Members may change what lies in failed/ afterwards: what is read there is checked, through one descriptor.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from lipsyncd.jobs.job import JobSpec, SourceFile
from lipsyncd.jobs.manifest import clean_out_name
from lipsyncd.storage.failpoints import reach
from lipsyncd.storage.files import NotRegular, copy_hashed, copy_into, open_regular
from lipsyncd.storage.open_folder import Name, OpenFolder
from lipsyncd.storage.shared_folders import SharedFolder

JOB, REASON = "job.json", "reason.json"
_OWN_NAMES = (JOB, REASON)
_MODE = 0o640
_DAY_MODE = 0o755
_FOLDER_MODE = 0o770
_NAME_TRIES = 1000


def failed_name(spec: JobSpec, at_ms: int) -> tuple[str, ...]:
    """The name of a failed job's folder: the time, then the stem, so that folders sort by time."""
    return (f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y%m%dT%H%M%SZ}-{clean_out_name(spec.name)}",)


def archived_name(spec: JobSpec) -> tuple[str, ...]:
    """A folder for each day, and in it one for each job."""
    return f"{datetime.fromtimestamp(spec.accepted_ms / 1000, UTC):%Y-%m-%d}", spec.id


def put(
    shared: SharedFolder, parts: Sequence[str], spec: JobSpec, spooled: Path, *, reason: bytes | None = None
) -> str:
    """Copy a job's inputs from its spool folder to where `parts` lead; gives the folder's place for messages.

    A repeated call finds the first one. Another job's folder of that name is left alone: this one's name ends with
    "-2", "-3", ... Raises OSError, also while the shared folder is not mounted.
    """
    with shared.opened() as root:
        if root is None:
            raise OSError(shared.absence)
        with shared.private(root) as private:
            hidden = f"{spec.id}.keep"
            private.remove_tree(hidden)
            with private.make(hidden, _FOLDER_MODE) as folder:
                _fill(folder, spec, spooled, reason)
            reach("keep-filled")
            with _day(root, parts[:-1]) as day:
                shown = _show(private, hidden, day, parts[-1], spec.id)
                day.fsync()
    reach("keep-shown")
    return f"{shared.where}/{'/'.join((*parts[:-1], shown))}"


def _fill(folder: OpenFolder, spec: JobSpec, spooled: Path, reason: bytes | None) -> None:
    roles = {_kept_name(spec, source): source.role for source in spec.sources}  # one name when both roles name one file
    for kept_name, role in roles.items():
        source = open_regular(spooled / role)
        try:
            copy_into(source, folder.create(kept_name, _MODE))
        finally:
            os.close(source)
    folder.write(JOB, (json.dumps(spec.to_json(), indent=1) + "\n").encode(), mode=_MODE)
    if reason is not None:
        folder.write(REASON, reason, mode=_MODE)
    folder.fsync()


@contextmanager
def _day(root: OpenFolder, parts: Sequence[str]) -> Iterator[OpenFolder]:
    """The folder that job folders lie in: `root` itself, or a day of the archive. The name of a new one is durable."""
    if not parts:
        yield root
        return
    is_new = root.status(parts[0]) is None
    with root.make(parts[0], _DAY_MODE) as day:
        if is_new:
            root.fsync()
        yield day


def _show(private: OpenFolder, hidden: str, day: OpenFolder, name: str, job_id: str) -> str:
    """Give the filled folder the first name that is free, unless the job has its folder there; returns that name."""
    for number in range(1, _NAME_TRIES):
        wanted = name if number == 1 else f"{name}-{number}"
        if _is_of(day, wanted, job_id):
            private.remove_tree(hidden)
            return wanted
        with contextlib.suppress(FileExistsError):
            private.rename(hidden, day, wanted)
            return wanted
    raise FileExistsError(f"no free folder like {day.shown(name)} in {_NAME_TRIES} tries")


def _is_of(day: OpenFolder, name: Name, job_id: str) -> bool:
    """Is it a folder with the inputs of that job?"""
    try:
        with day.enter(name) as folder:
            return (folder.read_json(JOB) or {}).get("id") == job_id
    except (FileNotFoundError, NotRegular):
        return False


def take_back(kept: OpenFolder, spec: JobSpec, spooled: Path) -> None:
    """Copy the inputs of a kept job into a spool folder again."""
    for source in spec.sources:
        descriptor = kept.open(_kept_name(spec, source))
        try:
            copy_hashed(descriptor, spooled / source.role, mode=_MODE)
        finally:
            os.close(descriptor)


def open_input(kept: OpenFolder, spec: JobSpec, role: str) -> int:
    """A descriptor of the kept input of that role. Raises `FileNotFoundError` when the job took no such file."""
    source = next((source for source in spec.sources if source.role == role), None)
    if source is None:
        raise FileNotFoundError(f"job {spec.id} took no {role} from the inbox")
    return kept.open(_kept_name(spec, source))


def spec_of(kept: OpenFolder) -> JobSpec | None:
    """The spec of the job in that folder; None when it is damaged, or was changed to name other files."""
    data = kept.read_json(JOB)
    try:
        return None if data is None else JobSpec.from_json(data)
    except (KeyError, TypeError, ValueError):
        return None


def remove(shared: SharedFolder, parts: Sequence[str], job_id: str) -> bool:
    """Remove the inputs of a job, and their folder unless it holds other files; False when it is another's, or gone.

    The folder is moved into our hidden one first; a folder that turns out to be another's gets its name back. Raises
    OSError of the disk.
    """
    with shared.opened() as root:
        if root is None:
            raise OSError(shared.absence)
        emptied: list[str] = []

        def empty(here: OpenFolder, name: Name) -> bool:
            if not _empty(here, name, job_id):
                return False
            emptied.append(job_id)
            return _is_empty(here, name)

        try:
            with root.walk(parts[:-1]) as day, shared.removal(root) as removal:
                removal.take(day, parts[-1], empty)
                day.fsync()
        except (FileNotFoundError, NotRegular):
            return False
        if len(parts) > 1:
            with contextlib.suppress(OSError):  # a day of the archive with other jobs
                root.remove_folder(parts[0])
    return bool(emptied)


def _empty(here: OpenFolder, name: Name, job_id: str | None = None) -> bool:
    """Remove our files from a job's folder; False when it is another's.

    job_id  whose folder it has to be; None for that of any job
    """
    try:
        folder = here.enter(name)
    except NotRegular:
        return False
    with folder:
        spec = spec_of(folder)
        if spec is None or job_id not in (None, spec.id):
            return False
        for one in sorted(names_of(spec) - {JOB}):
            with contextlib.suppress(IsADirectoryError):
                folder.remove(one)
        folder.fsync()
        folder.remove(JOB)
    return True


def _is_empty(here: OpenFolder, name: Name) -> bool:
    """Is it a folder without files? One with files of others stays."""
    try:
        with here.enter(name) as folder:
            return not folder.entries()
    except NotRegular:
        return False


def sweep(shared: SharedFolder) -> int:
    """End the removals that a crash interrupted; gives their number."""

    def end(here: OpenFolder, name: Name) -> bool:
        _empty(here, name)
        return _is_empty(here, name)

    return shared.sweep_removals(end)


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
