"""What several routes do alike: take uploads in, resolve addresses of our own, place orders, read the waiting time."""

from __future__ import annotations

import asyncio
import collections
import math
from collections.abc import Awaitable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

from aiohttp import web

from lipsyncd.errors import FetchRefused
from lipsyncd.jobs.job import Job
from lipsyncd.network.address_guard import receivers
from lipsyncd.settings import CurrentSettings
from lipsyncd.storage.uploads import Upload
from lipsyncd.web.access import caller
from lipsyncd.web.forms import Form, Part, read_form
from lipsyncd.web.jobs import Desk
from lipsyncd.web.orders import Order
from lipsyncd.web.replies import ApiError, bad_request, invalid
from lipsyncd.web.uploads import AUDIO, IMAGE, Stock

T = TypeVar("T")

_JUDGES = 2  # uploads that are decoded at a time
_FETCHERS = 4  # uploads that are fetched at a time
_MOST_UPLOADS = 16  # requests with files that are taken in at a time
_MOST_OF_ONE = 12  # of them with the same key
_FORM_BYTES = 1 << 20  # of a form besides its files


class Counter:
    """Where requests with files and orders come in."""

    def __init__(self, settings: CurrentSettings, desk: Desk, stock: Stock) -> None:
        self.settings = settings
        self.desk = desk
        self.stock = stock
        self._receivers = receivers(settings.now.web.webhook_allow)
        self._judges = ThreadPoolExecutor(_JUDGES, thread_name_prefix="web-judge")
        self._fetchers = ThreadPoolExecutor(_FETCHERS, thread_name_prefix="web-fetch")
        self._taking: collections.Counter[str] = collections.Counter()

    def close(self) -> None:
        for pool in (self._judges, self._fetchers):
            pool.shutdown(wait=False, cancel_futures=True)

    def base(self, request: web.Request) -> str:
        """Where this server is reached: as it is configured, else as the client reached it."""
        return self.settings.now.web.public_url.rstrip("/") or f"{request.scheme}://{request.host}"

    async def body(self, request: web.Request) -> bytes:
        """The body of a request that is no form. Raises 408 when it takes too long."""
        return await self._in_time(request.read())

    async def _in_time(self, work: Awaitable[T]) -> T:
        try:
            return await asyncio.wait_for(work, self.settings.now.web.upload_timeout_s)
        except TimeoutError:
            raise ApiError(408, "RequestTimeoutError", "the upload took too long") from None

    async def receive(self, request: web.Request, files: dict[str, str]) -> tuple[Form, dict[str, Upload]]:
        """Read a form; every file in it is judged and stored.

        files    names of parts that are files -> "image" or "audio"
        returns  the form, and the uploads by their role

        Raises `ApiError`, `DiskLow`, or what is wrong with a file.
        """
        limit = self.settings.now.web.max_upload_mb * 1_000_000
        with self._a_place(caller(request)), self.stock.desk_space() as folder:
            reading = read_form(request, folder, files=files, max_bytes=limit + _FORM_BYTES, max_file_bytes=limit)
            form = await self._in_time(reading)
            return form, await self._store(form, files)

    @contextmanager
    def _a_place(self, owner: str) -> Iterator[None]:
        """One of the places for uploads; nobody gets all of them."""
        if self._taking.total() >= _MOST_UPLOADS or self._taking[owner] >= _MOST_OF_ONE:
            raise ApiError(429, "TooManyRequestsError", "too many uploads at a time", headers={"Retry-After": "5"})
        self._taking[owner] += 1
        try:
            yield
        finally:
            self._taking[owner] -= 1

    async def receive_one(self, request: web.Request, role: str) -> Upload:
        """The one upload in a form of D-ID's: the part `image` or `audio`, or the address in its part `source_url`.

        Raises as `receive` does, and `FetchRefused`, `FetchFailed`.
        """
        form, uploads = await self.receive(request, {role: role, "file": role})
        upload = uploads[role] if role in uploads else await self._fetched(request, form, role)
        if form.fields.get("persist", "").strip().lower() in ("true", "1"):
            await self.desk.run(self.stock.uploads.persist, upload.id)
        return upload

    async def _fetched(self, request: web.Request, form: Form, role: str) -> Upload:
        url = form.fields.get("source_url", "")
        if not url:
            raise bad_request(
                f"invalid {role}: send the file as the form's part '{role}', or its address as 'source_url'"
            )
        loop = asyncio.get_running_loop()
        with self._a_place(caller(request)), self.stock.desk_space() as folder:
            own = await self.desk.run(self.stock.resolve, role, url)
            if own is not None:
                return own
            part = await loop.run_in_executor(self._fetchers, self.stock.fetch, url, folder)
            return await loop.run_in_executor(self._judges, self.stock.take, role, part)

    async def _store(self, form: Form, files: dict[str, str]) -> dict[str, Upload]:
        by_role: dict[str, Part] = {}
        for name, part in form.files.items():
            if files[name] in by_role:
                raise bad_request(f"send one {files[name]}, not two")
            by_role[files[name]] = part
        loop = asyncio.get_running_loop()
        wanted = form.fields.get("filename", "")
        return {
            role: await loop.run_in_executor(self._judges, self.stock.take, role, part, wanted)
            for role, part in by_role.items()
        }

    async def place(self, request: web.Request, order: Order) -> Job:
        """Make a job of an order, with addresses of our own uploads resolved. Raises `ApiError`."""
        if order.webhook is not None:
            self._check_webhook(order.webhook)
        order = await self.desk.run(self._resolved, order, request.host)
        return await self.desk.place(
            order, owner=caller(request), key=request.headers.get("Idempotency-Key"), base=self.base(request)
        )

    def _check_webhook(self, url: str) -> None:
        """Refuse now what could never be delivered. Sources are judged when they are fetched, as D-ID does it."""
        scheme = url.partition(":")[0].lower()
        try:
            self._receivers[scheme].foresee(url)
        except FetchRefused as error:
            raise invalid({"body.webhook": f"'webhook' may not be told: {error.message}"}) from None

    def _resolved(self, order: Order, host: str) -> Order:
        return replace(order, image=self._source(IMAGE, order.image, host), audio=self._voice(order.audio, host))

    def _voice(self, audio: str | None, host: str) -> str | None:
        return None if audio is None else self._source(AUDIO, audio, host)

    def _source(self, role: str, url: str, host: str) -> str:
        """What the manifest calls it: an upload of ours by its id, everything else by its address."""
        upload = self.stock.resolve(role, url)
        if upload is not None:
            self.stock.uploads.touch(upload.id)
            return upload.reference
        if self.stock.is_own_path(url) and host and f"//{host.lower()}/" in url.lower():
            raise bad_request(f"{role} not found: {url.partition('?')[0]} was deleted, has expired, or is no {role}")
        return url


def wait_s(request: web.Request) -> float:
    """`?wait=SECONDS`; what is no number means not to wait."""
    if not request.query_string:
        return 0.0
    try:
        seconds = float(request.query.get("wait", "0"))
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) else 0.0
