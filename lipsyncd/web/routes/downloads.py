"""Sends videos, uploads and thumbnails: ranges, HEAD, ETag, and never through a symbolic link."""

from __future__ import annotations

import os
import re
from urllib.parse import quote

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from lipsyncd.jobs.job import JobState
from lipsyncd.jobs.values import canonical_id
from lipsyncd.results.find_video import open_video
from lipsyncd.results.thumbnails import Thumbnails
from lipsyncd.storage.files import open_regular
from lipsyncd.storage.uploads import Uploads
from lipsyncd.web.access import REFUSED, public
from lipsyncd.web.clients import UNLIMITED, Client, client_of
from lipsyncd.web.jobs import Jobs
from lipsyncd.web.links import Links
from lipsyncd.web.replies import ApiError, not_found
from lipsyncd.web.uploads import IMAGE

_GONE = "the video was taken from the outbox or expired"
_DRAW_UPLOAD = "upload the picture again to have one drawn"
_DRAW_OPEN = "it is drawn while the job is prepared: ask again when the job has another stage"
_DRAW_ENDED = "its picture was never decoded, or an older version made it; a retry or a new job has one"
_TYPES = {
    "jpeg": "image/jpeg", "png": "image/png", "webp": "image/webp", "wav": "audio/wav", "mp3": "audio/mpeg",
    "aac": "audio/aac", "m4a": "audio/mp4", "ogg": "audio/ogg", "flac": "audio/flac", "mp4": "video/mp4",
    "webm": "video/webm", "weba": "audio/webm", "heic": "image/heic", "avif": "image/avif", "bmp": "image/bmp",
    "tiff": "image/tiff", "gif": "image/gif",
    "mka": "audio/x-matroska", "amr": "audio/amr", "aiff": "audio/aiff", "caf": "audio/x-caf", "w64": "audio/x-w64",
}  # fmt: skip
# For a file that is opened by itself: a browser shows it in a document of its own, which may run and load nothing else.
_POLICY = "default-src 'none'; img-src 'self'; media-src 'self'; style-src 'unsafe-inline'; base-uri 'none'"
_NOTHING = re.compile(r"^\s*bytes\s*=\s*-0+\s*$")  # the last 0 bytes; aiohttp would send all of them
_MANY_RANGES = re.compile(r"^\s*bytes\s*=[^,]*,")


