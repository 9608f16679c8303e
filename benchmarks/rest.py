"""What the REST server costs: `python -m benchmarks.rest` prints a table.

GET /talk-status from 50 connections while a job renders, beside a bare aiohttp handler that does the same single read
of SQLite and the same check of the key; and the same call with a hundred and with a hundred thousand rows. Everything
runs on loopback and on this machine, the client included, so only the ratios mean something elsewhere.
"""

from __future__ import annotations

import asyncio
import hmac
import multiprocessing
import os
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from lipsyncd.job import new_id
from tests.home import picture, sound
from tests.web_kit import Api, serving

CONNECTIONS = 50
ROUND_S = 1.5
ROUNDS = 6
ROWS = 100_000
KEY = "one-long-word"


async def measure(port: int, path: str, seconds: float) -> tuple[float, float]:
    """Requests per second and the 99th percentile in milliseconds, from `CONNECTIONS` at a time."""
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode()
    took: list[float] = []
    until = time.perf_counter() + seconds

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < until:
            began = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            await reader.readexactly(length)
            took.append(time.perf_counter() - began)
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CONNECTIONS)))
    took.sort()
    return len(took) / (time.perf_counter() - began), took[int(len(took) * 0.99)] * 1000


def bare(ledger: str, pipe: Any) -> None:
    """The least that such a handler can be, in a process of its own."""

    async def serve() -> None:
        connection = sqlite3.connect(f"file:{ledger}?mode=ro", uri=True, check_same_thread=False)
        threads = ThreadPoolExecutor(1)
        loop = asyncio.get_running_loop()

        async def status(request: web.Request) -> web.Response:
            if not hmac.compare_digest(request.headers["Authorization"].encode(), f"Bearer {KEY}".encode()):
                raise web.HTTPUnauthorized
            read = "SELECT id, state, fraction, accepted_ms, started_ms, finished_ms FROM job WHERE id=?"
            row = await loop.run_in_executor(
                threads, lambda: connection.execute(read, (request.match_info["id"],)).fetchone()
            )
            return web.json_response(list(row))

        app = web.Application()
        app.router.add_get("/talk-status/{id}", status)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        pipe.send(runner.addresses[0][1])
        await asyncio.sleep(3600)

    asyncio.run(serve())


def fill(ledger: Path, like: str, rows: int) -> None:
    """Copies of one ended job, under ids of their own."""
    with sqlite3.connect(ledger) as connection:
        names = [row[1] for row in connection.execute("PRAGMA table_info(job)")]
        [row] = connection.execute(f"SELECT {', '.join(names)} FROM job WHERE id=?", (like,))
        [top] = connection.execute("SELECT max(seq) FROM job").fetchone()
        marks = ", ".join("?" * len(names))
        at = {name: number for number, name in enumerate(names)}

        def copy(number: int) -> list[Any]:
            values = list(row)
            values[at["id"]], values[at["seq"]], values[at["source_sig"]] = new_id(), top + number, str(number)
            return values

        connection.executemany(f"INSERT INTO job VALUES({marks})", (copy(n) for n in range(1, rows + 1)))


def order(api: Api, seconds: float, renderer: str) -> str:
    answer = api.form(
        "/generate-video", source_image=("a.png", picture()), audio_data=("a.wav", sound(seconds)), renderer=renderer
    )
    job_id: str = answer.json["id"]
    return job_id


@dataclass(frozen=True)
class Round:
    """One measurement. `cpu_ms` is what the server's process spent on each request: it minds other work least."""

    rate: float
    p99_ms: float
    cpu_ms: float


def one_round(pid: int, port: int, path: str) -> Round:
    before = cpu_s(pid)
    rate, p99_ms = asyncio.run(measure(port, path, ROUND_S))
    return Round(rate, p99_ms, (cpu_s(pid) - before) * 1000 / (rate * ROUND_S))


def cpu_s(pid: int) -> float:
    """Processor time of a process so far, all of its threads."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def middle(rounds: list[Round]) -> Round:
    return Round(*(statistics.median(values) for values in zip(*map(astuple, rounds), strict=True)))


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="bench-rest-"))
    with serving(folder, LIPSYNCD_API_KEY=KEY) as api:
        api.headers["Authorization"] = KEY
        ledger = api.home.path("state") / "ledger.db"
        done = order(api, 0.3, "flat")
        api.done(done)
        fill(ledger, done, 100)
        order(api, 30.0, "slow")  # renders while we measure
        parent, child = multiprocessing.Pipe()
        process = multiprocessing.Process(target=bare, args=(str(ledger), child), daemon=True)
        process.start()
        bare_port, path = parent.recv(), f"/talk-status/{done}"
        assert api.home.daemon is not None
        assert process.pid is not None
        us, it = (api.home.daemon.pid, api.port), (process.pid, bare_port)
        # By turns, so that whatever else this machine does meets both.
        pairs = [(one_round(*us, path), one_round(*it, path)) for _ in range(ROUNDS)]
        fill(ledger, done, ROWS)
        full = [one_round(*us, path) for _ in range(ROUNDS)]
        process.terminate()
    shutil.rmtree(folder)
    few, plain, many = middle([ours for ours, _ in pairs]), middle([other for _, other in pairs]), middle(full)
    for name, found in (
        ("GET /talk-status, 100 rows", few),
        ("a bare aiohttp handler, the same read and key", plain),
        (f"GET /talk-status, {ROWS} rows", many),
    ):
        print(f"{name:46} {found.rate:6.0f}/s   p99 {found.p99_ms:5.1f} ms   {found.cpu_ms:.3f} ms of CPU each")
    ratio = statistics.median(ours.rate / other.rate for ours, other in pairs)
    print(
        f"rate {ratio:.2f} of the bare handler's, CPU {few.cpu_ms / plain.cpu_ms:.2f} of it; "
        f"p99 with {ROWS} rows {many.p99_ms / few.p99_ms:.2f} of that with 100"
    )


if __name__ == "__main__":
    sys.exit(main())
