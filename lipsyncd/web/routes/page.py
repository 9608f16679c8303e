"""`GET /`, `/page/NAME`, `/favicon.ico`: the files of the page in `web/page`, for browsers.

The files are read once, at the start, and only their names are answered, so that no path leads out of the folder. They
need no key: they hold no data, and a visitor has to see the page to sign in.

Own requests of the page carry its address in Referer: over plain HTTP, it is all that shows where they come from
(`web.browsers.own_names`). No other server gets it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from lipsyncd.web.access import public
from lipsyncd.web.browsers.own_names import OwnNames
from lipsyncd.web.replies import not_found

FOLDER = Path(__file__).parents[1] / "page"
_START, _ICON = "index.html", "icon.png"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    "Cache-Control": "no-cache",  # a browser asks each time whether its copy is still the one of this version
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src 'self' blob:; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Referrer-Policy": "same-origin",
    "Server": "lipsyncd",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class _File:
    """One file of the page, as it is sent."""

    body: bytes
    content_type: str
    etag: str


class PageRoutes:
    """The files of the page. Files with other suffixes than those of `_TYPES` are not served."""

    def __init__(self, names: OwnNames, folder: Path = FOLDER) -> None:
        self._names = names
        self._files = {
            path.name: _File(body, _TYPES[path.suffix], hashlib.sha256(body).hexdigest()[:32])
            for path in folder.iterdir()
            if path.suffix in _TYPES
            for body in [path.read_bytes()]
        }

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/", self.start),
            web.get("/page/{name}", self.file),
            web.get("/favicon.ico", self.icon),
        ]

    @public
    async def start(self, request: web.Request) -> web.Response:
        return self._reply(request, _START)

    @public
    async def file(self, request: web.Request) -> web.Response:
        return self._reply(request, request.match_info["name"])

    @public
    async def icon(self, request: web.Request) -> web.Response:
        """For browsers that ask for it without being asked to; a PNG, which all of them show."""
        return self._reply(request, _ICON)

    def _reply(self, request: web.Request, name: str) -> web.Response:
        """The file; 304 for a browser that has it."""
        file = self._files.get(name)
        if file is None:
            raise not_found(f"there is no {request.path}")
        headers = {**_HEADERS, "ETag": f'"{file.etag}"'}
        if self._names.is_trustworthy(request):  # elsewhere browsers ignore it, with an error in the console
            headers["Cross-Origin-Opener-Policy"] = "same-origin"
        known = {tag.value for tag in request.if_none_match or ()}
        if known & {file.etag, "*"}:
            return web.Response(status=304, headers=headers)
        return web.Response(body=file.body, headers={**headers, "Content-Type": file.content_type})
