"""`lipsyncd doctor` on folders, ledger, daemon, port and key, each with a real fault."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from lipsyncd.doctor import Verdict, examine, folders
from lipsyncd.errors import WeightsMissing
from lipsyncd.ledger.ledger import Ledger
from lipsyncd.storage.files import read_json, write_json
from lipsyncd.storage.locks import InstanceLock
from lipsyncd.storage.open_folder import OpenFolder
from tests.kits.core_kit import UNPRIVILEGED, as_nobody, queued
from tests.kits.doctor_kit import fault, seen
from tests.kits.installation import Installation
from tests.kits.machine.processes import GONE
from tests.kits.web_kit import port_of

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount, and check the rights of another user")


@pytest.fixture
def made(installation: Installation) -> Installation:
    """An installation with its folders and no daemon."""
    installation.folders.initialise()
    return installation


# -- folders -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["inbox", "outbox", "failed", "archive"])
def test_a_folder_without_its_marker_is_not_mounted(made: Installation, kind: str) -> None:
    (made.path(kind) / ".lipsyncd" / f"{kind}-id").unlink()
    fault(made, kind, f"has no marker of our {kind}", f"mount the {kind}", "lipsyncd init --adopt")
    shutil.rmtree(made.path(kind))
    fault(made, kind, "does not exist", f"mount the {kind}")


def test_blocked_files_are_listed_with_their_inbox(made: Installation) -> None:
    lock = InstanceLock(made.path("state"))
    lock.acquire(command="lipsyncd run")
    try:
        write_json(made.path("state") / "status.json", {"blocked": {"anna\n.png": "permission denied"}})
        fault(made, "inbox", "1 files blocked, such as anna\\n.png: permission denied", verdict=Verdict.WARNING)
    finally:
        lock.release()
    assert seen(made, "inbox").verdict is Verdict.OK


def test_a_state_folder_that_is_a_file_is_a_fault(installation: Installation) -> None:
    installation.root.joinpath("storage").mkdir()
    installation.path("state").write_text("")
    fault(installation, "state", "is not a folder")


@as_root
def test_root_sees_that_a_folder_is_closed_to_the_daemons_user(made: Installation) -> None:
    """Root itself may write everywhere, so the check runs as the daemon's user."""
    usual = Path(tempfile.gettempdir())
    for folder in (made.root, *made.root.parents):
        if folder != usual and folder.is_relative_to(usual):
            folder.chmod(folder.stat().st_mode | 0o111)
    for kind in ("state", "inbox", "outbox", "spool"):
        os.chown(made.path(kind), UNPRIVILEGED, UNPRIVILEGED)
    assert seen(made, "inbox").verdict is Verdict.OK
    made.path("outbox").chmod(0o500)
    fault(made, "outbox", "is closed to user")
    assert "sudo -u" in examine(made.settings).findings["settings"].remedy


def test_a_user_without_access_to_the_state_folder_gets_warnings(made: Installation) -> None:
    made.path("state").chmod(0o700)
    made.path("outbox").chmod(0o755)
    settings = made.settings
    found = as_nobody(lambda: examine(settings).findings, made.root / "storage", made.root)
    if os.geteuid() != 0:
        return
    for name in ("inbox", "outbox", "ledger", "daemon", "jobs"):
        assert found[name].verdict is Verdict.WARNING, (name, found[name])
        assert "not readable for you" in found[name].seen
        assert "lipsyncd doctor` checks with the daemon's rights" in found[name].remedy
    assert found["clock"].verdict is found["ffmpeg"].verdict is Verdict.OK


def test_another_user_does_not_judge_the_rights_of_the_daemons_user(made: Installation) -> None:
    """A member of the group may read and not write here, which says nothing about the daemon."""
    made.path("outbox").chmod(0o755)
    made.path("state").chmod(0o755)
    (made.path("state") / "folders.json").chmod(0o644)
    settings = made.settings
    found = as_nobody(lambda: examine(settings).findings, made.root / "storage", made.root)
    if os.geteuid() == 0:
        assert found["outbox"].verdict is Verdict.OK
        assert "`sudo lipsyncd doctor`" in found["settings"].remedy


