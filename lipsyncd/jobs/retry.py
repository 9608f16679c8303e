"""Decides after a failure whether a job waits, is tried again later, or fails.

One policy for all stages. `results.failures` carries out the decision.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from lipsyncd.errors import Blocked, DiskLow, LipsyncdError, SlotLost

BACK_OFF_S = (5, 30, 180)  # before the second, the third, and every later attempt
DISK_RECHECK_S = 3.0  # how often a full disk is checked


class Action(Enum):
    """WAIT costs no attempt, since the job itself is fine."""

    WAIT = "wait"
    RETRY = "retry"
    FAIL = "fail"


@dataclass(frozen=True)
class Decision:
    """`wait_s` until the next try; None: until the obstacle has changed (`jobs.blocked`)."""

    action: Action
    reason: LipsyncdError
    wait_s: float | None = None


def decide(error: LipsyncdError, *, attempt: int, max_attempts: int, disk_full: bool, disk_low: bool) -> Decision:
    """What to do about a failed attempt.

    attempt    number of attempts so far, including this one
    disk_full  the failure was a full disk
    disk_low   the free space is below its floor, which may have caused a failure that is not permanent
    """
    if disk_full or (disk_low and not error.permanent and not isinstance(error, Blocked)):
        return Decision(Action.WAIT, DiskLow(f"no room on the disk: {error.message}"), DISK_RECHECK_S)
    if isinstance(error, Blocked):
        return Decision(Action.WAIT, error, DISK_RECHECK_S if isinstance(error, DiskLow) else None)
    if error.permanent or attempt >= max_attempts:
        return Decision(Action.FAIL, error)
    if isinstance(error, SlotLost):
        return Decision(Action.RETRY, error, BACK_OFF_S[0])  # the machine failed, not the job: another one may be free
    return Decision(Action.RETRY, error, BACK_OFF_S[min(attempt, len(BACK_OFF_S)) - 1])
