"""`GET /jobs/events` and `GET /jobs/ID/events`: what happens to all jobs or to one, as Server-Sent Events."""

from __future__ import annotations

import asyncio

from aiohttp import web

from lipsyncd.web.access import CORS, Access
from lipsyncd.web.clients import client_of
from lipsyncd.web.connection import Connection
from lipsyncd.web.jobs import Jobs
from lipsyncd.web.routes.downloads import id_in
from lipsyncd.web.views.streams import Streams

_COMMENT_EVERY_S = 15.0  # so that no proxy takes the connection for a dead one
_WRITTEN_WITHIN_S = 30.0
_MOST_DIGITS = 18
_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would collect events before it passes them on
    "X-Content-Type-Options": "nosniff",
    "Server": "lipsyncd",
}


class JobEventRoutes:
    """The streams of one server."""

    def __init__(self, jobs: Jobs, streams: Streams, access: Access) -> None:
        self.jobs = jobs
        self.streams = streams
        self.access = access

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/jobs/events", self.all), web.get("/jobs/{id}/events", self.one)]

    async def all(self, request: web.Request) -> web.StreamResponse:
        """Every job that the client sees: first those that have not ended, then each change."""
        return await self._stream(request, "")

    async def one(self, request: web.Request) -> web.StreamResponse:
        """One job as it is, then each change; the stream ends with the job.

        204 for a reader that comes back after the end, which tells browsers not to come again.
        """
        job = await self.jobs.get(id_in(request), client_of(request))
        if job.state.ended and "Last-Event-ID" in request.headers:
            return web.Response(status=204)
        return await self._stream(request, job.id)

    async def _stream(self, request: web.Request, job_id: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={**_HEADERS, **request[CORS]})
        connection = request.protocol
        assert isinstance(connection, Connection)
        if request.method == "HEAD":
            return response
        number = _number(request.headers.get("Last-Event-ID", ""))
        async with self.streams.opened(client_of(request), job_id, number, connection.abort) as stream:
            connection.stream_began()
            await response.prepare(request)
            try:
                while (chunk := await stream.next(_COMMENT_EVERY_S)) is not None:
                    if not self.access.still_lets_in(request):  # a sign-in has a longest lifetime
                        break
                    await asyncio.wait_for(response.write(chunk or b":\n\n"), _WRITTEN_WITHIN_S)
            except TimeoutError:
                connection.abort()
        return response


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS else None
