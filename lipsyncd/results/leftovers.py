"""The files that ended jobs and uploads leave: list them with place, age and size, and remove them.

    outbox     a finished video with its sidecar
    archive    the inputs of a finished or cancelled job
    failed     the inputs of a failed job, and the reason
    results    the video that is kept in the state folder
    uploads    files that a client of the REST service sent

A piece is a group of files that go together. It is ours if a file of ours in it proves so: the sidecar, `job.json`,
`facts.json`. All other files in these folders stay, and so do the folders that hold them. Links are never followed: a
folder is opened step by step from its root, the proof is read again through that descriptor, and names are unlinked in
it. Other people use a shared folder too, and its content may change at any moment.

Leaves the question which of them have expired to `retention`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lipsyncd.jobs.job import ID_PATTERN
from lipsyncd.results import archive
from lipsyncd.storage.files import NotRegular, open_regular
from lipsyncd.storage.uploads import Uploads

OUTBOX, ARCHIVE, FAILED, RESULTS, UPLOADS = KINDS = ("outbox", "archive", "failed", "results", "uploads")

_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_ID = re.compile(ID_PATTERN)
_MOST_PROOF_BYTES = 1 << 20
_GONE = (FileNotFoundError, NotADirectoryError, NotRegular)


@dataclass(frozen=True)
class Piece:
    """Files that belong to one job or upload and go together.

    root, parts  their folder: `root`, and the folders that lead from there to it
    names        the files, in the order of their removal; the last one is the proof that they are ours
    at_s         when they were written, seconds since 1970; 0 if they may go at once
    exempt       an open job needs it, or its client asked to persist the result
    persists     an upload that its client asked to persist: only its size counts, and the others go first
    """

    kind: str
    id: str
    root: Path
    parts: tuple[str, ...]
    names: tuple[str, ...]
    at_s: float
    size_bytes: int
    device: int
    exempt: bool = False
    persists: bool = False

    @property
    def folder(self) -> Path:
        return self.root.joinpath(*self.parts)


# -- listing -----------------------------------------------------------------------------------------------------------


def published(root: Path, persisting: Collection[str]) -> Iterator[Piece]:
    """The videos in an outbox, and in its folders of queues.

    When a consumer has taken the video, its sidecar stays; a skipped redrop has only a sidecar.
    """
    for parts in ((), *((name,) for name in _folders_in(root))):
        for entry in _files_in(root.joinpath(*parts)):
            facts = facts_in(Path(entry.path)) if entry.name.endswith(".json") else {}
            if not _is_sidecar(facts):
                continue
            if _stands_beside(entry.name, facts["video"], facts["id"]):
                yield from _video(OUTBOX, root, parts, entry, facts, facts["video"], persisting)
            elif facts.get("duplicate_of"):
                yield from _video(OUTBOX, root, parts, entry, facts, None, persisting)


def kept_results(root: Path, persisting: Collection[str]) -> Iterator[Piece]:
    """The videos in `state/results`, each named by its job's id."""
    for entry in _files_in(root):
        job_id = entry.name.removesuffix(".json")
        facts = facts_in(Path(entry.path)) if _ID.fullmatch(job_id) else {}
        if _is_sidecar(facts) and facts["id"] == job_id:
            yield from _video(RESULTS, root, (), entry, facts, f"{job_id}.mp4", persisting)


def _is_sidecar(facts: dict[str, Any]) -> bool:
    texts = all(isinstance(facts.get(name), str) for name in ("lipsyncd", "id", "sha256", "video"))
    return texts and "bytes" in facts and _ID.fullmatch(facts["id"]) is not None


def _stands_beside(sidecar: str, video: str, job_id: str) -> bool:
    """Does the sidecar have its video's name, or the longer one that it gets when that name was taken?"""
    stem = video.removesuffix(".mp4")
    return video != stem and "/" not in video and sidecar in (f"{stem}.json", f"{stem} {job_id}.json")


def _video(
    kind: str,
    root: Path,
    parts: tuple[str, ...],
    sidecar: os.DirEntry[str],
    facts: dict[str, Any],
    video: str | None,
    persisting: Collection[str],
) -> Iterator[Piece]:
    """The piece; none when a foreign file has the video's name by now."""
    status = sidecar.stat(follow_symlinks=False)
    names, size = [sidecar.name], status.st_size
    if video is not None and os.path.lexists(path := root.joinpath(*parts, video)):
        there = path.lstat()
        if not _is_regular(there) or there.st_size != facts["bytes"]:
            return
        names, size = [video, sidecar.name], size + there.st_size
    exempt = bool(facts.get("persist")) or facts["id"] in persisting
    yield Piece(kind, facts["id"], root, parts, tuple(names), status.st_mtime, size, status.st_dev, exempt)


