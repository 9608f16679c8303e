"""`submit --wait`: follow one job until it has ended, and copy its video."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from lipsyncd.errors import NoDaemon, ResultGone
from lipsyncd.inbox.submit import Submission
from lipsyncd.jobs.job import Job
from lipsyncd.ledger.view import LedgerView
from lipsyncd.monitor.held_lock import is_held
from lipsyncd.monitor.status import result_paths, why_not_taken
from lipsyncd.results.find_video import open_video
from lipsyncd.storage.files import copy_hashed
from lipsyncd.storage.folders import Folders

_POLL_S = 0.1
_DAEMON_POLL_S = 1.0
_TAKEN_WITHIN_S = 3.0  # a file that waits no longer is on its way


def until_ended(
    view: LedgerView,
    folders: Folders,
    submission: Submission,
    report: Callable[[str, str, float], None],
    say: Callable[[str], None],
) -> Job:
    """Wait for the end of a job; report its state, stage and fraction meanwhile, and say once what it waits for.

    Raises `NoDaemon` within two seconds if no daemon runs, or if it ends meanwhile.
    """
    checked_s, began_s, shown = float("-inf"), time.monotonic(), ""
    while True:
        job = view.find(submission.job_id)
        if job is not None and job.state.ended:
            report(job.state, job.stage, 1.0)
            return job
        why = "" if job is None else _what_for(view.waits_for(job))
        if time.monotonic() - checked_s >= _DAEMON_POLL_S:
            checked_s = time.monotonic()
            if not is_held(folders.state):
                raise NoDaemon(f"no daemon runs; job {submission.job_id} waits in the inbox")
            if job is None and checked_s - began_s > _TAKEN_WITHIN_S:
                why = why_not_taken(folders.state, submission.file)
        if why and why != shown:
            shown = why
            say(f"{submission.out_name} waits: {why}")
        if job is None:
            report("waiting", "", 0.0)
        else:
            report("blocked" if job.blocked else job.state, job.stage, job.fraction)
        time.sleep(_POLL_S)


def _what_for(reason: dict[str, str] | None) -> str:
    if reason is None:
        return ""
    return f"{reason['message']}; {reason['remedy']}" if reason["remedy"] else reason["message"]


def fetch(folders: Folders, view: LedgerView, job: Job, out: Path | None) -> Path:
    """The path of a finished job's video: `out`, after copying it there, or else in the outbox. Raises `ResultGone`."""
    outbox = folders.shared["outbox"].where
    if out is None:
        return Path(result_paths(view, [job], outbox).get(job.id, outbox))
    descriptor = open_video(folders, view, job)
    if descriptor is None:
        raise ResultGone(f"the video of job {job.id} is in neither {outbox} nor {folders.results}")
    try:
        out.unlink(missing_ok=True)
        copy_hashed(descriptor, out, mode=0o644)
    finally:
        os.close(descriptor)
    return out
