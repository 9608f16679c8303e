"""Copies of the ledger: complete while a daemon writes, never partial, rotated, and readable."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from lipsyncd.daemon.recovery import open_ledger
from lipsyncd.errors import BackupFailed
from lipsyncd.jobs.job import JobState
from lipsyncd.ledger import backups
from lipsyncd.ledger.ledger import Ledger
from lipsyncd.ledger.view import LedgerView
from tests.kits.core_kit import UNPRIVILEGED, as_nobody, queued
from tests.kits.installation import Installation
from tests.ledger.test_migrations import written_by

ROOT = Path(__file__).resolve().parents[2]


def test_a_copy_holds_everything_that_was_committed(ledger: Ledger, tmp_path: Path) -> None:
    ids = [queued(ledger, f"job {number}") for number in range(5)]
    copy = backups.make(ledger.path, tmp_path / "deep" / "folder")
    assert [job.id for job in LedgerView(copy).jobs()] == ids
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]
    assert backups.copies(copy.parent) == [copy]


def test_copies_made_during_writes_hold_only_whole_transactions(ledger: Ledger, tmp_path: Path) -> None:
    """Every job is inserted with an event and prepared with another one: a copy has one or both of them."""
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            queued(ledger, f"job {(number := number + 1)}")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        copies = []
        for least in (1, 10, 20):
            while len(LedgerView(ledger.path).jobs(limit=1000)) < least:
                time.sleep(0.01)
            copies.append(backups.make(ledger.path, tmp_path / "copies"))
    finally:
        stop.set()
        writer.join()
    counts = []
    for copy in copies:
        with closing(sqlite3.connect(copy)) as opened:
            assert opened.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            [jobs] = opened.execute("SELECT count(*) FROM job").fetchone()
            events = opened.execute("SELECT count(*) FROM job_event GROUP BY job_id").fetchall()
            assert len(events) == jobs
            counts.append(jobs)
    assert counts[0] >= 1
    assert counts == sorted(counts)
    assert counts[2] >= 20


def test_a_copy_has_the_permissions_of_the_ledger(ledger: Ledger, tmp_path: Path) -> None:
    ledger.path.chmod(0o640)
    copy = backups.make(ledger.path, tmp_path / "copies")
    assert copy.stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_copy_made_by_root_belongs_to_the_ledgers_owner(ledger: Ledger, tmp_path: Path) -> None:
    """Otherwise the daemon, which is not root, could neither remove copies nor make more."""
    os.chown(ledger.path, UNPRIVILEGED, UNPRIVILEGED)
    copy = backups.make(ledger.path, tmp_path / "copies")
    assert [(path.stat().st_uid, path.stat().st_gid) for path in (copy, copy.parent)] == [
        (UNPRIVILEGED, UNPRIVILEGED)
    ] * 2


def test_a_failed_copy_leaves_no_file_and_reports_the_reason(ledger: Ledger, tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)

    def try_it() -> None:
        backups.make(ledger.path, folder)

    with pytest.raises(BackupFailed, match=r"cannot copy .* into .*locked: .*Permission denied"):
        as_nobody(try_it, folder)
    assert list(folder.iterdir()) == []


def test_without_a_ledger_there_is_nothing_to_copy(tmp_path: Path) -> None:
    with pytest.raises(BackupFailed, match="there is no ledger"):
        backups.make(tmp_path / "ledger.db", tmp_path / "copies")
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_copy_is_removed_at_the_next_start_and_never_while_it_is_written(
    installation: Installation,
) -> None:
    with installation.running():
        pass
    folder = installation.path("state") / backups.FOLDER
    program = f"""
