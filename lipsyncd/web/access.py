"""Who may use the server: clients with a key or a sign-in; without keys, only clients that are no foreign web page.

With a key configured, every request needs it, in any of the forms that D-ID's clients send; a few public routes and
signed links need none. A browser that has signed in sends a cookie in place of the key. Without a key, the server
listens on loopback only, unless `web.allow_anonymous` is set.

Any web page can have a browser send requests to a server without a key, and requests with its visitor's cookie. So
then Host has to name this machine (DNS rebinding), and Origin has to be this server (cross-site posts).
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from aiohttp import web

from lipsyncd.settings import CurrentSettings
from lipsyncd.web.browsers.own_names import OwnNames, has_valid_host
from lipsyncd.web.browsers.sessions import Sessions
from lipsyncd.web.clients import CLIENT, STRANGER, UNLIMITED, Client
from lipsyncd.web.connection import Connection
from lipsyncd.web.keys import Key, digest_of, distinct
from lipsyncd.web.replies import ApiError, Handler, bad_request, reply_to

REFUSED = "lipsyncd.refused"  # why the cookie of a request does not count, for public handlers
CORS = "lipsyncd.cors"  # the headers of an answer for a listed origin, for handlers that send them themselves
_MOST_HEADER_CHARS = 4096
_ALLOWED_HEADERS = "authorization, content-type, accept, x-origin, x-api-key, idempotency-key"
_ALLOWED_METHODS = "GET, POST, DELETE, OPTIONS"
_MOST_KNOWN = 64
_MOST_SHOWN = 80

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
    """The checks of one server. `keys` empty means that no key is configured.

    sessions  the sign-ins of browsers; None where cookies do not count
    cookie    the name of the cookie
    """

    def __init__(self, settings: CurrentSettings, keys: list[Key], sessions: Sessions | None = None) -> None:
        self.settings = settings
        self.names = OwnNames(settings)
        self.sessions = sessions
        self.cookie = ""
        self.take_keys(keys)

    def take_keys(self, keys: list[Key]) -> None:
        """Accept these keys only, and check the names of this server again."""
        self.keys = distinct(keys)
        self._clients = _clients(self.keys)
        self._known: dict[tuple[str | None, str | None], Client] = {}
        self.names.forget()
        if self.sessions is not None:
            self.sessions.take_keys(self.keys)

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
            found = self.find_key(headers)
            if found is None:
                return None
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[credentials] = self._clients[found]
        return self._known[credentials]

    def find_key(self, headers: Mapping[str, str]) -> Key | None:
        """The key in the headers; None without a valid one. It takes the same time for every invalid one."""
        found = None
        for candidate in credentials_of(headers):
            digest = digest_of(candidate)
            for key in self.keys:
                for expected in key.digests:
                    if hmac.compare_digest(digest, expected) and found is None:
                        found = key
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
            elif not has_valid_host(request):
                raise bad_request("the header Host must be one name or address, with or without a port")
            request[CLIENT] = self._client_of(request)
            request[CORS] = self._cors(origin) if listed else {}
            response = await handler(request)
        except Exception as error:
            response = reply_to(request, error)
        if listed and not response.prepared:
            response.headers.update(self._cors(origin))  # on errors too: otherwise pages could not read them
        return response

    def _client_of(self, request: web.Request) -> Client:
        if not self.keys:
            return UNLIMITED
        client = self.client(request.headers) or self._signed_in(request)
        if client is not None:
            return client
        if is_public(request):
            return STRANGER
        raise ApiError(401, "AuthorizationError", "user unauthenticated")

    def _signed_in(self, request: web.Request) -> Client | None:
        """The client whose cookie a request has, if it comes from our own page; None without a valid cookie.

        Raises 403 for a request of another page, unless the route is public: there it is a stranger's.
        """
        if self.sessions is None or "Cookie" not in request.headers:
            return None
        found = self.sessions.key_of(request.cookies.get(self.cookie, ""))
        if found is None:
            return None
        why_not = self.names.why_foreign(request)
        if not why_not:
            session_id, key = found
            client = self._clients.get(key)  # None: the keys have just changed
            return client and replace(client, session=session_id)
        if not is_public(request):
            raise ApiError(403, "PermissionError", why_not)
        request[REFUSED] = why_not
        return None

    def still_lets_in(self, request: web.Request) -> bool:
        """Would the request of an answer that takes long be let in again, as the same client?"""
        try:
            return bool(self._client_of(request) == request[CLIENT])
        except ApiError:
            return False

    def _check_names(self, request: web.Request, origin: str, *, listed: bool) -> None:
        host = request.headers.get("Host", "")
        if not has_valid_host(request) or not self.names.has(host):
            raise ApiError(
                403, "PermissionError",
                f"this server has no key, and {host[:_MOST_SHOWN]!r} is none of its names; "
                "list it in web.allowed_hosts, or configure a key",
            )  # fmt: skip
        if origin and not listed and not self.names.has_page_of(origin, host):
            raise ApiError(403, "PermissionError", f"pages of {origin} may not use this server; see web.cors_origins")

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


def _clients(keys: list[Key]) -> dict[Key, Client]:
    """The client of each key."""
    tenants = len({key.tenant for key in keys})
    return {
        key: Client(key.tenant, key.owner, is_all=key.admin or len(keys) == 1, tenants=tenants, has_key=True)
        for key in keys
    }
