"""The ledger's file: pragmas, columns, migrations, damage, locks and constraints."""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import closing

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DatabaseError, OperationalError

from lipsyncd.errors import LedgerTooNew
from lipsyncd.jobs.job import JOB_COLUMNS, JobState
from lipsyncd.ledger.ledger import Ledger
from lipsyncd.ledger.schema import APPLICATION_ID, STEPS
from lipsyncd.ledger.tables import JobEventRow, JobRow, JobSourceRow
from tests.kits.core_kit import claimed, connected, queued


def test_committed_changes_survive_a_power_cut(ledger: Ledger) -> None:
    with ledger._engine.connect() as connection:
        found = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout", "trusted_schema", "mmap_size")
        }
    full = 2
    assert found == {
        "journal_mode": "wal",
        "synchronous": full,
        "foreign_keys": 1,
        "busy_timeout": 5000,
        "trusted_schema": 0,
        "mmap_size": 0,
    }


@pytest.mark.parametrize("row", [JobRow, JobSourceRow, JobEventRow])
def test_the_classes_and_the_tables_have_the_same_columns(ledger: Ledger, row: type[JobRow]) -> None:
    columns = row.__table__.columns  # type: ignore[attr-defined]
    with closing(connected(ledger)) as connection:
        table = list(connection.execute(f"PRAGMA table_info({row.__tablename__})"))
    assert [c["name"] for c in table] == [c.name for c in columns]
    assert {c["name"] for c in table if c["pk"]} == {c.name for c in columns if c.primary_key}
    required = {c["name"] for c in table if c["notnull"] and not c["pk"]}
    assert required == {c.name for c in columns if not c.nullable and not c.primary_key}


def test_every_field_of_a_job_is_a_column(ledger: Ledger) -> None:
    assert set(JOB_COLUMNS) <= {c.name for c in JobRow.__table__.columns}  # type: ignore[attr-defined]


def test_opening_it_again_keeps_everything(ledger: Ledger) -> None:
    job_id = claimed(ledger)
    ledger.to_publishing(job_id, token="t", sha256="a" * 64, size=10, frames=25, render_ms=500)
    before = ledger.get(job_id)
    ledger.close()
    again = Ledger(ledger.path)
    assert again.get(job_id) == before
    again.check()
    again.close()
    with closing(connected(ledger)) as connection:
        assert connection.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
        assert connection.execute("PRAGMA user_version").fetchone()[0] == len(STEPS)


def test_a_ledger_of_a_later_version_is_refused_and_not_changed(ledger: Ledger) -> None:
    queued(ledger)
    ledger.close()
    with closing(connected(ledger)) as connection:
        connection.execute("PRAGMA user_version=99")
    with pytest.raises(LedgerTooNew, match="schema 99; this program knows up to") as caught:
        Ledger(ledger.path)
    assert caught.value.exit_status == 78
    with closing(connected(ledger)) as connection:
        assert connection.execute("SELECT count(*) FROM job").fetchone()[0] == 1
        assert connection.execute("PRAGMA user_version").fetchone()[0] == 99


NEXT_STEP = "ALTER TABLE job ADD COLUMN mood TEXT; CREATE INDEX job_mood ON job(mood);"


def test_a_migration_keeps_a_copy_of_the_old_ledger(ledger: Ledger) -> None:
    job_id = queued(ledger)
    ledger.close()
    newer = Ledger(ledger.path, steps=[*STEPS, NEXT_STEP])
    assert newer.get(job_id).name == "anna"
    newer.close()
    [copy] = (ledger.path.parent / "backups").glob(f"ledger-v{len(STEPS)}-*.db")
    with closing(sqlite3.connect(copy)) as old, closing(connected(ledger)) as new:
        assert old.execute("PRAGMA user_version").fetchone()[0] == len(STEPS)
        assert old.execute("SELECT id FROM job").fetchall() == [(job_id,)]
        assert new.execute("PRAGMA user_version").fetchone()[0] == len(STEPS) + 1
        assert new.execute("SELECT mood FROM job").fetchone()["mood"] is None
    Ledger(ledger.path, steps=[*STEPS, NEXT_STEP]).close()
    assert list((ledger.path.parent / "backups").iterdir()) == [copy]


def test_a_failed_migration_does_not_change_the_ledger(ledger: Ledger) -> None:
    job_id = queued(ledger)
    ledger.close()
    with pytest.raises(OperationalError):
        Ledger(ledger.path, steps=[*STEPS, NEXT_STEP + "CREATE TABLE job(id);"])
    again = Ledger(ledger.path)
    assert again.get(job_id).name == "anna"
    again.close()
    with closing(connected(ledger)) as connection:
        assert "mood" not in [row["name"] for row in connection.execute("PRAGMA table_info(job)")]


def test_a_new_ledger_is_not_copied(ledger: Ledger) -> None:
    assert [p.name for p in ledger.path.parent.rglob("*.db")] == ["ledger.db"]


def test_damage_is_noticed(ledger: Ledger) -> None:
    for number in range(200):
        queued(ledger, f"job {number}")
    ledger.close()
    content = bytearray(ledger.path.read_bytes())
    for page in range(2, len(content) // 4096, 3):
        content[page * 4096 : page * 4096 + 600] = b"\xa5" * 600
    ledger.path.write_bytes(content)
    damaged = Ledger(ledger.path)
    with pytest.raises((DatabaseError, sqlite3.DatabaseError)):
        damaged.check()
    damaged.close()


def test_two_writers_wait_for_each_other(ledger: Ledger) -> None:
    """The CLI may lock the file for a moment: the daemon waits without an error."""
    with closing(connected(ledger)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        done: list[str] = []
        writer = threading.Thread(target=lambda: done.append(queued(ledger)))
        writer.start()
        time.sleep(0.3)
        assert done == []
        connection.execute("COMMIT")
        writer.join(10)
    assert len(done) == 1


def test_a_read_neither_waits_for_a_writer_nor_delays_it(ledger: Ledger) -> None:
    job_id = queued(ledger)
    with closing(connected(ledger)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        started_s = time.monotonic()
        assert ledger.get(job_id).state is JobState.QUEUED
        assert [job.id for job in ledger.in_state(JobState.QUEUED)] == [job_id]
        assert ledger.deliveries.due(limit=1) == []
        assert time.monotonic() - started_s < 2.0  # a write would wait up to 5 s
        connection.execute("COMMIT")
        with ledger._read() as session:
            session.execute(text("SELECT count(*) FROM job"))
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("COMMIT")


@pytest.mark.parametrize(
    "change",
    [
        "state='running'",  # without token and device
        "run_token='t'",  # of a job that does not run
        "attempt=4",  # more than max_attempts
        "priority=101",
        "fraction=1.5",
        "staged=1",  # without a video
        "state='failed'",  # without a reason
        "state='publishing'",  # without a video
        "state='sleeping'",
        "prepared=2",
        "resolution='large'",  # STRICT
    ],
)
def test_the_database_refuses_rows_that_contradict_themselves(ledger: Ledger, change: str) -> None:
    job_id = queued(ledger)
    with closing(connected(ledger)) as connection, pytest.raises(sqlite3.IntegrityError):
        connection.execute(f"UPDATE job SET {change} WHERE id=?", (job_id,))