class DownloadRoutes:
    """The routes of finished videos, of uploads, and of thumbnails, which need a key: no link to them is signed."""

    def __init__(self, jobs: Jobs, uploads: Uploads, links: Links) -> None:
        self.jobs = jobs
        self.uploads = uploads
        self.links = links
        self.thumbnails = Thumbnails(jobs.folders.state)

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/storage/videos/{id:[^/]+}.mp4", self.video),
            web.get("/files/{id:tlk_[^/]+}/{name}", self.video),
            web.get("/files/{role:image|audio}s/{id}", self.upload),
            web.get("/files/{role:image|audio}s/{id}/{name}", self.upload),
            web.get("/images/{id}/thumbnail", self.upload_thumbnail),
            web.get("/jobs/{id}/thumbnail", self.job_thumbnail),
        ]

    @public
    async def video(self, request: web.Request) -> web.StreamResponse:
        """The finished video of a job."""
        job_id = id_in(request)
        job = await self.jobs.get(job_id, self._client("result", job_id, request))
        if job.state is not JobState.DONE:
            raise not_found(f"there is no video yet: the job is {job.state.value}")
        descriptor = await self.jobs.in_thread(open_video, self.jobs.folders, self.jobs.view, job)
        if descriptor is None:
            raise not_found(_GONE)
        return _reply(request, descriptor, "video/mp4", f"{job.out_name}.mp4")

    @public
    async def upload(self, request: web.Request) -> web.StreamResponse:
        """The bytes of an upload, as the client sent them."""
        role, upload_id = request.match_info["role"], id_in(request)
        client = self._client("upload", upload_id, request)
        upload = await self.jobs.in_thread(self.uploads.find, upload_id, role)
        if upload is None or not client.owns(upload):
            raise not_found(f"{role} not found")
        try:
            descriptor = await self.jobs.in_thread(open_regular, self.uploads.content(upload.id))
        except OSError:
            raise not_found(f"{role} not found") from None
        return _reply(request, descriptor, _TYPES[upload.kind], upload.name)

    async def upload_thumbnail(self, request: web.Request) -> web.StreamResponse:
        """A small JPEG of an uploaded picture, upright, or of a video's first frame."""
        upload = await self.jobs.in_thread(self.uploads.find, id_in(request), IMAGE)
        if upload is None or not client_of(request).owns(upload):
            raise not_found("image not found")
        try:
            descriptor = await self.jobs.in_thread(open_regular, self.uploads.thumbnail(upload.id))
        except OSError:
            raise not_found(f"there is no thumbnail of it; {_DRAW_UPLOAD}") from None
        return _reply(request, descriptor, _TYPES["jpeg"], f"{upload.name.rpartition('.')[0]}.jpg")

    async def job_thumbnail(self, request: web.Request) -> web.StreamResponse:
        """The same of a job's picture."""
        job = await self.jobs.get(id_in(request), client_of(request))
        descriptor = await self.jobs.in_thread(self.thumbnails.open, job.id)
        if descriptor is None:
            raise not_found(f"there is no thumbnail of this job; {_DRAW_ENDED if job.state.ended else _DRAW_OPEN}")
        return _reply(request, descriptor, _TYPES["jpeg"], f"{job.out_name}.jpg")

    def _client(self, kind: str, name: str, request: web.Request) -> Client:
        """The client that may download: the sender, or any client with the signature that we put into the address."""
        if self.links.is_signed(kind, name, request.query.get("sig", "")):
            return UNLIMITED
        client = client_of(request)
        if REFUSED in request:
            raise ApiError(403, "PermissionError", request[REFUSED])
        if not client.has_key:
            raise ApiError(401, "AuthorizationError", "this link needs its ?sig= or a key")
        return client


def id_in(request: web.Request) -> str:
    """The id in a path, D-ID's or ours. Raises 404 for a text that is neither."""
    try:
        return canonical_id(request.match_info["id"])
    except ValueError:
        raise not_found() from None


def _reply(request: web.Request, descriptor: int, content_type: str, name: str) -> web.StreamResponse:
    """The answer that sends an open file and closes it."""
    response = _OpenFile(
        descriptor,
        {
            "Content-Type": content_type,
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "private, no-cache",
            "Content-Security-Policy": _POLICY,
            "Referrer-Policy": "same-origin",
            "Content-Disposition": f"inline; filename*=UTF-8''{quote(name, safe='')}",
            "Server": "lipsyncd",
        },
    )
    fault = "" if "If-Range" in request.headers else _range_fault(request, response.size_bytes)
    if fault:
        response.close()
        raise ApiError(416, "RangeError", fault, headers={"Content-Range": f"bytes */{response.size_bytes}"})
    return response


def _range_fault(request: web.Request, size_bytes: int) -> str:
    """Why aiohttp could not serve the requested range; its own answer would not say why."""
    if _MANY_RANGES.match(request.headers.get("Range", "")):
        return "one range at a time"
    try:
        first = request.http_range.start
    except ValueError:
        return "a range is written bytes=FIRST-LAST"
    past_the_end = first is not None and first >= size_bytes
    nothing = _NOTHING.match(request.headers.get("Range", ""))
    return f"the file has {size_bytes} bytes" if past_the_end or nothing else ""


class _OpenFile(web.FileResponse):
    """Has aiohttp send an open descriptor, so that it sends the file that was opened without following a link."""

    def __init__(self, descriptor: int, headers: dict[str, str]) -> None:
        self._opened = os.fdopen(descriptor, "rb")
        self.size_bytes = os.fstat(descriptor).st_size
        super().__init__(f"/proc/self/fd/{descriptor}", headers=headers)

    def close(self) -> None:
        """Close the file unsent."""
        self._opened.close()

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        try:
            return await super().prepare(request)
        finally:
            self._opened.close()
