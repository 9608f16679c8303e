"""Sends webhooks: signed, repeated until the receiver has them, and without delaying any job.

The transaction that ends a job also writes its delivery into the ledger; this module sends it. After a crash between a
receiver's answer and our record of it, the message is sent again under the same `webhook-id`.

Headers, signature and schedule are those of Standard Webhooks 1.0.0. `network.address_guard` has the rule for
addresses: public ones over https, and the entries of `web.webhook_allow`. Redirects are not followed.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hmac
import json
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import aiohttp
from yarl import URL

from lipsyncd import __version__
from lipsyncd.errors import ConfigError, FetchRefused, LedgerUnavailable
from lipsyncd.jobs.job import now_ms
from lipsyncd.jobs.webhook_delivery import Delivery, DeliveryState
from lipsyncd.ledger.webhook_rows import Deliveries, Outcome
from lipsyncd.network.address_guard import cause, receivers, without_secrets
from lipsyncd.settings.rules import UNSET
from lipsyncd.storage.failpoints import reach
from lipsyncd.storage.files import replace_durably

log = logging.getLogger(__name__)

SCHEDULE_S: Sequence[float] = (0, 5, 300, 1800, 7200, 18_000, 36_000)  # before the first try, the second, ...
ANSWER_WITHIN_S = 15.0
PREFIX = "whsec_"

_KEY_BYTES = range(24, 65)  # as the standard allows
_AT_A_TIME = 16
_CHECK_EVERY_S = 60.0  # at least: the wall clock may be set back or forward
_RETRY_AFTER_ERROR_S = 5.0
_STOP_GRACE_S = 1.0


class Webhooks:
    """Sends the deliveries of one ledger, in the thread that calls `run`.

    keys        sign every message, one signature each: the current key, and older ones until all receivers have it
    allow       entries of `web.webhook_allow`
    result_url  returns the address of a job's video; an empty text if there is none
    tries       counts the tries to deliver, by outcome
    schedule_s  waits before each try; as many tries as waits

    Raises `ConfigError` for a wrong entry of `allow`.
    """

    def __init__(
        self,
        deliveries: Deliveries,
        *,
        keys: Sequence[bytes],
        allow: Sequence[str] = (),
        result_url: Callable[[str], str] = lambda _: "",
        tries: Counter[str] | None = None,
        schedule_s: Sequence[float] = SCHEDULE_S,
        answer_within_s: float = ANSWER_WITHIN_S,
    ) -> None:
        self.tries: Counter[str] = Counter() if tries is None else tries
        self._deliveries = deliveries
        self._keys = keys
        self._guards = receivers(allow)
        self._result_url = result_url
        self._schedule_s = schedule_s
        self._answer_within_s = answer_within_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._check = asyncio.Event()
        self._stopping = False
        self._under_way: dict[str, asyncio.Task[None]] = {}  # by job: the messages about one job arrive in order

    def take_keys(self, keys: Sequence[bytes]) -> None:
        """Sign with these keys from now on."""
        self._keys = keys

    # -- the thread ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Send deliveries until `stop`. No receiver can end this thread."""
        asyncio.run(self._serve())

    def wake(self) -> None:
        """Check for deliveries now. May be called from any thread."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._check.set)

    def stop(self) -> None:
        """End `run` within about a second. Deliveries that are under way are sent again after the next start."""
        self._stopping = True
        self.wake()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        while not self._stopping:
            self._check.clear()
            try:
                wait_s = self._begin_due()
            except LedgerUnavailable as error:
                log.warning("webhooks: %s", error)
                wait_s = _RETRY_AFTER_ERROR_S
            except Exception:
                log.exception("webhooks: unexpected failure")
                wait_s = _RETRY_AFTER_ERROR_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._check.wait()
        under_way = list(self._under_way.values())
        if under_way:
            _, late = await asyncio.wait(under_way, timeout=_STOP_GRACE_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _begin_due(self) -> float:
        """Begin the deliveries that are due, as far as slots are free; returns the time until the next check."""
        free = _AT_A_TIME - len(self._under_way)
        if free <= 0:
            return _CHECK_EVERY_S
        for delivery in self._deliveries.due(limit=free, besides=list(self._under_way)):
            if delivery.job_id not in self._under_way:
                task = asyncio.create_task(self._deliver(delivery))
                self._under_way[delivery.job_id] = task
                task.add_done_callback(partial(self._ended, delivery.job_id))
        next_at_ms = self._deliveries.next_at_ms(besides=list(self._under_way))
        if next_at_ms is None:
            return _CHECK_EVERY_S
        return min(max(0.0, (next_at_ms - now_ms()) / 1000), _CHECK_EVERY_S)

    def _ended(self, job_id: str, _task: asyncio.Task[None]) -> None:
        del self._under_way[job_id]
        self._check.set()

    # -- one message ---------------------------------------------------------------------------------------------------

    async def _deliver(self, delivery: Delivery) -> None:
        reach("webhook-due")
        try:
            outcome = await self._try(delivery)
            reach("webhook-answered")
            if not self._deliveries.record_try(delivery, outcome):
                return
        except LedgerUnavailable as error:
            log.warning("webhook of job %s is sent again: %s", delivery.job_id, error)
            await asyncio.sleep(_RETRY_AFTER_ERROR_S)
            return
        except Exception:
            log.exception("webhook of job %s: unexpected failure", delivery.job_id)
            await asyncio.sleep(_RETRY_AFTER_ERROR_S)
            return
        self.tries[outcome.state] += 1
        receiver, attempt = _without_secrets(delivery.url), delivery.attempt + 1
        if outcome.state is DeliveryState.DELIVERED:
            log.info("webhook of job %s delivered to %s, attempt %d", delivery.job_id, receiver, attempt)
        else:
            log.warning(
                "webhook of job %s to %s %s, attempt %d of %d: %s",
                delivery.job_id,
                receiver,
                outcome.state,
                attempt,
                len(self._schedule_s),
                outcome.error,
            )

    async def _try(self, delivery: Delivery) -> Outcome:
        """Send one request and judge the answer."""
        try:
            async with asyncio.timeout(self._answer_within_s):
                status = await self._post(delivery)
        except FetchRefused as error:
            return Outcome(DeliveryState.REFUSED, error=error.message)
        except TimeoutError:
            return self._failed(delivery, None, f"no answer within {self._answer_within_s:g} s")
        except aiohttp.ClientError as error:
            return self._failed(delivery, None, cause(error))
        except OSError as error:
            return self._failed(delivery, None, error.strerror or type(error).__name__)
        if 200 <= status < 300:
            return Outcome(DeliveryState.DELIVERED, status)
        if status == 410:
            return Outcome(DeliveryState.GONE, status, "the receiver answered 410: it wants no more messages")
        redirected = ", and redirects are not followed" if 300 <= status < 400 else ""
        return self._failed(delivery, status, f"the receiver answered {status}{redirected}")

    def _failed(self, delivery: Delivery, status: int | None, error: str) -> Outcome:
        """The outcome of a failed try: the next try, or the end of them."""
        made = delivery.attempt + 1
        if made >= len(self._schedule_s):
            return Outcome(DeliveryState.EXHAUSTED, status, error)
        return Outcome(DeliveryState.WAITING, status, error, wait_ms=round(self._schedule_s[made] * 1000))

    async def _post(self, delivery: Delivery) -> int:
        """The status that the receiver answers. Raises `FetchRefused` for an address that is not allowed."""
        guard = self._guards["https"]
        guard = self._guards.get(guard.check(delivery.url).scheme, guard)
        url = exact(delivery.url)
        resolver = guard.resolver(url)
        body = self._body(delivery)
        try:
            async with (
                aiohttp.ClientSession(
                    connector=resolver.connector(),
                    headers=headers(self._keys, delivery.webhook_id, now_ms() // 1000, body),
                    timeout=aiohttp.ClientTimeout(total=None),
                    cookie_jar=aiohttp.DummyCookieJar(),
                    trust_env=False,  # a proxy would connect for us, to any address
                ) as session,
                session.post(url, data=body, allow_redirects=False) as response,
            ):
                return response.status
        except aiohttp.InvalidURL as error:
            raise FetchRefused(f"{without_secrets(url)} names no valid host") from error
        except aiohttp.ClientError as error:
            if resolver.refused:
                raise FetchRefused(f"{without_secrets(url)} {resolver.refused}") from error
            raise

    def _body(self, delivery: Delivery) -> bytes:
        """The talk object; the address of a finished video is added now, signed with the current secret."""
        talk = json.loads(delivery.body)
        link = self._result_url(delivery.job_id) if talk["status"] == "done" else ""
        return json.dumps({**talk, "result_url": link} if link else talk, ensure_ascii=False).encode()


# -- addresses and signatures ------------------------------------------------------------------------------------------


def exact(text: str) -> URL:
    """The address byte for byte: its query may hold a secret, and yarl would encode some characters differently."""
    return URL(text, encoded=text.isascii()).with_fragment(None)


def _without_secrets(text: str) -> str:
    try:
        return without_secrets(exact(text))
    except ValueError:
        return "no valid URL"


def headers(keys: Sequence[bytes], webhook_id: str, timestamp_s: int, body: bytes) -> Mapping[str, str]:
    """The headers of Standard Webhooks 1.0.0, and the type of the body."""
    return {
        "Content-Type": "application/json",
        "User-Agent": f"lipsyncd/{__version__}",
        "webhook-id": webhook_id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": " ".join(signature(key, webhook_id, timestamp_s, body) for key in keys),
    }


def signature(key: bytes, webhook_id: str, timestamp_s: int, body: bytes) -> str:
    """`v1,` and the HMAC-SHA256 of id, time and body in base64."""
    signed = b"%s.%d.%s" % (webhook_id.encode(), timestamp_s, body)
    return "v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode()


def load_keys(state: Path, file: Path, environ: Mapping[str, str]) -> Sequence[bytes]:
    """The keys in `web.webhook_secret_file`, else in the unit's credential `webhook-secret`, else in `state`.

    file     `UNSET` if the setting is empty
    returns  one key for each line, the current one first; in `state` one is made at the first start, mode 0600

    Raises `ConfigError` if the file cannot be read, holds no key, or holds a line that is none.
    """
    credential = Path(environ.get("CREDENTIALS_DIRECTORY", "")) / "webhook-secret"
    own = state / "webhook-secret"
    if file == UNSET:
        file = credential if "CREDENTIALS_DIRECTORY" in environ and credential.exists() else own
    if file == own and not own.exists():
        made = PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()
        replace_durably(own, made.encode() + b"\n", mode=0o600)
    try:
        lines = file.read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(f"cannot read web.webhook_secret_file {file}: {why}") from error
    if not lines:
        raise ConfigError(f"web.webhook_secret_file {file} holds no key", remedy=_HOW_TO_MAKE_ONE)
    return [_key(line, file) for line in lines]


_HOW_TO_MAKE_ONE = 'make one: echo "whsec_$(head -c 32 /dev/urandom | base64)"'


def _key(line: str, file: Path) -> bytes:
    """The key in one line. The line itself appears in no message."""
    try:
        key = base64.b64decode(line.removeprefix(PREFIX), validate=True)
    except (ValueError, binascii.Error):
        key = b""
    if len(key) not in _KEY_BYTES or not line.startswith(PREFIX):
        raise ConfigError(
            f"web.webhook_secret_file {file} holds a line that is no key: whsec_ and the base64 of 24 to 64 bytes",
            remedy=_HOW_TO_MAKE_ONE,
        )
    return key
