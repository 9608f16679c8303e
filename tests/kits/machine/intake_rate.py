"""How fast waiting pairs become jobs, beside a plain loop that writes the same files and rows with shared fsyncs.

Used by the benchmark, and by the test that holds its ratio. The loop makes no check, reads no header and keeps no
record of what it does: it is the least that the same promises cost.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from lipsyncd.jobs.job import JobState
from lipsyncd.ledger.ledger import Ledger
from tests.kits.inbox_kit import InboxByHand
from tests.kits.machine.machine_kit import drop_pairs, small_picture

_BATCH = 64
_FSYNCS_AT_ONCE = 8
_TABLES = ("job", "job_source", "job_event")


@dataclass(frozen=True)
class Took:
    """Seconds by the clock, and seconds of the process's own processor time."""

    wall_s: float
    cpu_s: float

    @classmethod
    def since(cls, wall_s: float, cpu_s: float) -> Took:
        return cls(time.perf_counter() - wall_s, time.process_time() - cpu_s)


def intake(root: Path, pairs: int) -> tuple[Took, InboxByHand]:
    """Let the intake take so many pairs, from the scan that finds them finished to an empty inbox."""
    root.mkdir()
    by_hand = InboxByHand(root)
    drop_pairs(by_hand.inbox_folder, range(pairs))
    os.sync()
    by_hand.scan()
    by_hand.clock.wait(60.0)
    began, taken = (time.perf_counter(), time.process_time()), 0
    while taken < pairs:
        now = len(by_hand.scan())
        assert now, f"{taken} of {pairs} pairs were taken"
        taken += now
    took = Took.since(*began)
    assert by_hand.left == []
    assert len(by_hand.ledger.in_state(JobState.QUEUED)) == pairs
    assert by_hand.ledger.unreleased() == []
    return took, by_hand


class Rows:
    """The rows that the intake has written, to be written again into another ledger."""

    def __init__(self, ledger: Path) -> None:
        self._inserts: dict[str, str] = {}
        self._rows: dict[str, dict[str, list[tuple[Any, ...]]]] = {}
        with closing(sqlite3.connect(ledger)) as connection:
            for table in _TABLES:
                found = connection.execute(f"SELECT * FROM {table}")
                names = [column[0] for column in found.description]
                self._inserts[table] = f"INSERT INTO {table} VALUES({', '.join('?' * len(names))})"
                at = names.index("id" if table == "job" else "job_id")
                by_job = self._rows[table] = {}
                for row in found:
                    by_job.setdefault(row[at], []).append(row)
        self.ids = list(self._rows["job"])

    def write(self, connection: sqlite3.Connection, ids: Sequence[str]) -> None:
        """In one durable transaction."""
        connection.execute("BEGIN IMMEDIATE")
        for table, insert in self._inserts.items():
            connection.executemany(insert, [row for job_id in ids for row in self._rows[table][job_id]])
        connection.execute("COMMIT")


def plain_loop(root: Path, after: InboxByHand) -> Took:
    """Write the files and rows of those jobs once more, in another folder."""
    rows, described = Rows(after.root / "ledger.db"), {}
    for job_id in rows.ids:
        described[job_id] = (after.spool.folder(job_id) / "job.json").read_bytes()
    for folder in (root, root / "inbox", root / "spool"):
        folder.mkdir()
    Ledger(root / "ledger.db").close()
    drop_pairs(root / "inbox", range(len(rows.ids)))
    os.sync()
    with closing(sqlite3.connect(root / "ledger.db", isolation_level=None)) as ledger:
        ledger.execute("PRAGMA synchronous=FULL")
        with ThreadPoolExecutor(_FSYNCS_AT_ONCE) as pool:
            began = time.perf_counter(), time.process_time()
            stems, ids = iter(sorted({name.partition(".")[0] for name in os.listdir(root / "inbox")})), iter(rows.ids)
            while batch := list(islice(ids, _BATCH)):
                taken = {job_id: next(stems) for job_id in batch}
                _accept(root, taken, described, pool)
                rows.write(ledger, batch)
                _release(root, taken, ledger)
            took = Took.since(*began)
    assert os.listdir(root / "inbox") == []
    assert len(os.listdir(root / "spool")) == len(rows.ids)
    return took


def _accept(root: Path, taken: dict[str, str], described: dict[str, bytes], pool: ThreadPoolExecutor) -> None:
    written = []
    for job_id, stem in taken.items():
        staging = root / "spool" / f".tmp-{job_id}"
        staging.mkdir()
        for role, name in (("image", f"{stem}.png"), ("audio", f"{stem}.wav")):
            content = (root / "inbox" / name).read_bytes()
            hashlib.sha256(content).hexdigest()
            written.append(_written(staging / role, content))
        written.append(_written(staging / "job.json", described[job_id]))
        written.append(os.open(staging, os.O_RDONLY | os.O_DIRECTORY))
    list(pool.map(os.fsync, written))
    for descriptor in written:
        os.close(descriptor)
    for job_id in taken:
        (root / "spool" / f".tmp-{job_id}").rename(root / "spool" / job_id)
    _fsync(root / "spool")


def _release(root: Path, taken: dict[str, str], ledger: sqlite3.Connection) -> None:
    for stem in taken.values():
        for suffix in ("png", "wav"):
            (root / "inbox" / f"{stem}.{suffix}").unlink()
    _fsync(root / "inbox")
    ledger.execute("BEGIN IMMEDIATE")
    ledger.executemany("UPDATE job SET inputs_released=1 WHERE id=?", [(job_id,) for job_id in taken])
    ledger.execute("COMMIT")


def _written(path: Path, content: bytes) -> int:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(descriptor, content)
    return descriptor


def _fsync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(descriptor)
    os.close(descriptor)


def scan_s(root: Path, files: int, *, rounds: int = 5, apart_s: float = 1000.0) -> float:
    """Processor seconds of a scan of so many pictures that wait for their sounds: the least of some.

    apart_s  seconds between two scans; after many each file is judged, after few a look ends the scan
    """
    root.mkdir()
    by_hand = InboxByHand(root)
    for number in range(files):
        (by_hand.inbox_folder / f"p{number}.png").write_bytes(small_picture(number))
    for _ in range(3):  # looks into each file, judges it, and compares
        by_hand.scan()
        by_hand.clock.wait(100.0)
    times_s = []
    for _ in range(rounds):
        by_hand.clock.wait(apart_s)
        began_s = time.process_time()
        by_hand.scan()
        times_s.append(time.process_time() - began_s)
    assert len(by_hand.left) == files
    by_hand.ledger.close()
    return min(times_s)
