"""Compute in another thread what is needed next.

The libraries that draw leave other threads alone meanwhile, so two steps of a frame run on two cores.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

Item = TypeVar("Item")

_MOST_ITEMS = 16


class Prefetcher(Iterator[Item]):
    """Runs an iterator in another thread, a few items ahead. An exception of that thread is raised here.

    `close` ends the thread; it waits for the item being computed.
    """

    def __init__(self, items: Iterator[Item], most: int = _MOST_ITEMS) -> None:
        self._ready: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(most)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(items,), name="prefetcher", daemon=True)
        self._thread.start()

    def _run(self, items: Iterator[Item]) -> None:
        try:
            for item in items:
                if not self._put((item, None)):
                    return
            self._put((None, StopIteration()))
        except BaseException as error:  # raised again in `__next__`
            self._put((None, error))

    def _put(self, entry: tuple[Item | None, BaseException | None]) -> bool:
        while not self._closed.is_set():
            try:
                self._ready.put(entry, timeout=0.05)
            except queue.Full:
                continue
            return True
        return False

    def __next__(self) -> Item:
        if self._closed.is_set():
            raise StopIteration
        item, error = self._ready.get()
        if error is not None:
            self.close()
            raise error
        return item  # type: ignore[return-value]  # it is None only with an error

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
