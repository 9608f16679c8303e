"""Reading the ledger while it is written: by any user, at any time, and without writing."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from lipsyncd.errors import LedgerError, WeightsMissing
from lipsyncd.jobs.job import JobState, new_id
from lipsyncd.jobs.waits import SAME_WORK
from lipsyncd.ledger.ledger import Ledger
from lipsyncd.ledger.view import LedgerView
from tests.kits.core_kit import as_nobody, claimed, connected, queued
from tests.kits.installation import ROOT


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir(mode=0o755)
    return tmp_path / "state" / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    ledger = Ledger(path)
    yield ledger
    ledger.close()


def test_a_missing_ledger_reads_as_empty_and_is_not_created(path: Path) -> None:
    view = LedgerView(path)
    assert view.jobs() == []
    assert view.find(new_id()) is None
    assert view.events(new_id()) == []
    assert set(view.counts().values()) == {0}
    assert list(path.parent.iterdir()) == []


def test_a_file_without_tables_is_empty(path: Path) -> None:
    """The daemon has opened the file and is about to make the tables."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    assert LedgerView(path).jobs() == []
    path.write_bytes(b"")
    assert LedgerView(path).jobs() == []


def test_a_job_reads_as_it_was_written(ledger: Ledger) -> None:
    job_id = claimed(ledger, user_data={"order": 7})
    view = LedgerView(ledger.path)
    assert view.get(job_id) == ledger.get(job_id)
    assert [(e.state, e.note) for e in view.events(job_id)] == [
        ("queued", "accepted"),
        ("queued", "prepared"),
        ("running", "attempt 1 of 3 on cpu"),
    ]
    assert view.counts()[JobState.RUNNING] == 1


def test_running_jobs_come_first_then_the_queue_then_ended_jobs_from_the_newest_on(ledger: Ledger) -> None:
    ids = {name: queued(ledger, name) for name in ("runs", "older", "newer", "waits", "waits longer", "urgent")}
    assert ledger.claim("cpu", "t") is not None
    ledger.to_cancelled(ids["newer"])
    ledger.to_cancelled(ids["older"])
    ledger.set_priority(ids["urgent"], 5)
    view = LedgerView(ledger.path)
    assert [job.name for job in view.jobs()] == ["runs", "urgent", "waits", "waits longer", "newer", "older"]
    assert [job.name for job in view.jobs(limit=2)] == ["runs", "urgent"]
    ended = view.jobs(states=[JobState.CANCELLED, JobState.RUNNING])
    assert [job.name for job in ended] == ["runs", "newer", "older"]


def test_a_reader_never_waits_for_the_writer_and_sees_whole_transactions(ledger: Ledger) -> None:
    """Each transaction adds a job with its line of history: a reader must never see one without the other."""
    view, end = LedgerView(ledger.path), threading.Event()

    def write() -> None:
        while not end.is_set():
            queued(ledger, "job")

    writer = threading.Thread(target=write)
    writer.start()
    seen: list[int] = []
    try:
        while not seen or seen[-1] < 40:
            jobs = view.jobs(limit=10_000)
            assert all(view.events(job.id)[0].note == "accepted" for job in jobs[:3])
            assert sorted(job.seq for job in jobs) == list(range(1, len(jobs) + 1))
            seen.append(len(jobs))
    finally:
        end.set()
        writer.join()
    assert seen == sorted(seen)
    assert len(set(seen)) > 5


def test_a_reader_does_not_wait_for_an_open_transaction(ledger: Ledger) -> None:
    job_id = queued(ledger)
    with closing(sqlite3.connect(ledger.path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("UPDATE job SET priority=9")
        assert LedgerView(ledger.path).get(job_id).priority == 0
        writer.execute("ROLLBACK")


# -- readers without rights --------------------------------------------------------------------------------------------


def content_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_a_reader_who_may_not_write_there_reads_a_ledger_at_rest(ledger: Ledger) -> None:
    job_id = queued(ledger)
    ledger.close()
    assert [p.name for p in ledger.path.parent.iterdir()] == ["ledger.db"]
    before = content_of(ledger.path.parent)

    job = as_nobody(lambda: LedgerView(ledger.path).get(job_id), ledger.path.parent)

    assert job.name == "anna"
    assert content_of(ledger.path.parent) == before


def test_a_reader_who_may_not_write_there_reads_while_the_daemon_writes(ledger: Ledger) -> None:
    job_id = queued(ledger)
    assert (ledger.path.parent / "ledger.db-wal").stat().st_size > 0
    assert as_nobody(lambda: LedgerView(ledger.path).get(job_id), ledger.path.parent).name == "anna"
    ledger.set_priority(job_id, 7)
    assert as_nobody(lambda: LedgerView(ledger.path).get(job_id), ledger.path.parent).priority == 7


def test_a_reader_who_may_not_write_there_reads_what_a_killed_daemon_left(path: Path) -> None:
    program = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from lipsyncd.ledger.ledger import Ledger
from tests.kits.core_kit import queued
ledger = Ledger(Path({str(path)!r}))
print(queued(ledger), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert (path.parent / "ledger.db-wal").stat().st_size > 0
    job_id = done.stdout.strip()

    assert as_nobody(lambda: LedgerView(path).get(job_id), path.parent).name == "anna"
    assert LedgerView(path).get(job_id).name == "anna"


def test_a_ledger_that_may_not_be_read_is_an_error_with_a_remedy(ledger: Ledger) -> None:
    queued(ledger)
    ledger.close()
    ledger.path.chmod(0)
    with pytest.raises(LedgerError, match="cannot read the ledger") as caught:
        as_nobody(lambda: LedgerView(ledger.path).jobs(), ledger.path.parent)
    assert "group" in caught.value.remedy


def test_a_damaged_ledger_is_an_error_with_a_remedy(path: Path) -> None:
    path.write_bytes(b"no database at all" * 1000)
    for read in (lambda: LedgerView(path).jobs(), lambda: LedgerView(path).counts()):
        with pytest.raises(LedgerError, match="not a database"):
            read()


@pytest.mark.parametrize("name", ["state 100%", "state?mode=rwc", "state#1", "stätte"])
def test_a_path_may_have_any_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / "ledger.db"
    path.parent.mkdir()
    ledger = Ledger(path)
    job_id = queued(ledger)
    assert LedgerView(path).get(job_id).name == "anna"
    ledger.close()
    assert os.listdir(tmp_path) == [name]


def test_a_repetition_waits_for_what_the_first_job_waits_for(ledger: Ledger) -> None:
    first, second = queued(ledger, "first"), queued(ledger, "second")
    with closing(connected(ledger)) as other:
        other.execute("UPDATE job SET duplicate_of=? WHERE id=?", (first, second))
    view = LedgerView(ledger.path)

    def waits() -> dict[str, str] | None:
        return view.waits_for(view.get(second))

    assert (waits() or {})["code"] == SAME_WORK
    ledger.set_blocked(first, WeightsMissing("no weights").reason(), delay_ms=0)
    assert waits() == {
        "code": "weights-missing",
        "message": "an earlier job makes the same video, and waits: no weights",
        "remedy": WeightsMissing.default_remedy,
    }
    ledger.to_cancelled(first)
    assert waits() is None
