"""Fetches one file from an address that a stranger chose, into the spool.

Owns redirects, limits and the meaning of failures: `FetchRefused` if another try cannot help, `FetchFailed` if it may.
Leaves the addresses to `network.address_guard` and the meaning of the bytes to the decoder: headers of the answer are
not trusted.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from yarl import URL

from lipsyncd.errors import DiskLow, FetchFailed, FetchRefused, LipsyncdError
from lipsyncd.network.address_guard import Guard, cause, without_secrets
from lipsyncd.storage.disk_space import says_full

MAX_REDIRECTS = 5

_CHUNK_BYTES = 64 << 10
_CONNECT_TIMEOUT_S = 15.0
_SILENCE_TIMEOUT_S = 20.0  # between two pieces of an answer
_CANCEL_POLL_S = 0.1
_RATED_AFTER_S = 15.0
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_TRY_AGAIN = frozenset((408, 425, 429))  # the only answers from 400 to 499 that may change with time
_HEADERS = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "lipsyncd"}


@dataclass(frozen=True)
class _Limits:
    max_bytes: int
    min_bytes_s: float


@dataclass(frozen=True)
class Fetched:
    """A fetched file. `final_url` is the address after all redirects, as `without_secrets` gives it."""

    size_bytes: int
    sha256: str
    final_url: str


def fetch(
    url: str,
    target: Path,
    *,
    max_bytes: int,
    timeout_s: float,
    min_bytes_s: float = 0.0,
    allow: Sequence[str] | Guard = (),
    cancelled: Callable[[], bool] = lambda: False,
) -> Fetched:
    """Write the body at `url` to `target`, mode 0600. `target` exists afterwards only if all of the body arrived.

    timeout_s    for everything together: names, redirects, body
    min_bytes_s  a body that has come slower than this, on average after 15 s, is given up
    allow        entries of `fetch.allow`, or a `Guard` made of them
    cancelled    called ten times a second

    Blocks, and has its own event loop, so call it from a thread without one. Raises `FetchRefused` (address not
    allowed, too large, not found), `FetchFailed` (network, server, time, cancelled), `DiskLow`.
    """
    guard = allow if isinstance(allow, Guard) else Guard(allow)
    start = guard.check(url)
    target.unlink(missing_ok=True)
    try:
        return asyncio.run(
            _within(timeout_s, cancelled, _follow(guard, start, target, _Limits(max_bytes, min_bytes_s)))
        )
    except TimeoutError as error:
        raise FetchFailed(f"{without_secrets(start)} did not arrive within {timeout_s:g} s") from error
    except OSError as error:
        if says_full(error):
            raise DiskLow(f"no room for {without_secrets(start)} in {target.parent}") from error
        raise


async def _within(timeout_s: float, cancelled: Callable[[], bool], work: Coroutine[Any, Any, Fetched]) -> Fetched:
    task = asyncio.ensure_future(work)
    try:
        async with asyncio.timeout(timeout_s):
            while not task.done():
                if cancelled():
                    raise FetchFailed("the fetch was cancelled", remedy="")
                await asyncio.wait((task,), timeout=_CANCEL_POLL_S)
            return await task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task


async def _follow(guard: Guard, url: URL, target: Path, limits: _Limits) -> Fetched:
    for _ in range(MAX_REDIRECTS + 1):
        answer = await _ask(guard, url, target, limits)
        if isinstance(answer, Fetched):
            return answer
        url = answer
    raise FetchRefused(
        f"more than {MAX_REDIRECTS} redirects, the last to {without_secrets(url)}", remedy="use its final address"
    )


async def _ask(guard: Guard, url: URL, target: Path, limits: _Limits) -> Fetched | URL:
    """One request: the file, or the next address. Each redirect has its own session: a new check, no cookies."""
    resolver = guard.resolver(url)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S, sock_read=_SILENCE_TIMEOUT_S)
    try:
        async with (
            aiohttp.ClientSession(
                connector=resolver.connector(),
                headers=_HEADERS,
                timeout=timeout,
                auto_decompress=False,
                trust_env=False,  # a proxy would connect for us, to any address
            ) as session,
            session.get(url, allow_redirects=False) as response,
        ):
            if response.status in _REDIRECTS and "Location" in response.headers:
                return _next_hop(guard, url, response.headers["Location"])
            _check_answer(url, response, limits.max_bytes)
            return await _save(url, response, target, limits)
    except aiohttp.ServerTimeoutError as error:
        raise FetchFailed(f"{without_secrets(url)} sent nothing for too long") from error
    except aiohttp.InvalidURL as error:  # such as 127.1, an old way to write an address
        raise FetchRefused(f"{without_secrets(url)} names no valid host", remedy="correct it") from error
    except aiohttp.ClientError as error:
        if resolver.refused:
            raise FetchRefused(f"{without_secrets(url)} {resolver.refused}") from error
        raise FetchFailed(f"{without_secrets(url)} cannot be fetched: {cause(error)}") from error


def _next_hop(guard: Guard, url: URL, location: str) -> URL:
    try:
        return guard.check(str(url.join(URL(location))))
    except (ValueError, FetchRefused) as error:
        why = error.message if isinstance(error, FetchRefused) else "no valid URL"
        raise FetchRefused(f"{without_secrets(url)} redirects to an address that is refused: {why}") from error


def _check_answer(url: URL, response: aiohttp.ClientResponse, max_bytes: int) -> None:
    if response.status != 200:
        phrase = http.HTTPStatus(response.status).phrase if response.status in set(http.HTTPStatus) else "?"
        message = f"{without_secrets(url)} answered {response.status} {phrase}"
        if 400 <= response.status < 500 and response.status not in _TRY_AGAIN:
            raise FetchRefused(message, remedy="check the address; a signed link may have expired")
        raise FetchFailed(message)
    encoding = response.headers.get("Content-Encoding", "identity").lower()
    if encoding != "identity":
        raise FetchRefused(
            f"{without_secrets(url)} sent a compressed answer although the request forbids it",
            remedy="use another server",
        )
    if response.content_length is not None and response.content_length > max_bytes:
        raise _too_large(url, max_bytes)


async def _save(url: URL, response: aiohttp.ClientResponse, target: Path, limits: _Limits) -> Fetched:
    digest, size, began_s = hashlib.sha256(), 0, time.monotonic()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(target, flags, 0o600), "wb") as file:
            async for piece in response.content.iter_chunked(_CHUNK_BYTES):
                size += len(piece)
                if size > limits.max_bytes:
                    raise _too_large(url, limits.max_bytes)
                took_s = time.monotonic() - began_s
                if took_s > _RATED_AFTER_S and size < limits.min_bytes_s * took_s:
                    rate = f"{size / took_s / 1000:.1f} kB a second"
                    raise FetchFailed(f"{without_secrets(url)} sends only {rate}", remedy="use a faster server")
                digest.update(piece)
                file.write(piece)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return Fetched(size, digest.hexdigest(), without_secrets(url))


def _too_large(url: URL, max_bytes: int) -> LipsyncdError:
    return FetchRefused(
        f"{without_secrets(url)} is larger than {max_bytes} bytes", remedy="use a smaller file or the inbox"
    )
