"""The reports of a real daemon to systemd from start to stop, and when it stops feeding the watchdog."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from lipsyncd.jobs.job import JobState
from lipsyncd.ledger.ledger import Ledger
from lipsyncd.ledger.view import LedgerView
from lipsyncd.monitor import health
from lipsyncd.monitor.facts import Facts, WorkerFacts
from lipsyncd.monitor.systemd import Notifier, SystemdReporter, activity
from tests.kits.core_kit import claimed, queued
from tests.kits.installation import Installation, picture, put, sound
from tests.kits.machine.machine_kit import needs_fuse, needs_root, unmount
from tests.kits.machine.service_manager import ServiceManager, listening

WELL = Facts(version="1", workers=(WorkerFacts("cpu", up=True),))


@pytest.fixture
def manager(installation: Installation) -> Iterator[ServiceManager]:
    with listening(installation.root) as manager:
        yield manager


def watched(manager: ServiceManager, limit_s: float = 3.0) -> dict[str, str]:
    """The variables that systemd gives to a service with WatchdogSec."""
    return {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": str(round(limit_s * 1e6))}


# -- a real daemon -----------------------------------------------------------------------------------------------------


def test_systemd_gets_reports_from_start_to_stop(installation: Installation, manager: ServiceManager) -> None:
    installation.changes["render"] = {"renderer": "slow"}
    with installation.running(**watched(manager)):
        manager.wait_for("READY=1".__eq__)
        manager.wait_for("STATUS=idle".__eq__)
        installation.drop_pair("anna", seconds=0.6)
        job = installation.until_state("anna", JobState.RUNNING)
        manager.wait_for(re.compile(rf"STATUS=rendering job {job.id} [0-9]+%").match)
        installation.until_done("anna")
        manager.wait_for("WATCHDOG=1".__eq__)
    order = [manager.lines.index(line) for line in ("STATUS=starting", "READY=1", "WATCHDOG=1", "STOPPING=1")]
    assert order == sorted(order)
    assert manager.lines.count("READY=1") == 1
    [stopping] = [message for message in manager.messages if "STOPPING=1" in message]
    assert "EXTEND_TIMEOUT_USEC=30000000" in stopping
    assert manager.statuses[0] == "starting"


def test_while_a_job_finishes_systemd_is_asked_for_more_time(
    installation: Installation, manager: ServiceManager
) -> None:
    installation.changes["render"] = {"renderer": "slow", "stop_grace_s": 60}
    installation.start(**watched(manager))
    installation.drop_pair("anna", seconds=0.8)
    installation.until_state("anna", JobState.RUNNING)
    assert installation.stop() == 0
    after = manager.lines[manager.lines.index("STOPPING=1") :]
    assert after.count("EXTEND_TIMEOUT_USEC=30000000") >= 2  # one a second, while the rest of the render takes four
    assert any(line.startswith("STATUS=stopping: rendering job") for line in after)
    job = installation.job("anna")
    assert job is not None
    assert (job.state, job.attempt) == (JobState.DONE, 1)


def test_a_blocked_job_and_the_faults_are_in_the_status(installation: Installation, manager: ServiceManager) -> None:
    with installation.running(**watched(manager)):
        installation.drop_manifest("early", image="early.png", audio="early.wav", renderer="missing")
        installation.drop_pair("early")
        manager.wait_for("STATUS=blocked: renderer-not-installed, 1 queued".__eq__)
        away = installation.root / "away"
        installation.path("outbox").rename(away)
        manager.wait_for(re.compile(r"STATUS=.*; not ready: outbox: .*outbox is not mounted").match)
        away.rename(installation.path("outbox"))


def test_a_daemon_that_cannot_start_never_reports_ready(installation: Installation, manager: ServiceManager) -> None:
    installation.changes["web"] = {"enabled": True, "host": "0.0.0.0"}  # no key
    daemon = installation.start(wait=False, **watched(manager))
    assert daemon.wait(60) == 78
    installation.daemon = None
    assert "READY=1" not in manager.lines


def test_render_children_send_nothing_to_systemd(installation: Installation, manager: ServiceManager) -> None:
    with installation.running(**watched(manager)):
        installation.drop_pair("anna")
        installation.until_done("anna")
        child = int(installation.log.split("render child for cpu started, pid ")[1].split()[0])
        with open(f"/proc/{child}/environ", "rb") as file:
            names = {entry.partition(b"=")[0] for entry in file.read().split(b"\0")}
    assert b"PATH" in names
    assert not names & {b"NOTIFY_SOCKET", b"WATCHDOG_USEC", b"WATCHDOG_PID"}


def test_a_stopped_process_feeds_no_watchdog(installation: Installation, manager: ServiceManager) -> None:
    with installation.running(**watched(manager, limit_s=3.0)):
        manager.wait_for("WATCHDOG=1".__eq__)
        assert installation.daemon is not None
        installation.daemon.send_signal(signal.SIGSTOP)
        try:
            installation.until(lambda: _is_stopped(installation.daemon.pid), "the stop")
            manager.catch_up()
            heard = manager.lines.count("WATCHDOG=1")
            with pytest.raises(AssertionError, match="no such line"):
                manager.wait_for(lambda _: manager.lines.count("WATCHDOG=1") > heard, seconds=4.0)
        finally:
            installation.daemon.send_signal(signal.SIGCONT)
        manager.wait_for(lambda _: manager.lines.count("WATCHDOG=1") > heard)


@needs_root
@needs_fuse
@pytest.mark.slow
def test_a_share_that_hangs_is_reported_and_causes_no_restart(
    installation: Installation, manager: ServiceManager
) -> None:
    """A stopped FUSE server does not answer, like a dead file server behind a hard mount."""
    behind, share = installation.root / "behind", installation.root / "share"
    behind.mkdir()
    share.mkdir()
    server = subprocess.Popen(["bindfs", "-f", behind, share])
    try:
        installation.until(share.is_mount, "the mount")
        installation.changes["paths"] = {"inbox": str(share / "inbox"), "outbox": str(share / "outbox")}
        installation.changes["watch"] = {"poll_s": 0.2, "settle_network_s": 0.3}
        with installation.running(**watched(manager)):
            manager.wait_for("WATCHDOG=1".__eq__)
            server.send_signal(signal.SIGSTOP)
            manager.wait_for(re.compile(r"STATUS=.*not ready: .*no answer for").match, seconds=90)
            fed, written_ms = manager.lines.count("WATCHDOG=1"), _status_ms(installation)
            manager.wait_for(lambda _: manager.lines.count("WATCHDOG=1") > fed + 1)
            installation.until(lambda: _status_ms(installation) > written_ms, "a turn of the main loop")
            server.send_signal(signal.SIGCONT)
            for name, content in (("anna.png", picture()), ("anna.wav", sound())):
                put(behind / "inbox", name, content)
            installation.until_done("anna")
    finally:
        server.send_signal(signal.SIGCONT)
        unmount(share)
        server.terminate()
        server.wait()


def _status_ms(installation: Installation) -> int:
    """The time when the main loop last wrote the daemon's status."""
    return int(json.loads((installation.path("state") / "status.json").read_text())["at_ms"])


