"""`submit --wait`: follow one job until it has ended, and copy its video."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from lipsyncd.errors import NoDaemon, ResultGone
from lipsyncd.jobs.job import Job
from lipsyncd.ledger.view import LedgerView
from lipsyncd.results.find_video import open_video
from lipsyncd.storage.files import copy_hashed
from lipsyncd.storage.folders import Folders
from lipsyncd.storage.locks import is_held

_POLL_S = 0.1
_DAEMON_POLL_S = 1.0


def until_ended(view: LedgerView, folders: Folders, job_id: str, report: Callable[[str, str, float], None]) -> Job:
    """Wait for the end of a job, and report its state, stage and fraction meanwhile.

    Raises `NoDaemon` within two seconds if no daemon runs, or if it ends meanwhile.
    """
    checked_s = float("-inf")
    while True:
        job = view.find(job_id)
        if job is not None and job.state.ended:
            report(job.state, job.stage, 1.0)
            return job
        if time.monotonic() - checked_s >= _DAEMON_POLL_S:
            checked_s = time.monotonic()
            if not is_held(folders.state):
                raise NoDaemon(f"no daemon runs; job {job_id} waits in the inbox")
        if job is None:
            report("waiting", "", 0.0)
        else:
            report(job.state, job.stage, job.fraction)
        time.sleep(_POLL_S)


def fetch(folders: Folders, view: LedgerView, job: Job, out: Path | None) -> Path:
    """The path of a finished job's video: `out`, after copying it there, or else in the outbox. Raises `ResultGone`."""
    outbox = folders.shared["outbox"].where
    if out is None:
        return Path(outbox, f"{job.place}.mp4")
    descriptor = open_video(folders, view, job)
    if descriptor is None:
        raise ResultGone(f"the video of job {job.id} is in neither {outbox} nor {folders.results}")
    try:
        out.unlink(missing_ok=True)
        copy_hashed(descriptor, out, mode=0o644)
    finally:
        os.close(descriptor)
    return out
