"""What one tenant may use of a server that several share: places in the queue, uploads under way and kept, threads.

A tenant may take half of what is limited, more only where it is alone, and a quarter is left to those that have nothing
yet. So none of them can lock the others out, and a server with many keys that are idle is still of use to the others.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from lipsyncd.settings import CurrentSettings
from lipsyncd.storage.uploads import Uploads
from lipsyncd.web.clients import Client
from lipsyncd.web.replies import ApiError

_RESERVED = 4  # a quarter of the places is left to tenants that have none
_BOOKKEEPING_BYTES = 16_384  # of each upload, besides its content
_YOUNG_S = 3600.0  # none younger goes before its time: its client may be about to use it
_SLACK = 0.9  # of the share is filled after old ones went, so that the next upload finds room
_GB = 1_000_000_000


def may_take_one(client: Client, taken: Mapping[str, int], places: int, *, most_of_one: int | None = None) -> bool:
    """May the client take one more of so many places?

    taken        how many each tenant has, by name
    most_of_one  that one tenant may have while others share the server; None: half of the places
    """
    total, own = sum(taken.values()), taken.get(client.tenant, 0)
    if client.tenants <= 1:
        return total < places and (most_of_one is None or own < most_of_one)
    others = {tenant for tenant, number in taken.items() if number and tenant not in ("", client.tenant)}
    without = max(0, client.tenants - 1 - len(others))
    reserved = min(without, max(1, places // _RESERVED)) if own else 0
    return total + reserved < places and own < (max(1, places // 2) if most_of_one is None else most_of_one)


class Turns:
    """Lets each tenant do so many things at a time. For one event loop."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._doing: dict[tuple[str, int], asyncio.Semaphore] = {}

    def of(self, client: Client) -> asyncio.Semaphore:
        """What the client waits for: all turns where it is alone, else its part of them."""
        most = max(1, self._most // client.tenants)
        return self._doing.setdefault((client.tenant, most), asyncio.Semaphore(most))


@dataclass(frozen=True)
class _Kept:
    """One stored upload."""

    tenant: str
    size_bytes: int


class KeptUploads:
    """The space of stored uploads: `retention.uploads_gb`, in equal parts for all tenants.

    in_use  gives the uploads that open jobs may still read
    """

    def __init__(self, settings: CurrentSettings, stored: Uploads, in_use: Callable[[], Collection[str]]) -> None:
        self._settings = settings
        self._stored = stored
        self._in_use = in_use
        self._known: dict[str, _Kept] = {}
        self._coming: dict[str, int] = defaultdict(int)  # bytes that are being checked
        self._lock = threading.Lock()

    @contextmanager
    def room_for(self, client: Client, size_bytes: int) -> Iterator[None]:
        """Keep room for an upload while it is checked and stored; its client's oldest ones go for it.

        Raises `ApiError` 507 when those that persist, are in use or came within the last hour leave no room.
        """
        needed = size_bytes + _BOOKKEEPING_BYTES
        with self._lock:
            share = self._share(client)
            if share and self._used(client.tenant) + needed > share:
                self._remove_oldest(client.tenant, needed, share)
                if (used := self._used(client.tenant)) + needed > share:
                    raise _full(used, share)
            self._coming[client.tenant] += needed
        try:
            yield
        finally:
            with self._lock:
                self._coming[client.tenant] -= needed

    def persist(self, client: Client, upload_id: str) -> None:
        """Keep an upload without limit of time, if those that persist have at most half of the client's share with it.

        Raises `ApiError` 507; then the upload stays for as long as others.
        """
        with self._lock:
            share = self._share(client)
            mine = [one for one in self._of(client.tenant) if one == upload_id or self._stored.persists(one)]
            used = sum(self._known[one].size_bytes for one in mine)
            if share and used > share / 2:
                raise _full(used, share / 2, "that persist")
            self._stored.persist(upload_id)

    def _share(self, client: Client) -> float:
        """Bytes; 0 means without limit."""
        return self._settings.now.retention.uploads_gb * _GB / client.tenants

    def _used(self, tenant: str) -> int:
        return sum(self._known[one].size_bytes for one in self._of(tenant)) + self._coming[tenant]

    def _of(self, tenant: str) -> list[str]:
        """The ids of a tenant's uploads. The folder is listed each time; what is in it is read once."""
        there = {path.name for path in self._stored.root.iterdir() if not path.name.startswith(".")}
        self._known = {one: kept for one, kept in self._known.items() if one in there}
        for upload_id in there - self._known.keys():
            upload = self._stored.find(upload_id)
            if upload is not None:
                more = _BOOKKEEPING_BYTES + self._stored.thumbnail_bytes(upload_id)
                self._known[upload_id] = _Kept(upload.tenant, upload.size_bytes + more)
        return [one for one, kept in self._known.items() if kept.tenant == tenant]

    def _remove_oldest(self, tenant: str, needed: int, share: float) -> None:
        in_use, now_s, used = self._in_use(), time.time(), self._used(tenant)
        for at_s, upload_id in sorted((self._stored.at_s(one), one) for one in self._of(tenant)):
            if used + needed <= share * _SLACK:
                return
            if upload_id in in_use or self._stored.persists(upload_id) or 0 < now_s - at_s < _YOUNG_S:
                continue
            with suppress(FileNotFoundError):  # it has just expired
                if self._stored.remove(upload_id, seen_at_s=at_s):
                    used -= self._known[upload_id].size_bytes


def _full(used: float, share: float, which: str = "") -> ApiError:
    what = f"uploads {which}".rstrip()
    return ApiError(
        507, "InsufficientStorageError",
        f"this client's {what} have {used / 1e6:.1f} MB, and {share / 1e6:.1f} MB may be kept (retention.uploads_gb); "
        "delete some, or try again later",
        headers={"Retry-After": "600"},
    )  # fmt: skip
