"""What jobs wait for although nothing is wrong with them, and when somebody looks again.

The wait doubles each time that a look finds the obstacle still there, up to five minutes. Meanwhile whoever has a
moment asks `moved`: every obstacle comes with a cheap look at the thing itself (are the files there now, is the device)
and a look that shows something else than before ends the wait at once, so that healing is quick although probing is
rare. Jobs that meet the same obstacle share one wait.

`packages` is such a look. Kept in memory: a daemon that starts looks at everything anew.
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

Look = Callable[[], Hashable]


def packages() -> Hashable:
    """When the folders of Python's packages were last changed, as they are when one is installed."""
    return tuple(folder.stat().st_mtime_ns for folder in map(Path, sys.path) if folder.is_dir())


def _seen(look: Look) -> Hashable:
    try:
        return look()
    except OSError:  # the thing is being replaced just now
        return None


@dataclass
class _Obstacle:
    error: Blocked
    look: Look
    seen: Hashable
    looks: int
    until_s: float


class Obstacles:
    """Those of one daemon, by the reason's code and a place such as "musetalk on cuda:0". Safe in several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._standing: dict[tuple[str, str], _Obstacle] = {}

    def met(self, error: Blocked, place: str, look: Look) -> float:
        """Somebody was stopped; gives how long to wait in seconds. Whoever comes while others wait joins them."""
        seen = _seen(look)
        with self._lock:
            now_s, known = self._clock(), self._standing.get((error.code, place))
            if known is not None and now_s < known.until_s:
                known.error = error
                return known.until_s - now_s
            looks = 1 if known is None or known.seen != seen else known.looks + 1
            wait_s = min(FIRST_WAIT_S * 2.0 ** min(looks - 1, 30), LONGEST_WAIT_S)
            self._standing[error.code, place] = _Obstacle(error, look, seen, looks, now_s + wait_s)
            return wait_s

    def ahead(self, place: str) -> Blocked | None:
        """What would stop somebody there, as the last one was told; None when it is time to look again."""
        with self._lock:
            now_s = self._clock()
            found = [o for (_, there), o in self._standing.items() if there == place and now_s < o.until_s]
            return found[0].error if found else None

    def passed(self, place: str) -> None:
        """Somebody came through: nothing stands there any more."""
        with self._lock:
            self._standing = {key: o for key, o in self._standing.items() if key[1] != place}

    def moved(self) -> list[str]:
        """The codes of obstacles that look different than when they were met, until `forget`: worth another try."""
        with self._lock:
            forgotten_s = self._clock() - LONGEST_WAIT_S  # nobody has met it again: its jobs were cancelled
            self._standing = {key: o for key, o in self._standing.items() if o.until_s > forgotten_s}
            standing = list(self._standing.items())
        return sorted({code for (code, _), obstacle in standing if _seen(obstacle.look) != obstacle.seen})

    def forget(self, codes: Collection[str]) -> None:
        """Those who waited for these were told to try again."""
        with self._lock:
            self._standing = {key: o for key, o in self._standing.items() if key[0] not in codes}
