"""Where the video of a finished job lies: the only search for it.

Owns no folder, and imports no writer of the ledger: the web server and the command line search too.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from lipsyncd.jobs.job import Job
from lipsyncd.ledger.view import LedgerView
from lipsyncd.results.leftovers import facts_in
from lipsyncd.results.outbox import SIDECAR, VIDEO
from lipsyncd.storage.files import open_regular
from lipsyncd.storage.folders import Folders
from lipsyncd.storage.spool import Spool


def video_paths(folders: Folders, job: Job) -> Iterator[Path]:
    """Where the video may lie, in the order in which it moves: if it moves on meanwhile, a later path finds it.

    Consumers reuse names, so a file in the outbox counts only while the sidecar beside it names this job.
    """
    yield Spool(folders.spool).video(job.id)
    yield folders.results / f"{job.id}.{VIDEO}"
    shown = folders.shared["outbox"] / f"{job.place}.{VIDEO}"
    if facts_in(sidecar_of(shown)).get("id") == job.id:
        yield shown


def sidecar_of(video: Path) -> Path:
    return video.with_name(f"{video.name.removesuffix(VIDEO)}{SIDECAR}")


def open_video(folders: Folders, view: LedgerView, job: Job) -> int | None:
    """A descriptor of the job's video, or of the video of the job that it repeats; None when neither is there."""
    for path in video_paths(folders, job):
        with contextlib.suppress(OSError):
            descriptor = open_regular(path)
            if os.fstat(descriptor).st_size == job.out_size:
                return descriptor
            os.close(descriptor)
    first = None if job.duplicate_of is None else view.find(job.duplicate_of)
    return None if first is None else open_video(folders, view, first)
