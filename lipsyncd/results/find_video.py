"""Where the video of a finished job lies: the only search for it.

Owns no folder, and imports no writer of the ledger: the web server and the command line search too.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lipsyncd.jobs.job import Job
from lipsyncd.ledger.view import LedgerView
from lipsyncd.results.outbox import SIDECAR, VIDEO
from lipsyncd.storage.files import NotRegular, open_regular
from lipsyncd.storage.folders import Folders
from lipsyncd.storage.open_folder import OpenFolder
from lipsyncd.storage.spool import Spool

_GONE = (FileNotFoundError, NotRegular, PermissionError)


@dataclass(frozen=True)
class FoundVideo:
    """A video that is open. `facts` is the content of the sidecar beside it; None in the spool, which has none."""

    descriptor: int
    facts: Mapping[str, Any] | None

    def close(self) -> None:
        os.close(self.descriptor)


def videos(folders: Folders, job: Job) -> Iterator[FoundVideo]:
    """The places where the video lies, in the order in which it moves: if it moves on meanwhile, a later one has it.

    Consumers reuse names, so a file in the outbox counts only while the sidecar beside it names this job. Close what
    is given. Raises OSError of the disk.
    """
    with contextlib.suppress(*_GONE):
        yield FoundVideo(open_regular(Spool(folders.spool).video(job.id)), None)
    with contextlib.suppress(*_GONE), OpenFolder.at(folders.results) as results:
        facts = results.read_json(f"{job.id}.{SIDECAR}") or {}
        yield FoundVideo(results.open(f"{job.id}.{VIDEO}"), facts)
    with folders.shared["outbox"].opened() as outbox, contextlib.suppress(*_GONE):
        if outbox is not None:
            yield from _in_outbox(outbox, job)


def _in_outbox(outbox: OpenFolder, job: Job) -> Iterator[FoundVideo]:
    *parts, name = job.place.split("/")
    with outbox.walk(parts) as folder:
        facts = folder.read_json(f"{name}.{SIDECAR}") or {}
        if facts.get("id") == job.id:
            yield FoundVideo(folder.open(f"{name}.{VIDEO}"), facts)


def open_video(folders: Folders, view: LedgerView, job: Job) -> int | None:
    """A descriptor of the job's video, or of the video of the job that it repeats; None when neither is there."""
    with contextlib.suppress(OSError):
        for video in videos(folders, job):
            if os.fstat(video.descriptor).st_size == job.out_size:
                return video.descriptor
            video.close()
    first = None if job.duplicate_of is None else view.find(job.duplicate_of)
    return None if first is None else open_video(folders, view, first)
