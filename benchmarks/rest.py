"""What the REST server costs: `python -m benchmarks.rest` prints a table.

GET /talk-status from 50 connections while a job renders, beside a bare aiohttp handler that does the same single read
of SQLite and the same check of the key; and the same call with a hundred and with a hundred thousand rows. Then the
same call while a thousand jobs wait, with and without two hundred streams of events. Everything runs on loopback and on
this machine, the clients included, so only the ratios mean something elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import itertools
import multiprocessing
import os
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.kits.installation import picture, sound
from tests.kits.machine.ledger_rows import WAITS, fill
from tests.kits.web_kit import Api, serving

CONNECTIONS = 50
ROUND_S = 1.5
ROUNDS = 6
ROWS = 100_000
IDS = 100  # requested in rotation
STREAMS, WAITING = 200, 1000
KEY = "one-long-word"


async def measure(port: int, ids: Sequence[str], seconds: float) -> tuple[float, float]:
    """Requests per second and the 99th percentile in milliseconds, from `CONNECTIONS` that ask for each of `ids`."""
    head = "HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer"
    requests = [f"GET /talk-status/{job_id} {head} {KEY}\r\n\r\n".encode() for job_id in ids]
    took: list[float] = []
    until = time.perf_counter() + seconds

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        turn = itertools.cycle(requests[number % len(requests) :] + requests[: number % len(requests)])
        while time.perf_counter() < until:
            began = time.perf_counter()
            writer.write(next(turn))
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            await reader.readexactly(length)
            took.append(time.perf_counter() - began)
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(CONNECTIONS)))
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


def listen(port: int, pipe: Any) -> None:
    """Read `STREAMS` streams in a process of its own; tells how many bytes and pieces came since the beginning."""

    async def read() -> None:
        head = f"GET /jobs/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode()
        came = [0, 0]

        async def one() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
            writer.write(head)
            found = await reader.readuntil(b"\nid: ")
            assert found.startswith(b"HTTP/1.1 200"), found
            ready.release()
            while block := await reader.read(1 << 16):
                came[0] += len(block)
                came[1] += 1

        ready = asyncio.Semaphore(0)
        tasks = [asyncio.create_task(one()) for _ in range(STREAMS)]
        for _ in tasks:
            await ready.acquire()
        pipe.send(STREAMS)
        await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
        pipe.send(came)

    asyncio.run(read())


@contextlib.contextmanager
def listeners(port: int) -> Iterator[None]:
    """`STREAMS` streams of events are open and begun."""
    parent, child = multiprocessing.Pipe()
    process = multiprocessing.Process(target=listen, args=(port, child), daemon=True)
    process.start()
    assert parent.recv() == STREAMS
    yield
    parent.send("end")
    size_bytes, pieces = parent.recv()
    assert pieces, "no change came"
    print(f"    {pieces / STREAMS:.1f} changes and {size_bytes / STREAMS / 1000:.1f} kB for each stream")
    process.kill()
    process.join()


def ids_in(ledger: Path) -> list[str]:
    """A hundred jobs, spread over all that there are."""
    with contextlib.closing(sqlite3.connect(ledger)) as connection:
        ids = [row[0] for row in connection.execute("SELECT id FROM job WHERE state='done' ORDER BY seq")]
    return ids[:: max(1, len(ids) // IDS)][:IDS]


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


def one_round(pid: int, port: int, ids: Sequence[str]) -> Round:
    before = cpu_s(pid)
    rate, p99_ms = asyncio.run(measure(port, ids, ROUND_S))
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
        ledger = api.installation.path("state") / "ledger.db"
        done = order(api, 0.3, "flat")
        api.done(done)
        fill(ledger, done, 100)
        order(api, 120.0, "slow")  # renders while we measure
        parent, child = multiprocessing.Pipe()
        process = multiprocessing.Process(target=bare, args=(str(ledger), child), daemon=True)
        process.start()
        bare_port, few = parent.recv(), ids_in(ledger)
        assert api.installation.daemon is not None
        assert process.pid is not None
        us, it = (api.installation.daemon.pid, api.port), (process.pid, bare_port)
        # One after the other, so that other load on this machine affects both.
        before = [(one_round(*us, few), one_round(*it, few)) for _ in range(ROUNDS)]
        fill(ledger, done, WAITING, **WAITS)
        quiet, streamed = [], []
        for _ in range(ROUNDS):
            quiet.append(one_round(*us, few))
            with listeners(api.port):
                streamed.append(one_round(*us, few))
        fill(ledger, done, ROWS)
        many = ids_in(ledger)
        after = [(one_round(*us, many), one_round(*it, many)) for _ in range(ROUNDS)]
        process.terminate()
    shutil.rmtree(folder)
    tell("100 rows", before)
    rate = statistics.median(one.rate / two.rate for one, two in zip(streamed, quiet, strict=True))
    cpu = middle(streamed).cpu_ms / middle(quiet).cpu_ms
    print(f"{WAITING} jobs wait: with {STREAMS} streams the rate is {rate:.2f} of that without, CPU {cpu:.2f} of it")
    tell(f"{ROWS} rows", after)
    ours, others = (
        middle([pair[who] for pair in after]).p99_ms / middle([pair[who] for pair in before]).p99_ms for who in (0, 1)
    )
    print(f"p99 with {ROWS} rows: {ours:.2f} of that with 100; the bare handler's {others:.2f}")


def tell(rows: str, pairs: list[tuple[Round, Round]]) -> None:
    """Medians of ours and of the bare handler's rounds, and how they compare in each pair."""
    ours, other = middle([pair[0] for pair in pairs]), middle([pair[1] for pair in pairs])
    for name, found in (("GET /talk-status", ours), ("the bare handler", other)):
        print(
            f"{rows:12} {name:18} {found.rate:6.0f}/s   p99 {found.p99_ms:5.1f} ms   {found.cpu_ms:.3f} ms of CPU each"
        )
    ratio = statistics.median(one.rate / two.rate for one, two in pairs)
    print(f"{rows:12} rate {ratio:.2f} of the bare handler's, CPU {ours.cpu_ms / other.cpu_ms:.2f} of it")


if __name__ == "__main__":
    sys.exit(main())
