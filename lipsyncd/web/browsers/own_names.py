"""The names and origins of this server: what Host, Origin, Sec-Fetch-Site and Referer say about a request.

Any web page can have its visitor's browser send requests to this server. By these headers, which no page can forge,
requests of other pages are recognised.
"""

from __future__ import annotations

import re
from functools import lru_cache
from urllib.parse import urlsplit

from aiohttp import HttpVersion11, web

from lipsyncd.settings import CurrentSettings
from lipsyncd.web.keys import is_address, is_loopback

_MOST_KNOWN = 64
_MOST_SHOWN = 80
_MOST_NAME_CHARS = 253
_HOST = re.compile(r"(?:\[(?P<literal>[0-9A-Fa-f:.]+)\]|(?P<name>[0-9A-Za-z._-]+))(?::(?P<port>[0-9]{1,5}))?")
_LABEL = re.compile(r"[0-9a-z_](?:[0-9a-z_-]{0,61}[0-9a-z_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # as the last label, it makes browsers read an address


class OwnNames:
    """The names of one server."""

    def __init__(self, settings: CurrentSettings) -> None:
        self._settings = settings
        self._known: set[str] = set()

    def forget(self) -> None:
        """The settings have changed."""
        self._known = set()

    def has(self, host: str) -> bool:
        """Is it a name that no stranger can point at this machine: an address, a name without dots, a configured one?

        host  a header Host; one that is not valid is no name of ours

        Own names are remembered, since clients send the same one with each request.
        """
        if host in self._known:
            return True
        web_settings = self._settings.now.web
        name = host_name(host)
        listed = {one.lower() for one in web_settings.allowed_hosts}
        public = urlsplit(self._public_origin()).hostname
        ours = name is not None and (is_address(name) or name in listed or name == public or "." not in name)
        if ours:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known.add(host)
        return ours

    def has_page_of(self, origin: str, host: str) -> bool:
        """Is a page of that origin one of the server that the request was sent to? For servers without a key."""
        return origin.partition("://")[2] == host.lower() or origin == self._public_origin()

    def why_not_named(self, request: web.Request) -> str:
        """Why the Host of a request is none of this server's names; "" if it is one."""
        host = request.headers.get("Host", "")
        if self.has(host):
            return ""
        return (
            f"{host[:_MOST_SHOWN]!r} is none of the names of this server; "
            "list it in web.allowed_hosts, or set web.public_url"
        )

    def why_foreign(self, request: web.Request) -> str:
        """Why the cookie of a request does not count; "" if the request comes from a page of this server.

        Without Origin, a request that changes nothing counts with `Sec-Fetch-Site: same-origin`, or `none` for
        an address that was typed in. Over plain HTTP browsers send that header to this machine only; then the page's
        address in Referer has to be ours.
        """
        if why_not := self.why_not_named(request):
            return why_not
        origin = request.headers.get("Origin")
        if origin is not None:
            return "" if self._is_own(origin, request) else _foreign(f"the header Origin is {origin[:_MOST_SHOWN]!r}")
        if request.method not in ("GET", "HEAD"):
            return _foreign("the header Origin is missing")
        site = request.headers.get("Sec-Fetch-Site")
        if site is not None:
            good = site in ("same-origin", "none")
            return "" if good else _foreign(f"the header Sec-Fetch-Site is {site[:_MOST_SHOWN]!r}")
        if self._is_own(_origin_of(request.headers.get("Referer", "")), request):
            return ""
        return _foreign("none of the headers Origin, Sec-Fetch-Site and Referer names it")

    def is_secure(self, request: web.Request) -> bool:
        """Does the client's browser use TLS? Proxies may end it; what they forward about that is not believed.

        The browser's own word counts: its Origin.
        """
        return (
            request.secure
            or self._public_origin().startswith("https://")
            or request.headers.get("Origin", "").lower().startswith("https://")
        )

    def is_trustworthy(self, request: web.Request) -> bool:
        """Does a browser take the request's address for trustworthy: TLS, or this machine itself?

        Source: Secure Contexts (W3C), 3.1.
        """
        name = host_name(request.headers.get("Host", "")) or ""
        public = urlsplit(self._public_origin())
        return request.secure or is_loopback(name) or (public.scheme == "https" and public.hostname == name)

    def _is_own(self, origin: str, request: web.Request) -> bool:
        host = request.headers.get("Host", "").lower()
        own = (f"{request.scheme}://{host}", f"https://{host}", self._public_origin())
        return bool(origin) and origin.lower() in own

    def _public_origin(self) -> str:
        """The origin of `web.public_url`; "" without one."""
        return _origin_of(self._settings.now.web.public_url)


@lru_cache(_MOST_KNOWN)
def _origin_of(address: str) -> str:
    """Scheme, host and port of an address, as browsers write them; "" for what is none."""
    try:
        parts = urlsplit(address.lower())
        port = parts.port
    except ValueError:
        return ""
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return ""
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    default = {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{host}" if port in (None, default) else f"{parts.scheme}://{host}:{port}"


def _foreign(what: str) -> str:
    return f"a sign-in counts only for the page of this server, and {what}; set web.public_url to the page's address"


def has_valid_host(request: web.Request) -> bool:
    """Exactly one header Host with a valid name; only HTTP/1.0 may lack it."""
    hosts = request.headers.getall("Host", [])
    if not hosts:
        return request.version < HttpVersion11
    return len(hosts) == 1 and host_name(hosts[0]) is not None


@lru_cache(_MOST_KNOWN)  # clients send the same one with each request
def host_name(host: str) -> str | None:
    """The name or address in a header Host, in lower case, without port and final dot; None if it is not valid.

    Source: RFC 9110, 7.2, without percent-encoding: an address is a dotted quad or IPv6 in brackets, and a name is made
    of labels of ASCII letters, digits, "-" and "_".
    """
    found = _HOST.fullmatch(host)
    if found is None or int(found["port"] or 0) > 65535:
        return None
    if found["literal"] is not None:
        return found["literal"].lower() if ":" in found["literal"] and is_address(found["literal"]) else None
    name = found["name"].lower().removesuffix(".")
    labels = name.split(".")
    if len(name) > _MOST_NAME_CHARS or not all(_LABEL.fullmatch(label) for label in labels):
        return None
    return name if is_address(name) or not _NUMBER.fullmatch(labels[-1]) else None
