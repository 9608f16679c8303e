"""The inbox with a real daemon: which daemon may serve it, what status shows of it, and what pauses it."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lipsyncd.inbox.service import InboxService, lock_inboxes
from lipsyncd.jobs.job import JobState
from lipsyncd.ledger.live_progress import STATUS_FILE
from lipsyncd.ledger.view import LedgerView
from lipsyncd.monitor.status import notes
from lipsyncd.settings import CurrentSettings
from lipsyncd.storage.files import write_json
from lipsyncd.storage.locks import FolderLock, InstanceLock
from lipsyncd.storage.private_folder import HIDDEN
from tests.kits.core_kit import UNPRIVILEGED, as_nobody
from tests.kits.installation import READY, ROOT, Installation, picture, put, sound
from tests.kits.jobs_by_hand import JobsByHand
from tests.kits.machine.machine_kit import needs_root, tmpfs
from tests.kits.shared_kit import shared_folder


def status(installation: Installation) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(installation.cli("status", "--json").stdout)["daemon"]
    return found


@contextmanager
def holding(inbox: Path) -> Iterator[int]:
    """Another process that holds the lock of that inbox, as the daemon of another machine would; gives its pid."""
    program = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from lipsyncd.storage.locks import FolderLock
from tests.kits.shared_kit import shared_folder
lock = FolderLock(shared_folder(Path({str(inbox)!r})))
print(lock.hold() or "held", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        try:
            yield other.pid
        finally:
            other.kill()


# -- one daemon for each inbox -----------------------------------------------------------------------------------------


def test_an_inbox_that_comes_back_with_another_daemon_on_it_is_left_alone_until_that_one_ends(
    installation: Installation,
) -> None:
    installation.start()
    installation.stop()
    away = installation.root / "away"
    installation.path("inbox").rename(away)
    installation.path("inbox").mkdir()
    with installation.running():
        installation.until(lambda: status(installation)["inbox_fault"], "the missing inbox")
        with holding(away) as pid:
            installation.path("inbox").rmdir()
            away.rename(installation.path("inbox"))
            installation.drop_pair("anna")
            installation.until(
                lambda: f"is served by the daemon with pid {pid}" in status(installation)["inbox_fault"], "the reason"
            )
            assert f"pid {pid}" in installation.cli("status").stdout
            assert installation.job("anna") is None
        installation.until_done("anna")


def test_a_lock_is_kept_refused_to_others_and_free_after_its_holder(tmp_path: Path) -> None:
    path = tmp_path / HIDDEN / "lock"
    mine = FolderLock(shared_folder(tmp_path))
    with holding(tmp_path) as pid:
        assert mine.hold().startswith(f"{tmp_path} is served by the daemon with pid {pid} on ")
    deadline = time.monotonic() + 10
    while mine.hold() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert mine.hold() == mine.hold() == ""
    before = path.stat().st_ino
    path.rename(path.with_name("stolen"))
    assert mine.hold() == ""
    assert path.stat().st_ino != before, "the file that others would try is the one that is locked"


@needs_root
def test_a_folder_without_locks_is_served_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Here a folder in which no file can be made; an NFS server without a lock manager is no worse."""
    with tmpfs(tmp_path / "inbox", "1m") as inbox:
        lock = FolderLock(shared_folder(inbox))
        subprocess.run(["mount", "-o", "remount,ro", inbox], check=True)
        assert lock.hold() == lock.hold() == ""
    assert [r.levelname for r in caplog.records] == ["WARNING"]


@pytest.mark.parametrize("trap", ["fifo", "link", "folder"])
def test_what_is_no_lock_file_is_a_named_fault_and_no_wait(tmp_path: Path, trap: str) -> None:
    lock, path = FolderLock(shared_folder(tmp_path)), tmp_path / HIDDEN / "lock"
    if trap == "fifo":
        os.mkfifo(path)
    elif trap == "link":
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.mkdir()
    assert lock.hold() == f"{path} is no regular file; remove it"
    assert not (tmp_path / "elsewhere").exists()
    path.rmdir() if trap == "folder" else path.unlink()
    assert lock.hold() == ""


