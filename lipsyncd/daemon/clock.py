"""Whether the wall clock may be believed when something is to go by its age.

A machine whose clock chip has lost its battery starts in some other year and is put right over the network minutes or
hours later; people set clocks too. So time that goes by is held against a clock that nobody can set, over restarts of
the daemon as well:

    the first minutes after a start       doubted
    set by more than an hour              doubted for a day, also when it was set while no daemon ran
    a week ahead after a reboot           doubted for a day: the machine may have been off, or its clock is wrong

`state/clock.json` holds both clocks as they were when the wall clock was believed last. Owns that file.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from lipsyncd.storage.files import read_json, write_json

log = logging.getLogger(__name__)

FILE = "clock.json"
SETTLED_S = 300.0  # by then a clock that is set over the network is right
_JUMP_S = 3600.0
_ASLEEP_S = 7 * 86400.0
_DOUBT_S = 86400.0
_NOTE_EVERY_S = 3600.0
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def steady_s() -> float:
    """Seconds since the machine was switched on, suspended or not: nobody can set this clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """What this run of the kernel is called: two readings of `steady_s` compare only within one."""
    return _BOOT.read_text().strip()


class WallClock:
    """The wall clock of one machine, watched from now on. `look` often; then `believed` tells.

    wall    tells the time, seconds since 1970
    steady  tells how much of it goes by
    boot    names the run of the kernel
    """

    def __init__(
        self,
        state: Path,
        *,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = steady_s,
        boot: Callable[[], str] = boot_id,
    ) -> None:
        self._record = state / FILE
        self._wall, self._steady, self._boot = wall, steady, boot
        self._anchor: tuple[float, float] | None = None  # both clocks, as they were before any jump
        self._believed_from_s = steady() + SETTLED_S
        self._noted_s = float("-inf")

    @property
    def believed(self) -> bool:
        return self._steady() >= self._believed_from_s

    def look(self) -> None:
        """Has it been set since the last look, or since the last daemon's?"""
        wall_s, now_s = self._wall(), self._steady()
        if self._anchor is None:
            self._anchor = self._begin(wall_s, now_s)
        jumped_s = (wall_s - self._anchor[0]) - (now_s - self._anchor[1])
        if abs(jumped_s) > _JUMP_S:
            log.warning("the clock was set by %+.1f h: nothing is pruned by its age for a day", jumped_s / 3600)
            self._doubt(wall_s, now_s)
        elif self.believed and now_s - self._noted_s >= _NOTE_EVERY_S:
            self._noted_s = now_s
            write_json(self._record, {"wall_s": wall_s, "steady_s": now_s, "boot": self._boot()}, mode=0o640)

    def _begin(self, wall_s: float, now_s: float) -> tuple[float, float]:
        """Both clocks as the last daemon believed them, or as they are now."""
        noted = read_json(self._record) or {}
        then_wall_s, then_s = noted.get("wall_s"), noted.get("steady_s")
        if isinstance(then_wall_s, (int, float)) and isinstance(then_s, (int, float)):
            if noted.get("boot") == self._boot():
                return then_wall_s, then_s
            if wall_s - then_wall_s > _ASLEEP_S:
                ahead_days = (wall_s - then_wall_s) / 86400
                log.warning(
                    "the clock is %.0f days ahead of the last daemon's: nothing is pruned by its age for a day",
                    ahead_days,
                )
                self._doubt(wall_s, now_s)
        return wall_s, now_s

    def _doubt(self, wall_s: float, now_s: float) -> None:
        self._anchor = (wall_s, now_s)
        self._believed_from_s = now_s + _DOUBT_S
