"""Files that clients uploaded for later jobs: one folder each under `state/uploads/`, kept for some hours.

    <id>/content        the uploaded bytes
    <id>/facts.json     what was found in them, and the name of the upload
    <id>/thumbnail.jpg  a small JPEG of a picture, or of a video's first frame, that the jail has drawn
    <id>/deleted        the client has deleted it; it is removed as soon as no open job needs it
    <id>/persists       the client has asked to keep it without limit

A folder appears whole, by a rename, after its content was checked. Manifests name it as `upload:<id>`; the preparer
copies it into the job's own folder. Owns that folder; the web server decides what may be uploaded.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from lipsyncd.errors import InputsLost
from lipsyncd.jobs.faces import Faces
from lipsyncd.storage.files import copy_hashed, fsync_folder, open_regular, read_json, remove_tree, write_json

PREFIX = "upload:"
THUMBNAIL = "thumbnail.jpg"
_STAGING = ".tmp-"
_STAGING_S = 3600.0  # longer than any upload takes
_MODE = 0o600  # the state folder's group may look in, and must not change what was checked


@dataclass(frozen=True)
class Upload:
    """One stored file.

    kind        what its bytes are, such as "png" or "wav"
    name        a clean file name with the suffix of its content
    width, height, duration_s    as decoded; zero where the kind has none
    tenant      the client whose upload it is; "" on a server without keys, and for uploads of older versions
    faces       of a picture; None where none were requested
    """

    id: str
    role: str
    kind: str
    name: str
    size_bytes: int
    sha256: str
    width: int = 0
    height: int = 0
    duration_s: float = 0.0
    tenant: str = ""
    faces: Faces | None = None

    @property
    def reference(self) -> str:
        """Its name in a manifest."""
        return PREFIX + self.id


class Uploads:
    """The uploads of one daemon, under `state/uploads`."""

    def __init__(self, state: Path) -> None:
        self.root = state / "uploads"
        self.root.mkdir(mode=0o750, parents=True, exist_ok=True)

    def store(self, upload_id: str, fill: Callable[[Path], Upload]) -> Upload:
        """Let `fill` write `content` into a staging folder and check it, then commit. If it raises, nothing is left."""
        staging = self.root / f"{_STAGING}{upload_id}"
        staging.mkdir(mode=0o750)
        try:
            upload = fill(staging)
            write_json(staging / "facts.json", asdict(upload))
            staging.rename(self.root / upload_id)
        except BaseException:
            remove_tree(staging)
            raise
        fsync_folder(self.root)
        return upload

    def find(self, upload_id: str, role: str = "") -> Upload | None:
        """The upload of that id; None when there is none of that role, or it was deleted."""
        folder = self.root / upload_id
        facts = read_json(folder / "facts.json")
        if facts is None or (folder / "deleted").exists():
            return None
        faces = facts.get("faces")
        upload = Upload(**{**facts, "faces": Faces.from_json(faces) if faces else None})
        return upload if role in ("", upload.role) else None

    def has(self, upload_id: str) -> bool:
        """Is it there, and not deleted? Cheaper than `find`."""
        folder = self.root / upload_id
        return (folder / "facts.json").exists() and not (folder / "deleted").exists()

    def content(self, upload_id: str) -> Path:
        return self.root / upload_id / "content"

    def thumbnail(self, upload_id: str) -> Path:
        """Where its thumbnail is, if it has one."""
        return self.root / upload_id / THUMBNAIL

    def thumbnail_bytes(self, upload_id: str) -> int:
        try:
            return self.thumbnail(upload_id).stat().st_size
        except FileNotFoundError:
            return 0

    def delete(self, upload_id: str) -> None:
        """Make it unknown to clients at once. Its bytes stay while an open job may need them."""
        (self.root / upload_id / "deleted").touch(mode=_MODE)

    def touch(self, upload_id: str) -> None:
        """Start its time again: a new job uses it."""
        os.utime(self.root / upload_id / "facts.json")

    def persist(self, upload_id: str) -> None:
        """Keep it without limit, until it is deleted."""
        (self.root / upload_id / "persists").touch(mode=_MODE)

    def persists(self, upload_id: str) -> bool:
        folder = self.root / upload_id
        return (folder / "persists").exists() and not (folder / "deleted").exists()

    def at_s(self, upload_id: str) -> float:
        """When its time started, seconds since 1970; 0 for an upload that is deleted or torn."""
        folder = self.root / upload_id
        try:
            began_s = (folder / "facts.json").stat().st_mtime
        except FileNotFoundError:
            return 0.0
        return 0.0 if (folder / "deleted").exists() else began_s

    def remove(self, upload_id: str, *, seen_at_s: float) -> bool:
        """Remove an upload, unless its time was started again after `seen_at_s` was read; True when it was removed."""
        folder = self.root / upload_id
        if not folder.is_dir() or self.at_s(upload_id) != seen_at_s:
            return False
        doomed = self.root / f"{_STAGING}{upload_id}"  # a name that `find` never gives, so that no half of it is served
        remove_tree(doomed)
        folder.rename(doomed)
        remove_tree(doomed)
        return True

    def close_to_others(self) -> None:
        """Take the uploads of older versions away from the group, which could read and change them."""
        for content in self.root.glob("*/content"):
            with contextlib.suppress(FileNotFoundError):  # it has just expired
                if content.stat().st_mode & 0o077:
                    content.chmod(_MODE)

    def sweep(self) -> int:
        """Remove what is left of interrupted uploads; gives their number."""
        torn = [path for path in self.root.glob(f"{_STAGING}*") if time.time() - path.stat().st_mtime > _STAGING_S]
        for path in torn:
            remove_tree(path)
        return len(torn)


def copy(state: Path, reference: str, target: Path) -> None:
    """Copy the content of `upload:<id>` to a new file. Raises `InputsLost` when it is gone, or was changed since."""
    target.unlink(missing_ok=True)
    content = state / "uploads" / reference.removeprefix(PREFIX) / "content"
    try:
        source = open_regular(content)
    except FileNotFoundError:
        raise InputsLost(f"{reference} is no longer among the uploads", remedy="upload it again") from None
    try:
        _, sha256 = copy_hashed(source, target)
    finally:
        os.close(source)
    facts = read_json(content.with_name("facts.json")) or {}
    if sha256 != facts.get("sha256"):
        target.unlink()
        raise InputsLost(f"the bytes of {reference} are not those that were checked", remedy="upload it again")
