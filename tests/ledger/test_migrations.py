"""Ledgers of older versions: their rows are kept and their jobs continue. Those of newer versions are refused."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lipsyncd.errors import NoFaceFound
from lipsyncd.jobs.job import JobState, new_id
from lipsyncd.ledger.ledger import Ledger
from lipsyncd.ledger.schema import APPLICATION_ID, STEPS, statements
from lipsyncd.ledger.view import LedgerView
from tests.kits.core_kit import queued
from tests.kits.installation import Installation
from tests.kits.jobs_by_hand import JobsByHand

# The columns of a job in each state in version 1, besides those of `COMMON`.
FIRST: Mapping[JobState, Mapping[str, Any]] = {
    JobState.QUEUED: {"stage": "queued", "prepared": 1, "priority": 7},
    JobState.RUNNING: {"run_token": "t", "device": "cpu", "attempt": 1, "started_ms": 2, "fraction": 0.5},
    JobState.PUBLISHING: {"out_sha256": "0" * 64, "out_size": 9, "staged": 1, "frames": 25, "render_ms": 40},
    JobState.DONE: {"out_sha256": "1" * 64, "finished_ms": 3, "inputs_released": 1, "user_data": '"scene 7"'},
    JobState.FAILED: {"reason_code": "no-face", "reason": "no face", "remedy": "", "finished_ms": 3, "attempt": 1},
    JobState.CANCELLED: {"finished_ms": 3, "kept": "/somewhere"},
}
COMMON = {
    "max_attempts": 3,
    "renderer": "flat",
    "stitch": 0,
    "resolution": 256,
    "fps": "25",
    "accepted_ms": 1,
    "webhook": "https://example.com/hook",
}
VERSIONS = range(1, len(STEPS))


def written_by(version: int, path: Path) -> dict[JobState, dict[str, Any]]:
    """Make a ledger as that version left it, with a job in every state; gives the rows."""
    rows = {}
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.row_factory = sqlite3.Row
        for script in STEPS[:version]:
            for statement in statements(script):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version={version}")
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
        for seq, (state, own) in enumerate(FIRST.items(), start=1):
            job_id = new_id()
            names = {"name": state.value, "out_name": state.value, "out_key": state.value, "source_sig": job_id}
            row = {"id": job_id, "seq": seq, "state": state.value, **COMMON, **names, **own}
            marks = ", ".join(f":{column}" for column in row)
            connection.execute(f"INSERT INTO job({', '.join(row)}) VALUES({marks})", row)
            connection.execute("INSERT INTO job_source VALUES(?, 'image', ?, 'x')", (job_id, b"anna.png"))
            connection.execute("INSERT INTO job_event VALUES(NULL, ?, 1, ?, 'accepted')", (job_id, state.value))
            rows[state] = dict(connection.execute("SELECT * FROM job WHERE id=?", (job_id,)).fetchone())
    return rows


@pytest.mark.parametrize("version", VERSIONS)
def test_every_row_of_an_older_ledger_is_kept_as_it_was(tmp_path: Path, version: int) -> None:
    path = tmp_path / "ledger.db"
    before = written_by(version, path)
    ledger = Ledger(path)
    ledger.check()
    ledger.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        assert connection.execute("PRAGMA user_version").fetchone()[0] == len(STEPS)
        after = {JobState(row["state"]): dict(row) for row in connection.execute("SELECT * FROM job")}
        sources, events = (
            connection.execute(f"SELECT count(*) FROM job_{t}").fetchone()[0] for t in ("source", "event")
        )
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    assert {state: {name: row[name] for name in before[state]} for state, row in after.items()} == before
    assert (sources, events) == (len(FIRST), len(FIRST))
    assert len(list((tmp_path / "backups").glob(f"ledger-v{version}-*.db"))) == 1


@pytest.mark.parametrize("version", VERSIONS)
def test_jobs_of_an_older_ledger_continue_and_send_webhooks(tmp_path: Path, version: int) -> None:
    path = tmp_path / "ledger.db"
    ids = {state: row["id"] for state, row in written_by(version, path).items()}
    ledger = Ledger(path)
    ledger.to_done(ids[JobState.PUBLISHING], note="published")
    ledger.to_publishing(ids[JobState.RUNNING], token="t", sha256="2" * 64, size=1, frames=25, render_ms=1)
    ledger.retry(ids[JobState.FAILED], "failed")
    ledger.to_cancelled(ids[JobState.QUEUED])
    queued(ledger, "new")
    view = LedgerView(path)
    counts = {state: len(view.deliveries(job_id)) for state, job_id in ids.items()}
    assert counts == {**dict.fromkeys(JobState, 0), JobState.PUBLISHING: 1, JobState.QUEUED: 1}  # ended now, not before
    assert view.get(ids[JobState.DONE]).rest is None
    assert len(view.jobs()) == len(FIRST) + 1
    ledger.close()


def made_older(path: Path, version: int) -> None:
    """Replace a ledger by one of that version, with the rows as far as it has the columns."""
    with closing(sqlite3.connect(path)) as new:
        new.row_factory = sqlite3.Row
        tables = {
            t: [dict(row) for row in new.execute(f"SELECT * FROM {t}")] for t in ("job", "job_source", "job_event")
        }
    for file in path.parent.glob("ledger.db*"):
        file.unlink()
    with closing(sqlite3.connect(path, isolation_level=None)) as old:
        old.execute("PRAGMA journal_mode=WAL")
        for script in STEPS[:version]:
            for statement in statements(script):
                old.execute(statement)
        old.execute(f"PRAGMA user_version={version}")
        for table, rows in tables.items():
            columns = [row[1] for row in old.execute(f"PRAGMA table_info({table})")]
            for row in rows:
                values = [row[column] for column in columns]
                old.execute(f"INSERT INTO {table}({', '.join(columns)}) VALUES({', '.join('?' * len(values))})", values)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_daemon_brings_every_job_of_an_older_version_to_its_end(installation: Installation, version: int) -> None:
    """Rows in every state with their folders, as an upgrade finds them; each ends as it should, and only once."""
    by_hand = JobsByHand(installation.root / "storage")
    done, publishing = by_hand.published("done"), by_hand.rendered("publishing")
    failed = by_hand.queued("failed")
    by_hand.finisher.fail(failed, NoFaceFound("no face"))
    cancelled = by_hand.queued("cancelled")
    by_hand.finisher.cancel(cancelled)
    running, queued_id = by_hand.running("running"), by_hand.queued("queued", priority=-7)
    before = {job.id: job for job in by_hand.ledger.in_state(*JobState)}
    assert {job.state for job in before.values()} == set(JobState)
    by_hand.close()
    made_older(by_hand.ledger.path, version)

    with installation.running():
        for name in ("publishing", "running", "queued"):
            installation.until_done(name)
        installation.until(lambda: not list(installation.path("spool").iterdir()), "an empty spool")
        after = {job.id: job for job in installation.view.jobs()}
        assert {i: after[i].state for i in (done, publishing, running, queued_id)} == dict.fromkeys(
            (done, publishing, running, queued_id), JobState.DONE
        )
        same = ("state", "name", "out_name", "reason_code", "reason", "kept", "attempt", "finished_ms", "out_sha256")
        for job_id in (done, failed, cancelled):
            assert [getattr(after[job_id], n) for n in same] == [getattr(before[job_id], n) for n in same]
        assert (after[running].attempt, after[queued_id].attempt, after[publishing].attempt) == (2, 1, 1)
        assert after[publishing].out_sha256 == before[publishing].out_sha256
        assert after[queued_id].priority == -7
        assert installation.renders == 2
        assert installation.cli("retry", failed).returncode == 0
        installation.until(
            lambda: installation.view.get(failed).reason_code == "image-not-recognised",
            "its inputs to be decoded again",
        )
    [copy] = (installation.path("state") / "backups").iterdir()
    assert copy.name.startswith(f"ledger-v{version}-")
    with closing(sqlite3.connect(copy)) as kept:
        assert kept.execute("PRAGMA user_version").fetchone()[0] == version
        assert kept.execute("SELECT count(*) FROM job").fetchone()[0] == len(before)


def test_a_daemon_refuses_the_ledger_of_a_newer_one_and_names_both_schemas(installation: Installation) -> None:
    installation.folders.initialise()
    path = installation.path("state") / "ledger.db"
    Ledger(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version=99")
    content = path.read_bytes()
    refused = installation.cli("run")
    assert refused.returncode == 78
    assert f"has schema 99; this program knows up to {len(STEPS)}" in refused.stderr
    assert "restore the backup that it made before its migration" in refused.stderr
    assert path.read_bytes() == content


def test_a_ledger_of_this_version_and_a_migrated_one_are_made_of_the_same_sql(tmp_path: Path) -> None:
    written_by(1, tmp_path / "old.db")
    for name in ("old.db", "new.db"):
        Ledger(tmp_path / name).close()
    shapes = []
    for name in ("old.db", "new.db"):
        with closing(sqlite3.connect(tmp_path / name)) as connection:
            shapes.append(sorted(connection.execute("SELECT type, name, sql FROM sqlite_master").fetchall(), key=str))
    assert shapes[0] == shapes[1]
