"""Which job a user means by a text: its id, the end of its id, or its name. And the short ids that are shown.

An id begins with a time, so its end tells jobs apart, as the beginning does in git.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence

from lipsyncd.errors import AmbiguousJob, UnknownJob
from lipsyncd.jobs.job import Job, JobState
from lipsyncd.jobs.values import canonical_id, quoted
from lipsyncd.ledger.view import LedgerView

UNFINISHED = (JobState.QUEUED, JobState.RUNNING, JobState.PUBLISHING)
_SHORTEST = 6  # of the ids that are shown; 16.7 million different ones
_LONGEST = 12  # beyond it stands a "-"
_SHORTEST_GIVEN = 4
_MOST_CANDIDATES = 50
_MOST_NAMED = 5
_NAMED = "name=:text OR out_name=:text OR (queue<>'' AND :text IN (queue||'/'||name, queue||'/'||out_name))"
_ENDS = ":length >= :shortest AND substr(id, -:length)=:text"
_BEGINS = ":length >= :shortest AND substr(id, 1, :length)=:text"


def find_job(view: LedgerView, text: str, *, preferred: Collection[JobState] = UNFINISHED) -> Job:
    """The job with that id or name.

    preferred  the states that decide among several jobs: where exactly one of these is in such a state, it is meant

    Raises `UnknownJob` or `AmbiguousJob`.
    """
    try:
        job = view.find(canonical_id(text))
    except ValueError:
        job = None
    if job is not None:
        return job
    values = {"text": text, "length": len(text), "shortest": _SHORTEST_GIVEN}
    found = view.jobs_where(f"{_NAMED} OR ({_ENDS})", values, limit=_MOST_CANDIDATES)
    found = found or view.jobs_where(_BEGINS, values, limit=_MOST_CANDIDATES)
    if not found:
        raise UnknownJob(f"no job in {view.path} has the id or the name {quoted(text)}")
    wanted = [job for job in found if job.state in preferred]
    if len(found) > 1 and len(wanted) != 1:
        raise _ambiguous(view, text, wanted or found)
    return found[0] if len(found) == 1 else wanted[0]


def short_ids(view: LedgerView, jobs: Sequence[Job]) -> dict[str, str]:
    """The id of each job -> its end, as long as no other job in the ledger has the same end, all of one length."""
    ids = [job.id for job in jobs]
    for length in range(_SHORTEST, _LONGEST + 1):
        ends = {job_id: job_id[-length:] for job_id in ids}
        if not view.shared_ends(json.dumps([*ends.values()]), length):
            return ends
    return {job_id: job_id for job_id in ids}


def _ambiguous(view: LedgerView, text: str, jobs: Sequence[Job]) -> AmbiguousJob:
    ends = short_ids(view, jobs)
    named = ", ".join(f"{ends[job.id]} ({job.state.value})" for job in jobs[:_MOST_NAMED])
    more = f" and {len(jobs) - _MOST_NAMED} more" if len(jobs) > _MOST_NAMED else ""
    many = "at least " if len(jobs) == _MOST_CANDIDATES else ""
    return AmbiguousJob(f"{many}{len(jobs)} jobs fit {quoted(text)}: {named}{more}")
