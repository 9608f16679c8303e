"""Wakes the main thread: other threads by `set`, and every signal that Python handles.

A signal may come right before the main thread begins to wait, and its handler may take no lock. So the thread waits for
a pipe, into which the interpreter itself writes when a signal arrives.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading


class Wakeup:
    """Waited for by one thread, the main one once `expect_signals` was called."""

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._reading, select.POLLIN)
        self._lock = threading.Lock()  # no signal handler calls `set`
        self._closed = self._has_signals = False

    def expect_signals(self) -> None:
        """From now on a signal ends a wait, too."""
        signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        self._has_signals = True

    def set(self) -> None:
        """End the wait, or the next one. Any thread may call this."""
        with self._lock, contextlib.suppress(BlockingIOError):
            if not self._closed:
                os.write(self._writing, b"\0")

    def wait(self, within_s: float) -> None:
        """Return after a `set` or a signal since the last wait, or when that time is over."""
        if self._poll.poll(max(0.0, within_s) * 1000):
            with contextlib.suppress(BlockingIOError):
                while os.read(self._reading, 4096):
                    pass

    def close(self) -> None:
        if self._has_signals:
            signal.set_wakeup_fd(-1)
        with self._lock:
            self._closed = True
            os.close(self._reading)
            os.close(self._writing)
