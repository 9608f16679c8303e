"""Answers: JSON in D-ID's form, and one form for every error.

The body of every error is `{"kind", "description"}`, some with "details": our own errors, the router's 404 and 405,
bodies that are too large, and bugs.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from lipsyncd.errors import (
    AudioNotRecognised,
    AudioTooLong,
    AudioTooShort,
    Blocked,
    DiskLow,
    FetchFailed,
    ImageNotRecognised,
    ImageTooLarge,
    ImageTooSmall,
    InboxUnavailable,
    InputError,
    LipsyncdError,
)

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_HEADERS = {
    "Content-Type": "application/json; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Server": "lipsyncd",
}
_DID_ROUTES = ("/talks", "/images", "/audios")
_KINDS: Mapping[type[LipsyncdError], tuple[int, str]] = {
    ImageNotRecognised: (415, "UnsupportedMimeTypeError"),
    AudioNotRecognised: (415, "UnsupportedMimeTypeError"),
    ImageTooLarge: (400, "InvalidImageResolutionError"),
    ImageTooSmall: (400, "InvalidImageResolutionError"),
    AudioTooShort: (400, "InvalidAudioDurationError"),
    AudioTooLong: (400, "InvalidAudioDurationError"),
    InputError: (400, "BadRequestError"),
    FetchFailed: (400, "BadRequestError"),
    DiskLow: (507, "InsufficientStorageError"),
    InboxUnavailable: (503, "ServiceUnavailableError"),
    Blocked: (503, "ServiceUnavailableError"),
}
_SUPPORTED: Mapping[type[LipsyncdError], list[str]] = {
    ImageNotRecognised: [
        "image/jpeg", "image/png", "image/webp", "image/heic", "image/avif", "image/bmp", "image/tiff", "image/gif",
        "video/mp4", "video/webm",
    ],
    AudioNotRecognised: [
        "audio/wav", "audio/mpeg", "audio/mp4", "audio/aac", "audio/ogg", "audio/flac", "audio/webm", "audio/amr",
        "audio/aiff", "audio/x-caf", "audio/x-w64", "audio/x-matroska", "video/mp4", "video/webm",
    ],
}  # fmt: skip


class ApiError(Exception):
    """An error to answer: HTTP status, D-ID's kind of error, one sentence, and details where they help."""

    def __init__(
        self,
        status: int,
        kind: str,
        description: str,
        *,
        details: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(description)
        self.status = status
        self.kind = kind
        self.description = description
        self.details = details
        self.headers = dict(headers or {})

    def reply(self) -> web.Response:
        body: dict[str, Any] = {"kind": self.kind, "description": self.description}
        if self.details is not None:
            body["details"] = self.details
        return json_reply(body, status=self.status, headers=self.headers)


def not_found(what: str = "not found") -> ApiError:
    return ApiError(404, "NotFoundError", what)


def bad_request(description: str) -> ApiError:
    return ApiError(400, "BadRequestError", description)


def invalid(details: Mapping[str, str]) -> ApiError:
    """The error for wrong fields: dotted path -> what is wrong."""
    messages = {path: {"message": message} for path, message in details.items()}
    return ApiError(400, "ValidationError", "validation failed", details=messages)


def too_large(path: str, limit_bytes: int, *, announced_bytes: int | None = None) -> ApiError:
    """The error for a body that is too large: 400 on D-ID's routes, 413 elsewhere."""
    status = 400 if path.startswith(_DID_ROUTES) else 413
    seen = "" if announced_bytes is None else f": the request has {announced_bytes / 1e6:.1f} MB"
    return ApiError(status, "InvalidFileSizeError", f"file size exceeded {limit_bytes / 1e6:g} MB{seen}")


def json_reply(body: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """JSON that no cache keeps and every browser reads as JSON."""
    all_headers = {**_HEADERS, **headers} if headers else _HEADERS
    return web.Response(body=json.dumps(body).encode(), status=status, headers=all_headers)


def reply_to(request: web.Request, error: Exception) -> web.Response:
    """The answer for an exception of a handler. Raises it again if the connection is gone."""
    if isinstance(error, ConnectionError):
        raise error
    if isinstance(error, ApiError):
        return error.reply()
    if isinstance(error, web.HTTPException):
        return _of_aiohttp(request, error).reply()
    if isinstance(error, LipsyncdError):
        return _of_ours(error).reply()
    if isinstance(error, (web.RequestPayloadError, HttpProcessingError)):
        return bad_request("the body cannot be read: its encoding is not the one in its headers").reply()
    log.error("%s %s failed", request.method, request.path, exc_info=error)
    return ApiError(500, "InternalServerError", "internal server error").reply()


def _of_aiohttp(request: web.Request, error: web.HTTPException) -> ApiError:
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return ApiError(
            405, "MethodNotAllowedError", f"{request.method} is not allowed here; use {allowed}",
            headers={"Allow": allowed},
        )  # fmt: skip
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return too_large(request.path, request.client_max_size)
    if error.status == 404:
        return not_found(f"there is no {request.path}")
    kind = "InternalServerError" if error.status >= 500 else "BadRequestError"
    return ApiError(error.status, kind, error.reason)


def _of_ours(error: LipsyncdError) -> ApiError:
    """The answer for our own errors: status by class, the message with its remedy, our code in the details."""
    status, kind = next((_KINDS[cls] for cls in type(error).__mro__ if cls in _KINDS), (500, "InternalServerError"))
    if status == 500:
        log.warning("request failed: %s", error)
    headers = {"Retry-After": "30"} if status in (503, 507) else {}
    details: dict[str, Any] = {"code": error.code}
    if type(error) in _SUPPORTED:
        details["supported"] = _SUPPORTED[type(error)]
    return ApiError(status, kind, str(error), details=details, headers=headers)
