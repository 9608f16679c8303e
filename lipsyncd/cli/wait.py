"""Follow one job until it has ended, and bring its video home: `submit --wait`."""

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

_LOOK_EVERY_S = 0.1
_DAEMON_EVERY_S = 1.0


def until_ended(view: LedgerView, folders: Folders, job_id: str, tell: Callable[[str, str, float], None]) -> Job:
    """Wait for the end of a job, telling (state, stage, fraction) meanwhile.

    Raises `NoDaemon` within two seconds when there is none to do the work, or none any more.
    """
    asked_s = float("-inf")
    while True:
        job = view.find(job_id)
        if job is not None and job.state.ended:
            tell(job.state, job.stage, 1.0)
            return job
        if time.monotonic() - asked_s >= _DAEMON_EVERY_S:
            asked_s = time.monotonic()
            if not is_held(folders.state):
                raise NoDaemon(f"no daemon runs; job {job_id} waits in the inbox")
        if job is None:
            tell("waiting", "", 0.0)
        else:
            tell(job.state, job.stage, job.fraction)
        time.sleep(_LOOK_EVERY_S)


def fetch(folders: Folders, view: LedgerView, job: Job, out: Path | None) -> Path:
    """The video of a finished job: a copy at `out`, or where it lies. Raises `ResultGone`."""
    if out is None:
        return folders.shared["outbox"] / f"{job.place}.mp4"
    descriptor = open_video(folders, view, job)
    if descriptor is None:
        raise ResultGone(f"the video of job {job.id} is in neither {folders.shared['outbox']} nor {folders.results}")
    try:
        out.unlink(missing_ok=True)
        copy_hashed(descriptor, out, mode=0o644)
    finally:
        os.close(descriptor)
    return out
