"""Short questions that block, answered by one thread, many at a time.

To hand one question over to a thread and its answer back costs several times what a row of the ledger costs. So whoever
asks while the thread is at work waits for its next turn, and all of these questions go over together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


class Turns:
    """One thread, and those in one event loop who wait for it. `close` ends the thread; who waits still is not told."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._asked: list[tuple[asyncio.Future[Any], Callable[[Any], Any], Any]] = []
        self._busy = False

    def ask(self, answer: Callable[[Q], A], question: Q) -> asyncio.Future[A]:
        """What `answer(question)` gives or raises in the thread."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[A] = loop.create_future()
        self._asked.append((future, answer, question))
        if not self._busy:
            self._busy = True
            loop.call_soon(self._begin, loop)  # after everybody else who asks in this round of the loop
        return future

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        asked, self._asked = self._asked, []
        self._thread.submit(self._answer, loop, asked)

    def _answer(self, loop: asyncio.AbstractEventLoop, asked: list[Any]) -> None:
        """In the thread: it settles nothing, since futures are the loop's alone."""
        answered: list[tuple[asyncio.Future[Any], Callable[[], None]]] = []
        for future, answer, question in asked:
            try:
                answered.append((future, partial(future.set_result, answer(question))))
            except Exception as error:
                answered.append((future, partial(future.set_exception, error)))
        loop.call_soon_threadsafe(self._end, loop, answered)

    def _end(
        self, loop: asyncio.AbstractEventLoop, answered: list[tuple[asyncio.Future[Any], Callable[[], None]]]
    ) -> None:
        for future, settle in answered:
            if not future.done():  # its client may have hung up
                settle()
        self._busy = bool(self._asked)
        if self._busy:
            self._begin(loop)
