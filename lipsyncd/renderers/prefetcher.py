"""Compute in other threads what is needed next.

The libraries that draw leave other threads alone meanwhile, so two steps of a frame run on two cores.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

Item = TypeVar("Item")
Step = Callable[[Iterator[Any]], Iterator[Any]]  # the results of one step to those of the next

_MOST_ITEMS = 16


class _Stopped(Exception):
    """Ends the iterators of a `Prefetcher` that is closed, or in which another one has failed."""


class Prefetcher(Iterator[Item]):
    """Runs an iterator in another thread, a few items ahead. An exception of that thread is raised here.

    `close` ends the thread; it waits for the item being computed, and closes the iterator where it can be closed.

    `through` runs several steps, each in a thread of its own. An exception of one of them ends the others at once: what
    lies between two steps is dropped, what the last step has finished is still handed out before the exception.
    """

    def __init__(self, items: Iterator[Item], most: int = _MOST_ITEMS, *, name: str = "prefetcher") -> None:
        """At most `most` items wait for the caller; `name` is that of the thread."""
        self._begin(items, (), (most,), name)

    @classmethod
    def through(cls, items: Iterator[Any], *steps: Step, most: Sequence[int]) -> Prefetcher[Any]:
        """The results of the last step; each takes an iterator and gives one, whose items are computed in its thread.

        most  how many items may wait behind `items` and behind each step
        """
        made: Prefetcher[Any] = cls.__new__(cls)
        made._begin(items, steps, most, "prefetcher")
        return made

    def _begin(self, items: Iterator[Any], steps: Sequence[Step], most: Sequence[int], name: str) -> None:
        if len(most) != len(steps) + 1:
            raise ValueError(f"{len(most)} lengths of queues for {len(steps)} steps and what they begin with")
        self._changed = threading.Condition()
        self._most = most
        self._waiting: list[deque[Any]] = [deque() for _ in most]
        self._ended = [False] * len(most)
        self._error: BaseException | None = None
        self._closed = False
        self._threads: list[threading.Thread] = []
        stages = [items, *(step(self._results_of(number)) for number, step in enumerate(steps))]
        try:
            for number, stage in enumerate(stages):
                thread = threading.Thread(target=self._run, args=(number, stage), name=name, daemon=True)
                thread.start()
                self._threads.append(thread)
        except BaseException:  # there are too many threads
            self.close()
            raise

    def _run(self, number: int, items: Iterator[Any]) -> None:
        error: BaseException | None = None
        try:
            try:
                for item in items:
                    self._put(number, item)
            finally:
                if (close := getattr(items, "close", None)) is not None:
                    close()
        except _Stopped:
            pass
        except BaseException as raised:  # raised again in `__next__`
            error = raised
        with self._changed:
            self._ended[number] = True
            self._error = self._error or error
            self._changed.notify_all()

    @property
    def _stopped(self) -> bool:
        return self._closed or self._error is not None

    def _put(self, number: int, item: Any) -> None:
        waiting, most = self._waiting[number], self._most[number]
        with self._changed:
            self._changed.wait_for(lambda: len(waiting) < most or self._stopped)
            if self._stopped:
                raise _Stopped
            waiting.append(item)
            self._changed.notify_all()

    def _results_of(self, number: int) -> Iterator[Any]:
        """What a stage has finished, for the next one."""
        waiting = self._waiting[number]
        while True:
            with self._changed:
                self._changed.wait_for(lambda: waiting or self._ended[number] or self._stopped)
                if self._stopped:
                    raise _Stopped
                if not waiting:
                    return
                item = waiting.popleft()
                self._changed.notify_all()
            yield item
            del item  # it may be large, and the next one may take a while

    def __next__(self) -> Item:
        waiting = self._waiting[-1]
        with self._changed:
            self._changed.wait_for(lambda: waiting or self._ended[-1] or self._stopped)
            if waiting and not self._closed:
                item: Item = waiting.popleft()
                self._changed.notify_all()
                return item
        error = None if self._closed else self._error
        self.close()
        raise error or StopIteration

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        for waiting in self._waiting:
            waiting.clear()