@contextmanager
def small_disk(folder: Path, size_kb: int) -> Iterator[None]:
    """Mount a real file system of that size on `folder`."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_kb}k,mode=0777", "lipsyncd-test", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"this machine does not let root mount: {mounted.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@as_root
def test_a_nearly_full_disk_is_a_warning_and_a_full_one_a_fault(installation: Installation) -> None:
    installation.path("outbox").mkdir(parents=True)
    with small_disk(installation.path("outbox"), 4000):
        installation.folders.initialise()
        found = fault(
            installation, "outbox", "tmpfs", "jobs wait when less than 1 MB are free", verdict=Verdict.WARNING
        )
        assert "4.1 MB free" in found.seen
        (installation.path("outbox") / "large").write_bytes(bytes(3_500_000))
        fault(installation, "outbox", "less than 1 MB, so jobs wait", "paths.min_free_mb")


def test_a_network_folder_is_polled_and_cannot_have_the_ledger(
    made: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lipsyncd.storage.mounts.file_system_type", lambda folder: "nfs4")
    assert "polling every 2 s, since nfs4 gives no events" in seen(made, "watch").seen
    fault(made, "state", "is on nfs4", "local disk")
    fault(made, "spool", "is on nfs4", "local disk")


@pytest.mark.inotify
def test_events_are_reported_only_if_the_kernel_gives_them(made: Installation) -> None:
    assert "events (" in seen(made, "watch").seen
    with OpenFolder.at(made.path("inbox")) as inbox:
        assert folders._inotify_fault(inbox) == ""
        found = _with_no_descriptor_left(lambda: folders._inotify_fault(inbox))
    assert found == "all inotify instances are in use"
    assert folders._inotify_fault(inbox) == "No such file or directory"  # it is closed


def _with_no_descriptor_left(work: Any) -> str:
    """The result of `work` in a process that can open no more files."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
        os.write(writer, work().encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as answer:
        return answer.read()


# -- the service -------------------------------------------------------------------------------------------------------


def test_a_ledger_of_a_newer_program_and_a_damaged_one_are_faults(made: Installation) -> None:
    path = made.path("state") / "ledger.db"
    ledger = Ledger(path)
    for number in range(50):
        queued(ledger, f"job {number}")
    ledger.close()
    assert seen(made, "ledger", full=True).verdict in (Verdict.OK, Verdict.NOTE)
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute("PRAGMA user_version=99")
    fault(made, "ledger", "schema 99", "run the version that wrote it")
    with path.open("r+b") as raw:
        raw.seek(8192)
        raw.write(os.urandom(16_384))
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute("PRAGMA user_version=1")
    fault(made, "ledger", "spool", full=True)


def test_blocked_jobs_are_shown_with_their_reason_and_its_remedy(made: Installation) -> None:
    ledger = Ledger(made.path("state") / "ledger.db")
    ledger.set_blocked(queued(ledger), WeightsMissing("weights are missing: unet").reason(), delay_ms=1)
    queued(ledger, "bert")
    ledger.close()
    found = fault(made, "jobs", "2 queued; 1 blocked (weights-missing): weights are missing", verdict=Verdict.WARNING)
    assert found.remedy == WeightsMissing.default_remedy


def test_a_backup_is_shown_with_its_age(made: Installation) -> None:
    Ledger(made.path("state") / "ledger.db").close()
    assert seen(made, "backup").verdict is Verdict.NOTE
    assert made.cli("backup").returncode == 0
    assert "0 h old, 1 kept" in seen(made, "backup").seen
    [copy] = (made.path("state") / "backups").glob("*.db")
    os.utime(copy, (time.time() - 3 * 86_400,) * 2)
    fault(made, "backup", "72 h old", verdict=Verdict.WARNING)


def test_a_daemon_is_shown_with_its_pid_and_one_that_hangs_is_a_fault(installation: Installation) -> None:
    installation.changes["web"] = {"enabled": True}
    daemon = installation.start()
    port = port_of(installation)
    assert f"lipsyncd run, pid {daemon.pid}, version" in seen(installation, "daemon").seen
    daemon.send_signal(signal.SIGSTOP)
    installation.until(lambda: _stopped(daemon.pid), "the last thread's stop")
    status = installation.path("state") / "status.json"
    written = read_json(status)
    assert written is not None
    fault(installation, "web", f"127.0.0.1:{port}", "does not answer", "restart it")
    write_json(status, {**written, "at_ms": written["at_ms"] - 60_000})
    fault(installation, "daemon", f"pid {daemon.pid}", "no status for", "restart it")
    write_json(status, {**written, "version": "0.0.1", "at_ms": time.time() * 1000})
    fault(installation, "daemon", "version 0.0.1; version", verdict=Verdict.WARNING)
    daemon.send_signal(signal.SIGCONT)
    installation.stop()
    assert seen(installation, "daemon").seen == "not running"


def _stopped(pid: int) -> bool:
    """Are all of its threads stopped? A signal stops them one after the other."""
    try:
        stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    except GONE:  # a thread has just ended
        return False
    return all(text.rpartition(") ")[2].startswith("T") for text in stats)


def test_a_running_daemon_is_asked_whether_it_requires_a_key_and_is_ready(installation: Installation) -> None:
    """A key from the unit is visible only to the daemon."""
    installation.changes["web"] = {"enabled": True}
    with installation.running(LIPSYNCD_API_KEY="client:secret-word"):
        port_of(installation)
        installation.until(lambda: seen(installation, "key").seen == "the daemon requires one", "the daemon's answer")
        installation.path("outbox").rename(installation.root / "away")
        installation.path("outbox").mkdir()
        installation.until(lambda: "is not ready: outbox: " in seen(installation, "web").seen, "the missing outbox")
        fault(installation, "web", "is not ready: outbox: ", verdict=Verdict.WARNING)


def test_a_port_that_another_program_uses_is_a_fault(installation: Installation) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        installation.changes["web"] = {"enabled": True, "port": port}
        fault(installation, "web", f"127.0.0.1:{port} is used", "web.port")
    assert seen(installation, "web").verdict is Verdict.OK
    installation.changes["web"]["host"] = "192.0.2.7"  # belongs to no machine here
    fault(installation, "web", "cannot be opened", "web.host")


def test_a_server_without_a_key_is_ok_on_loopback_only(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    installation.changes["web"] = {"enabled": True}
    assert "only this machine" in seen(installation, "key").seen
    installation.changes["web"]["host"] = "0.0.0.0"
    fault(installation, "key", "no key is configured", "web.api_key_file")
    installation.changes["web"]["allow_anonymous"] = True
    fault(installation, "key", "every client", verdict=Verdict.WARNING)
    monkeypatch.setenv("LIPSYNCD_API_KEY", "client:secret-word")
    found = seen(installation, "key")
    assert (found.verdict, found.seen) == (Verdict.OK, "1 configured")
    monkeypatch.setenv("LIPSYNCD_API_KEY", "short")
    assert "short" not in fault(installation, "key", "has 5 characters").seen.replace("5 characters", "")