def _is_stopped(pid: int) -> bool:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "T"


# -- when a restart would help -----------------------------------------------------------------------------------------

HUNG_SHARE: dict[str, Any] = {"probing": "outbox", "probe_age_s": 500.0, "probe_due_s": 5.0}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"tick_age_s": health.MAIN_STUCK_S + 1}, "main loop"),
        ({"scan_age_s": health.SCAN_STUCK_S + 1}, "scanned"),
        ({"probing": "ledger", "probe_age_s": health.LEDGER_STUCK_S + 1, "probe_due_s": 5.0}, "ledger"),
        ({"workers": (WorkerFacts("cuda:0", up=False),)}, "cuda:0"),
        ({"workers": (WorkerFacts("cuda:0", up=True, unwatched_s=health.RENDER_STUCK_S + 1),)}, "cuda:0"),
    ],
)
def test_each_stuck_part_is_named(change: dict[str, Any], word: str) -> None:
    assert health.stuck(WELL) == ""
    assert word in health.stuck(replace(WELL, **change))


@pytest.mark.parametrize(
    "change",
    [
        {"tick_age_s": health.MAIN_STUCK_S - 1},
        {"tick_age_s": health.MAIN_STUCK_S + 1, **HUNG_SHARE},
        {"scan_age_s": health.SCAN_STUCK_S + 1, **HUNG_SHARE},
        {"scan_age_s": health.SCAN_STUCK_S + 1, "faults": {"inbox": "not mounted"}},
        {"scan_age_s": health.SCAN_STUCK_S + 1, "faults": {"disk": "full"}},
        {"scan_age_s": 1000.0, "scan_due_s": 600.0},
        {"scan_age_s": health.SCAN_STUCK_S + 1, "draining": True},
        {"workers": (WorkerFacts("cpu", up=False),), "draining": True},
        {"faults": {"ledger": "locked", "renderer": "no weights"}},
    ],
)
def test_faults_that_a_restart_would_not_mend_cause_none(change: dict[str, Any]) -> None:
    assert health.stuck(replace(WELL, **change)) == ""


def test_a_stuck_daemon_feeds_no_watchdog_and_logs_it_once(
    installation: Installation, ledger: Ledger, manager: ServiceManager, caplog: pytest.LogCaptureFixture
) -> None:
    now = WELL
    reporter = SystemdReporter(Notifier(watched(manager, limit_s=0.3)), view=LedgerView(ledger.path))
    reporter.started(lambda: now)
    reporter.report()
    manager.wait_for("WATCHDOG=1".__eq__)
    fed = manager.lines.count("WATCHDOG=1")
    now = replace(WELL, tick_age_s=health.MAIN_STUCK_S + 1)
    reporter.report()
    reporter.report()
    reporter.stopping(1.0)  # the last message
    manager.wait_for("STOPPING=1".__eq__)
    assert manager.lines.count("WATCHDOG=1") == fed
    assert [r.levelname for r in caplog.records if "stuck: the main loop" in r.message] == ["CRITICAL"]


# -- the status line ---------------------------------------------------------------------------------------------------


def test_the_status_line_counts_waiting_jobs_and_names_running_ones(ledger: Ledger) -> None:
    view = LedgerView(ledger.path)
    assert activity(WELL, view) == "idle"
    running = claimed(ledger, "anna")
    ledger.set_progress(running, "t", "rendering", 0.454)
    queued(ledger, "bert")
    queued(ledger, "cleo")
    assert activity(WELL, view) == f"rendering job {running} 45%, 2 queued"
    full = replace(WELL, faults={"disk": "/spool has 3 MB free; 500 MB are needed"})
    assert activity(full, view).endswith("2 queued; not ready: disk: /spool has 3 MB free; 500 MB are needed")
