"""The pairs of a folder: the picture and the sound of each stem, by the rules of the inbox.

Manifests are refused, since they are orders to a daemon. What is left over is named, and no pair waits for its half.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lipsyncd.errors import AmbiguousPair, InputError, MissingHalf, UsageError
from lipsyncd.inbox.beside import is_temporary
from lipsyncd.inbox.pairing import Drop, Found, group, role_by_bytes
from lipsyncd.inbox.scan import named_role
from lipsyncd.jobs.job import AUDIO, IMAGE, MANIFEST, Identity
from lipsyncd.jobs.manifest import clean_out_name
from lipsyncd.log import printable
from lipsyncd.media import SECOND_SUFFIXES, examine


@dataclass(frozen=True)
class Pair:
    """One video to be made of a folder; with a `fault` in place of its files if they are no pair."""

    name: str
    image: Path | None = None
    audio: Path | None = None
    fault: InputError | None = None


def pairs_of(folder: Path) -> list[Pair]:
    """The pairs of a folder, by name. Raises `UsageError`: it cannot be read, has manifests, or has no pictures."""
    try:
        entries = [entry for entry in os.scandir(os.fsencode(folder)) if entry.is_file()]
    except OSError as error:
        raise UsageError(f"cannot read the folder {str(folder)!r}: {error.strerror}") from error
    roles = {entry.name: named_role(entry.name) for entry in entries if not _is_hidden(entry.name)}
    if manifests := [printable(name) for name, role in sorted(roles.items()) if role == MANIFEST]:
        raise UsageError(
            f"{manifests[0]} is a manifest, and `render` takes the pairs of a folder",
            remedy="move it away, or drop it into the inbox of a daemon",
        )
    found = [_found(entry, role) for entry in entries if (role := roles.get(entry.name)) in (IMAGE, AUDIO)]
    if not found:
        raise UsageError(
            f"the folder {str(folder)!r} has no picture and no sound",
            remedy="put pairs of the same stem there, such as anna.png and anna.wav",
        )
    drops = group(found, {}, unusable={}, pair_timeout_s=0.0).drops
    return sorted((_pair(folder, drop) for drop in drops), key=lambda pair: pair.name)


def _is_hidden(name: bytes) -> bool:
    return name.startswith(b".") or is_temporary(name)


def _found(entry: os.DirEntry[bytes], role: str | None) -> Found:
    descriptor = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        structure = examine(descriptor, status.st_size)
    finally:
        os.close(descriptor)
    by_bytes, film = role_by_bytes(str(role), structure)
    suffix = os.fsdecode(entry.name.rpartition(b".")[2]).lower()
    return Found(
        entry.name,
        by_bytes,
        Identity.of(status),
        film=film,
        gives_way=f".{suffix}" in SECOND_SUFFIXES,
        named_for=str(role),
    )


def _pair(folder: Path, drop: Drop) -> Pair:
    name = clean_out_name(drop.name)
    if drop.refusal is None:
        return Pair(name, folder / drop.files[IMAGE].text, folder / drop.files[AUDIO].text)
    names = ", ".join(printable(file.text) for file in drop.files.values())
    if isinstance(drop.refusal, MissingHalf):
        other = "sound" if all(file.role == IMAGE for file in drop.files.values()) else "picture"
        return Pair(
            name, fault=MissingHalf(f"{names} has no {other} of the same stem", remedy=f"put its {other} there")
        )
    return Pair(name, fault=AmbiguousPair(f"{names} share a stem", remedy="leave one picture and one sound of it"))
