"""One connection: what aiohttp does with it before a handler is found, and when the bytes are no HTTP.

Errors there have D-ID's form too. A client that is slow to send the head of its first request is disconnected:
otherwise a silent connection would hold its descriptor forever.
"""

from __future__ import annotations

import asyncio
import logging

from aiohttp import web

from lipsyncd.web.connections import Connections
from lipsyncd.web.replies import ApiError, reply_to

log = logging.getLogger(__name__)

KEEP_ALIVE_S = 75.0  # between two requests of one client
_HEAD_END = b"\r\n\r\n"
_MOST_REASON_CHARS = 200


class Connection(web.RequestHandler):
    """One of the open `connections`.

    address         of the client
    head_within_s   how long a client may take from connecting to the end of its first request's head
    received_s      when its last bytes came, by the loop's clock
    received_bytes  how many have come
    """

    def __init__(
        self,
        address: str,
        *,
        server: web.Server,
        connections: Connections,
        loop: asyncio.AbstractEventLoop,
        head_within_s: float,
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # the type wants a logger; the documentation allows None for none
            logger=_PROTOCOL_LOGGER,
            keepalive_timeout=KEEP_ALIVE_S,
        )
        self.address = address
        self.received_s = loop.time()
        self.received_bytes = 0
        self._aborted = False
        self._connections = connections
        self._head_within_s = head_within_s
        self._head_timer: asyncio.TimerHandle | None = None
        self._last = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self._aborted:
            self.abort()
            return
        self._head_timer = self._loop.call_later(self._head_within_s, self.force_close)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_head_timer()
        self._connections.forget(self)
        super().connection_lost(exc)

    def request_began(self) -> None:
        """A request was read up to its body."""
        if self.transport is not None:
            self._connections.set_busy(self, self._loop.time())

    def stream_began(self) -> None:
        """The request is answered by a stream of events."""
        if self.transport is not None:
            self._connections.set_stream(self)

    def abort(self) -> None:
        """Close it at once, with everything that is under way."""
        self._aborted, transport = True, self.transport
        self.force_close()
        if isinstance(transport, asyncio.WriteTransport):
            transport.abort()  # a client that reads nothing would keep it open

    def data_received(self, data: bytes) -> None:
        self.received_s = self._loop.time()
        self.received_bytes += len(data)
        if self._head_timer is not None:
            seen = self._last + data
            self._last = seen[1 - len(_HEAD_END) :]
            if _HEAD_END in seen:
                self._stop_head_timer()
        super().data_received(data)

    def _stop_head_timer(self) -> None:
        """The head is complete: from now on the timeouts of bodies and of idle connections apply."""
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to bytes that are no HTTP, in D-ID's form; it ends the connection."""
        super().handle_error(request, status, exc, message)  # logs, and raises if an answer has begun already
        reason = (message or "").strip().partition("\n")[0].rstrip(":")[:_MOST_REASON_CHARS]
        if status >= 500:
            answer = ApiError(status, "InternalServerError", "internal server error").reply()
        else:
            answer = ApiError(status, "BadRequestError", f"this is no HTTP request: {reason or 'it is broken'}").reply()
        answer.force_close()
        return answer

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """aiohttp refuses some requests before it looks for a handler, such as those with an unknown `Expect`."""
        if isinstance(resp, web.HTTPException) and isinstance(request, web.Request):
            resp = reply_to(request, resp)
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            if self.transport is not None:
                self._connections.set_idle(self, self._loop.time())


def _protocol_logger() -> logging.Logger:
    """aiohttp's logger for bytes that are no HTTP: one line at debug level for each, and no traceback.

    Errors of handlers never come here: `replies.reply_to` logs them.
    """

    def log_line(record: logging.LogRecord) -> bool:
        cause = record.exc_info[1] if record.exc_info else ""
        log.debug("%s: %s", record.getMessage(), str(cause).strip().partition("\n")[0])
        return False

    logger = logging.Logger("lipsyncd.web.protocol")
    logger.addFilter(log_line)
    return logger


_PROTOCOL_LOGGER = _protocol_logger()
