"""A small Hugging Face hub on loopback for the real client, and small random weights with a lock list."""

from __future__ import annotations

import hashlib
import json
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

from lipsyncd.weights import Weight

REVISION = "5" * 40
_STORAGE = "/storage"


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def weight(name: str, content: bytes, **changes: object) -> Weight:
    """An entry of a lock list for that content."""
    entry: dict[str, object] = {
        "name": name,
        "repository": f"example/{name}",
        "revision": REVISION,
        "path": f"{name}.bin",
        "file": f"{name}/{name}.bin",
        "size_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "licence": "MIT",
        "purpose": f"is {name}",
    }
    return Weight(**{**entry, **changes})  # type: ignore[arg-type]


def lock_of(folder: Path) -> list[Weight]:
    """A lock list for the files of a folder: each is a weight that is used unchanged."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return [
        weight(f"w{number}", path.read_bytes(), file=str(path.relative_to(folder))) for number, path in enumerate(files)
    ]


def write_lock(path: Path, weights: Sequence[Weight]) -> Path:
    """Write the list as an operator would."""
    path.write_text(json.dumps([{k: v for k, v in asdict(w).items() if v not in ("", {})} for w in weights]))
    return path


def put(folder: Path, entry: Weight, content: bytes) -> Path:
    """Write a file at its path in a folder of weights."""
    path = folder / entry.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@dataclass
class Trouble:
    """A fault of the hub with one file.

    cut_at     closes the connection after so many bytes of the body, `times` times
    hold_at    stops after so many bytes, with the connection open, until the hub closes
    as_whole   sends the whole content with its length, whatever range was requested
    moved      redirects to another host, as the real hub does with large files
    status     answers with this status, and with `code` as the hub's error code
    """

    cut_at: int | None = None
    times: int = 1
    hold_at: int | None = None
    as_whole: bool = False
    moved: bool = False
    status: int = 0
    code: str = ""


@dataclass
class Hub:
    """Files by repository, revision and path, and the requests that came."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    troubles: dict[str, Trouble] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)  # path, range
    tokens: list[str] = field(default_factory=list)  # "" where none was shown
    held: threading.Event = field(default_factory=threading.Event)
    closing: threading.Event = field(default_factory=threading.Event)

    def has(self, entry: Weight, content: bytes) -> None:
        self.files[f"/{entry.repository}/resolve/{entry.revision}/{entry.path}"] = content

    def ranges(self, entry: Weight) -> list[str]:
        return [given for path, given in self.asked if path.endswith(f"/{entry.path}")]


class _Handler(BaseHTTPRequestHandler):
    """`GET /{repository}/resolve/{revision}/{path}` with ranges, as the hub answers it."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        path = unquote(self.path)
        given = self.headers.get("Range", "")
        self.hub.asked.append((path, given))
        self.hub.tokens.append(self.headers.get("Authorization", ""))
        trouble = self.hub.troubles.get(path.rpartition("/")[2], Trouble())
        content = self.hub.files.get(path.removeprefix(_STORAGE))
        if trouble.moved and not path.startswith(_STORAGE):
            self._refuse(302, "", location=f"{self.hub.url.replace('127.0.0.1', 'localhost')}{_STORAGE}{self.path}")
        elif trouble.status:
            self._refuse(trouble.status, trouble.code)
        elif content is None:
            known = any(other.startswith(path.split("/resolve/")[0] + "/") for other in self.hub.files)
            self._refuse(404, "RevisionNotFound" if known else "RepoNotFound")
        else:
            self._send(content, 0 if trouble.as_whole else _start_of(given), trouble, ranged=bool(given))

    def _refuse(self, status: int, code: str, *, location: str = "") -> None:
        self.send_response(status)
        if location:
            self.send_header("Location", location)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", f"{code} at {self.path}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, content: bytes, start: int, trouble: Trouble, *, ranged: bool) -> None:
        body = content[start:]
        self.send_response(206 if ranged and not trouble.as_whole else 200)
        if ranged and not trouble.as_whole:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.end_headers()
        if trouble.hold_at is not None:
            self.wfile.write(body[: trouble.hold_at])
            self.hub.held.set()
            self.hub.closing.wait(60)
            self.close_connection = True
        elif trouble.cut_at is not None and trouble.times > 0:
            trouble.times -= 1
            self.wfile.write(body[: trouble.cut_at])
            self.close_connection = True
        else:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing: the tests look at `asked`."""


def _start_of(given: str) -> int:
    return int(given.removeprefix("bytes=").partition("-")[0]) if given else 0


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield hub
    finally:
        hub.closing.set()
        server.shutdown()
        server.server_close()
