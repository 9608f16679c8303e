"""Requests that wait for a job (`?wait=SECONDS`): how many may, and when each looks again.

The daemon signals each change, as it does for the streams of events, so a request that waits reads nothing meanwhile.
A few things change without a signal, such as a manifest without a row that someone takes out of the inbox: for these a
request also looks every few seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

MOST_WAIT_S = 60.0
_MOST_WAITING = 100
_NOT_OFTENER_S = 0.1  # than this looks one request, however many changes there are
_WITHOUT_NEWS_S = 5.0


class Waits:
    """All requests of one event loop that wait. Any thread may call `signal`, and only the loop's everything else.

    has_ended  the server stops, and no request waits any more
    """

    def __init__(self) -> None:
        self._waiting = 0
        self.has_ended = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()

    def signal(self) -> None:
        """Something about the jobs has changed."""
        loop = self._loop
        if self._waiting and loop is not None:
            with suppress(RuntimeError):  # the loop has just been closed
                loop.call_soon_threadsafe(self._ring)

    def end(self) -> None:
        """Every request is answered now, and none waits any more."""
        self.has_ended = True
        self._ring()

    def _ring(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def until(self, is_so: Callable[[], Awaitable[bool]], wait_s: float) -> None:
        """Return when it is so, after `wait_s` seconds at the latest; at once if many requests wait already."""
        if wait_s <= 0 or self._waiting >= _MOST_WAITING:
            return
        self._loop = asyncio.get_running_loop()
        self._waiting += 1
        deadline_s = time.monotonic() + min(wait_s, MOST_WAIT_S)
        try:
            while not self.has_ended and (looked_s := time.monotonic()) < deadline_s:
                news = self._news  # before the look: a change after it is news
                if await is_so():
                    return
                with suppress(TimeoutError):
                    await asyncio.wait_for(news.wait(), min(_WITHOUT_NEWS_S, deadline_s - time.monotonic()))
                if not self.has_ended:
                    await asyncio.sleep(min(looked_s + _NOT_OFTENER_S, deadline_s) - time.monotonic())
        finally:
            self._waiting -= 1
