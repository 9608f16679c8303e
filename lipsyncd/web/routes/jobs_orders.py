"""`POST /jobs`: a new job, out of a form with its files, out of JSON with their addresses, or with earlier inputs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from aiohttp import web

from lipsyncd.web.clients import Client, client_of
from lipsyncd.web.orders import Order
from lipsyncd.web.replies import ApiError, invalid, json_reply, not_found
from lipsyncd.web.requests import Requests
from lipsyncd.web.routes.did_request import read_json
from lipsyncd.web.routes.jobs_request import EARLIER, read_order
from lipsyncd.web.routes.voices import Voices
from lipsyncd.web.uploads import AUDIO, IMAGE
from lipsyncd.web.views.bodies import JobBodies
from lipsyncd.web.views.kept import Earlier, KeptOrders

_FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")


class JobOrderRoutes:
    """The route that makes jobs, by the rules of all orders."""

    def __init__(self, requests: Requests, bodies: JobBodies, voices: Voices, kept: KeptOrders) -> None:
        self.requests = requests
        self.kept = kept
        self.bodies = bodies
        self.voices = voices

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/jobs", self.create)]

    async def create(self, request: web.Request) -> web.Response:
        """201 with the new job, or with the one that its Idempotency-Key stands for."""
        if request.content_type in _FORMS:
            form, files = await self.requests.receive_form(request, {"image": IMAGE, "audio": AUDIO})
            order = read_order(form.fields, files.get(IMAGE), files.get(AUDIO))
        else:
            order = read_order(read_json(await self.requests.body(request)))
        order = await self._with_earlier(order, client_of(request))
        if order.text is not None:
            self.voices.require("text")
            order = replace(order, voice=await self.voices.match(order.voice, field="voice", strict=True))
        job = await self.requests.submit(request, order)
        body = {**self.bodies.of(job), "inputs": self.kept.inputs(job)}
        return json_reply(body, status=201, headers={"Location": f"/jobs/{job.id}"})

    async def _with_earlier(self, order: Order, client: Client) -> Order:
        """The order with what it takes from earlier jobs. Raises `ApiError`, and an `InputError` for a bad file."""
        if order.image.startswith(EARLIER):
            earlier, name = await self._earlier(IMAGE, order.image, client)
            order = replace(_with_input(order, IMAGE, earlier), name=order.name or name)
        if (order.audio or "").startswith(EARLIER):
            earlier, _ = await self._earlier(AUDIO, order.audio or "", client)
            order = _with_input(order, AUDIO, earlier)
        return order

    async def _earlier(self, role: str, reference: str, client: Client) -> tuple[Earlier, str]:
        """The input of an earlier job, and that job's name."""
        job_id = reference.removeprefix(EARLIER)
        try:
            job = await self.requests.jobs.get(job_id, client)
        except ApiError:
            raise not_found(f"{role}_of: there is no job {job_id}") from None
        found = await self.requests.reuse(role, partial(self.kept.find, role, job, client), client)
        return found, job.name


def _with_input(order: Order, role: str, earlier: Earlier) -> Order:
    """The order with this picture, sound or text in the place of what named the earlier job."""
    if earlier.text is not None:
        voice = order.voice or earlier.voice
        return replace(order, audio=None, text=earlier.text, voice=voice, ssml=earlier.ssml)
    if role == AUDIO and (order.voice or order.ssml):
        raise invalid({"body.voice": "'voice' and 'ssml' belong to a text, and the earlier job had a sound"})
    source = earlier.address
    if earlier.upload is not None:
        source, order = earlier.upload.reference, order.with_rest(**{f"{role}_sha256": earlier.upload.sha256})
    elif earlier.address is not None:
        order = order.with_rest(**{"source_url" if role == IMAGE else "audio_url": earlier.address})
    assert source is not None  # an `Earlier` has one of these
    return replace(order, image=source) if role == IMAGE else replace(order, audio=source)