def archived(root: Path, persisting: Collection[str]) -> Iterator[Piece]:
    """The folders <day>/<id> of an archive."""
    for day in _folders_in(root):
        for job_id in _folders_in(root / day) if _DAY.fullmatch(day) else ():
            yield from _inputs(ARCHIVE, root, (day, job_id), persisting)


def failed(root: Path, persisting: Collection[str]) -> Iterator[Piece]:
    """The folders <time>-<stem> of failed jobs."""
    for name in _folders_in(root):
        yield from _inputs(FAILED, root, (name,), persisting)


def _inputs(kind: str, root: Path, parts: tuple[str, ...], persisting: Collection[str]) -> Iterator[Piece]:
    folder = root.joinpath(*parts)
    spec = archive.spec_of(folder)
    if spec is None or (kind == ARCHIVE and spec.id != parts[-1]):
        return
    ours = archive.names_of(spec)
    found = {entry.name: entry.stat(follow_symlinks=False) for entry in _files_in(folder) if entry.name in ours}
    proof = found.get("job.json")
    if proof is None or (kind == FAILED and "reason.json" not in found):
        return
    names = (*sorted(found.keys() - {"job.json"}), "job.json")
    size = sum(status.st_size for status in found.values())
    exempt = spec.persists or spec.id in persisting
    yield Piece(kind, spec.id, root, parts, names, proof.st_mtime, size, proof.st_dev, exempt)


def stored(root: Path, needed: Collection[str]) -> Iterator[Piece]:
    """The uploads. Deleted and incomplete ones have the time 0."""
    uploads = Uploads(root.parent)
    device = root.stat().st_dev
    for name in _folders_in(root):
        size = sum(entry.stat(follow_symlinks=False).st_size for entry in _files_in(root / name))
        persists = uploads.persists(name)
        yield Piece(UPLOADS, name, root, (name,), (), uploads.at_s(name), size, device, name in needed, persists)


def _files_in(folder: Path) -> list[os.DirEntry[str]]:
    return [entry for entry in _listed(folder) if entry.is_file(follow_symlinks=False)]


def _folders_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in _listed(folder) if entry.is_dir(follow_symlinks=False))


def _listed(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder without the hidden ones: markers, unfinished files."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_regular(status: os.stat_result) -> bool:
    return (status.st_mode & 0o170000) == 0o100000


# -- removing ----------------------------------------------------------------------------------------------------------


def remove(piece: Piece) -> bool:
    """Delete a piece, if it is still the one that was listed; returns whether it was.

    The proof is deleted last, so that a removal can be completed after a crash. Raises OSError of the disk.
    """
    if piece.kind == UPLOADS:
        return Uploads(piece.root.parent).remove(piece.id, seen_at_s=piece.at_s)
    try:
        with _opened(piece.root, piece.parts) as folder:
            if not _is_ours(piece, folder):
                return False
            for name in piece.names[:-1]:
                _unlink(name, folder)
            os.fsync(folder)
            _unlink(piece.names[-1], folder)
    except _GONE:
        return False
    _remove_empty(piece)
    return True


def _is_ours(piece: Piece, folder: int) -> bool:
    """Does the proof still name that job, and is its video the file that was published?"""
    facts = facts_in(piece.names[-1], folder)
    videos = piece.names[:-1] if piece.kind == OUTBOX else ()
    return facts.get("id") == piece.id and all(_sha256(name, folder) == facts.get("sha256") for name in videos)


def _remove_empty(piece: Piece) -> None:
    """Remove the folders of inputs below the root, innermost first, unless they hold other files."""
    if piece.kind not in (ARCHIVE, FAILED):
        return
    with contextlib.suppress(OSError):
        for depth in range(len(piece.parts), 0, -1):
            with _opened(piece.root, piece.parts[: depth - 1]) as parent:
                os.rmdir(piece.parts[depth - 1], dir_fd=parent)


@contextmanager
def _opened(root: Path, parts: Iterable[str]) -> Iterator[int]:
    """A descriptor of a folder below `root`, no link followed on the way."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    descriptor = os.open(root, flags)
    try:
        for part in parts:
            inner = os.open(part, flags | os.O_NOFOLLOW, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def _unlink(name: str, folder: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)


def _sha256(name: str, folder: int) -> str:
    with os.fdopen(open_regular(name, folder=folder), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def facts_in(name: str | Path, folder: int | None = None) -> dict[str, Any]:
    """The JSON object in a small file of ours; empty if there is none, if it is a link, or if it is too large."""
    try:
        with os.fdopen(open_regular(name, folder=folder), "rb") as file:
            found = json.loads(file.read(_MOST_PROOF_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
