"""Whose turn it is to use the networks of a device: the frames of one job, or the opening of the next one.

torch's switches count for the whole process, and threads that share a device only slow each other down.
"""

from __future__ import annotations

import threading


class Turn:
    """A lock that two threads get by turns: one that gives it back and wants it again waits for the other first.

    Use it in a `with` statement; the same thread does not take it twice.
    """

    def __init__(self) -> None:
        self._next, self._taken = threading.Lock(), threading.Lock()

    def __enter__(self) -> None:
        with self._next:
            self._taken.acquire()

    def __exit__(self, *_: object) -> None:
        self._taken.release()
