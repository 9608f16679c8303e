"""One connection, as long as aiohttp has it alone: before a handler is found, and when the bytes are no HTTP.

What goes wrong there has D-ID's shape too, and who takes long over the head of a first request is hung up on. Otherwise
a connection that never says anything would hold its descriptor for ever.
"""

from __future__ import annotations

import asyncio
import logging

from aiohttp import web

from lipsyncd.web.replies import ApiError, reply_to

log = logging.getLogger(__name__)

KEEP_ALIVE_S = 75.0  # between two requests of one client
_HEAD_END = b"\r\n\r\n"
_MOST_REASON_CHARS = 200


class Wire(web.RequestHandler):
    """`head_within_s` is how long a client may take from connecting to the end of its first request's head."""

    def __init__(self, server: web.Server, *, loop: asyncio.AbstractEventLoop, head_within_s: float) -> None:
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # it is typed as a logger, and documented to be None for none
            logger=_QUIET,
            keepalive_timeout=KEEP_ALIVE_S,
        )
        self._head_within_s = head_within_s
        self._patience: asyncio.TimerHandle | None = None
        self._last = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._patience = self._loop.call_later(self._head_within_s, self.force_close)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._trust()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._patience is not None:
            seen = self._last + data
            self._last = seen[1 - len(_HEAD_END) :]
            if _HEAD_END in seen:
                self._trust()
        super().data_received(data)

    def _trust(self) -> None:
        """The head is there: from now on the timeouts of bodies and of idle connections hold."""
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What was no HTTP, in D-ID's shape; the connection ends with it."""
        super().handle_error(request, status, exc, message)  # logs, and raises when an answer is on its way already
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
        """aiohttp refuses some requests before it looks for a handler: an `Expect` that nobody knows, for one."""
        if isinstance(resp, web.HTTPException) and isinstance(request, web.Request):
            resp = reply_to(request, resp)
        return await super().finish_response(request, resp, start_time)


def _of_the_protocol() -> logging.Logger:
    """Where aiohttp tells of what is no HTTP: a stranger's bytes are worth a line at debug level, and no traceback.

    What goes wrong in a handler never comes here: `replies.reply_to` has told it.
    """

    def quietly(record: logging.LogRecord) -> bool:
        cause = record.exc_info[1] if record.exc_info else ""
        log.debug("%s: %s", record.getMessage(), str(cause).strip().partition("\n")[0])
        return False

    logger = logging.Logger("lipsyncd.web.protocol")
    logger.addFilter(quietly)
    return logger


_QUIET = _of_the_protocol()
