"""`/session`: a browser signs in with a key once and has a cookie from then on; who it is; it signs out.

The cookie is a random token. It is no key, scripts of a page cannot read it, and no other site's page can use it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from aiohttp import web

from lipsyncd.jobs.did_talk import OWNER
from lipsyncd.web.access import Access, public
from lipsyncd.web.browsers.own_names import host_name
from lipsyncd.web.browsers.sessions import LONGEST_S, Sessions
from lipsyncd.web.browsers.tries import Tries
from lipsyncd.web.clients import client_of
from lipsyncd.web.keys import is_loopback
from lipsyncd.web.replies import ApiError, bad_request, invalid, json_reply
from lipsyncd.web.requests import Requests
from lipsyncd.web.routes.did_request import read_json
from lipsyncd.web.views.streams import Streams

log = logging.getLogger(__name__)

_HEADERS = {"Cache-Control": "no-store", "Server": "lipsyncd"}


class SessionRoutes:
    """The sign-ins of one server."""

    def __init__(self, requests: Requests, access: Access, sessions: Sessions, streams: Streams) -> None:
        self.requests = requests
        self.access = access
        self.sessions = sessions
        self.streams = streams
        self._tries = Tries()

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/session", self.get),
            web.post("/session", self.create),
            web.delete("/session", self.delete),
        ]

    @public
    async def get(self, request: web.Request) -> web.Response:
        """Whether a key is needed, and whether the request has one: in a header, or by its cookie."""
        if self.sessions.is_stale:
            await self.requests.jobs.in_thread(self.sessions.save)
        client, needed = client_of(request), bool(self.access.keys)
        body: dict[str, Any] = {
            "key_required": needed,
            "signed_in": needed and client.has_key,
            "admin": client.is_all,
            "name": None if client.owner == OWNER else client.owner,
        }
        return json_reply(body)

    @public
    async def create(self, request: web.Request) -> web.Response:
        """204 with the cookie for a key. 401 for a wrong key, 429 after too many of them."""
        secure = self._check_sender(request)
        text = read_json(await self.requests.body(request)).get("key")
        if not isinstance(text, str) or not text.strip():
            raise invalid({"body.key": "'key' must be the key, as text"})
        if not self.access.keys:
            raise bad_request("this server has no key: every client may use it without a sign-in")
        address, now_s = request.remote or "", asyncio.get_running_loop().time()
        wait_s = self._tries.wait_s(address, now_s)
        if wait_s:
            raise ApiError(
                429, "TooManyRequestsError", f"too many wrong keys were tried; try again in {wait_s} s",
                headers={"Retry-After": str(wait_s)},
            )  # fmt: skip
        key = self.access.find_key({"Authorization": text})
        if key is None:
            self._tries.failed(address, now_s)
            log.info("REST: %s tried to sign in with a wrong key", address)
            raise ApiError(
                401, "AuthorizationError",
                "this is no key of this server; its administrator knows the keys: each is user:password or one word",
            )  # fmt: skip
        await self._end_session(request)
        token = await self.requests.jobs.in_thread(self.sessions.sign_in, key)
        answer = web.Response(status=204, headers=_HEADERS)
        answer.set_cookie(
            self.access.cookie, token, path="/", max_age=int(LONGEST_S), httponly=True, samesite="Strict", secure=secure
        )
        return answer

    @public
    async def delete(self, request: web.Request) -> web.Response:
        """End the sign-in whose cookie the request has, and its streams. 204 also without one."""
        secure = self._check_sender(request)
        await self._end_session(request)
        answer = web.Response(status=204, headers=_HEADERS)
        answer.del_cookie(self.access.cookie, path="/", httponly=True, samesite="Strict", secure=secure)
        return answer

    def _check_sender(self, request: web.Request) -> bool:
        """Refuse other pages; returns whether the cookie is for TLS only.

        Without Origin and cookie it is a program's: there is no page that could sign its visitor in as another client.
        """
        names = self.access.names
        by_page = "Origin" in request.headers or self._session_of(request)
        why_not = names.why_foreign(request) if by_page else names.why_not_named(request)
        if why_not:
            raise ApiError(403, "PermissionError", why_not)
        secure, origin = names.is_secure(request), request.headers.get("Origin", "")
        if secure and origin.lower().startswith("http://") and not is_loopback(host_name(request.host) or ""):
            raise ApiError(
                403, "PermissionError",
                f"a sign-in needs TLS; open the page at {self.access.settings.now.web.public_url}",
            )  # fmt: skip
        return secure

    def _session_of(self, request: web.Request) -> str:
        """The id of the sign-in whose cookie the request has, also beside a key; "" without one."""
        found = self.sessions.key_of(request.cookies.get(self.access.cookie, ""))
        return "" if found is None else found[0]

    async def _end_session(self, request: web.Request) -> None:
        session_id = self._session_of(request)
        if session_id:
            await self.requests.jobs.in_thread(self.sessions.sign_out, session_id)
            self.streams.end_of(session_id)
