"""What happens to a job after a failure: it waits, it is tried again later, or it fails.

One policy for all stages. `results.failures` carries a decision out.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from lipsyncd.errors import Blocked, DiskLow, LipsyncdError

BACK_OFF_S = (5, 30, 180)  # before the second, the third, and every later attempt
DISK_AGAIN_S = 3.0  # a full disk is looked at every few seconds


class Action(Enum):
    """WAIT charges no attempt: nothing is wrong with the job."""

    WAIT = "wait"
    RETRY = "retry"
    FAIL = "fail"


@dataclass(frozen=True)
class Decision:
    """`wait_s` until the next try; None: until what blocks the job has changed (`jobs.blocked`)."""

    action: Action
    reason: LipsyncdError
    wait_s: float | None = None


def decide(error: LipsyncdError, *, attempt: int, max_attempts: int, disk_full: bool, disk_low: bool) -> Decision:
    """What to do about a failed attempt.

    attempt    how many attempts were made, this one included
    disk_full  the failure itself was a disk without room
    disk_low   the disk is below its floor, so room may be the cause of a failure that may pass
    """
    if disk_full or (disk_low and not error.permanent and not isinstance(error, Blocked)):
        return Decision(Action.WAIT, DiskLow(f"no room on the disk: {error.message}"), DISK_AGAIN_S)
    if isinstance(error, Blocked):
        return Decision(Action.WAIT, error, DISK_AGAIN_S if isinstance(error, DiskLow) else None)
    if error.permanent or attempt >= max_attempts:
        return Decision(Action.FAIL, error)
    return Decision(Action.RETRY, error, BACK_OFF_S[min(attempt, len(BACK_OFF_S)) - 1])
