"""Streams of events about jobs: who reads one, what each reader gets, and when the ledger is read for them.

The daemon signals each change; one query then serves all streams, and there is none without a stream, nor for the mere
progress of a render. What has changed is encoded once for all who may see it. The others wait for no reader: one that
does not keep up is disconnected, and continues with its `Last-Event-ID` where it was.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

from lipsyncd.errors import LedgerError
from lipsyncd.web.clients import Client
from lipsyncd.web.jobs import Jobs
from lipsyncd.web.quotas import may_take_one
from lipsyncd.web.replies import ApiError
from lipsyncd.web.views.changes import Changes, Message

log = logging.getLogger(__name__)

MOST_STREAMS = 256
_MOST_PENDING_BYTES = 256 << 10  # of one reader, besides what is being sent
_NOT_OFTENER_S = 0.25  # than this is the ledger read


class Stream:
    """What one reader is to get. For one event loop.

    job_id  the only job of the stream; "" for all that the client sees
    abort   closes the reader's connection
    """

    def __init__(self, client: Client, job_id: str, abort: Callable[[], None]) -> None:
        self.client = client
        self.job_id = job_id
        self._abort = abort
        self._pending: deque[bytes] = deque()
        self._ready = asyncio.Event()
        self._has_ended = False

    def send(self, chunk: bytes) -> None:
        """Add to what the reader gets; disconnect one that has left too much unread."""
        if self._has_ended:
            return
        self._pending.append(chunk)
        self._ready.set()
        if len(self._pending) > 1 and sum(map(len, self._pending)) > _MOST_PENDING_BYTES:
            log.info("REST: the reader of a stream is too slow, and is disconnected")
            self._pending.clear()
            self.end()
            self._abort()

    def end(self) -> None:
        """The reader gets what there is, and the stream ends."""
        self._has_ended = True
        self._ready.set()

    async def next(self, within_s: float) -> bytes | None:
        """What the reader gets next; empty when there was nothing for so long, None at the end."""
        try:
            await asyncio.wait_for(self._ready.wait(), within_s)
        except TimeoutError:
            return b""
        chunk = b"".join(self._pending)
        self._pending.clear()
        if not self._has_ended:
            self._ready.clear()
        return chunk or (None if self._has_ended else b"")


class Streams:
    """All streams of one server. Any thread may call the signals, and only the loop's everything else."""

    def __init__(self, jobs: Jobs, changes: Changes, most: int = MOST_STREAMS) -> None:
        self._jobs = jobs
        self._changes = changes
        self._most = min(most, MOST_STREAMS)
        self._streams: set[Stream] = set()  # they get each change
        self._taken: Counter[str] = Counter()  # by tenant, with those that are about to begin
        self._changed = asyncio.Event()
        self._slots = b""  # the event about them that all readers have got
        self._is_recorded = False  # the ledger has changed, and not the progress of renders alone
        self._one_at_a_time = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._has_ended = False

    def signal(self) -> None:
        """Something about the jobs has changed in the ledger."""
        self._is_recorded = True
        self.signal_progress()

    def signal_deleted(self, jobs: Sequence[tuple[str, str | None]]) -> None:
        """These jobs were deleted: the id of each, and its tenant."""
        self._changes.deleted(jobs)
        self.signal()

    def signal_progress(self) -> None:
        """Renders have advanced, the daemon has paused or goes on, or slots of a cluster have come or gone."""
        loop = self._loop
        if self._streams and loop is not None:
            with suppress(RuntimeError):  # the loop has just been closed
                loop.call_soon_threadsafe(self._changed.set)

    async def run(self) -> None:
        """Send changes for ever."""
        self._loop = asyncio.get_running_loop()
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                async with self._one_at_a_time:
                    await self._send_changes()
            except LedgerError as error:
                self._is_recorded = True  # what was not read now is read after the next signal
                log.warning("the streams of events: %s", error)
            await asyncio.sleep(_NOT_OFTENER_S)

    def end_all(self, *, for_ever: bool = False) -> None:
        """End every stream. Its reader comes back with its key, unless the server ends."""
        self._has_ended = for_ever
        for stream in self._streams:
            stream.end()

    def end_of(self, session_id: str) -> None:
        """End the streams of a sign-in that has ended."""
        for stream in self._streams:
            if stream.client.session == session_id:
                stream.end()

    @asynccontextmanager
    async def opened(
        self, client: Client, job_id: str, last_number: int | None, abort: Callable[[], None]
    ) -> AsyncIterator[Stream]:
        """A stream that begins with the jobs as they are.

        job_id       only this job, which the client sees
        last_number  the number of the last event that the reader got, if it comes back

        Raises 503 when there are as many streams as may be.
        """
        if self._has_ended or not may_take_one(client, self._taken, self._most):
            raise ApiError(
                503, "ServiceUnavailableError",
                f"{self._taken.total()} streams are open, as many as may be; try again later, or ask with ?wait=",
                headers={"Retry-After": "10"},
            )  # fmt: skip
        stream = Stream(client, job_id, abort)
        self._taken[client.tenant] += 1
        try:
            async with self._one_at_a_time:  # no change can fall between the beginning and the first change
                await self._begin(stream, last_number)
            yield stream
        finally:
            self._taken[client.tenant] -= 1
            self._streams.discard(stream)

    async def _begin(self, stream: Stream, last_number: int | None) -> None:
        client, job_id = stream.client, stream.job_id
        nobody_reads = not self._streams
        self._streams.add(stream)  # from now on changes are signalled; they are sent after the beginning
        if nobody_reads:
            self._is_recorded = False
            await self._jobs.in_thread(self._changes.begin)
            self._slots = self._changes.slots()
        messages = [one for one in self._changes.open_jobs() if _is_for(one, stream)]
        if job_id and not messages:  # it has ended, or has no row yet
            messages = [self._changes.message_of(await self._jobs.get(job_id, client))]
        elif not job_id and last_number is not None:
            messages = await self._jobs.in_thread(self._changes.missed_since, last_number, client.only) + messages
        slots = b"" if job_id else self._slots
        jobs = b"".join(one.data for one in messages)
        stream.send(b"retry: 2000\n\n" + slots + jobs + self._changes.end_of_batch())
        if job_id and messages[-1].ended:
            stream.end()

    async def _send_changes(self) -> None:
        is_recorded = self._is_recorded
        if is_recorded:  # before the rows are read: what is signalled meanwhile has a look of its own
            self._is_recorded = False
        messages = await self._jobs.in_thread(self._changes.read if is_recorded else self._changes.read_progress)
        before, self._slots = self._slots, self._changes.slots()
        slots = self._slots if self._slots != before else b""
        if not messages and not slots:
            return
        end = self._changes.end_of_batch()
        of_job = {one.job_id: one for one in messages}
        of_tenant: dict[str | None, bytes] = {}  # a reader that sees none of these changes gets the slots alone
        for stream in [*self._streams]:
            if stream.job_id:
                one = of_job.get(stream.job_id)
                if one is not None:
                    stream.send(one.data + end)
                    if one.ended:
                        stream.end()
                continue
            only = stream.client.only
            if only not in of_tenant:
                seen = [one.data for one in messages if stream.client.sees(one.tenant)]
                of_tenant[only] = b"".join([*seen, end]) if seen else b""
            if slots or of_tenant[only]:
                stream.send(slots + of_tenant[only])


def _is_for(message: Message, stream: Stream) -> bool:
    return message.job_id == stream.job_id if stream.job_id else stream.client.sees(message.tenant)
