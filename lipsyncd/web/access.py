"""Who may use the server: clients with a key; without keys, only clients that are no foreign web page.

With a key configured, every request needs it, in any of the forms that D-ID's clients send; a few public routes and
signed links need none. Without one, the server listens on loopback only, unless `web.allow_anonymous` is set. Any web
page can send requests to a server without a key. So Host has to name this machine (DNS rebinding), and Origin, if there
is one, has to be this server (cross-site posts).
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from aiohttp import HttpVersion11, web

from lipsyncd.settings import CurrentSettings
from lipsyncd.web.clients import CLIENT, STRANGER, UNLIMITED, Client
from lipsyncd.web.connection import Connection
from lipsyncd.web.keys import Key, digest_of, distinct, is_address
from lipsyncd.web.replies import ApiError, Handler, bad_request, reply_to

_MOST_HEADER_CHARS = 4096
_ALLOWED_HEADERS = "authorization, content-type, accept, x-origin, x-api-key, idempotency-key"
_ALLOWED_METHODS = "GET, POST, DELETE, OPTIONS"
_MOST_KNOWN = 64
_MOST_SHOWN = 80
_MOST_NAME_CHARS = 253
_HOST = re.compile(r"(?:\[(?P<literal>[0-9A-Fa-f:.]+)\]|(?P<name>[0-9A-Za-z._-]+))(?::(?P<port>[0-9]{1,5}))?")
_LABEL = re.compile(r"[0-9a-z_](?:[0-9a-z_-]{0,61}[0-9a-z_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # as the last label, it makes browsers read an address

_URL_ALPHABET = str.maketrans("-_", "+/")


def credentials_of(headers: Mapping[str, str]) -> Iterator[str]:
    """Everything in `Authorization` or `x-api-key` that may be the client's key."""
    value = headers.get("Authorization") or headers.get("X-Api-Key") or ""
    value = value[:_MOST_HEADER_CHARS].strip()
    scheme, *rest = value.split(None, 1) or ("",)
    credential = rest[0] if rest and scheme.lower() in ("basic", "bearer") else value
    once = _decoded(credential)
    for candidate in (credential, once, _decoded(once.removesuffix(":"))):  # a library may encode what is encoded
        if candidate:
            yield candidate
            yield candidate.removesuffix(":")


def _decoded(text: str) -> str:
    """The text in base64, with or without `=`, in either alphabet, and without the line's end that `echo` adds."""
    plain = text.rstrip("=").translate(_URL_ALPHABET)
    try:
        plain = base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True).decode("ascii").rstrip("\r\n")
    except (binascii.Error, ValueError):
        return ""
    return plain if plain.isprintable() else ""


class Access:
    """The checks of one server. `keys` empty means that no key is configured."""

    def __init__(self, settings: CurrentSettings, keys: list[Key]) -> None:
        self.settings = settings
        self.take_keys(keys)

    def take_keys(self, keys: list[Key]) -> None:
        """Accept these keys only, and check the names of this server again."""
        self.keys = distinct(keys)
        self._clients = _clients(self.keys)
        self._known: dict[tuple[str | None, str | None], Client] = {}
        self._own_names: set[str] = set()

    def owner(self, headers: Mapping[str, str]) -> str | None:
        """The owner of the key in the headers; None without a valid key."""
        client = self.client(headers)
        return None if client is None else client.owner

    def client(self, headers: Mapping[str, str]) -> Client | None:
        """The client whose key is in the headers; None without a valid key.

        Valid headers are remembered, since clients send the same ones thousands of times. Invalid ones are always
        compared with every key, so that the time of the answer says nothing about a key.
        """
        credentials = (headers.get("Authorization"), headers.get("X-Api-Key"))
        if credentials not in self._known:
            found = self._find_client(headers)
            if found is None:
                return None
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[credentials] = found
        return self._known[credentials]

    def _find_client(self, headers: Mapping[str, str]) -> Client | None:
        found = None
        for candidate in credentials_of(headers):
            digest = digest_of(candidate)
            for key, client in zip(self.keys, self._clients, strict=True):
                for expected in key.digests:
                    if hmac.compare_digest(digest, expected) and found is None:
                        found = client
        return found

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The only middleware: every request passes it, and every exception becomes an answer here."""
        if isinstance(request.protocol, Connection):
            request.protocol.request_began()
        origin = request.headers.get("Origin", "").lower().rstrip("/")
        listed = origin in {allowed.lower().rstrip("/") for allowed in self.settings.now.web.cors_origins}
        if listed and request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            return web.Response(status=204, headers=self._cors(origin))
        response: web.StreamResponse
        try:
            if not self.keys:
                self._check_names(request, origin, listed=listed)
            elif not _has_valid_host(request):
                raise bad_request("the header Host must be one name or address, with or without a port")
            request[CLIENT] = self._client_of(request)
            response = await handler(request)
        except Exception as error:
            response = reply_to(request, error)
        if listed and not response.prepared:
            response.headers.update(self._cors(origin))  # on errors too: otherwise pages could not read them
        return response

    def _client_of(self, request: web.Request) -> Client:
        if not self.keys:
            return UNLIMITED
        client = self.client(request.headers)
        if client is not None:
            return client
        if is_public(request):
            return STRANGER
        raise ApiError(401, "AuthorizationError", "user unauthenticated")

    def _check_names(self, request: web.Request, origin: str, *, listed: bool) -> None:
        host = request.headers.get("Host", "")
        if not _has_valid_host(request) or (host not in self._own_names and not self._is_ours(host)):
            raise ApiError(
                403, "PermissionError",
                f"this server has no key, and {host[:_MOST_SHOWN]!r} is none of its names; "
                "list it in web.allowed_hosts, or configure a key",
            )  # fmt: skip
        if origin and not listed and origin.partition("://")[2] != host.lower():
            raise ApiError(403, "PermissionError", f"pages of {origin} may not use this server; see web.cors_origins")

    def _is_ours(self, host: str) -> bool:
        """Is it a name that no stranger can point at this machine: an address, a name without dots, a listed one?

        Own names are remembered, as in `owner`.
        """
        name = host_name(host)
        listed = map(str.lower, self.settings.now.web.allowed_hosts)
        ours = name is not None and (is_address(name) or name in listed or "." not in name)
        if ours:
            if len(self._own_names) >= _MOST_KNOWN:
                self._own_names.clear()
            self._own_names.add(host)
        return ours

    @staticmethod
    def _cors(origin: str) -> dict[str, str]:
        return {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Allow-Headers": _ALLOWED_HEADERS,
            "Access-Control-Allow-Methods": _ALLOWED_METHODS,
            "Vary": "Origin",
        }


def public(handler: Any) -> Any:
    """Mark a handler that needs no key, or that checks a signature itself."""
    handler.is_public = True
    return handler


def is_public(request: web.Request) -> bool:
    return getattr(request.match_info.handler, "is_public", False)


def _clients(keys: list[Key]) -> list[Client]:
    """The client of each key."""
    tenants = len({key.tenant for key in keys})
    return [
        Client(key.tenant, key.owner, is_all=key.admin or len(keys) == 1, tenants=tenants, has_key=True) for key in keys
    ]


def _has_valid_host(request: web.Request) -> bool:
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