@needs_root
def test_a_lock_file_of_another_user_means_that_another_daemon_serves_the_inbox(tmp_path: Path) -> None:
    """And not that the share has no locks."""
    inbox = tmp_path / "inbox"
    shared_folder(inbox)
    (inbox / HIDDEN / "lock").touch(0o600)
    os.chown(inbox / HIDDEN, UNPRIVILEGED, UNPRIVILEGED)
    found = as_nobody(lambda: FolderLock(shared_folder(inbox)).hold(), inbox)
    assert found == f"{inbox} is served by the daemon of another user"


def test_a_lack_of_descriptors_is_no_share_without_locks(tmp_path: Path) -> None:
    lock = FolderLock(shared_folder(tmp_path))
    with lock._folder.opened() as root, lock._folder.private(root) as private:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        taken = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                while True:
                    taken.append(os.open("/dev/null", os.O_RDONLY))
            with pytest.raises(OSError, match="Too many open files"):
                lock._take(private)
        finally:
            for descriptor in taken:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert lock._take(private) == ""


# -- what cannot be taken, or not be removed ---------------------------------------------------------------------------


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder outside of the test runner's own ones, which are closed to other users."""
    with tempfile.TemporaryDirectory() as root:
        Path(root).chmod(0o777)
        yield Path(root)


def test_what_may_not_be_read_or_removed_is_shown_with_its_reason_costs_nothing_and_heals_alone(
    open_folder: Path,
) -> None:
    """The inbox as a user without privileges, for whom file modes hold; the status is read between the scans."""

    def work() -> list[Any]:
        by_hand = JobsByHand(open_folder)
        locks = lock_inboxes(by_hand.folders)
        settings = CurrentSettings(by_hand.settings)
        service = InboxService(settings, by_hand.folders, by_hand.spool, by_hand.ledger, locks)
        [served] = service.inboxes
        inbox = by_hand.path("inbox")
        seen: list[Any] = []

        def look() -> None:
            for _ in range(4):
                service.scan(served)
                time.sleep(0.15)
            shown = service.status()
            states = [(job.name, job.attempt) for job in by_hand.ledger.in_state(*JobState)]
            seen.append((shown["blocked"], shown["inbox_fault"], states, service.facts().stuck_files))
            write_json(by_hand.folders.state / STATUS_FILE, shown)

        put(inbox, "anna.png", picture())
        put(inbox, "anna.wav", sound()).chmod(0)
        look()
        (inbox / "anna.wav").chmod(0o644)
        inbox.chmod(0o555)
        look()
        lock = InstanceLock(by_hand.folders.state)
        lock.acquire(command="a test")
        seen.append([line for line in notes(LedgerView(by_hand.ledger.path), by_hand.folders.state) if "anna" in line])
        inbox.chmod(0o755)
        look()
        inbox.chmod(0o111)
        look()
        inbox.chmod(0o755)
        look()
        seen += [job.id for job in by_hand.ledger.in_state(JobState.QUEUED)]
        return seen

    unread, stuck, lines, removed, closed, healed, job_id = as_nobody(work, open_folder)
    why = f"job {job_id} has it, and it cannot be removed: Permission denied"
    assert unread == ({"anna.wav": "cannot be read: Permission denied"}, "", [], 1)
    assert stuck == ({"anna.png": why, "anna.wav": why}, "", [("anna", 0)], 2)
    assert lines == [f"anna.png: blocked, {why}", f"anna.wav: blocked, {why}"]
    assert removed == ({}, "", [("anna", 0)], 0)
    inbox = open_folder / "inbox"
    assert closed[1] == f"{inbox} cannot be opened: Permission denied"
    assert healed == ({}, "", [("anna", 0)], 0)


# -- low disk ----------------------------------------------------------------------------------------------------------


