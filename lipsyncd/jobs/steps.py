"""What each part of the daemon is doing, and since when, so that one that makes no step is named.

A part announces a step before it begins: `with steps.at("prepare", "has prepared job …", limit_s=600):`. A step that
lasts longer than its limit shows in `/health/ready`; a restart by systemd's watchdog follows only if the step is not on
a share, since the new process would wait for the same file server.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

SHARE_LIMIT_S = 30.0  # what a file server that works needs for a step


@dataclass(frozen=True)
class StepFacts:
    """One step under way.

    part      such as "prepare"; the name of the failing check
    age_s     since it began
    limit_s   longer is a fault
    on_share  it waits for a folder that may lie on a file server
    """

    part: str
    what: str
    age_s: float
    limit_s: float
    on_share: bool

    @property
    def late(self) -> bool:
        return self.age_s > self.limit_s

    @property
    def shown(self) -> str:
        return f"{self.what} for {self.age_s:.0f} s; {self.limit_s:g} s is the longest that it may take"


class Steps:
    """The steps under way in all threads of one daemon."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._number = 0
        self._under_way: dict[int, tuple[str, str, float, float, bool]] = {}

    @contextmanager
    def at(self, part: str, what: str, *, limit_s: float = SHARE_LIMIT_S, on_share: bool = False) -> Iterator[None]:
        """A step of a part, from now until the end of the block. `what` reads "has … " and goes on with a time."""
        with self._lock:
            self._number += 1
            number = self._number
            self._under_way[number] = (part, what, self._clock(), limit_s, on_share)
        try:
            yield
        finally:
            with self._lock:
                del self._under_way[number]

    def facts(self) -> tuple[StepFacts, ...]:
        """Every step under way, the oldest first."""
        now_s = self._clock()
        with self._lock:
            under_way = list(self._under_way.values())
        return tuple(
            StepFacts(part, what, now_s - since_s, limit_s, on_share)
            for part, what, since_s, limit_s, on_share in under_way
        )
