"""The endpoints of the original service, with all of its fields: its clients change only the address."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiohttp import web

from lipsyncd import __version__
from lipsyncd.jobs import did_talk
from lipsyncd.jobs.job import JobState, utc_text
from lipsyncd.monitor import gpu
from lipsyncd.storage.uploads import Upload
from lipsyncd.web.access import public
from lipsyncd.web.clients import client_of
from lipsyncd.web.jobs import Jobs
from lipsyncd.web.ledger_reader import JobStatus
from lipsyncd.web.links import Links
from lipsyncd.web.replies import bad_request, json_reply
from lipsyncd.web.requests import Requests, wait_s
from lipsyncd.web.routes.downloads import id_in
from lipsyncd.web.routes.original_request import read_generate
from lipsyncd.web.uploads import AUDIO, IMAGE

_STATUS = {
    JobState.QUEUED: "queued",
    JobState.RUNNING: "processing",
    JobState.PUBLISHING: "processing",
    JobState.DONE: "done",
    JobState.FAILED: "error",
    JobState.CANCELLED: "error",
}
_RETRY_SOON = {"Retry-After": "2"}


class OriginalRoutes:
    """`/generate-video` and the routes around it. `model_loaded`: has a render child loaded a renderer?"""

    def __init__(self, requests: Requests, jobs: Jobs, links: Links, model_loaded: Callable[[], bool]) -> None:
        self.requests = requests
        self.jobs = jobs
        self.links = links
        self.model_loaded = model_loaded

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/generate-video", self.generate),
            web.get("/talk-status/{id}", self.status),
            web.post("/upload-source-image", self.upload_image),
            web.post("/upload-audio", self.upload_audio),
            web.get("/health", self.health),
        ]

    async def generate(self, request: web.Request) -> web.Response:
        """Make a video of one picture and one sound, each a file or an address."""
        form, uploads = await self.requests.receive_form(request, {"source_image": IMAGE, "audio_data": AUDIO})
        job = await self.requests.submit(request, read_generate(form.fields, uploads.get(IMAGE), uploads.get(AUDIO)))
        created_ms = did_talk.rest_of(job).get("created_ms", job.accepted_ms)
        return json_reply({"id": job.id, "status": "queued", "result_url": None, "created_at": utc_text(created_ms)})

    async def status(self, request: web.Request) -> web.Response:
        """The status of a job; with `?wait=SECONDS` once it has ended or the time is over."""
        job_id, client = id_in(request), client_of(request)
        await self.jobs.wait_until_ended(job_id, wait_s(request), client)
        job = await self.jobs.status(job_id, client)
        return json_reply(self._status(job_id, job), headers=None if job.state.ended else _RETRY_SOON)

    def _status(self, job_id: str, job: JobStatus) -> dict[str, Any]:
        done = job.state is JobState.DONE
        failed = job.state.ended and not done
        waits_for = self.jobs.view.waits_for(job)
        return {
            "id": job_id,
            "status": _STATUS[job.state],
            "result_url": self.links.video(job_id) if done else None,
            "progress": round(job.fraction, 3),
            "created_at": utc_text(job.created_ms),
            "started_at": utc_text(job.started_ms),
            "completed_at": utc_text(job.finished_ms),
            "error": did_talk.description(job) if failed else None,
            **({} if waits_for is None else {"lipsyncd": {"waits_for": waits_for}}),
        }

    async def upload_image(self, request: web.Request) -> web.Response:
        return await self._upload(request, IMAGE)

    async def upload_audio(self, request: web.Request) -> web.Response:
        return await self._upload(request, AUDIO)

    async def _upload(self, request: web.Request, role: str) -> web.Response:
        _, uploads = await self.requests.receive_form(request, {"file": role, role: role})
        if role not in uploads:
            raise bad_request(f"send the {role} as the form's part 'file'")
        upload = uploads[role]
        url = self.links.upload(role, upload.id, upload.name, self.requests.base_url(request))
        return json_reply({"id": upload.id, "url": url, **measured(upload)})

    @public
    async def health(self, _request: web.Request) -> web.Response:
        """The original's nine fields."""
        waiting, working = await self.jobs.in_thread(self.jobs.counts)
        device = self.jobs.settings.now.render.devices[0]
        memory = await self.jobs.in_thread(gpu.memory, device)
        return json_reply(
            {
                "status": "healthy",
                "service": "lipsyncd",
                "version": __version__,
                "model_loaded": self.model_loaded(),
                "device": ("cuda" if memory else "cpu") if device == "auto" else device,
                "vram_used_gb": round(memory.used_gb, 2) if memory else 0.0,
                "vram_total_gb": round(memory.total_gb, 2) if memory else 0.0,
                "jobs_queued": waiting,
                "jobs_processing": working,
            }
        )


def measured(upload: Upload) -> dict[str, Any]:
    """What the check of an upload has measured."""
    size = {"width": upload.width, "height": upload.height} if upload.role == IMAGE else {"duration": upload.duration_s}
    return {"kind": upload.kind, "size_bytes": upload.size_bytes, **size}
