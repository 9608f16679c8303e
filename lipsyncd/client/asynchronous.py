"""`lipsyncd.AsyncClient`: the names of `Client` for asyncio. Each question runs in a thread: the loop never waits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from functools import wraps
from typing import Any, Concatenate, ParamSpec

from lipsyncd.client.client import Client, Job, Result, Source
from lipsyncd.client.facts import Event, JobFacts
from lipsyncd.jobs.job import JobState
from lipsyncd.results.video_file import Video

P = ParamSpec("P")


def _submitting(
    submit: Callable[Concatenate[Client, P], Job],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, AsyncJob]]:
    """A method with the arguments of `submit`, for those who check types, which runs it in a thread."""

    @wraps(submit)
    async def in_thread(self: AsyncClient, /, *args: P.args, **given: P.kwargs) -> AsyncJob:
        return AsyncJob(await asyncio.to_thread(submit, self._client, *args, **given))

    return in_thread


class AsyncClient:
    """As `Client`, with the same arguments and errors."""

    def __init__(self, url: str | None = None, *, key: str | None = None, storage: Source | None = None) -> None:
        self._client = Client(url, key=key, storage=storage)

    submit = _submitting(Client.submit)

    def job(self, job_id: str) -> AsyncJob:
        """The job with that id. Asks nothing yet."""
        return AsyncJob(self._client.job(job_id))

    async def jobs(self, *, state: str | None = None, limit: int = 50) -> list[AsyncJob]:
        """As `Client.jobs`."""
        found = await asyncio.to_thread(self._client.jobs, state=state, limit=limit)
        return [AsyncJob(job) for job in found]


class AsyncJob:
    """As `Job`. `facts` and `state` are those of the last question: ask with `refresh`."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.id = job.id

    def __repr__(self) -> str:
        return repr(self._job)

    @property
    def facts(self) -> JobFacts:
        """What was known of it at the last question. Raises `UsageError` before the first."""
        return self._job.known()

    @property
    def state(self) -> JobState:
        """Its state at the last question."""
        return self.facts.state

    async def refresh(self, wait_s: float = 0.0) -> JobFacts:
        """As `Job.refresh`."""
        return await asyncio.to_thread(self._job.refresh, wait_s)

    async def events(self, *, every_s: float = 0.5) -> AsyncIterator[Event]:
        """As `Job.events`. A thread of its own reads the stream; when it is not wanted any more, it ends with the next
        change, and no program waits for it.
        """
        loop, seen, left = asyncio.get_running_loop(), asyncio.Queue[Event | Exception | None](), threading.Event()

        def put(item: Event | Exception | None) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(seen.put_nowait, item)

        def follow() -> None:
            try:
                for event in self._job.events(every_s=every_s):
                    if left.is_set():
                        return
                    put(event)
            except Exception as error:
                put(error)
            else:
                put(None)

        threading.Thread(target=follow, name=f"events of {self.id}", daemon=True).start()
        try:
            while (item := await seen.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            left.set()

    async def result(self, *, timeout_s: float | None = None) -> AsyncResult:
        """As `Job.result`."""
        return AsyncResult(await asyncio.to_thread(self._job.result, timeout_s=timeout_s))

    async def cancel(self) -> None:
        """As `Job.cancel`."""
        await asyncio.to_thread(self._job.cancel)


class AsyncResult:
    """As `Result`."""

    def __init__(self, result: Result) -> None:
        self._result = result
        self.facts = result.facts

    async def download(self, out: Source | None = None, *, force: bool = False) -> Video:
        """As `Result.download`."""
        return await asyncio.to_thread(self._result.download, out, force=force)
