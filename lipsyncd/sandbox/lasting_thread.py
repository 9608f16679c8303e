"""Start processes from a thread that lives as long as this process.

The kernel kills a process with a parent-death signal when the *thread* that started it ends. A Python program may begin
a render in one thread and use it in another, so the thread that asks is not the one that starts.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

Made = TypeVar("Made")


class _Call(Generic[Made]):
    def __init__(self, make: Callable[[], Made]) -> None:
        self.make = make
        self.future: Future[Made] = Future()

    def run(self) -> None:
        if self.future.set_running_or_notify_cancel():
            try:
                self.future.set_result(self.make())
            except BaseException as error:
                self.future.set_exception(error)


class _LastingThread:
    """The thread, started with the first call. A fork has a new one."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self._guard = threading.Lock()
        self._calls: queue.SimpleQueue[_Call[Any]] | None = None

    def add(self, call: _Call[Any]) -> None:
        with self._guard:
            if self._calls is None:
                self._calls = queue.SimpleQueue()
                threading.Thread(target=self._run, args=(self._calls,), name="starts-processes", daemon=True).start()
            self._calls.put(call)

    def _run(self, calls: queue.SimpleQueue[_Call[Any]]) -> None:
        while True:
            calls.get().run()


_thread = _LastingThread()
os.register_at_fork(after_in_child=_thread.forget)


def in_lasting_thread(make: Callable[[], Made], undo: Callable[[Made], object]) -> Made:
    """Call `make` in that thread and return what it returns, or raise what it raises.

    undo  called with what was made when this call itself is interrupted, as by Ctrl-C
    """
    call = _Call(make)
    _thread.add(call)
    try:
        return call.future.result()
    except BaseException:
        if not call.future.cancel():
            call.future.add_done_callback(lambda made: None if made.exception() else undo(made.result()))
        raise
