"""Own routes under `/jobs` for jobs that exist: list and show them, cancel, retry, put forward, delete them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from aiohttp import web

from lipsyncd.jobs.job import Job, JobState
from lipsyncd.storage.control_files import WITHDRAW
from lipsyncd.web.clients import Client, client_of
from lipsyncd.web.jobs import Jobs
from lipsyncd.web.replies import ApiError, json_reply
from lipsyncd.web.requests import limit_in, wait_s
from lipsyncd.web.routes.downloads import id_in
from lipsyncd.web.routes.jobs_request import read_filters, read_priority, read_since
from lipsyncd.web.views.bodies import JobBodies
from lipsyncd.web.views.kept import KeptOrders
from lipsyncd.web.views.pages import seq_of, token_of

_RETRY_SOON = {"Retry-After": "2"}


class JobRoutes:
    """`GET /jobs`, and everything about one job under `/jobs/ID`. `routes.jobs_orders` makes them."""

    def __init__(self, jobs: Jobs, bodies: JobBodies, kept: KeptOrders) -> None:
        self.jobs = jobs
        self.bodies = bodies
        self.kept = kept

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/jobs", self.listed),
            web.get("/jobs/{id}", self.get),
            web.get("/jobs/{id}/order", self.order),
            web.delete("/jobs/{id}", self.delete),
            web.post("/jobs/{id}/cancel", self.cancel),
            web.post("/jobs/{id}/retry", self.retry),
            web.post("/jobs/{id}/priority", self.priority),
        ]

    async def listed(self, request: web.Request) -> web.Response:
        """A page of the jobs that the client sees, newest first; `next` is the `cursor` of the next page."""
        filters, limit, cursor = read_filters(request), limit_in(request), request.query.get("cursor", "")
        before = seq_of(cursor) if cursor else None
        jobs, following = await self.jobs.in_thread(self.jobs.listed, client_of(request), filters, before, limit)
        queue = await self.jobs.in_thread(self.bodies.current_queue, jobs)
        bodies = [{**self.bodies.of(job, queue), "inputs": self.kept.inputs(job)} for job in jobs]
        return json_reply({"jobs": bodies, "next": None if following is None else token_of(following)})

    async def get(self, request: web.Request) -> web.Response:
        """The job; with `?wait=SECONDS` once it has ended or the time is over.

        With `&since=NUMBER`, too, as soon as `change` is another number than this.
        """
        job_id, client, since = id_in(request), client_of(request), read_since(request)
        if since is None:
            await self.jobs.wait_until_ended(job_id, wait_s(request), client)
        else:
            await self.jobs.waits.until(partial(self._has_changed, job_id, client, since), wait_s(request))
        return await self._reply(await self.jobs.get(job_id, client))

    async def _has_changed(self, job_id: str, client: Client, since: int) -> bool:
        job = await self.jobs.get(job_id, client)
        return job.state.ended or (await self._body(job))["change"] != since

    async def order(self, request: web.Request) -> web.Response:
        """What the job was made of, as the fields of `POST /jobs` that make the same one again."""
        job = await self.jobs.get(id_in(request), client_of(request))
        return json_reply({**await self.jobs.in_thread(self.kept.order, job), "inputs": self.kept.inputs(job)})

    async def cancel(self, request: web.Request) -> web.Response:
        """Take back a job that waits or runs, also before intake has seen it; one that is cancelled stays so.

        409 once it is being published or has ended otherwise.
        """
        client = client_of(request)
        job = await self.jobs.get(id_in(request), client)
        if job.state in (JobState.QUEUED, JobState.RUNNING):
            answer = await self.jobs.request(WITHDRAW, job.id)
            job = await self.jobs.get(job.id, client)
            if answer.ok and not job.state.ended:  # a job that was accepted meanwhile does not show it yet
                job = replace(job, cancel_requested=True)
        if job.state is JobState.CANCELLED or (job.cancel_requested and not job.state.ended):
            return await self._reply(job)
        raise _conflict(f"the job {_now(job)}; it is left as it is")

    async def retry(self, request: web.Request) -> web.Response:
        """Queue a failed or cancelled job again, with its inputs. 409 for any other, and when they are gone.

        It takes a place in the queue, so 429 as for a new one.
        """
        client = client_of(request)
        job = await self.jobs.get(id_in(request), client)
        if job.state not in (JobState.FAILED, JobState.CANCELLED):
            raise _conflict(f"the job {_now(job)}; only failed and cancelled ones are tried again")
        if job.rest is not None:
            await self.jobs.check_capacity(client)
        return await self._reply(await self._done("retry", job, client))

    async def priority(self, request: web.Request) -> web.Response:
        """Put a waiting job forward or back: of those that wait, the one with the highest priority is next."""
        value = read_priority(await request.read())
        client = client_of(request)
        job = await self.jobs.get(id_in(request), client)
        if job.state is not JobState.QUEUED:
            raise _conflict(f"the job {_now(job)}; only waiting ones have a priority")
        return await self._reply(await self._done("priority", job, client, value))

    async def delete(self, request: web.Request) -> web.Response:
        """Delete an ended job: with all of its files if it came over REST, else its row and the kept video."""
        client = client_of(request)
        job = await self.jobs.get(id_in(request), client)
        if not job.state.ended:
            raise _conflict(f"the job {_now(job)}; take it back first (POST /jobs/{job.id}/cancel)")
        answer = await self.jobs.request("delete", job.id)
        if not answer.ok:
            await self.jobs.get(job.id, client)  # 404: another client was faster
            raise _conflict(answer.message)
        return web.Response(status=204)

    async def _done(self, action: str, job: Job, client: Client, value: int = 0) -> Job:
        """The job after the daemon has done something with it. Raises 409 with the daemon's reason."""
        if job.seq == 0:
            raise ApiError(
                409, "NotReadyError", "the job is not accepted yet; try again in a second", headers={"Retry-After": "1"}
            )
        answer = await self.jobs.request(action, job.id, value)
        job = await self.jobs.get(job.id, client)
        if not answer.ok:
            raise _conflict(answer.message)
        return job

    async def _body(self, job: Job) -> dict[str, Any]:
        """A waiting job has a place in the queue, and one that has not ended may have an expected end."""
        return self.bodies.of(
            job, None if job.state.ended else await self.jobs.in_thread(self.bodies.current_queue, [job])
        )

    async def _reply(self, job: Job) -> web.Response:
        body = {**await self._body(job), "inputs": self.kept.inputs(job)}
        return json_reply(body, headers=None if job.state.ended else _RETRY_SOON)


def _conflict(why: str) -> ApiError:
    return ApiError(409, "NotReadyError", why)


def _now(job: Job) -> str:
    """What the job does, as the verb of a sentence."""
    if job.state.ended:
        return f"has ended already ({job.state.value})"
    return {JobState.QUEUED: "waits", JobState.RUNNING: "runs"}.get(job.state, "is being published")
