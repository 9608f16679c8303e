"""The way from a request to a job and back: a manifest into the inbox, a row out of the ledger's view.

A job can be asked about from the first instant after it was accepted: while there is no row yet, its manifest in the
inbox answers for it. Files and SQLite are touched in threads of their own: a slow disk holds up no other client.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from lipsyncd.errors import InputError
from lipsyncd.inbox.submit import leave
from lipsyncd.jobs.did_talk import said
from lipsyncd.jobs.job import Job, JobState, new_id, now_ms
from lipsyncd.jobs.manifest import MAX_BYTES, Manifest, parse
from lipsyncd.settings import CurrentSettings
from lipsyncd.storage import control_files, disk_space
from lipsyncd.storage.files import NotRegular, open_regular
from lipsyncd.storage.folders import Folders
from lipsyncd.storage.uploads import PREFIX
from lipsyncd.web.ledger_reader import BatchThread, JobStatus, LedgerReader
from lipsyncd.web.orders import Order, job_id_of
from lipsyncd.web.replies import ApiError, bad_request

P = ParamSpec("P")
T = TypeVar("T")

MOST_WAIT_S = 60.0
_LOOK_AGAIN_S = 0.1
_MOST_WAITING = 100  # each of them looks into the ledger ten times a second
_READERS = 4
_CONTROL_TIMEOUT_S = 20.0
_GUESSED_JOB_S = 30.0  # until the first job has ended
_MOST_RETRY_S = 3600
_MOST_KEY_CHARS = 255
_MANIFEST = re.compile(r"rest-([0-9a-f-]{36})\.json")


class Desk:
    """Takes orders and answers for jobs. Its plain methods block: `run` takes them to a thread."""

    def __init__(self, settings: CurrentSettings, folders: Folders) -> None:
        self.settings = settings
        self.folders = folders
        self.view = LedgerReader(folders.state / "ledger.db")
        self.closing = False
        self._threads = ThreadPoolExecutor(_READERS, thread_name_prefix="web-read")
        self._rows = BatchThread("web-row")
        self._one_at_a_time = asyncio.Lock()
        self._waiting = 0

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: work(*args, **kwargs))

    def close(self) -> None:
        self.closing = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._rows.close()

    # -- asking --------------------------------------------------------------------------------------------------------

    def find(self, job_id: str) -> Job | None:
        """The job: its row, or what its manifest says while it has none."""
        job = self.view.exact(job_id) or self._pending(job_id)
        return job or self.view.exact(job_id)  # intake may have taken the manifest between the two looks

    async def look(self, job_id: str) -> Job | None:
        """As `find`, for a job that most likely has a row.

        One thread reads rows alone: more of them would only wait for each other, and it waits for no inbox.
        """
        return await self._rows.run(self.view.exact, job_id) or await self.run(self.find, job_id)

    async def status(self, job_id: str) -> JobStatus | None:
        """How the job stands: as `look`, with fewer columns."""
        return await self._rows.run(self.view.status, job_id) or await self.run(self._pending_status, job_id)

    def _pending_status(self, job_id: str) -> JobStatus | None:
        job = self.find(job_id)
        if job is None:
            return None
        created_ms = said(job).get("created_ms", job.accepted_ms)
        return JobStatus(job.state, job.fraction, created_ms, job.started_ms, job.finished_ms, job.reason, job.remedy)

    def _pending(self, job_id: str) -> Job | None:
        """A job whose manifest lies in the inbox still."""
        path = self.folders.shared["inbox"] / f"rest-{job_id}.json"
        try:
            descriptor = open_regular(path)
        except (FileNotFoundError, NotRegular, PermissionError):
            return None
        with os.fdopen(descriptor, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        try:
            return self._as_job(job_id, parse(data))
        except InputError:
            return None

    def _as_job(self, job_id: str, manifest: Manifest) -> Job:
        output, render = self.settings.now.output, self.settings.now.render
        rest = dict(manifest.rest or {})
        return Job(
            id=job_id,
            seq=0,
            name=manifest.out_name or "",
            state=JobState.QUEUED,
            stage="accepted",
            fraction=0.0,
            priority=manifest.priority or 0,
            attempt=0,
            max_attempts=render.max_attempts,
            out_name=manifest.out_name or "",
            renderer=manifest.renderer or render.renderer,
            stitch=output.stitch if manifest.stitch is None else manifest.stitch,
            resolution=manifest.resolution or output.resolution,
            fps=str(manifest.fps or output.rate),
            accepted_ms=int(rest.get("created_ms", 0)),
            user_data=None if manifest.user_data is None else json.dumps(manifest.user_data),
            webhook=manifest.webhook,
            rest=json.dumps(rest),
        )

    def pending(self) -> list[Job]:
        """Every job that came over REST and has no row yet, newest first."""
        ids = [m[1] for name in os.listdir(self.folders.shared["inbox"]) if (m := _MANIFEST.fullmatch(name))]
        without_row = [job_id for job_id in ids if self.view.exact(job_id) is None]
        jobs = [job for job_id in without_row if (job := self._pending(job_id)) is not None]
        return sorted(jobs, key=lambda job: (-job.accepted_ms, job.id))

    async def until_ended(self, job_id: str, wait_s: float) -> None:
        """Return when the job has ended, at the latest after `wait_s` seconds; at once while many wait already."""
        if wait_s <= 0 or self._waiting >= _MOST_WAITING:
            return
        self._waiting += 1
        deadline = time.monotonic() + min(wait_s, MOST_WAIT_S)
        try:
            while not self.closing and (left_s := deadline - time.monotonic()) > 0:
                job = await self.status(job_id)
                if job is None or job.state.ended:
                    return
                await asyncio.sleep(min(_LOOK_AGAIN_S, left_s))
        finally:
            self._waiting -= 1

    def counts(self) -> tuple[int, int]:
        """How many jobs wait, and how many are worked on."""
        counts = self.view.counts()
        return counts[JobState.QUEUED] + len(self.pending()), counts[JobState.RUNNING] + counts[JobState.PUBLISHING]

    # -- ordering ------------------------------------------------------------------------------------------------------

    async def place(self, order: Order, *, owner: str, key: str | None, base: str) -> Job:
        """Make a job of an order; gives it as it stands at once.

        key  the Idempotency-Key: the same one with the same order gives the same job

        Raises `ApiError`: 429 with the queue full, 422 for a key that stands for another order; `InboxUnavailable`,
        `DiskLow`.
        """
        if key is not None and not 0 < len(key) <= _MOST_KEY_CHARS:
            raise bad_request(f"an Idempotency-Key has 1 to {_MOST_KEY_CHARS} characters")
        order = order.with_rest(by=owner, base=base, created_ms=now_ms(), **_uploads_of(order))
        if key is not None:
            order = order.with_rest(digest=order.digest)
        async with self._one_at_a_time:  # two orders see each other in the queue, and under one key
            return await self.run(self._place, order, job_id_of(owner, key) if key else new_id(), known=key is not None)

    def _place(self, order: Order, job_id: str, *, known: bool) -> Job:
        earlier = self.find(job_id) if known else None
        if earlier is not None:
            if said(earlier).get("digest") != order.rest["digest"]:
                raise ApiError(422, "IdempotencyError", "this Idempotency-Key was used for another request before")
            return earlier
        manifest = order.manifest(job_id)
        self._check_room()
        leave(self.folders, manifest, f"rest-{job_id}.json")
        return self._as_job(job_id, manifest)

    def _check_room(self) -> None:
        disk_space.require(self.folders.spool, self.settings.now.paths.min_free_mb)
        waiting = self.view.waiting_from_rest() + len(self.pending())
        most = self.settings.now.web.max_queue
        if waiting >= most:
            render = self.settings.now.render
            job_s = self.view.recent_job_s() or _GUESSED_JOB_S
            at_a_time = min(len(render.devices), render.max_concurrent_jobs)
            retry_s = min(max(1, math.ceil(waiting * job_s / at_a_time)), _MOST_RETRY_S)
            raise ApiError(
                429, "TooManyRequestsError", f"{waiting} jobs wait already, at most {most} may; try again later",
                headers={"Retry-After": str(retry_s)},
            )  # fmt: skip

    # -- afterwards ----------------------------------------------------------------------------------------------------

    def delete(self, job_id: str) -> control_files.Answer | None:
        """Ask the daemon to forget an ended job, with its files."""
        request = control_files.Request("delete", job_id)
        return control_files.ask(self.folders.control, request, timeout_s=_CONTROL_TIMEOUT_S)


def _uploads_of(order: Order) -> dict[str, list[str]]:
    """The uploads that an order reads, for whoever tidies up."""
    used = [
        source.removeprefix(PREFIX) for source in (order.image, order.audio) if source and source.startswith(PREFIX)
    ]
    return {"uploads": used} if used else {}
