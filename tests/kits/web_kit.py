"""A client of the REST service on plain `http.client`, so that tests see every byte of an answer."""

from __future__ import annotations

import http.client
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.kits.installation import Installation

WAITS = 4  # of the longest that a request may take; on an idle machine one takes a tenth of it
PART = tuple[str, bytes]  # a file's name and its bytes


@dataclass
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        assert self.headers["Content-Type"] == "application/json; charset=utf-8", self
        return json.loads(self.body)

    def refused(self, status: int, kind: str) -> str:
        """Check that it is an error in D-ID's form; returns its description."""
        assert (self.status, self.json["kind"]) == (status, kind), self
        assert set(self.json) <= {"kind", "description", "details"}
        description: str = self.json["description"]
        assert description
        return description


@dataclass
class Api:
    """The server of a running daemon."""

    installation: Installation
    port: int
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def call(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """One request on a connection of its own; `path` may be a whole address of this server."""
        parts = urlsplit(path)
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, target, body, {**self.headers, **(headers or {})})
            answer = connection.getresponse()
            return Reply(answer.status, answer.headers, answer.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Reply:
        return self.call("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})

    def post(self, path: str, value: Any, **headers: str) -> Reply:
        """POST JSON."""
        sent = {"Content-Type": "application/json"} | {name.replace("_", "-"): text for name, text in headers.items()}
        return self.call("POST", path, json.dumps(value).encode(), sent)

    def form(self, path: str, *, headers: Mapping[str, str] | None = None, **parts: str | PART) -> Reply:
        """POST a multipart form: texts, and files as (name, bytes)."""
        body, content_type = multipart(parts)
        return self.call("POST", path, body, {"Content-Type": content_type, **(headers or {})})

    def done(self, job_id: str) -> dict[str, Any]:
        """The status of a job after its end, as clients of the original see it."""
        status = self._ended(f"/talk-status/{job_id}", ("queued", "processing"))
        assert status["status"] == "done", (status, self.installation.log[-2000:])
        return status

    def talk(self, talk_id: str, status: str = "done") -> dict[str, Any]:
        """The talk after its end."""
        talk = self._ended(f"/talks/{talk_id}", ("created", "started"))
        assert talk["status"] == status, (talk, self.installation.log[-2000:])
        return talk

    def _ended(self, path: str, before: Sequence[str]) -> dict[str, Any]:
        """The status at that path when it is another than these, or the last one after a few minutes."""
        for _ in range(WAITS):
            found: dict[str, Any] = self.get(f"{path}?wait=50").json
            if found["status"] not in before:
                break
        return found


@dataclass
class Browser:
    """What a browser sends for the page of a server: Origin, Sec-Fetch-Site, and the cookie that it has got."""

    api: Api
    cookie: str = ""

    @property
    def origin(self) -> str:
        return self.api.url

    def sign_in(self, key: str, **headers: str) -> Reply:
        answer = self.post("/session", {"key": key}, **headers)
        if answer.status == 204:
            self.cookie = answer.headers["Set-Cookie"].partition(";")[0]
        return answer

    def sent(self, method: str, **headers: str) -> dict[str, str]:
        """The headers of a request; an empty one is left out."""
        reading = method in ("GET", "HEAD")
        usual = {"Sec-Fetch-Site": "same-origin"} if reading else {"Origin": self.origin}
        changed = {name.replace("_", "-"): value for name, value in headers.items()}
        return {name: text for name, text in {"Cookie": self.cookie, **usual, **changed}.items() if text}

    def call(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Reply:
        return self.api.call(method, path, body, self.sent(method, **headers))

    def get(self, path: str, **headers: str) -> Reply:
        return self.call("GET", path, **headers)

    def post(self, path: str, value: Any, **headers: str) -> Reply:
        return self.call("POST", path, json.dumps(value).encode(), **{"Content_Type": "application/json", **headers})

    def form(self, path: str, *, headers: Mapping[str, str] | None = None, **parts: str | PART) -> Reply:
        return self.api.form(path, headers=self.sent("POST", **(headers or {})), **parts)


class Reader:
    """One reader of a stream of events, on a connection of its own."""

    def __init__(self, api: Api, path: str, **headers: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=30)
        sent = {name.replace("_", "-"): text for name, text in headers.items()}
        self._connection.request("GET", path, headers={**api.headers, **sent})
        self.answer = self._connection.getresponse()
        self.number = ""

    def events(self) -> Iterator[dict[str, Any]]:
        """What comes, until the stream ends."""
        for line in self.answer:
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name == "id":
                self.number = value
            if name == "data":
                yield json.loads(value)

    def until(self, **wanted: Any) -> dict[str, Any]:
        return next(event for event in self.events() if wanted.items() <= event.items())

    def close(self) -> None:
        self._connection.close()
        self.answer.close()


def multipart(parts: Mapping[str, str | PART]) -> tuple[bytes, str]:
    """The body of a form, and its Content-Type."""
    boundary = uuid.uuid4().hex
    pieces = []
    for name, value in parts.items():
        if isinstance(value, str):
            head, content = f'form-data; name="{name}"', value.encode()
        else:
            head, content = f'form-data; name="{name}"; filename="{value[0]}"', value[1]
        pieces.append(f"--{boundary}\r\nContent-Disposition: {head}\r\n\r\n".encode() + content + b"\r\n")
    return b"".join(pieces) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def port_of(installation: Installation) -> int:
    """The port of the daemon's server, out of the status file."""
    status = installation.path("state") / "status.json"

    def port() -> int:
        try:
            content = json.loads(status.read_text())
        except (FileNotFoundError, ValueError):
            return 0
        assert installation.daemon is not None
        written_by_another = content["pid"] != installation.daemon.pid  # by one that was killed
        return 0 if written_by_another else int(content["web_port"])

    return int(installation.until(port, "the server's port"))


def empty_outbox(installation: Installation) -> None:
    """Remove all files, as a consumer does."""
    for path in installation.path("outbox").iterdir():
        if path.is_file():
            path.unlink()


@contextmanager
def serving(root: Path, *, changes: Mapping[str, dict[str, Any]] | None = None, **environment: str) -> Iterator[Api]:
    """Run a daemon with its server on a free port."""
    installation = Installation(root)
    for section, values in (changes or {}).items():
        installation.changes.setdefault(section, {}).update(values)
    installation.changes.setdefault("web", {})["enabled"] = True
    with installation.running(**environment):
        yield Api(installation, port_of(installation))
