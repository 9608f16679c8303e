"""Shared by many tests: jobs in the ledger, a clock that a test moves, and work done as an unprivileged user."""

from __future__ import annotations

import os
import pickle
import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

from lipsyncd.jobs.job import JobSpec, new_id, now_ms
from lipsyncd.ledger.ledger import Ledger

T = TypeVar("T")
UNPRIVILEGED = 65534  # Debian's user "nobody"


class Clock:
    """Monotonic seconds that pass only in `wait`."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def wait(self, seconds: float) -> None:
        self.now_s += seconds


def is_soon(took_s: Callable[[], float], limit_s: float, tries: int = 3) -> bool:
    """Does it take less than that in one of a few tries? Other programs may delay any of them on a busy machine."""
    return any(took_s() < limit_s for _ in range(tries))


def spec_of(name: str = "anna", **changes: Any) -> JobSpec:
    """A job that was accepted now, without files."""
    values: dict[str, Any] = {
        "id": new_id(),
        "name": name,
        "out_name": name,
        "renderer": "flat",
        "stitch": False,
        "resolution": 64,
        "fps": Fraction(25),
        "accepted_ms": now_ms(),
    }
    return JobSpec(**{**values, **changes})


def queued(ledger: Ledger, name: str = "anna", *, max_attempts: int = 3, **changes: Any) -> str:
    """Put a job into the ledger, prepared; gives its id."""
    spec = spec_of(name, **changes)
    ledger.insert(spec, max_attempts=max_attempts)
    ledger.set_prepared(spec.id, frames=25, duration_ms=1000)
    return spec.id


def claimed(ledger: Ledger, name: str = "anna", *, device: str = "cpu", token: str = "t", **changes: Any) -> str:
    """Put a job into the ledger and claim it; gives its id."""
    job_id = queued(ledger, name, **changes)
    job = ledger.claim(device, token)
    assert job is not None
    assert job.id == job_id
    return job_id


def connected(ledger: Ledger) -> sqlite3.Connection:
    """Another connection to the same file, as another process with `sqlite3` has it."""
    connection = sqlite3.connect(ledger.path, isolation_level=None, timeout=5)
    connection.row_factory = sqlite3.Row
    return connection


def as_nobody(work: Callable[[], T], *readable: Path) -> T:
    """What `work` returns or raises as a user without privileges: root never gets EACCES.

    readable  folders that get search permission for all users, with their parents below the temporary folder
    """
    for folder in readable:
        _make_searchable(folder)
    if os.geteuid() != 0:
        return work()
    return as_ids(UNPRIVILEGED, UNPRIVILEGED, (), work)


def as_ids(uid: int, gid: int, groups: Sequence[int], work: Callable[[], T]) -> T:
    """What `work` returns or raises in a fork with these ids. Only root can call it."""
    with tempfile.TemporaryFile() as answer:
        child = os.fork()
        if child == 0:
            try:
                os.setgroups(groups)
                os.setgid(gid)
                os.setuid(uid)
                try:
                    outcome: tuple[bool, Any] = (True, work())
                except BaseException as error:
                    outcome = (False, error)
                pickle.dump(outcome, answer)
                answer.flush()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        answer.seek(0)
        ok, value = pickle.load(answer)
    if not ok:
        raise value
    result: T = value
    return result


def _make_searchable(folder: Path) -> None:
    top = Path(tempfile.gettempdir())
    for step in [folder, *folder.parents]:
        if step == top or not step.is_relative_to(top):
            return
        step.chmod(step.stat().st_mode | 0o111)
