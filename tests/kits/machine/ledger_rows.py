"""Many rows for a ledger: copies of one that ended, in whatever state."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

from lipsyncd.jobs.job import new_id
from lipsyncd.ledger.ledger import Ledger
from tests.kits.core_kit import claimed

WAITS = {"state": "queued", "stage": "queued", "fraction": 0, "attempt": 0, "started_ms": None, "finished_ms": None}
FAILED = {"state": "failed", "stage": "failed", "reason_code": "render-failed"}


def make_ledger(path: Path, rows: int, *, waiting: int, unready: int = 0) -> None:
    """A ledger with so many jobs: `waiting` of them wait, a tenth of the others has failed, half is of a tenant.

    unready  so many of those that wait are not prepared, and come before the others
    """
    with contextlib.closing(Ledger(path)) as ledger:
        like = claimed(ledger)
        ledger.to_publishing(like, token="t", sha256="0" * 64, size=1, frames=25, render_ms=500)
        ledger.to_done(like, note="done")
    ended = rows - waiting
    for tenant in (None, "anna"):
        fill(path, like, ended * 9 // 20, tenant=tenant)
        fill(path, like, ended // 20, tenant=tenant, **FAILED)
    fill(path, like, unready, **WAITS, prepared=0)
    fill(path, like, waiting - unready, **WAITS, prepared=1)


def fill(ledger: Path, like: str, rows: int, **changed: Any) -> None:
    """Copies of one ended job under ids and names of their own, with these columns changed."""
    with contextlib.closing(sqlite3.connect(ledger)) as connection, connection:
        names = [row[1] for row in connection.execute("PRAGMA table_info(job)")]
        [row] = connection.execute(f"SELECT {', '.join(names)} FROM job WHERE id=?", (like,))
        [top] = connection.execute("SELECT max(seq) FROM job").fetchone()
        columns = ", ".join(f":{name}" for name in names)

        def copy(number: int) -> dict[str, Any]:
            job_id = new_id()
            own = {"id": job_id, "seq": top + number, "source_sig": job_id, "out_name": job_id, "out_key": job_id}
            return {**dict(zip(names, row, strict=True)), **own, **changed}

        connection.executemany(f"INSERT INTO job VALUES({columns})", (copy(n) for n in range(1, rows + 1)))