@needs_root
def test_low_disk_pauses_intake_and_claims_is_shown_and_passes_alone(installation: Installation) -> None:
    installation.changes["paths"] = {
        "min_free_mb": 20,
        "inbox": str(installation.root / "inbox"),
        "outbox": str(installation.root / "outbox"),
    }
    installation.changes["web"] = {"enabled": True}
    with tmpfs(installation.root / "storage", "40m"):
        with installation.running():
            port = installation.until(lambda: status(installation)["web_port"], "the port")
            full = installation.path("state") / "full"
            full.write_bytes(bytes(25_000_000))
            why = installation.until(lambda: status(installation)["paused"], "the pause")
            low = rf"{installation.path('spool')} has \d+ MB free; 20 MB are needed"
            assert re.fullmatch(low, why)
            for name, content in (("anna.png", picture()), ("anna.wav", sound())):
                put(installation.root / "inbox", name, content)
            for _ in range(3):
                assert installation.job("anna") is None
                time.sleep(0.2)
            assert re.search(f"nothing is taken in or rendered: {low}", installation.cli("status").stdout)
            ready = installation.until(
                lambda: b'"disk"' in (found := asked(port, "/health/ready")) and found, "the check"
            )
            assert json.loads(ready)["failing"].keys() == {"disk"}
            assert b"lipsyncd_intake_paused 1.0" in asked(port, "/metrics")
            full.unlink()
            job = installation.until_done("anna")
            assert b"lipsyncd_intake_paused 0.0" in asked(port, "/metrics")
        assert (job.state, job.attempt) == (JobState.DONE, 1)
    assert installation.log.count("nothing is taken in or rendered") == 1


def asked(port: int, path: str) -> bytes:
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
            body: bytes = answer.read()
    except urllib.error.HTTPError as error:
        body = error.read()
    return body


# -- events ------------------------------------------------------------------------------------------------------------


@needs_root
def test_a_daemon_without_events_says_so_and_serves_all_the_same(installation: Installation) -> None:
    """In a user namespace of its own, where inotify has no instances."""
    installation.changes["watch"] = {"poll_s": 0.2}
    installation.changes["web"] = {"enabled": True}
    program = (
        "import os, sys; open('/proc/sys/user/max_inotify_instances', 'w').write('0');"
        "os.execv(sys.executable, [sys.executable, '-m', 'lipsyncd', *sys.argv[1:]])"
    )
    command = [
        "unshare",
        "--user",
        "--map-root-user",
        sys.executable,
        "-c",
        program,
        "--config",
        str(installation.config),
    ]
    with (installation.root / "daemon.log").open("ab") as log:
        installation.daemon = subprocess.Popen(
            [*command, "run"], stdout=log, stderr=log, env=installation.environment()
        )
    installation.until(lambda: READY in installation.log or installation.daemon.poll() is not None, "the start")  # type: ignore[union-attr]
    installation.drop_pair("anna")
    installation.until_done("anna")
    found = installation.until(lambda: (s := status(installation))["degraded"] and s, "the note")
    assert found["watch"] == "polling"
    assert found["degraded"] == f"no events for {installation.path('inbox')}: inotify instance limit reached"
    assert "polling, since the kernel gives no events" in installation.cli("status").stdout
    assert json.loads(asked(found["web_port"], "/health/ready"))["degraded"] == found["degraded"]
    assert b"lipsyncd_watch_degraded 1.0" in asked(found["web_port"], "/metrics")
    assert installation.stop() == 0


def test_a_leftover_is_explained_in_the_folder_and_the_explanation_goes_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Explanations come after a second here. They are no leftovers, and wake no scan."""
    monkeypatch.setattr("lipsyncd.inbox.explain.AFTER_S", 1.0)
    by_hand = JobsByHand(tmp_path)
    locks = lock_inboxes(by_hand.folders)
    service = InboxService(CurrentSettings(by_hand.settings), by_hand.folders, by_hand.spool, by_hand.ledger, locks)
    [served], inbox = service.inboxes, by_hand.path("inbox")
    put(inbox, "anna.png", picture())
    (inbox / "holidays").mkdir()
    for wait_s in (0.5, 1.1):  # until it has settled; until the reason has lasted
        service.scan(served)
        time.sleep(wait_s)
    service.wake.clear()
    service.scan(served)
    assert "waits for a sound" in (inbox / "anna.png.why.txt").read_text()
    assert "folders are not looked into" in (inbox / "holidays.why.txt").read_text()
    assert not service.wake.wait(0.7), "its own explanation woke the scan"
    assert not any("why.txt" in name for name in (*served.inbox.ignored, *(w.name for w in served.inbox.waiting)))
    put(inbox, "anna.wav", sound())
    for _ in range(3):
        service.scan(served)
        time.sleep(0.3)
    assert sorted(path.name for path in inbox.iterdir()) == [HIDDEN, "holidays", "holidays.why.txt"]
    served.watch.stop()
    by_hand.close()
