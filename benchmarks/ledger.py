"""What a claim and a page of the list of jobs cost in a small and in a large ledger: `python -m benchmarks.ledger`.

A claim is timed as a whole, beside a plain `sqlite3` loop that does the same statements on a copy of the same file, one
after the other in the same run. The files lie in memory where that is possible, so that no fsync is in the figures:
what a commit waits for is the disk's affair. A page is timed in the middle of the list and at both ends.
"""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from statistics import median

from lipsyncd.jobs.job import JobState, now_ms
from lipsyncd.ledger.ledger import Ledger
from lipsyncd.ledger.tables import CLAIM
from lipsyncd.web.ledger_reader import LedgerReader
from lipsyncd.web.views.pages import ANY, Filters
from tests.kits.machine.ledger_rows import make_ledger

ROWS = (1000, 100_000)
CLAIMS = 300
PAGE, PAGES = 50, 100
IN_MEMORY = Path("/dev/shm")
_EVENT = "INSERT INTO job_event(job_id, at_ms, state, note) VALUES(?, ?, 'running', ?)"
LISTS = {"all": (ANY, None), "failed": (Filters(states=(JobState.FAILED,)), None), "of a tenant": (ANY, "anna")}


def claim_ms(path: Path) -> tuple[float, float]:
    """Median milliseconds of a claim, by the ledger and by a plain loop, each for a device of its own."""
    copy = path.with_suffix(".copy")
    shutil.copy(path, copy)
    ours, theirs = [], []
    with closing(Ledger(path)) as ledger, closing(sqlite3.connect(copy, isolation_level=None)) as plain:
        plain.execute("PRAGMA journal_mode=WAL")
        plain.execute("PRAGMA synchronous=FULL")
        for number in range(CLAIMS):
            began = time.perf_counter()
            job = ledger.claim(f"cpu-{number}", "token")
            ours.append(time.perf_counter() - began)
            began = time.perf_counter()
            job_id = claim_plainly(plain, f"cpu-{number}")
            theirs.append(time.perf_counter() - began)
            assert job is not None
            assert job.id == job_id
    return median(ours) * 1000, median(theirs) * 1000


def claim_plainly(connection: sqlite3.Connection, device: str) -> str:
    connection.execute("BEGIN IMMEDIATE")
    row = connection.execute(str(CLAIM), {"device": device, "token": "token", "now": now_ms()}).fetchone()
    connection.execute(_EVENT, (row[0], now_ms(), f"attempt 1 of 3 on {device}"))
    connection.execute("COMMIT")
    return str(row[0])


def pages_ms(path: Path) -> dict[str, tuple[float, float, float]]:
    """Milliseconds of the first page, one in the middle and the last one: the median of `PAGES`, for each list."""
    reader, took = LedgerReader(path), {}
    for name, (filters, tenant) in LISTS.items():
        seqs, before = [], None
        while True:  # where each page of this list begins
            jobs, following = reader.page(before, 3000, tenant=tenant, filters=filters)
            seqs += [job.seq for job in jobs]
            if following is None:
                break
            before = following
        places = (None, seqs[len(seqs) // 2], seqs[-PAGE - 1])
        read = partial(reader.page, limit=PAGE, tenant=tenant, filters=filters)
        found = [median_ms(partial(read, before_seq)) for before_seq in places]
        took[name] = (found[0], found[1], found[2])
    return took


def median_ms(call: Callable[[], object]) -> float:
    took = []
    for _ in range(PAGES):
        began = time.perf_counter()
        call()
        took.append(time.perf_counter() - began)
    return median(took) * 1000


def main(rows: Sequence[int]) -> None:
    place = IN_MEMORY if IN_MEMORY.is_dir() else None
    versions = f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {os.cpu_count()} cores"
    print(f"{time.strftime('%Y-%m-%d')}, {versions}, load {os.getloadavg()[0]:.1f}, files in {place or 'TMPDIR'}\n")
    with tempfile.TemporaryDirectory(prefix="lipsyncd-ledger-", dir=place) as folder:
        print("| jobs | of them wait | claim | plain loop | ratio |\n|---|---|---|---|---|")
        for number in rows:
            for name, waiting, unready in (
                ("half", number // 2, 0),
                ("half, the first of them not prepared", number // 2, number // 2 - CLAIMS - 1),
            ):
                path = Path(folder, f"claim-{number}-{unready}.db")
                make_ledger(path, number, waiting=waiting, unready=unready)
                ours, plain = claim_ms(path)
                print(f"| {number:,} | {name} | {ours:.2f} ms | {plain:.2f} ms | {ours / plain:.1f} |", flush=True)
        print("\n| list | jobs | first page | middle | last |\n|---|---|---|---|---|")
        found = {}
        for number in rows:
            path = Path(folder, f"pages-{number}.db")
            make_ledger(path, number, waiting=number // 10)
            found[number] = pages_ms(path)
        for name in LISTS:
            for number in rows:
                times = " | ".join(f"{ms:.2f} ms" for ms in found[number][name])
                print(f"| {name} | {number:,} | {times} |")
            few, many = found[rows[0]][name], found[rows[-1]][name]
            ratios = " | ".join(f"{more / less:.2f}" for less, more in zip(few, many, strict=True))
            print(f"| | ratio | {ratios} |", flush=True)


if __name__ == "__main__":
    main([int(number) for number in sys.argv[1:]] or ROWS)
