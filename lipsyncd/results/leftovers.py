"""The files that ended jobs and uploads leave: list them with place, age and size, and remove them.

    outbox     a finished video with its sidecar
    archive    the inputs of a finished or cancelled job
    failed     the inputs of a failed job, and the reason
    results    the video that is kept in the state folder
    uploads    files that a client of the REST service sent

A piece is a group of files that go together. It is ours if a file of ours in it proves so: the sidecar, `job.json`,
`facts.json`. All other files in these folders stay, and so do the folders that hold them. Other people use a shared
folder too, and its content may change at any moment: see `open_folder` and `shared_folders.Removal`.

Leaves the question which of them have expired to `retention`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from lipsyncd.jobs.job import ID_PATTERN, JobSpec
from lipsyncd.results import archive
from lipsyncd.storage.files import NotRegular
from lipsyncd.storage.folders import Folders
from lipsyncd.storage.open_folder import OpenFolder
from lipsyncd.storage.uploads import Uploads

OUTBOX, ARCHIVE, FAILED, RESULTS, UPLOADS = KINDS = ("outbox", "archive", "failed", "results", "uploads")

_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_ID = re.compile(ID_PATTERN)
_GONE = (FileNotFoundError, NotRegular)


@dataclass(frozen=True)
class Piece:
    """Files that belong to one job or upload and go together.

    where, parts  their folder, for messages; and the folders that lead there from that of their kind
    names         the files, in the order of their removal; the last one is the proof that they are ours
    at_s          when they were written, seconds since 1970; 0 if they may go at once
    exempt        an open job needs it, or its client asked to persist the result
    persists      an upload that its client asked to persist: only its size counts, and the others go first
    """

    kind: str
    id: str
    where: str
    parts: tuple[str, ...]
    names: tuple[str, ...]
    at_s: float
    size_bytes: int
    device: int
    exempt: bool = False
    persists: bool = False


@contextmanager
def opened(folders: Folders, kind: str) -> Iterator[OpenFolder | None]:
    """The folder of a kind; None while it is not there, or its share is not mounted."""
    if kind in folders.shared:
        with folders.shared[kind].opened() as root:
            yield root
        return
    path = folders.results if kind == RESULTS else folders.state / UPLOADS
    if not path.is_dir():
        yield None
        return
    with OpenFolder.at(path) as root:
        yield root


# -- listing -----------------------------------------------------------------------------------------------------------


def listed(folders: Folders, kind: str, exempt: Container[str] = ()) -> list[Piece]:
    """Every piece of a kind; none while its share is not mounted. Jobs, or uploads, of the ids `exempt` stay."""
    with opened(folders, kind) as root:
        return [] if root is None else list(_LISTED[kind](folders, root, exempt))


def _published(_folders: Folders, root: OpenFolder, persisting: Container[str]) -> Iterator[Piece]:
    """The videos in an outbox, and in its folders of queues.

    When a consumer has taken the video, its sidecar stays; a skipped redrop has only a sidecar.
    """
    for parts in ((), *((name,) for name in root.folders())):
        with _walked(root, parts) as folder:
            for entry in [] if folder is None else folder.files():
                facts = (folder.read_json(entry.name) or {}) if folder and entry.name.endswith(".json") else {}
                if folder is None or not _is_sidecar(facts):
                    continue
                if _stands_beside(entry.name, facts["video"], facts["id"]):
                    yield from _video(OUTBOX, folder, parts, entry, facts, facts["video"], persisting)
                elif facts.get("duplicate_of"):
                    yield from _video(OUTBOX, folder, parts, entry, facts, None, persisting)


@contextmanager
def _walked(root: OpenFolder | None, parts: tuple[str, ...]) -> Iterator[OpenFolder | None]:
    """The folder that `parts` lead to; None when it is gone, or is none any more."""
    with ExitStack() as stack:
        try:
            folder = None if root is None else stack.enter_context(root.walk(parts))
        except _GONE:
            folder = None
        yield folder


def _kept_results(_folders: Folders, root: OpenFolder, persisting: Container[str]) -> Iterator[Piece]:
    """The videos in `state/results`, each named by its job's id."""
    for entry in root.files():
        job_id = entry.name.removesuffix(".json")
        facts = (root.read_json(entry.name) or {}) if _ID.fullmatch(job_id) else {}
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
    folder: OpenFolder,
    parts: tuple[str, ...],
    sidecar: os.DirEntry[str],
    facts: dict[str, Any],
    video: str | None,
    persisting: Container[str],
) -> Iterator[Piece]:
    """The piece; none when a foreign file has the video's name by now."""
    try:
        status = sidecar.stat(follow_symlinks=False)
    except FileNotFoundError:
        return
    names, size = [sidecar.name], status.st_size
    if video is not None and (there := folder.status(video)) is not None:
        if not _is_regular(there) or there.st_size != facts["bytes"]:
            return
        names, size = [video, sidecar.name], size + there.st_size
    exempt = bool(facts.get("persist")) or facts["id"] in persisting
    yield Piece(kind, facts["id"], folder.where, parts, tuple(names), status.st_mtime, size, status.st_dev, exempt)


