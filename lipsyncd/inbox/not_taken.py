"""Jobs of `submit` and of REST whose manifests still lie in an inbox, for commands that are given their name or id."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from lipsyncd.errors import InputError
from lipsyncd.jobs.job import ID_PATTERN
from lipsyncd.jobs.manifest import MAX_BYTES, parse
from lipsyncd.jobs.values import canonical_id
from lipsyncd.storage.folders import Folders
from lipsyncd.storage.open_folder import OpenFolder

_SUBMITTED = re.compile(r"(?P<name>.+)\.(?P<end>[0-9a-f]{12})\.json", re.DOTALL)
_OF_REST = re.compile(rf"rest-(?P<id>{ID_PATTERN})\.json")
_SHORTEST_GIVEN = 4


@dataclass(frozen=True)
class NotTaken:
    """One job without a row. `file` is its manifest as `lipsyncd status` names it, with the queue before it."""

    job_id: str
    name: str
    file: str


def not_taken(folders: Folders, text: str) -> list[NotTaken]:
    """The jobs of that name, or whose id ends so. An inbox that cannot be read has none."""
    found: list[NotTaken] = []
    for kind in folders.inboxes:
        try:
            with folders.shared[kind].opened() as inbox:
                found += [] if inbox is None else _in_folder(inbox, kind.partition("/")[2], text)
        except OSError:
            continue
    return found


def _in_folder(inbox: OpenFolder, queue: str, text: str) -> Iterator[NotTaken]:
    try:
        job_id = canonical_id(text)
    except ValueError:
        job_id = text.lower()
    for entry in inbox.entries():
        match = _OF_REST.fullmatch(entry.name) or _SUBMITTED.fullmatch(entry.name)
        if match is None:
            continue
        end = match.groupdict().get("id") or match["end"]
        of_id = len(job_id) >= _SHORTEST_GIVEN and (job_id.endswith(end) or end.endswith(job_id))
        if not of_id and match.groupdict().get("name") != text:
            continue
        try:
            manifest = parse(inbox.read(entry.name, MAX_BYTES + 1))
        except (OSError, InputError):
            continue  # it is none of ours, or has been taken at this moment
        if manifest.id is not None and manifest.id.endswith(end):
            file = f"{queue}/{entry.name}" if queue else entry.name
            yield NotTaken(manifest.id, manifest.out_name or "", file)
