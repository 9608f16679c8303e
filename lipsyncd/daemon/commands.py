"""Requests about one job: cancel, withdraw, retry, priority, republish, delete.

The holder of the lock carries them out.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace

from lipsyncd.errors import IllegalTransition, LipsyncdError, UnknownJob
from lipsyncd.jobs.job import JobState
from lipsyncd.jobs.values import canonical_id
from lipsyncd.results.finish import Finisher
from lipsyncd.results.stores import Stores
from lipsyncd.storage.control_files import WITHDRAW, Answer, Request

log = logging.getLogger(__name__)

_LOWEST, _HIGHEST = -100, 100


def carry_out(request: Request | None, stores: Stores, finisher: Finisher) -> Answer:
    """Carry out a request; raises nothing for any content of it. None stands for a file that is no valid request."""
    if request is None:
        return Answer(False, "this request is not known")
    try:
        message = _DO[request.action](request, stores, finisher)
    except (LipsyncdError, OSError) as error:
        log.info("%s of job %s refused: %s", request.action, request.job_id, error)
        return Answer(False, str(error))
    log.info("%s of job %s: %s", request.action, request.job_id, message)
    return Answer(True, message)


def _cancel(request: Request, stores: Stores, finisher: Finisher) -> str:
    """A worker may claim the job or put it back after it was read here: then it is read again."""
    while True:
        job = stores.ledger.get(request.job_id)
        match job.state:
            case JobState.QUEUED:
                with contextlib.suppress(IllegalTransition):
                    finisher.cancel(job.id, sources=[JobState.QUEUED])
                    return "cancelled"
            case JobState.RUNNING:
                if stores.ledger.request_cancel(job.id):
                    stores.running.cancel(job.id)
                    return "is being cancelled"
            case JobState.PUBLISHING:
                return "is finished and about to be published; it is left as it is"
            case _:
                return f"has ended already ({job.state.value}); it is left as it is"


def _withdraw(request: Request, stores: Stores, finisher: Finisher) -> str:
    """`_cancel`, also for a job that has no row yet.

    Its id is recorded before the ledger is read, and the thread that gives it a row prepares it afterwards: one of the
    two sees the other.
    """
    try:
        job_id = canonical_id(request.job_id)
    except ValueError:
        raise UnknownJob(f"{request.job_id!r} is no job's id") from None
    if stores.ledger.find(job_id) is None:
        stores.withdrawn.add(job_id)
        if stores.ledger.find(job_id) is None:
            return "is taken back before it is accepted"
        stores.withdrawn.discard(job_id)
    return _cancel(replace(request, job_id=job_id), stores, finisher)


def _retry(request: Request, stores: Stores, finisher: Finisher) -> str:
    stores.withdrawn.discard(request.job_id)
    finisher.retry(request.job_id)
    return "queued again"


def _priority(request: Request, stores: Stores, _finisher: Finisher) -> str:
    job = stores.ledger.get(request.job_id)
    value = min(max(request.value, _LOWEST), _HIGHEST)
    if not stores.ledger.set_priority(job.id, value):
        raise IllegalTransition(f"job {job.id} is {job.state.value}; only waiting jobs have a priority")
    return f"has priority {value}"


def _republish(request: Request, _stores: Stores, finisher: Finisher) -> str:
    return f"published again as {finisher.republish(request.job_id, order=request.order)}.mp4"


def _delete(request: Request, _stores: Stores, finisher: Finisher) -> str:
    finisher.delete(request.job_id)
    return "deleted"


_DO = {
    "cancel": _cancel,
    WITHDRAW: _withdraw,
    "retry": _retry,
    "priority": _priority,
    "republish": _republish,
    "delete": _delete,
}
