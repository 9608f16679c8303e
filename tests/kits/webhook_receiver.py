"""A real receiver of webhooks on a loopback address: it gives the configured answers and keeps every request."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Answer:
    """One answer, its delay, and its additional headers."""

    status: int = 204
    after_s: float = 0.0
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Hit:
    """One received request; `target` is the address in the request line, byte for byte."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    at_s: float


class Receiver:
    """Gives `answers` to one request after the other; the last one is repeated."""

    def __init__(self, host: str, answers: Sequence[Answer]) -> None:
        self.hits: list[Hit] = []
        self.answers = list(answers)
        self._released = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                answer = receiver.take(Hit(self.command, self.path, headers, body, time.monotonic()))
                receiver._released.wait(answer.after_s)
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.end_headers()

            do_GET = do_POST  # a followed redirect would be a GET

            def log_message(self, format: str, *args: Any) -> None:
                """Log nothing: the tests read `hits`."""

        self._server = ThreadingHTTPServer((host, 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # who hangs up is meant to
        self.host, self.port = host, self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}/hook"

    def take(self, hit: Hit) -> Answer:
        self.hits.append(hit)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def close(self) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def receiving(*answers: Answer, host: str = "127.0.0.1") -> Iterator[Receiver]:
    receiver = Receiver(host, answers or [Answer()])
    try:
        yield receiver
    finally:
        receiver.close()


def until(done: Callable[[], Any], what: str, *, seconds: float = 15.0) -> Any:
    """The first true answer of `done`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = done()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError(f"{what} did not come within {seconds} s")
