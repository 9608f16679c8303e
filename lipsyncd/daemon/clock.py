"""Whether the wall clock can be trusted when files are removed by their age.

A machine whose clock chip has lost its battery starts in a wrong year, and its clock is corrected over the network
minutes or hours later; people set clocks, too. So the wall clock is compared with a clock that cannot be set, also over
restarts of the daemon:

    the first minutes after a start       not trusted
    set by more than an hour              not trusted for a day, also when it was set while no daemon ran
    a week ahead after a reboot           not trusted for a day: the machine was off, or its clock is wrong

`state/clock.json` holds both clocks as they were when the wall clock was last trusted. Owns that file.
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
_LONG_OFF_S = 7 * 86400.0
_DISTRUST_S = 86400.0
_RECORD_EVERY_S = 3600.0
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def steady_s() -> float:
    """Seconds since the machine was switched on, also while it was suspended: this clock cannot be set."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """The name of this run of the kernel: readings of `steady_s` compare only within one."""
    return _BOOT.read_text().strip()


class WallClock:
    """The wall clock of one machine. `look` is called often; `trusted` is the result.

    wall    gives the time, seconds since 1970
    steady  gives the time since some moment, by a clock that cannot be set
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
        self._trusted_from_s = steady() + SETTLED_S
        self._recorded_s = float("-inf")

    @property
    def trusted(self) -> bool:
        return self._steady() >= self._trusted_from_s

    def look(self) -> None:
        """Notice when the clock was set since the last look, or since the last daemon ran."""
        wall_s, now_s = self._wall(), self._steady()
        if self._anchor is None:
            self._anchor = self._begin(wall_s, now_s)
        jumped_s = (wall_s - self._anchor[0]) - (now_s - self._anchor[1])
        if abs(jumped_s) > _JUMP_S:
            log.warning("the clock was set by %+.1f h: nothing is pruned by its age for a day", jumped_s / 3600)
            self._distrust(wall_s, now_s)
        elif self.trusted and now_s - self._recorded_s >= _RECORD_EVERY_S:
            self._recorded_s = now_s
            write_json(self._record, {"wall_s": wall_s, "steady_s": now_s, "boot": self._boot()}, mode=0o640)

    def _begin(self, wall_s: float, now_s: float) -> tuple[float, float]:
        """Both clocks as the last daemon trusted them, or as they are now."""
        recorded = read_json(self._record) or {}
        then_wall_s, then_s = recorded.get("wall_s"), recorded.get("steady_s")
        if isinstance(then_wall_s, (int, float)) and isinstance(then_s, (int, float)):
            if recorded.get("boot") == self._boot():
                return then_wall_s, then_s
            if wall_s - then_wall_s > _LONG_OFF_S:
                ahead_days = (wall_s - then_wall_s) / 86400
                log.warning(
                    "the clock is %.0f days ahead of the last daemon's: nothing is pruned by its age for a day",
                    ahead_days,
                )
                self._distrust(wall_s, now_s)
        return wall_s, now_s

    def _distrust(self, wall_s: float, now_s: float) -> None:
        self._anchor = (wall_s, now_s)
        self._trusted_from_s = now_s + _DISTRUST_S
