"""What several routes have in common: receive forms and uploads, resolve our own addresses, submit orders."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from aiohttp import web

from lipsyncd.errors import FetchRefused
from lipsyncd.jobs.job import Job
from lipsyncd.network.address_guard import receivers
from lipsyncd.settings import CurrentSettings
from lipsyncd.storage.uploads import Upload
from lipsyncd.web.clients import Client, client_of
from lipsyncd.web.connection import Connection
from lipsyncd.web.forms import Form, Part, read_form
from lipsyncd.web.jobs import Jobs
from lipsyncd.web.orders import Order
from lipsyncd.web.quotas import Turns, may_take_one
from lipsyncd.web.replies import ApiError, bad_request, invalid, not_found
from lipsyncd.web.uploads import AUDIO, IMAGE, CheckedUploads
from lipsyncd.web.views.kept import Earlier

T = TypeVar("T")

_CHECKERS = 2  # uploads that are decoded at a time
_FETCHES = 4  # uploads that are fetched at a time; of several tenants each has its part, one at least
_MOST_UPLOADS = 16  # requests with files that are received at a time
_MOST_OF_ONE_TENANT = 12  # of them
_RATED_OVER_S = 10.0
_MOST_LISTED = 100
_FORM_BYTES = 1 << 20  # of a form besides its files


class Requests:
    """Receives the requests of one server that bring files or orders."""

    def __init__(self, settings: CurrentSettings, jobs: Jobs, uploads: CheckedUploads) -> None:
        self.settings = settings
        self.jobs = jobs
        self.uploads = uploads
        self._receivers = receivers(settings.now.web.webhook_allow)
        self._checkers = ThreadPoolExecutor(_CHECKERS, thread_name_prefix="web-check")
        self._fetchers = ThreadPoolExecutor(_MOST_UPLOADS, thread_name_prefix="web-fetch")
        self._checks, self._fetches = Turns(_CHECKERS), Turns(_FETCHES)
        self._receiving: Counter[str] = Counter()

    def close(self) -> None:
        for pool in (self._checkers, self._fetchers):
            pool.shutdown(wait=False, cancel_futures=True)

    def base_url(self, request: web.Request) -> str:
        """The address of this server: the configured one, else the one that the client used."""
        return self.settings.now.web.public_url.rstrip("/") or f"{request.scheme}://{request.host}"

    async def body(self, request: web.Request) -> bytes:
        """The body of a request that is no form. Raises 408 when it takes too long."""
        return await self._in_time(request, request.read())

    async def _in_time(self, request: web.Request, work: Awaitable[T]) -> T:
        """Read the body of a request. Raises 408 when it takes too long, or comes slower than the lowest rate."""
        loop, rules = asyncio.get_running_loop(), self.settings.now.web
        deadline, reading = loop.time() + rules.upload_timeout_s, asyncio.ensure_future(work)
        try:
            while True:
                before, look_s = _received_bytes(request), min(_RATED_OVER_S, deadline - loop.time())
                if look_s <= 0:
                    raise ApiError(408, "RequestTimeoutError", "the upload took too long")
                await asyncio.wait({reading}, timeout=look_s)
                if reading.done():
                    return reading.result()
                came_kb = (_received_bytes(request) - before) / 1000
                if look_s == _RATED_OVER_S and came_kb < rules.min_kb_s * look_s and not request.content.is_eof():
                    rate = f"{came_kb / look_s:.1f} kB a second, at least {rules.min_kb_s:g} are required"
                    raise ApiError(408, "RequestTimeoutError", f"the upload was too slow: {rate}")
        finally:
            reading.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await reading

    async def receive_form(
        self, request: web.Request, files: dict[str, str], *, faces: bool = False
    ) -> tuple[Form, dict[str, Upload]]:
        """Read a form; check and store every file in it.

        files    names of parts that are files -> "image" or "audio"
        faces    look for the faces of a picture, too
        returns  the form, and the uploads by their role

        Raises `ApiError`, `DiskLow`, or an `InputError` for a file that cannot be used.
        """
        limit = self.settings.now.web.max_upload_mb * 1_000_000
        client = client_of(request)
        with self._upload_slot(client), self.uploads.scratch_folder() as folder:
            reading = read_form(request, folder, files=files, max_bytes=limit + _FORM_BYTES, max_file_bytes=limit)
            form = await self._in_time(request, reading)
            return form, await self._store(form, files, client, faces=faces)

    @contextmanager
    def _upload_slot(self, client: Client) -> Iterator[None]:
        """Count a request with files while it is received; no tenant may have all slots."""
        if not may_take_one(client, self._receiving, _MOST_UPLOADS, most_of_one=_MOST_OF_ONE_TENANT):
            raise ApiError(429, "TooManyRequestsError", "too many uploads at a time", headers={"Retry-After": "5"})
        self._receiving[client.tenant] += 1
        try:
            yield
        finally:
            self._receiving[client.tenant] -= 1

    async def receive_upload(self, request: web.Request, role: str) -> Upload:
        """The one upload in a form of D-ID's: the part `image` or `audio`, or the address in the part `source_url`.

        Raises what `receive_form` raises, and `FetchRefused`, `FetchFailed`.
        """
        form, uploads = await self.receive_form(request, {role: role, "file": role}, faces=True)
        upload = uploads[role] if role in uploads else await self._fetched(request, form, role)
        if form.fields.get("persist", "").strip().lower() in ("true", "1"):
            await self.jobs.in_thread(self.uploads.kept.persist, client_of(request), upload.id)
        return upload

    async def reuse(self, role: str, find: Callable[[Path], Earlier], client: Client) -> Earlier:
        """An input of an earlier job. `find` may copy a file into a folder: that is checked and stored as an upload.

        Raises `ApiError`, `DiskLow`, or an `InputError` for a file that cannot be used.
        """
        loop = asyncio.get_running_loop()
        with self._upload_slot(client), self.uploads.scratch_folder() as folder:
            earlier = await loop.run_in_executor(self._fetchers, find, folder)
            if earlier.copy is None:
                return earlier
            return replace(earlier, upload=await self._add(role, earlier.copy, client, faces=False))

    async def _fetched(self, request: web.Request, form: Form, role: str) -> Upload:
        url = form.fields.get("source_url", "")
        if not url:
            raise bad_request(
                f"invalid {role}: send the file as the form's part '{role}', or its address as 'source_url'"
            )
        loop, client = asyncio.get_running_loop(), client_of(request)
        with self._upload_slot(client), self.uploads.scratch_folder() as folder:
            own = await self.jobs.in_thread(self._own_upload, role, url, client)
            if own is not None:
                return own
            async with self._fetches.of(client):
                part = await loop.run_in_executor(self._fetchers, self.uploads.fetch, url, folder)
            return await self._add(role, part, client, faces=True)

    async def _store(self, form: Form, files: dict[str, str], client: Client, *, faces: bool) -> dict[str, Upload]:
        by_role: dict[str, Part] = {}
        for name, part in form.files.items():
            if files[name] in by_role:
                raise bad_request(f"send one {files[name]}, not two")
            by_role[files[name]] = part
        name = form.fields.get("filename", "")
        return {role: await self._add(role, part, client, name, faces=faces) for role, part in by_role.items()}

    async def _add(self, role: str, part: Part, client: Client, name: str = "", *, faces: bool) -> Upload:
        """Check and store a file. Tenants take turns, so that none waits behind all files of another one."""
        loop = asyncio.get_running_loop()
        async with self._checks.of(client):
            return await loop.run_in_executor(
                self._checkers, partial(self.uploads.add, role, part, client, name, faces=faces)
            )

    async def submit(self, request: web.Request, order: Order) -> Job:
        """Make a job of an order; addresses of our own uploads are resolved. Raises as `Jobs.submit`."""
        if order.webhook is not None:
            self._check_webhook(order.webhook)
        client, base = client_of(request), self.base_url(request)
        hosts = {host.lower() for host in (request.host, base.partition("://")[2].partition("/")[0]) if host}
        order = await self.jobs.in_thread(self._resolved, order, hosts, client)
        return await self.jobs.submit(order, client=client, key=request.headers.get("Idempotency-Key"), base=base)

    def _check_webhook(self, url: str) -> None:
        """Refuse a webhook now that could never be delivered. Sources are checked when they are fetched, as in D-ID."""
        scheme = url.partition(":")[0].lower()
        try:
            self._receivers[scheme].check_without_resolving(url)
        except FetchRefused as error:
            raise invalid({"body.webhook": f"'webhook' may not be called: {error.message}"}) from None

    def _resolved(self, order: Order, hosts: Collection[str], client: Client) -> Order:
        """The order with the ids of uploads in place of their addresses. `hosts` are the names of this server."""
        image, order = self._source(IMAGE, order.image, order, hosts, client)
        audio, order = (None, order) if order.audio is None else self._source(AUDIO, order.audio, order, hosts, client)
        return replace(order, image=image, audio=audio)

    def _source(self, role: str, url: str, order: Order, hosts: Collection[str], client: Client) -> tuple[str, Order]:
        """The name of a source in the manifest: the id of an upload of ours, else the address. And the order with the
        upload's hash, so that the same file uploaded again is the same request.
        """
        upload = self._own_upload(role, url, client)
        if upload is not None:
            self.uploads.stored.touch(upload.id)
            return upload.reference, order.with_rest(**{f"{role}_sha256": upload.sha256})
        if self.uploads.is_own_path(url) and any(f"//{host}/" in url.lower() for host in hosts):
            raise _no_upload(role, url, client)
        return url, order

    def _own_upload(self, role: str, url: str, client: Client) -> Upload | None:
        """The upload at an address of ours; None for other addresses, and for uploads that there are no more.

        Raises 404 for the upload of another tenant.
        """
        upload = self.uploads.resolve(role, url)
        if upload is not None and not client.owns(upload):
            raise _no_upload(role, url, client)
        return upload


def limit_in(request: web.Request) -> int:
    """How many jobs a client wants listed: `?limit=`, from 1 to 100, which is also what anything else means."""
    try:
        return min(max(int(request.query.get("limit", "")[:20]), 1), _MOST_LISTED)
    except ValueError:
        return _MOST_LISTED


def _received_bytes(request: web.Request) -> int:
    """How much has come on the connection of a request."""
    return request.protocol.received_bytes if isinstance(request.protocol, Connection) else 0


def _no_upload(role: str, url: str, client: Client) -> ApiError:
    """D-ID answers 400. A client that does not see all uploads gets 404, for one that is another's as for none."""
    what = f"{role} not found: {url.partition('?')[0]} was deleted, has expired, or is no {role}"
    return bad_request(what) if client.is_all else not_found(what)


def wait_s(request: web.Request) -> float:
    """The number in `?wait=SECONDS`; 0 if it is none."""
    if not request.query_string:
        return 0.0
    try:
        seconds = float(request.query.get("wait", "0"))
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) else 0.0
