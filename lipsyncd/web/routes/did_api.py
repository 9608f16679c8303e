"""D-ID's Talks API: talks, images and audios, with the behaviour that real clients rely on.

Creation is answered with 201, `status` is one of four words, `result_url` is there only with the video, and new talks
never shift the pages of the list.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from aiohttp import web

from lipsyncd.jobs import did_talk
from lipsyncd.jobs.job import Job, utc_text
from lipsyncd.storage.uploads import Upload
from lipsyncd.web.clients import Client, client_of
from lipsyncd.web.jobs import Jobs
from lipsyncd.web.links import Links
from lipsyncd.web.replies import ApiError, bad_request, json_reply, not_found
from lipsyncd.web.requests import Requests, limit_in, wait_s
from lipsyncd.web.routes.did_request import read_json, read_talk
from lipsyncd.web.routes.downloads import id_in
from lipsyncd.web.routes.voices import Voices
from lipsyncd.web.uploads import AUDIO, IMAGE
from lipsyncd.web.views.pages import seq_of, token_of

log = logging.getLogger(__name__)

_RETRY_SOON = {"Retry-After": "2"}
_NO_SPEECH = 'text scripts need a text-to-speech engine and none is configured; send script.type "audio"'


class TalkRoutes:
    """The routes that make and show talks."""

    def __init__(self, requests: Requests, jobs: Jobs, links: Links, voices: Voices) -> None:
        self.requests = requests
        self.jobs = jobs
        self.links = links
        self.voices = voices

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/talks", self.create),
            web.get("/talks", self.listed),
            web.get("/talks/{id}", self.get),
            web.delete("/talks/{id}", self.delete),
            web.post("/images", self.upload_image),
            web.delete("/images/{id}", self.delete_image),
            web.post("/audios", self.upload_audio),
            web.delete("/audios/{id}", self.delete_audio),
        ]

    # -- talks ---------------------------------------------------------------------------------------------------------

    async def create(self, request: web.Request) -> web.Response:
        if request.content_type.startswith("multipart/"):
            raise bad_request(
                "a talk is sent as JSON (Content-Type: application/json): upload files first, with POST /images and "
                "POST /audios, and name the url of each answer in source_url and script.audio_url"
            )
        order = read_talk(read_json(await self.requests.body(request)))
        if order.text is not None:
            if not self.voices.can_speak():
                details = {"body.script.type": {"message": "only 'audio' is available on this server"}}
                raise ApiError(400, "ValidationError", _NO_SPEECH, details=details)
            order = replace(order, voice=await self.voices.match(order.voice, order.provider))
        job = await self.requests.submit(request, order)
        if order.unknown:
            log.info("job %s: fields that mean nothing here: %.300s", job.id, ", ".join(map(repr, order.unknown)))
        rest = did_talk.rest_of(job)
        body = {
            "id": did_talk.talk_id(job.id),
            "object": "talk",
            "created_by": rest.get("by", did_talk.OWNER),
            "created_at": utc_text(rest.get("created_ms", job.accepted_ms)),
            "status": "created",
        }
        return json_reply(body, status=201)

    async def get(self, request: web.Request) -> web.Response:
        """The whole talk; with `?wait=SECONDS` once it has ended or the time is over."""
        job_id, client = id_in(request), client_of(request)
        await self.jobs.wait_until_ended(job_id, wait_s(request), client)
        job = await self.jobs.get(job_id, client)
        return json_reply(self._talk(job, request), headers=None if job.state.ended else _RETRY_SOON)

    async def listed(self, request: web.Request) -> web.Response:
        """The talks, newest first. The token names the last talk of a page, so new talks shift no page."""
        limit = limit_in(request)
        before = seq_of(request.query["token"]) if request.query.get("token") else None
        jobs = await self.jobs.in_thread(self._page, before, limit, client_of(request))
        body = {"talks": [self._talk(job, request) for job in jobs[:limit]]}
        if len(jobs) > limit:
            return json_reply({**body, "token": token_of(jobs[limit - 1].seq)})
        return json_reply(body)

    def _page(self, before: int | None, limit: int, client: Client) -> list[Job]:
        """The jobs of a page and the next one, if there is one. Jobs without a row are newer than all others."""
        pending = [job for job in self.jobs.pending() if client.sees(job.tenant)] if before is None else []
        rows, _ = self.jobs.view.page(before, limit + 1, tenant=client.only)
        known = {job.id for job in rows}
        pending = [job for job in pending if job.id not in known][: max(0, limit - 1)]  # a page ends with a row
        return [*pending, *rows][: limit + 1]

    async def delete(self, request: web.Request) -> web.Response:
        job = await self.jobs.get(id_in(request), client_of(request))
        not_ready = ApiError(409, "NotReadyError", "talk is in process, try again later")
        if not job.state.ended:
            raise not_ready
        talk = self._talk(job, request)
        answer = await self.jobs.request("delete", job.id)
        if not answer.ok and await self.jobs.in_thread(self.jobs.find, job.id) is None:
            raise not_found()  # another client was faster
        if not answer.ok:
            raise not_ready
        return json_reply(talk)

    def _talk(self, job: Job, request: web.Request) -> dict[str, object]:
        result_url = self.links.talk(job.id, job.out_name, self.requests.base_url(request))
        return did_talk.talk(job, result_url=result_url, waits_for=self.jobs.view.waits_for(job))

    # -- uploads -------------------------------------------------------------------------------------------------------

    async def upload_image(self, request: web.Request) -> web.Response:
        upload, url = await self._upload(request, IMAGE)
        body = {"id": upload.id, "url": url, "width": upload.width, "height": upload.height}
        has_thumbnail = await self.jobs.in_thread(self.requests.uploads.stored.thumbnail(upload.id).exists)
        # A path: shell scripts take the one address that begins with http for that of the upload.
        thumbnail = {"thumbnail_url": f"/images/{upload.id}/thumbnail" if has_thumbnail else None}
        return json_reply({**body, **_faces(upload), **thumbnail}, status=201)

    async def upload_audio(self, request: web.Request) -> web.Response:
        upload, url = await self._upload(request, AUDIO)
        return json_reply({"id": upload.id, "url": url, "duration": upload.duration_s}, status=201)

    async def _upload(self, request: web.Request, role: str) -> tuple[Upload, str]:
        upload = await self.requests.receive_upload(request, role)
        return upload, self.links.upload(role, upload.id, upload.name, self.requests.base_url(request))

    async def delete_image(self, request: web.Request) -> web.Response:
        return await self._delete_upload(request, IMAGE)

    async def delete_audio(self, request: web.Request) -> web.Response:
        return await self._delete_upload(request, AUDIO)

    async def _delete_upload(self, request: web.Request, role: str) -> web.Response:
        uploads, upload_id = self.requests.uploads.stored, id_in(request)
        if not client_of(request).owns(await self.jobs.in_thread(uploads.find, upload_id, role)):
            raise not_found(f"{role} not found")
        await self.jobs.in_thread(uploads.delete, upload_id)
        return web.Response(status=204)


def _faces(upload: Upload) -> dict[str, object]:
    """The faces of a picture, which of them speaks unless the job says otherwise, and why none does.

    D-ID's answer has the faces alone. A video has none of these fields: its face is looked for in each frame.
    """
    if upload.faces is None:
        return {}
    refusal = upload.faces.refusal
    reason = "; ".join(filter(None, (refusal.get("message"), refusal.get("remedy")))) or None
    return {"faces": did_talk.faces(upload.faces), "face": upload.faces.chosen, "reason": reason}
