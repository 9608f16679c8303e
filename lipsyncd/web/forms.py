"""Reads form bodies: text into memory, files to disk, every byte counted.

aiohttp's own limit does not apply to multipart bodies that are read part by part, so we count ourselves.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from aiohttp import web

from lipsyncd.web.replies import bad_request, too_large

_MOST_PARTS = 64
_TEXT_BYTES = 64 << 10
_CHUNK_BYTES = 256 << 10
_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Part:
    """A file of a form as it was sent, not checked yet."""

    path: Path
    file_name: str
    size_bytes: int
    sha256: str


@dataclass
class Form:
    """The content of a form. `files` has at most one file for each name."""

    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, Part] = field(default_factory=dict)

    def file(self, *names: str) -> Part | None:
        return next((self.files[name] for name in names if name in self.files), None)


async def read_form(
    request: web.Request, folder: Path, *, files: Collection[str], max_bytes: int, max_file_bytes: int
) -> Form:
    """The form in a request; its files are written into `folder`.

    files           names of the parts that are files; all others are text
    max_bytes       of the whole body
    max_file_bytes  of each file

    Raises `ApiError`: 400 for a body that is no form, and `too_large`.
    """
    if request.content_length is not None and request.content_length > max_bytes:
        raise too_large(request.path, max_file_bytes, announced_bytes=request.content_length)
    try:
        if request.content_type == "multipart/form-data":
            return await _MultipartReader(request, folder, files, max_bytes, max_file_bytes).read()
        if request.content_type == "application/x-www-form-urlencoded":
            return Form({name: str(value) for name, value in (await request.post()).items()})
    except (ValueError, AssertionError, aiohttp.ClientPayloadError, aiohttp.http_exceptions.HttpProcessingError) as e:
        reason = str(getattr(e, "message", e)).strip().partition("\n")[0].rstrip(":")
        raise bad_request(f"the form cannot be read: {reason}") from None
    raise bad_request("send the fields as multipart/form-data")


class _MultipartReader:
    """Reads one multipart body."""

    def __init__(
        self, request: web.Request, folder: Path, files: Collection[str], max_bytes: int, max_file_bytes: int
    ) -> None:
        self.request = request
        self.folder = folder
        self.files = files
        self.max_bytes = max_bytes
        self.max_file_bytes = max_file_bytes
        self.read_bytes = 0
        self.form = Form()

    async def read(self) -> Form:
        parts = await self.request.multipart()
        for _ in range(_MOST_PARTS):
            part = await parts.next()
            if part is None:
                return self.form
            if not isinstance(part, aiohttp.BodyPartReader):
                raise bad_request("a form inside a form is not accepted")
            await self._part(part)
        raise bad_request(f"a form of more than {_MOST_PARTS} parts is not accepted")

    async def _part(self, part: aiohttp.BodyPartReader) -> None:
        name = part.name or ""
        # For "no file chosen" browsers send an empty file field without a file name.
        if name in self.files and (part.filename is not None or name not in self.form.files):
            await self._save(part, name)
        else:
            await self._text(part, name)

    async def _save(self, part: aiohttp.BodyPartReader, name: str) -> None:
        path = self.folder / f"part-{len(self.form.files)}"
        digest, size = hashlib.sha256(), 0
        with os.fdopen(os.open(path, _NEW, 0o600), "wb") as file:  # of clients: no other user may read or change it
            while chunk := await part.read_chunk(_CHUNK_BYTES):
                self._count(chunk)
                digest.update(chunk)
                size += len(chunk)
                if size > self.max_file_bytes:
                    raise too_large(self.request.path, self.max_file_bytes)
                file.write(chunk)
        if size or part.filename:
            self.form.files[name] = Part(path, part.filename or "", size, digest.hexdigest())

    async def _text(self, part: aiohttp.BodyPartReader, name: str) -> None:
        text = bytearray()
        while chunk := await part.read_chunk(_CHUNK_BYTES):
            self._count(chunk)
            text += chunk
            if len(text) > _TEXT_BYTES:
                raise bad_request(f"the field {name[:60]!r} is longer than {_TEXT_BYTES} bytes")
        self.form.fields[name] = text.decode("utf-8", "replace")

    def _count(self, chunk: bytes) -> None:
        self.read_bytes += len(chunk)
        if self.read_bytes > self.max_bytes:
            raise too_large(self.request.path, self.max_file_bytes)
