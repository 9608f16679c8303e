"""Reach a daemon over its REST service, with the standard library alone.

Each request has a connection of its own, so threads may share this object. Files are sent and received in blocks.
Redirects are not followed, and proxies of the environment are not used: the address is the server's.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, urlencode, urlsplit

from lipsyncd.client.facts import Event, JobFacts
from lipsyncd.errors import (
    Busy,
    IllegalTransition,
    KeyRefused,
    LipsyncdError,
    MissingFile,
    ResultGone,
    ServerError,
    UnknownJob,
    Unreachable,
    UsageError,
    from_reason,
    tree,
)
from lipsyncd.jobs.job import JobState
from lipsyncd.jobs.manifest import Manifest, classify

_TIMEOUT_S = 30.0  # of a silence on the connection, besides the time that a request asks to wait
_MOST_WAIT_S = 30.0
_BLOCK_BYTES = 1 << 16
_MOST_BODY_BYTES = 16 << 20
_OK = (200, 201)
_ANOTHER = "check that a lipsyncd of this version or a newer one answers there"
_FIELDS = (
    *("text", "voice", "renderer", "stitch", "resolution", "fps", "motion", "av_offset_ms", "priority"),
    *("user_data", "webhook"),
)
_ANOTHER = "check that a lipsyncd of this version or a newer one answers there"


class OverHttp:
    """The server at an address such as `http://box:8003`, with a key if it needs one."""

    def __init__(self, url: str, key: str | None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{url!r} is no address of a server", remedy="write it as http://HOST:8003")
        self.url = url.rstrip("/")
        self._parts = parts
        self._headers = {"x-api-key": key} if key else {}

    # -- the way -------------------------------------------------------------------------------------------------------

    def submit(self, manifest: Manifest, idempotency_key: str | None) -> str:
        fields: dict[str, Any] = {name: getattr(manifest, name) for name in _FIELDS}
        fields |= {"name": manifest.out_name, "options": dict(manifest.options) or None, "ssml": manifest.ssml or None}
        files = {}
        for role, source in (("image", manifest.image), ("audio", manifest.audio)):
            if source is not None and classify(source) == "url":
                fields[f"{role}_url"] = source
            elif source is not None:
                files[role] = Path(source)
        key = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        with _form({name: _as_text(value) for name, value in fields.items() if value is not None}, files) as form:
            answer = self._json("POST", "/jobs", form.blocks(), {**form.headers, **key})
        return _facts(answer).id

    def look(self, job_id: str, wait_s: float = 0.0) -> JobFacts:
        query = f"?wait={min(wait_s, _MOST_WAIT_S):g}" if wait_s > 0 else ""
        try:
            return _facts(self._json("GET", f"/jobs/{quote(job_id, safe='')}{query}"))
        except _NotFound as error:
            raise UnknownJob(f"{self.url} has no job {job_id!r}, or none that this key sees", remedy="") from error

    def follow(self, job_id: str) -> Iterator[Event] | None:
        opening = self._answer("GET", f"/jobs/{quote(job_id, safe='')}/events")
        try:
            answer = opening.__enter__()
        except Unreachable:
            raise
        except ServerError:  # an older server, or one with as many streams as may be
            return None
        return self._events(opening, answer)

    def _events(
        self, opening: AbstractContextManager[http.client.HTTPResponse], answer: http.client.HTTPResponse
    ) -> Iterator[Event]:
        with ExitStack() as open_answer:
            open_answer.push(opening)
            with self._reached():
                for line in iter(partial(answer.readline, _MOST_BODY_BYTES), b""):
                    if line.startswith(b"data: "):
                        yield _event(line.removeprefix(b"data: "), self.url)

    def jobs(self, state: JobState | None, limit: int) -> list[JobFacts]:
        query = urlencode({"limit": str(limit), **({} if state is None else {"state": state.value})})
        found = self._json("GET", f"/jobs?{query}").get("jobs")
        if not isinstance(found, list):
            raise ServerError(f"{self.url}/jobs answered without jobs", remedy=_ANOTHER)
        return [_facts(job) for job in found]

    def cancel(self, job_id: str) -> None:
        self._json("POST", f"/jobs/{quote(job_id, safe='')}/cancel", b"")

    def fetch(self, facts: JobFacts, target: Path) -> None:
        try:
            with self._answer("GET", facts.result) as answer, target.open("xb") as file:
                shutil.copyfileobj(answer, file, _BLOCK_BYTES)
                if answer.length:  # bytes that the server announced and did not send
                    raise Unreachable(f"{self.url} has sent a part of the video only")
        except _NotFound as error:
            raise ResultGone(f"{self.url} has the video of job {facts.id} no more: {error.message}") from error

    # -- requests ------------------------------------------------------------------------------------------------------

    def _json(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Mapping[str, Any]:
        with self._answer(method, path, body, headers) as answer:
            data = answer.read(_MOST_BODY_BYTES)
        try:
            value = json.loads(data)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise ServerError(f"{self.url}{path} answered without JSON", remedy=_ANOTHER)
        return value

    @contextmanager
    def _answer(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """An open answer with status 200 or 201. Raises the error that any other one stands for."""
        parts = self._parts
        make = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = make(str(parts.hostname), parts.port, timeout=_TIMEOUT_S + _MOST_WAIT_S)
        try:
            with self._reached():
                connection.request(method, parts.path.rstrip("/") + path, body, {**self._headers, **(headers or {})})
                answer = connection.getresponse()
                if answer.status not in _OK:
                    raise _error(answer, answer.read(_MOST_BODY_BYTES), self.url)
            with self._reached():
                yield answer
        finally:
            connection.close()

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except (ConnectionError, TimeoutError, http.client.HTTPException) as error:
            raise Unreachable(f"{self.url} does not answer: {error or type(error).__name__}") from error
        except OSError as error:
            if error.filename is not None:  # a file of ours
                raise
            raise Unreachable(f"{self.url} cannot be reached: {error.strerror or error}") from error


class _NotFound(ServerError):
    """The answer 404, until it is known what was not found."""


def _error(answer: http.client.HTTPResponse, data: bytes, url: str) -> LipsyncdError:
    """The error that an answer stands for: ours by its code, else by its status."""
    try:
        body = json.loads(data)
        text, details = str(body["description"]), body.get("details") or {}
    except (ValueError, KeyError, TypeError, AttributeError):
        text, details = f"{url} answered with status {answer.status}", {}
    code = details.get("code") if isinstance(details, dict) else None
    if code in {cls.code for cls in tree()}:
        return from_reason({"code": code, "message": text, "remedy": ""})
    if answer.status == 429:
        busy = Busy(text)
        busy.retry_after_s = _seconds(answer.headers.get("Retry-After", ""))
        return busy
    if answer.status in (401, 403):
        return KeyRefused(text)
    if answer.status == 404:
        return _NotFound(text, remedy="")
    if answer.status == 409:
        return IllegalTransition(text)
    if answer.status == 422 or (answer.status == 400 and not details):
        return UsageError(text)
    if answer.status == 400 and isinstance(details, dict):
        faults = [str(fault.get("message", "")) for fault in details.values() if isinstance(fault, dict)]
        return UsageError(f"{text}: {'; '.join(faults)}")
    return ServerError(text)


def _seconds(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        return Busy.retry_after_s
    return found if 0 <= found < math.inf else Busy.retry_after_s


def _event(data: bytes, url: str) -> Event:
    try:
        return Event.from_rest(json.loads(data))
    except (KeyError, TypeError, ValueError) as error:
        raise ServerError(f"{url} described an event in another way: {error!r}", remedy=_ANOTHER) from error


def _facts(body: Mapping[str, Any]) -> JobFacts:
    try:
        return JobFacts.from_rest(body)
    except (KeyError, TypeError, ValueError) as error:
        raise ServerError(f"the server described a job in another way: {error!r}", remedy=_ANOTHER) from error


def _as_text(value: Any) -> str:
    """A value as a form has it."""
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, dict) else str(value)


class _Form:
    """A form of texts and open files, sent in blocks."""

    def __init__(self, texts: Mapping[str, str], files: Mapping[str, tuple[str, IO[bytes]]]) -> None:
        boundary = secrets.token_hex(16)
        start = f"--{boundary}\r\nContent-Disposition: form-data; name="
        self._parts: list[bytes | IO[bytes]] = []
        for name, text in texts.items():
            self._parts.append(f'{start}"{name}"\r\n\r\n{text}\r\n'.encode())
        for name, (shown, file) in files.items():
            clean = "".join(char if char.isprintable() and char not in '"\\' else "_" for char in shown)
            head = f'{start}"{name}"; filename="{clean}"\r\n\r\n'.encode("utf-8", "replace")
            self._parts += [head, file, b"\r\n"]
        self._parts.append(f"--{boundary}--\r\n".encode())
        size = sum(len(part) if isinstance(part, bytes) else os.fstat(part.fileno()).st_size for part in self._parts)
        self.headers = {"Content-Type": f"multipart/form-data; boundary={boundary}", "Content-Length": str(size)}

    def blocks(self) -> Iterator[bytes]:
        """Its bytes, once."""
        for part in self._parts:
            if isinstance(part, bytes):
                yield part
                continue
            while block := part.read(_BLOCK_BYTES):
                yield block


@contextmanager
def _form(texts: Mapping[str, str], paths: Mapping[str, Path]) -> Iterator[_Form]:
    """Raises `MissingFile` for a file that cannot be read."""
    with ExitStack() as opened:
        files = {}
        for role, path in paths.items():
            try:
                files[role] = (path.name, opened.enter_context(path.open("rb")))
            except OSError as error:
                remedy = "name a file that you can read"
                raise MissingFile(f"cannot read {str(path)!r}: {error.strerror or error}", remedy=remedy) from error
        yield _Form(texts, files)
