"""Uploads: received, checked by a full decode in the jail, stored, and found again by the addresses that we gave out.

D-ID accepts an upload and refuses it later, when a talk is made of it. Here every upload that is answered with 201 can
be decoded and has an allowed size and length. A video may replace a picture, for the renderers that take one.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from urllib.parse import unquote, urlsplit

from lipsyncd.jobs.job import ID_PATTERN
from lipsyncd.jobs.manifest import clean_out_name
from lipsyncd.media import Kind, check_input, examine
from lipsyncd.network.fetch import fetch
from lipsyncd.prepare.decode_picture import decode_picture, draw_thumbnail
from lipsyncd.prepare.decode_sound import decode_sound
from lipsyncd.prepare.decode_video import screen
from lipsyncd.prepare.find_faces import find_faces
from lipsyncd.settings import CurrentSettings
from lipsyncd.storage import disk_space
from lipsyncd.storage.files import fsync_file
from lipsyncd.storage.uploads import THUMBNAIL, Upload, Uploads
from lipsyncd.web.clients import Client
from lipsyncd.web.forms import Part
from lipsyncd.web.quotas import KeptUploads

IMAGE, AUDIO = "image", "audio"
_SUFFIX = {Kind.JPEG: "jpg"}
_NAME_CHARS, _SHOWN_CHARS = 50, 100
_CHECKED_FPS, _CHECKED_FRAMES = Fraction(25), 250  # the first ten seconds of a video; `prepare` checks all of it
# The path that `Links.upload` made and a client sends back, under any host name.
_OWN = re.compile(rf"/files/(image|audio)s/({ID_PATTERN})(?:/[^/]*)?/?")


class CheckedUploads:
    """The uploads of one server, all of them checked."""

    def __init__(self, settings: CurrentSettings, ffmpeg: Path, in_use: Callable[[], Collection[str]] = set) -> None:
        self.settings = settings
        self.ffmpeg = ffmpeg
        self.stored = Uploads(settings.now.paths.state)
        self.stored.close_to_others()
        self.kept = KeptUploads(settings, self.stored, in_use)

    @contextmanager
    def scratch_folder(self) -> Iterator[Path]:
        """A folder for files while they are received; it is removed afterwards. Raises `DiskLow`."""
        disk_space.require(self.stored.root, self.settings.now.paths.min_free_mb)
        folder = tempfile.mkdtemp(prefix=".tmp-in-", dir=self.stored.root)
        try:
            yield Path(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def fetch(self, url: str, folder: Path) -> Part:
        """Fetch the file at an address, by the rules of all fetches. Raises `FetchRefused`, `FetchFailed`."""
        rules, target = self.settings.now.fetch, folder / "fetched"
        most = min(self.settings.now.web.max_upload_mb, rules.max_mb) * 1_000_000
        found = fetch(
            url,
            target,
            max_bytes=most,
            timeout_s=rules.timeout_s,
            min_bytes_s=rules.min_kb_s * 1000,
            allow=rules.allow,
        )
        return Part(target, _path_in(url).rpartition("/")[2], found.size_bytes, found.sha256)

    def add(self, role: str, part: Part, client: Client, wanted_name: str = "", *, faces: bool = False) -> Upload:
        """Check a received file and store it for that client; with `faces`, look for those of a picture.

        Raises an `InputError` if it cannot be used, `ApiError` 507 if the client has used up its space.
        """
        kind = self._kind(role, part)
        upload_id = str(uuid.uuid4())
        name = _file_name(wanted_name or part.file_name or role, kind)

        def fill(folder: Path) -> Upload:
            content = folder / "content"
            part.path.rename(content)
            fsync_file(content)
            upload = Upload(upload_id, role, kind.value, name, part.size_bytes, part.sha256, tenant=client.tenant)
            return self._checked(upload, content, kind, faces=faces)

        with self.kept.room_for(client, part.size_bytes):
            return self.stored.store(upload_id, fill)

    def _kind(self, role: str, part: Part) -> Kind:
        """The kind of the bytes; the name and the type that came with them are ignored. Raises what is wrong."""
        with part.path.open("rb") as file:
            structure = examine(file.fileno(), part.size_bytes)
        name = part.file_name.replace("\\", "/").rpartition("/")[2][-_SHOWN_CHARS:]
        if role == IMAGE:
            limits = self.settings.now.intake
            fault = check_input.picture_fault(structure, name, size_bytes=part.size_bytes, limits=limits)
        else:
            fault = check_input.sound_fault(structure, name, size_bytes=part.size_bytes)
        if fault is not None:
            raise fault
        assert structure.kind is not None  # otherwise it is a fault
        return structure.kind

    def _checked(self, upload: Upload, content: Path, kind: Kind, *, faces: bool) -> Upload:
        """The upload with its size or duration, after a full decode."""
        limits, thumbnail = self.settings.now.intake, content.with_name(THUMBNAIL)
        with tempfile.TemporaryDirectory(prefix=".tmp-try-", dir=self.stored.root) as scratch:
            if kind.is_video and upload.role == IMAGE:
                picture = screen(
                    content, kind, Path(scratch),
                    ffmpeg=self.ffmpeg, fps=_CHECKED_FPS, frames=_CHECKED_FRAMES, min_side=limits.min_side_px,
                ).picture  # fmt: skip
                draw_thumbnail(picture, Path(scratch), thumbnail)
                return replace(upload, width=picture.width, height=picture.height)
            if upload.role == IMAGE:
                picture = decode_picture(
                    content,
                    Path(scratch),
                    background=limits.background_rgb,
                    max_megapixels=limits.max_megapixels,
                    max_photo_megapixels=limits.max_photo_megapixels,
                    min_side=limits.min_side_px,
                    thumbnail=thumbnail,
                )
                found = find_faces(Path(scratch), picture, group=True) if faces else None
                return replace(upload, width=picture.width, height=picture.height, faces=found)
            sound = decode_sound(
                content, kind, Path(scratch), ffmpeg=self.ffmpeg, min_s=limits.min_audio_s, max_s=limits.max_audio_s
            )
            return replace(upload, duration_s=round(sound.duration * 1000) / 1000)

    def resolve(self, role: str, url: str) -> Upload | None:
        """The upload at an address of ours, whatever host it names; None for every other address."""
        match = _OWN.fullmatch(_path_in(url)) if "/files/" in url else None
        return self.stored.find(match[2], role) if match and match[1] == role else None

    def is_own_path(self, url: str) -> bool:
        """Has it the form of our own addresses? Without an upload on disk, it is a link that has expired."""
        return "/files/" in url and _OWN.fullmatch(_path_in(url)) is not None


def _path_in(url: str) -> str:
    """The path of an address, decoded; "" for text that is none, which is refused where it is used."""
    try:
        return unquote(urlsplit(url).path)
    except ValueError:
        return ""


def _file_name(wanted: str, kind: Kind) -> str:
    """A short plain file name with the suffix of the kind."""
    stem = os.path.splitext(wanted.replace("\\", "/").rpartition("/")[2])[0]  # noqa: PTH122 - no path of ours
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", clean_out_name(stem)).strip("._-")[:_NAME_CHARS]
    return f"{stem or 'file'}.{_SUFFIX.get(kind, kind.value)}"