def _archived(_folders: Folders, root: OpenFolder, persisting: Container[str]) -> Iterator[Piece]:
    """The folders <day>/<id> of an archive."""
    for day in filter(_DAY.fullmatch, root.folders()):
        with _walked(root, (day,)) as folder:
            for job_id in [] if folder is None else folder.folders():
                yield from _inputs(ARCHIVE, root, (day, job_id), persisting)


def _failed(_folders: Folders, root: OpenFolder, persisting: Container[str]) -> Iterator[Piece]:
    """The folders <time>-<stem> of failed jobs."""
    for name in root.folders():
        yield from _inputs(FAILED, root, (name,), persisting)


def _inputs(kind: str, root: OpenFolder, parts: tuple[str, ...], persisting: Container[str]) -> Iterator[Piece]:
    with _walked(root, parts) as folder:
        spec = None if folder is None else archive.spec_of(folder)
        if folder is None or spec is None or (kind == ARCHIVE and spec.id != parts[-1]):
            return
        ours = archive.names_of(spec)
        found = {entry.name: status for entry in folder.files() if entry.name in ours and (status := _status(entry))}
        where = folder.where
    proof = found.get(archive.JOB)
    if proof is None or (kind == FAILED and archive.REASON not in found):
        return
    names = (*sorted(found.keys() - {archive.JOB}), archive.JOB)
    size = sum(status.st_size for status in found.values())
    exempt = spec.persists or spec.id in persisting
    yield Piece(kind, spec.id, where, parts, names, proof.st_mtime, size, proof.st_dev, exempt)


def _stored(folders: Folders, root: OpenFolder, needed: Container[str]) -> Iterator[Piece]:
    """The uploads. Deleted and incomplete ones have the time 0."""
    uploads, device = Uploads(folders.state), root.stat().st_dev
    for name in root.folders():
        with root.enter(name) as folder:
            size = sum(status.st_size for entry in folder.files() if (status := _status(entry)))
        where, at_s, persists = folder.where, uploads.at_s(name), uploads.persists(name)
        yield Piece(UPLOADS, name, where, (name,), (), at_s, size, device, name in needed, persists)


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None


_LISTED: dict[str, Callable[[Folders, OpenFolder, Container[str]], Iterator[Piece]]] = {
    OUTBOX: _published,
    ARCHIVE: _archived,
    FAILED: _failed,
    RESULTS: _kept_results,
    UPLOADS: _stored,
}


def _is_regular(status: os.stat_result) -> bool:
    return (status.st_mode & 0o170000) == 0o100000


def read_in(folders: Folders, piece: Piece, name: str) -> dict[str, Any]:
    """The JSON object in one of a piece's files; {} when it is gone or damaged."""
    with opened(folders, piece.kind) as root, _walked(root, piece.parts) as folder:
        return {} if folder is None else folder.read_json(name) or {}


def bytes_in(folders: Folders, piece: Piece, name: str, most_bytes: int) -> bytes:
    """The first bytes of one of a piece's files; b"" when it cannot be read."""
    with opened(folders, piece.kind) as root, _walked(root, piece.parts) as folder:
        try:
            return b"" if folder is None else folder.read(name, most_bytes)
        except OSError:
            return b""


def spec_in(folders: Folders, piece: Piece) -> JobSpec | None:
    """The spec of the job whose inputs a piece is; None when it is gone or damaged."""
    with opened(folders, piece.kind) as root, _walked(root, piece.parts) as folder:
        return None if folder is None else archive.spec_of(folder)


# -- removing ----------------------------------------------------------------------------------------------------------


def remove(folders: Folders, piece: Piece) -> bool:
    """Delete a piece, if it is still the one that was listed; returns whether it was.

    The proof is deleted last, so that a removal can be completed after a crash. Raises OSError of the disk.
    """
    if piece.kind == UPLOADS:
        return Uploads(folders.state).remove(piece.id, seen_at_s=piece.at_s)
    if piece.kind in (ARCHIVE, FAILED):
        return archive.remove(folders.shared[piece.kind], piece.parts, piece.id)
    if piece.kind == RESULTS:
        return _remove_result(folders, piece)
    return _remove_video(folders, piece)


def _remove_result(folders: Folders, piece: Piece) -> bool:
    """The folder of results is ours alone: what was listed is still there."""
    with OpenFolder.at(folders.results) as root:
        if (root.read_json(piece.names[-1]) or {}).get("id") != piece.id:
            return False
        for name in piece.names[:-1]:
            root.remove(name)
        root.fsync()
        root.remove(piece.names[-1])
    return True


def _remove_video(folders: Folders, piece: Piece) -> bool:
    """A published video, if it is the file that was published, and its sidecar."""
    shared, sidecar = folders.shared[OUTBOX], piece.names[-1]
    with shared.opened() as root:
        if root is None:
            return False
        with _walked(root, piece.parts) as folder, shared.removal(root) as removal:
            facts = {} if folder is None else folder.read_json(sidecar) or {}
            if folder is None or facts.get("id") != piece.id:
                return False
            for name in piece.names[:-1]:
                if not folder.is_file_of(name, facts.get("sha256")):
                    return False
                if not removal.take(folder, name, lambda here, name: here.is_file_of(name, facts.get("sha256"))):
                    return False
            folder.fsync()
            removal.fsync()
            return removal.take(folder, sidecar, lambda here, name: (here.read_json(name) or {}).get("id") == piece.id)
