"""Act on the failure of a job in any stage, and record it. `jobs.retry` decides what to do."""

from __future__ import annotations

import errno
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

from lipsyncd.errors import (
    Blocked,
    DiskLow,
    IllegalTransition,
    LedgerUnavailable,
    LipsyncdError,
    OutboxUnavailable,
    RenderCrashed,
    SystemBusy,
)
from lipsyncd.jobs.blocked import ReadState
from lipsyncd.jobs.job import Job, JobState
from lipsyncd.jobs.retry import Action, Decision, decide
from lipsyncd.results.finish import Finisher
from lipsyncd.results.stores import Stores
from lipsyncd.storage.disk_space import says_full, shortage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """The stage in which a job failed, and the meaning of an OSError there.

    fills_spool  a spool's disk below its floor may be the cause of a failure
    """

    name: str
    os_error: type[LipsyncdError]
    attempted: str
    fills_spool: bool = True


_BUSY = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)
# What the names and files of one job can cause, and no other job would meet: such a job is given up at last.
_OF_THE_JOB = (
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EINVAL,
    errno.EEXIST,
    errno.ENOTEMPTY,
)

PREPARE = Stage("preparation", DiskLow, "cannot prepare the job")
RENDER = Stage("render", RenderCrashed, "the result could not be kept")
PUBLISH = Stage("publication", OutboxUnavailable, "cannot publish", fills_spool=False)


class Failures:
    """Used by every thread that works on jobs."""

    def __init__(self, stores: Stores, finisher: Finisher) -> None:
        self._stores = stores
        self._finisher = finisher

    def handle(
        self,
        job: Job,
        error: Exception,
        stage: Stage,
        obstacle: Callable[[Blocked], tuple[str, ReadState]],
        *,
        attempt: int,
        longest_wait_s: float = math.inf,
    ) -> Action | None:
        """Let a job wait, try it again later, or end it; returns what was done, None when the job had ended.

        obstacle  the place where a blocked job waits, and a cheap function that reads the state of what blocks it
        attempt   how many attempts in this stage were made

        Raises `LedgerUnavailable`, also when that is the error: it is no fault of the job.
        """
        if isinstance(error, LedgerUnavailable):
            raise error
        try:
            if isinstance(error, IllegalTransition):
                raise error
            return self._carry_out(job, self._decide(job, error, stage, attempt), obstacle, attempt, longest_wait_s)
        except IllegalTransition as ended:
            log.info("job %s: its %s is dropped: %s", job.id, stage.name, ended)
            now = self._stores.ledger.find(job.id)
            if now is not None and now.cancel_requested:
                self._finisher.cancel(job.id)
            return None

    def requeue(
        self, job: Job, note: str, *, charge: bool, wait_s: float = 0.0, reason: LipsyncdError | None = None
    ) -> None:
        """Put a run that ended without a video back, or cancel the job where that was requested meanwhile."""
        error = None if reason is None else reason.reason()
        delay_ms = round(wait_s * 1000)
        requeued = self._stores.ledger.requeue(job.id, note=note, delay_ms=delay_ms, charge=charge, error=error)
        if requeued.cancel_requested:
            self._finisher.cancel(job.id)

    def _decide(self, job: Job, error: Exception, stage: Stage, attempt: int) -> Decision:
        paths = self._stores.settings.now.paths
        return decide(
            self._as_ours(job, error, stage),
            attempt=attempt,
            max_attempts=job.max_attempts,
            disk_full=stage.fills_spool and says_full(error),
            disk_low=stage.fills_spool and bool(shortage(self._stores.spool.root, paths.min_free_mb)),
        )

    @staticmethod
    def _as_ours(job: Job, error: Exception, stage: Stage) -> LipsyncdError:
        """The error in our terms: a busy machine and a faulty disk let a job wait; its own files may end it."""
        if isinstance(error, LipsyncdError):
            return error
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _BUSY):
            return SystemBusy(f"{stage.attempted}: {str(error) or 'no memory left'}")
        if isinstance(error, OSError) and error.errno not in _OF_THE_JOB:
            return stage.os_error(f"{stage.attempted}: {error}")
        log.error("job %s: unexpected failure", job.id, exc_info=error)
        return LipsyncdError(f"{type(error).__name__}: {error}")

    def _carry_out(
        self,
        job: Job,
        decision: Decision,
        obstacle: Callable[[Blocked], tuple[str, ReadState]],
        attempt: int,
        longest_wait_s: float,
    ) -> Action:
        reason, wait_s = decision.reason, decision.wait_s
        if decision.action is Action.FAIL:
            self._finisher.fail(job.id, reason)
            return decision.action
        if wait_s is None:
            assert isinstance(reason, Blocked)
            wait_s = self._stores.obstacles.record(reason, *obstacle(reason))
        wait_s = min(wait_s, longest_wait_s)
        if job.state is JobState.RUNNING:
            self.requeue(job, str(reason), charge=decision.action is Action.RETRY, wait_s=wait_s, reason=reason)
        elif not self._stores.ledger.set_blocked(job.id, reason.reason(), delay_ms=round(wait_s * 1000)):
            raise IllegalTransition(f"job {job.id} has ended meanwhile")
        if decision.wait_s is None:
            self._stores.wake()  # from now on a worker looks whether the obstacle has changed
        if decision.action is Action.RETRY:
            counted = (attempt, job.max_attempts, wait_s, reason)
            log.warning("job %s failed, attempt %d of %d, next in %.0f s: %s", job.id, *counted)
        else:
            log.warning("job %s waits, next look in %.0f s: %s", job.id, wait_s, reason)
        return decision.action
