"""What can be asked of a job by hand: cancel, retry, priority, republish, delete. Done by the holder of the lock."""

from __future__ import annotations

import contextlib
import logging

from lipsyncd.errors import IllegalTransition, LipsyncdError
from lipsyncd.jobs.job import JobState
from lipsyncd.results.finish import Finisher
from lipsyncd.results.stores import Stores
from lipsyncd.storage.control_files import Answer, Request

log = logging.getLogger(__name__)

_LOWEST, _HIGHEST = -100, 100


def carry_out(request: Request | None, stores: Stores, finisher: Finisher) -> Answer:
    """Do what was asked and say how it went; never raises for what a request may bring. None is a file that is none."""
    if request is None:
        return Answer(False, "this is no request that we know")
    try:
        message = _DO[request.action](request, stores, finisher)
    except (LipsyncdError, OSError) as error:
        log.info("%s of job %s refused: %s", request.action, request.job_id, error)
        return Answer(False, str(error))
    log.info("%s of job %s: %s", request.action, request.job_id, message)
    return Answer(True, message)


def _cancel(request: Request, stores: Stores, finisher: Finisher) -> str:
    """A look at the job is out of date when a worker takes it or puts it back before we act on it: look again then."""
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


def _retry(request: Request, _stores: Stores, finisher: Finisher) -> str:
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


_DO = {"cancel": _cancel, "retry": _retry, "priority": _priority, "republish": _republish, "delete": _delete}
