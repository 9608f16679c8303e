"""Submits jobs and reads them: a manifest goes into the inbox, a row comes out of the ledger's view.

A client can read its job right after it was submitted: while the job has no row yet, its manifest in the inbox is read
instead. Files and SQLite are used in threads of their own, so that a slow disk delays no other client.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import ParamSpec, TypeVar

from lipsyncd.errors import BadOption, InputError, UnknownRenderer
from lipsyncd.inbox.order_rules import OrderRules, check_order
from lipsyncd.inbox.submit import leave
from lipsyncd.jobs import manifest_mac
from lipsyncd.jobs.did_talk import OWNER, rest_of
from lipsyncd.jobs.job import Job, JobState, id_of_key, new_id, now_ms
from lipsyncd.jobs.manifest import MAX_BYTES, Manifest, parse
from lipsyncd.ledger.withdrawn import Withdrawn
from lipsyncd.settings import CurrentSettings
from lipsyncd.storage import control_files, disk_space
from lipsyncd.storage.files import NotRegular
from lipsyncd.storage.folders import Folders
from lipsyncd.storage.open_folder import OpenFolder
from lipsyncd.storage.secret_file import secret_in
from lipsyncd.storage.uploads import PREFIX
from lipsyncd.web.clients import Client
from lipsyncd.web.ledger_reader import BatchThread, JobStatus, LedgerReader
from lipsyncd.web.orders import Order
from lipsyncd.web.quotas import may_take_one
from lipsyncd.web.replies import ApiError, bad_request, not_found
from lipsyncd.web.views.pages import Filters
from lipsyncd.web.views.queue import SlotCount
from lipsyncd.web.views.waits import Waits

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_READERS = 4
_REQUESTERS = 8  # requests to the daemon at a time; each waits for its answer
_CONTROL_TIMEOUT_S = 20.0
_GUESSED_JOB_S = 30.0  # the duration of a job until the first one has ended
_MOST_RETRY_S = 3600
_MOST_KEY_CHARS = 255
_MOST_PENDING = 1000  # others may fill the inbox with such names
_MANIFEST = re.compile(r"rest-([0-9a-f-]{36})\.json")


class Jobs:
    """The jobs of one daemon. Methods that are not async block: call them through `in_thread`.

    slots  how many jobs can be rendered at a time now; any thread calls it
    """

    def __init__(
        self, settings: CurrentSettings, folders: Folders, slots: Callable[[], SlotCount] = lambda: SlotCount(1)
    ) -> None:
        self.settings = settings
        self.slots = slots
        self.folders = folders
        self.view = LedgerReader(folders.state / "ledger.db")
        self._withdrawn = Withdrawn(folders.state)
        self._secret = secret_in(folders.state / manifest_mac.SECRET_FILE)
        self.waits = Waits()
        self._threads = ThreadPoolExecutor(_READERS, thread_name_prefix="web-read")
        self._requests = ThreadPoolExecutor(_REQUESTERS, thread_name_prefix="web-control")
        self._rows = BatchThread("web-row")
        self._one_at_a_time = asyncio.Lock()

    async def in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: function(*args, **kwargs))

    def close(self) -> None:
        self.waits.end()
        for pool in (self._threads, self._requests):
            pool.shutdown(wait=False, cancel_futures=True)
        self._rows.close()

    # -- reading -------------------------------------------------------------------------------------------------------

    def find(self, job_id: str) -> Job | None:
        """The job: from its row, or from its manifest while it has no row."""
        job = self.view.exact(job_id) or self._pending(job_id)
        return job or self.view.exact(job_id)  # the inbox may have been scanned between the two reads

    async def get(self, job_id: str, client: Client) -> Job:
        """As `find`, for a job that most likely has a row. Raises 404 if there is none, or none that the client sees.

        One thread reads rows only: several would wait for each other, and this one never waits for the inbox.
        """
        job = await self._rows.run(self.view.exact, job_id) or await self.in_thread(self.find, job_id)
        if job is None or not client.sees(job.tenant):
            raise not_found()
        return job

    async def status(self, job_id: str, client: Client) -> JobStatus:
        """As `get`, with fewer columns."""
        status = await self._rows.run(self.view.status, job_id) or await self.in_thread(self._pending_status, job_id)
        if status is None or not client.sees(status.tenant):
            raise not_found("no job has that id")
        return status

    def _pending_status(self, job_id: str) -> JobStatus | None:
        job = self.find(job_id)
        if job is None:
            return None
        created_ms = rest_of(job).get("created_ms", job.accepted_ms)
        return JobStatus(
            job.state, job.fraction, created_ms, job.started_ms, job.finished_ms, job.reason, job.remedy, job.tenant,
            job.reason_code, job.attempt, job.max_attempts, job.duplicate_of,
        )  # fmt: skip

    def _pending(self, job_id: str) -> Job | None:
        """A job whose manifest still lies in the inbox. Others write there too: only a manifest of our own counts."""
        with self.folders.shared["inbox"].opened() as inbox:
            return None if inbox is None else self._pending_in(inbox, job_id)

    def _pending_in(self, inbox: OpenFolder, job_id: str) -> Job | None:
        try:
            manifest = parse(inbox.read(f"rest-{job_id}.json", MAX_BYTES + 1))
            manifest_mac.check(manifest, self._secret)
        except (FileNotFoundError, NotRegular, PermissionError, InputError):
            return None
        return self._as_job(job_id, manifest) if manifest.mac and manifest.id == job_id else None

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
            tenant=rest.get("tenant"),
            cancel_requested=job_id in self._withdrawn,
        )

    def pending(self) -> list[Job]:
        """The jobs that came over REST and have no row yet, newest first; `_MOST_PENDING` at most."""
        with self.folders.shared["inbox"].opened() as inbox:
            if inbox is None:
                return []
            names = (m[1] for entry in inbox.entries() if (m := _MANIFEST.fullmatch(entry.name)))
            without_row = [job_id for job_id in islice(names, _MOST_PENDING) if self.view.exact(job_id) is None]
            jobs = [job for job_id in without_row if (job := self._pending_in(inbox, job_id)) is not None]
        return sorted(jobs, key=lambda job: (-job.accepted_ms, job.id))

    def listed(
        self, client: Client, filters: Filters, before_seq: int | None, limit: int
    ) -> tuple[list[Job], int | None]:
        """A page of the jobs that a client sees, newest first, and the `before_seq` of the next one."""
        waiting = [job for job in self.pending() if client.sees(job.tenant) and filters.match(job)]
        rows, following = self.view.page(before_seq, limit, tenant=client.only, filters=filters)
        known = {job.id for job in rows}
        # Jobs without a row are newer than all others, and are on the first page only.
        first = [job for job in waiting if job.id not in known] if before_seq is None else []
        page = [*first, *rows][:limit]
        if rows and len(first) + len(rows) > limit:
            following = page[-1].seq or rows[0].seq + 1
        return page, following

    async def wait_until_ended(self, job_id: str, wait_s: float, client: Client) -> None:
        """Return when the job has ended, after `wait_s` seconds at the latest; at once if many clients wait already.

        Raises 404 as `get` does.
        """

        async def has_ended() -> bool:
            return (await self.status(job_id, client)).state.ended

        await self.waits.until(has_ended, wait_s)

    def counts(self) -> tuple[int, int]:
        """How many jobs wait, and how many run."""
        counts = self.view.counts()
        return counts[JobState.QUEUED] + len(self.pending()), counts[JobState.RUNNING] + counts[JobState.PUBLISHING]

    def uploads_in_use(self) -> set[str]:
        """The uploads that open jobs may still read, those without a row too."""
        waiting = {upload for job in self.pending() for upload in rest_of(job).get("uploads", ())}
        return waiting | self.view.uploads_in_use()

    # -- submitting ----------------------------------------------------------------------------------------------------

    async def submit(self, order: Order, *, client: Client, key: str | None, base: str) -> Job:
        """Make a job of an order; returns it as it is now.

        key  the Idempotency-Key: the same key of the same client with the same order gives the same job

        Raises `ApiError` (429 if the queue is full, 422 for a key of another order), `InboxUnavailable`, `DiskLow`.
        """
        if key is not None and not 0 < len(key) <= _MOST_KEY_CHARS:
            raise bad_request(f"an Idempotency-Key has 1 to {_MOST_KEY_CHARS} characters")
        order = order.with_rest(by=client.owner, base=base, created_ms=now_ms(), **_uploads_of(order))
        if client.tenant:
            order = order.with_rest(tenant=client.tenant)
        if key is not None:
            order = order.with_rest(digest=order.digest)
        job_id = new_id() if key is None else id_of_key(client.tenant or OWNER, key)
        async with self._one_at_a_time:  # so that each order counts the one before it, and finds it under the same key
            return await self.in_thread(self._submit, order, job_id, client, repeatable=key is not None)

    def _submit(self, order: Order, job_id: str, client: Client, *, repeatable: bool) -> Job:
        earlier = self.find(job_id) if repeatable else None
        if earlier is not None:
            if not client.sees(earlier.tenant) or rest_of(earlier).get("digest") != order.rest["digest"]:
                raise ApiError(422, "IdempotencyError", "this Idempotency-Key was used for another request before")
            return earlier
        manifest = manifest_mac.signed(self._checked(order.manifest(job_id)), self._secret)
        self._check_capacity(client)
        leave(self.folders, manifest, f"rest-{job_id}.json")
        return self._as_job(job_id, manifest)

    def _checked(self, manifest: Manifest) -> Manifest:
        """The manifest, unless its renderer or an option would fail the job: then raises 400 with what is allowed."""
        if manifest.renderer or manifest.options:
            try:
                check_order(manifest, OrderRules.of(self.settings.now))
            except (UnknownRenderer, BadOption) as error:
                raise bad_request(f"{error.message}; {error.remedy}") from None
        return manifest

    def _check_capacity(self, client: Client) -> None:
        disk_space.require(self.folders.spool, self.settings.now.paths.min_free_mb)
        pending = self.pending()  # before the rows: a job that gets its row meanwhile is in both, and counts once
        waiting = Counter(self.view.waiting_from_rest(without=[job.id for job in pending]))
        waiting.update(job.tenant or "" for job in pending)
        total, most = waiting.total(), self.settings.now.web.max_queue
        if may_take_one(client, waiting, most):
            return
        job_s = self.view.recent_job_s() or _GUESSED_JOB_S
        at_a_time = max(1, self.slots().every)  # a cluster may have none at present
        retry_s = min(max(1, math.ceil(total * job_s / at_a_time)), _MOST_RETRY_S)
        own = f", {waiting[client.tenant]} of them this client's" if client.tenants > 1 else ""
        raise ApiError(
            429, "TooManyRequestsError", f"{total} jobs wait{own}, at most {most} may; try again later",
            headers={"Retry-After": str(retry_s)},
        )  # fmt: skip

    # -- changing ------------------------------------------------------------------------------------------------------

    async def check_capacity(self, client: Client) -> None:
        """Raise 429 if no other job of the client may wait, `DiskLow` if the disk is nearly full."""
        await self.in_thread(self._check_capacity, client)

    async def request(self, action: str, job_id: str, value: int = 0) -> control_files.Answer:
        """Have the daemon do something with a job; gives its answer. Raises 503 if there is none in time."""
        wanted = control_files.Request(action, job_id, value)

        def ask() -> control_files.Answer | None:
            return control_files.ask(self.folders.control, wanted, timeout_s=_CONTROL_TIMEOUT_S)

        try:
            answer = await asyncio.get_running_loop().run_in_executor(self._requests, ask)
        except OSError as error:
            log.warning("%s of job %s cannot be requested: %s", action, job_id, error)
            answer = None
        if answer is None:
            raise ApiError(503, "ServiceUnavailableError", "the daemon did not answer; try again")
        return answer


def _uploads_of(order: Order) -> dict[str, list[str]]:
    """The uploads that an order reads; retention keeps them while the job is open."""
    used = [
        source.removeprefix(PREFIX) for source in (order.image, order.audio) if source and source.startswith(PREFIX)
    ]
    return {"uploads": used} if used else {}
