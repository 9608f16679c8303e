"""Obstacles that make jobs wait although the jobs are fine, such as missing weights, and when to try again.

The wait doubles each time that a try meets the same obstacle, up to five minutes. Meanwhile `changed` is called often:
each obstacle comes with a cheap function that reads the state of what is missing (which files exist, does the device),
and a state that differs from the recorded one ends the wait at once. So jobs continue soon after a repair, although
full tries are rare. Jobs with the same obstacle share one wait.

`packages` is such a function. Obstacles are kept in memory: a daemon that starts tries everything again.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from pathlib import Path

from lipsyncd.errors import Blocked

FIRST_WAIT_S = 5.0
LONGEST_WAIT_S = 300.0

ReadState = Callable[[], Hashable]


def packages() -> Hashable:
    """The times at which the folders of Python packages last changed: installing a package changes one of them."""
    return tuple(folder.stat().st_mtime_ns for folder in map(Path, sys.path) if folder.is_dir())


def _state(read_state: ReadState) -> Hashable:
    try:
        return read_state()
    except OSError:  # the file is being replaced at this moment
        return None


@dataclass
class _Obstacle:
    error: Blocked
    read_state: ReadState
    state: Hashable
    tries: int
    until_s: float


class Obstacles:
    """The obstacles of one daemon, by error code and a place such as "musetalk on cuda:0". Safe in several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], _Obstacle] = {}

    def record(self, error: Blocked, place: str, read_state: ReadState) -> float:
        """Record that a job is blocked; gives its wait in seconds. A job that is blocked during a wait shares it."""
        state = _state(read_state)
        with self._lock:
            now_s, known = self._clock(), self._known.get((error.code, place))
            if known is not None and now_s < known.until_s:
                known.error = error
                return known.until_s - now_s
            tries = 1 if known is None or known.state != state else known.tries + 1
            wait_s = min(FIRST_WAIT_S * 2.0 ** min(tries - 1, 30), LONGEST_WAIT_S)
            self._known[error.code, place] = _Obstacle(error, read_state, state, tries, now_s + wait_s)
            return wait_s

    def still_blocking(self, place: str) -> Blocked | None:
        """The last error that was recorded there; None when there is none, or its wait is over."""
        with self._lock:
            now_s = self._clock()
            found = [o for (_, where), o in self._known.items() if where == place and now_s < o.until_s]
            return found[0].error if found else None

    def __bool__(self) -> bool:
        """Is there any?"""
        return bool(self._known)

    def clear(self, place: str) -> None:
        """Remove the obstacles there, since a job has succeeded."""
        with self._lock:
            self._known = {key: o for key, o in self._known.items() if key[1] != place}

    def changed(self) -> list[str]:
        """The codes of obstacles whose state differs from the recorded one. Each is reported until `forget`."""
        with self._lock:
            forgotten_s = self._clock() - LONGEST_WAIT_S  # not recorded again since: its jobs were cancelled
            self._known = {key: o for key, o in self._known.items() if o.until_s > forgotten_s}
            known = list(self._known.items())
        return sorted({code for (code, _), o in known if _state(o.read_state) != o.state})

    def forget(self, codes: Collection[str]) -> None:
        """Remove the obstacles with these codes, since their jobs are being tried again."""
        with self._lock:
            self._known = {key: o for key, o in self._known.items() if key[0] not in codes}