import pathlib, time
from lipsyncd.ledger import backups
backups.check = lambda copy: print("written", flush=True) or time.sleep(60)
backups.make(pathlib.Path({str(installation.path("state") / "ledger.db")!r}), pathlib.Path({str(folder)!r}))
"""
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE) as slow:
        assert slow.stdout is not None
        assert slow.stdout.readline() == b"written\n"
        [unfinished] = folder.iterdir()
        assert backups.sweep(folder) == []
        assert unfinished.exists()
        slow.kill()
    assert unfinished.exists()
    with installation.running():
        installation.until(lambda: not unfinished.exists(), "the removal of the unfinished copy")
    assert backups.sweep(folder) == []


def test_a_damaged_ledger_is_not_copied(ledger: Ledger, tmp_path: Path) -> None:
    for number in range(200):
        queued(ledger, f"job {number}")
    ledger.close()
    content = bytearray(ledger.path.read_bytes())
    for page in range(2, len(content) // 4096, 3):
        content[page * 4096 : page * 4096 + 600] = b"\xa5" * 600
    ledger.path.write_bytes(content)
    with pytest.raises(BackupFailed):
        backups.make(ledger.path, tmp_path / "copies")
    assert list((tmp_path / "copies").iterdir()) == []


def test_rotation_keeps_the_newest_copies_and_removes_only_copies(tmp_path: Path) -> None:
    nights = [f"ledger-202611{day:02d}T033000.000Z.db" for day in range(1, 12)]
    others = ["ledger-v1-20260101T000000.000Z.db", "ledger.db", "mine.db", "ledger-20261101T033000.000Z.db.old"]
    for name in [*nights, *others]:
        (tmp_path / name).touch()
    (tmp_path / ".ledger-20261101T033000.000Z.db.part").touch()
    assert [copy.name for copy in backups.rotate(tmp_path, keep=7)] == nights[:4]
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == sorted([*nights[4:], *others])
    assert backups.rotate(tmp_path, keep=7) == []
    assert backups.rotate(tmp_path / "not there", keep=7) == []


def test_copies_dated_in_the_future_are_removed_before_todays(tmp_path: Path) -> None:
    """Otherwise seven of them would be the newest for years, and each new copy would be removed at once."""
    ahead = [f"ledger-206611{day:02d}T033000.000Z.db" for day in range(1, 8)]
    now = [f"ledger-202601{day:02d}T033000.000Z.db" for day in range(1, 4)]
    for name in [*ahead, *now]:
        (tmp_path / name).touch()
    assert [copy.name for copy in backups.rotate(tmp_path, keep=7)] == ahead[:3]
    assert [copy.name for copy in backups.rotate(tmp_path, keep=2)] == [*ahead[3:], now[0]]


def test_a_damaged_ledger_of_an_older_version_is_put_aside_too(tmp_path: Path) -> None:
    """The copy before the migration finds the damage."""
    path = tmp_path / "ledger.db"
    written_by(1, path)
    content = bytearray(path.read_bytes())
    for page in range(1, len(content) // 4096):
        content[page * 4096 : page * 4096 + 600] = b"\xa5" * 600
    path.write_bytes(content)
    ledger = open_ledger(path)
    assert ledger.in_state(*JobState) == []
    ledger.close()
    assert len(list(tmp_path.glob("ledger.db.corrupt-*"))) >= 1


def test_the_command_copies_beside_a_running_daemon_and_without_one(installation: Installation) -> None:
    installation.changes["retention"] = {"backups": 2}
    folder = installation.path("state") / "backups"
    with installation.running():
        installation.drop_pair("anna")
        installation.until_done("anna")
        done = installation.cli("backup")
        assert done.returncode == 0, done.stderr
        assert backups.copies(folder) == [Path(done.stdout.strip())]
    away = installation.cli("backup", "--to", installation.root / "elsewhere")
    assert LedgerView(Path(away.stdout.strip())).jobs()[0].state is JobState.DONE
    for _ in range(3):
        assert installation.cli("backup").returncode == 0
    assert len(backups.copies(folder)) == 2
    assert len(backups.copies(installation.root / "elsewhere")) == 1
