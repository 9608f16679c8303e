"""Health: when the daemon is live, when it is ready, and that no answer waits for a folder, a disk or the ledger."""

from __future__ import annotations

import json
import re
import sqlite3
import threading
import time
import tomllib
import urllib.error
import urllib.request
from contextlib import closing, suppress
from dataclasses import replace
from typing import Any

import pytest

from lipsyncd.errors import Blocked, RendererNotInstalled, tree
from lipsyncd.jobs.job import JobState
from lipsyncd.ledger.ledger import Ledger
from lipsyncd.monitor import health
from lipsyncd.monitor.facts import Facts, WorkerFacts
from lipsyncd.monitor.packages import NEEDS
from lipsyncd.monitor.probe import RENDERER_CODES, HealthMonitor
from lipsyncd.renderers import NAMES
from lipsyncd.settings import CurrentSettings
from tests.kits.core_kit import as_nobody, queued
from tests.kits.installation import ROOT, Installation
from tests.kits.webhook_receiver import until

WELL = Facts(version="1", workers=(WorkerFacts("cpu", up=True),))


def monitor_of(installation: Installation, ledger: Ledger, **how: Any) -> HealthMonitor:
    given: dict[str, Any] = {"scan_age_s": lambda: 0.0, "scan_due_s": lambda: 10.0, "workers": list, **how}
    return HealthMonitor(CurrentSettings(installation.settings), installation.folders, touch=ledger.touch, **given)


def failing(monitor: HealthMonitor) -> dict[str, str]:
    good, body = monitor.ready()
    assert good is (body["failing"] == {})
    found: dict[str, str] = dict(body["failing"])
    return found


# -- the verdicts ------------------------------------------------------------------------------------------------------


def test_live_is_about_the_main_loop_and_nothing_else() -> None:
    everything_wrong = replace(
        WELL, draining=True, faults={"ledger": "locked"}, workers=(WorkerFacts("cpu", up=False),)
    )
    assert health.live(everything_wrong) == (True, {"status": "live", "tick_age_s": 0.0})
    assert health.live(replace(WELL, tick_age_s=health.TICK_LIMIT_S + 1))[0] is False


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({"draining": True}, "draining"),
        ({"faults": {"outbox": "gone"}}, "outbox"),
        ({"probe_age_s": 16.0, "probe_due_s": 5.0, "probing": "inbox"}, "inbox"),
        ({"probe_age_s": 16.0, "probe_due_s": 5.0}, "probe"),
        ({"scan_age_s": 31.0, "scan_due_s": 10.0}, "scan"),
        ({"workers": (WorkerFacts("cpu", up=True), WorkerFacts("cuda:0", up=False))}, "worker-cuda:0"),
    ],
)
def test_each_obstacle_is_named_alone(change: dict[str, Any], check: str) -> None:
    assert health.ready(WELL) == (True, {"status": "ready", "failing": {}})
    good, body = health.ready(replace(WELL, **change))
    assert (good, body["status"], list(body["failing"])) == (False, "not ready", [check])
    assert body["failing"][check]


def test_a_missing_inbox_is_one_fault_and_not_a_late_scan_too() -> None:
    _, body = health.ready(replace(WELL, faults={"inbox": "not mounted"}, scan_age_s=500.0))
    assert list(body["failing"]) == ["inbox"]


# -- the probe ---------------------------------------------------------------------------------------------------------


def test_nothing_is_ready_before_the_first_probe_and_all_is_after_it(
    installation: Installation, ledger: Ledger
) -> None:
    monitor = monitor_of(installation, ledger)
    assert list(failing(monitor)) == ["probe"]
    monitor.probe()
    assert failing(monitor) == {}


@pytest.mark.parametrize("kind", ["inbox", "outbox"])
def test_a_folder_whose_marker_is_gone_is_not_mounted(installation: Installation, ledger: Ledger, kind: str) -> None:
    monitor = monitor_of(installation, ledger)
    (installation.path(kind) / ".lipsyncd" / f"{kind}-id").unlink()
    monitor.probe()
    assert list(failing(monitor)) == [kind]
    assert "not mounted" in failing(monitor)[kind]


@pytest.mark.parametrize("kind", ["inbox", "outbox"])
def test_a_folder_that_may_not_be_written_is_a_fault(installation: Installation, ledger: Ledger, kind: str) -> None:
    folder, state = installation.path(kind), installation.path("state")
    folder.chmod(0o555)
    (state / "folders.json").chmod(0o644)
    monitor = monitor_of(installation, ledger)
    try:
        why = as_nobody(lambda: monitor._folder_fault(kind), folder / ".lipsyncd", state)
    finally:
        folder.chmod(0o755)
    assert why == f"{folder} cannot be written"


def test_a_low_disk_is_a_fault_with_both_numbers(installation: Installation, ledger: Ledger) -> None:
    installation.changes["paths"] = {"min_free_mb": 1 << 40}
    monitor = monitor_of(installation, ledger)
    monitor.probe()
    assert list(failing(monitor)) == ["disk"]
    assert f"MB free; {1 << 40} MB are needed" in failing(monitor)["disk"]


def test_a_locked_ledger_is_a_fault_and_answers_still_come_at_once(installation: Installation, ledger: Ledger) -> None:
    monitor = monitor_of(installation, ledger, probe_every_s=0.1)
    thread = threading.Thread(target=monitor.run)
    thread.start()
    try:
        until(lambda: failing(monitor) == {}, "the first probe")
        with closing(sqlite3.connect(ledger.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            until(lambda: failing(monitor), "the fault")
            assert min(asked_s(monitor) for _ in range(5)) < 0.05  # other programs may delay any of them
            other.execute("COMMIT")
        until(lambda: failing(monitor) == {}, "the end of it")
    finally:
        monitor.stop()
        thread.join(10)
    assert not thread.is_alive()


def asked_s(monitor: HealthMonitor) -> float:
    """How long the answers take while the ledger is locked."""
    began_s = time.monotonic()
    assert list(failing(monitor)) == ["ledger"]
    assert monitor.live()[0]
    return time.monotonic() - began_s


def test_touching_the_ledger_writes_and_changes_nothing(installation: Installation, ledger: Ledger) -> None:
    job = ledger.get(queued(ledger))
    with closing(sqlite3.connect(ledger.path)) as other:
        [before] = other.execute("PRAGMA data_version").fetchone()
        ledger.touch()
        [after] = other.execute("PRAGMA data_version").fetchone()  # changes with each commit of another connection
    assert after > before
    assert ledger.get(job.id) == job
    ledger.check()


def test_a_default_renderer_without_its_packages_is_a_fault(installation: Installation, ledger: Ledger) -> None:
    installation.changes["render"] = {"renderer": "mine", "renderers": ["mine=no_such_package_anywhere.mine:Mine"]}
    monitor = monitor_of(installation, ledger)
    monitor.probe()
    assert failing(monitor) == {"renderer": "mine needs no_such_package_anywhere, which is not installed"}


def test_blocked_jobs_of_the_default_renderer_are_a_fault_and_others_are_not(
    installation: Installation, ledger: Ledger
) -> None:
    monitor = monitor_of(installation, ledger)
    other = queued(ledger, "bert", renderer="preview")
    ledger.set_blocked(other, RendererNotInstalled("no cv2").reason(), delay_ms=0)
    monitor.probe()
    assert failing(monitor) == {}
    blocked = queued(ledger, "anna")
    ledger.set_blocked(blocked, RendererNotInstalled("no torch").reason(), delay_ms=0)
    monitor.probe()
    assert failing(monitor) == {"renderer": "renderer-not-installed: no torch"}
    ledger.to_cancelled(blocked, sources=[JobState.QUEUED])
    monitor.probe()
    assert failing(monitor) == {}


def test_what_each_renderer_needs_is_known() -> None:
    assert NAMES.keys() == NEEDS.keys()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name, extra in project["optional-dependencies"].items():
        if name in NEEDS:
            assert {re.match(r"\w+", line)[0] for line in extra} <= set(NEEDS[name])  # type: ignore[index]


def test_the_reasons_that_concern_a_renderer_are_reasons_to_wait() -> None:
    assert set(RENDERER_CODES) <= {cls.code for cls in tree(Blocked)}


# -- the daemon --------------------------------------------------------------------------------------------------------


def ask(installation: Installation, path: str) -> tuple[int, bytes, str]:
    """Status, body and type of the daemon's answer, which must come within two seconds in one of a few tries."""
    status = installation.path("state") / "status.json"
    installation.until(status.exists, "the port")
    port = json.loads(status.read_text())["web_port"]
    for _ in range(2):
        with suppress(OSError):  # other programs may delay any of them
            return answer_of(port, path)
    return answer_of(port, path)


def answer_of(port: int, path: str) -> tuple[int, bytes, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2) as response:
            return response.status, response.read(), response.headers["Content-Type"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), error.headers["Content-Type"]


def readiness(installation: Installation) -> tuple[int, list[str]]:
    status, body, _ = ask(installation, "/health/ready")
    return status, list(json.loads(body)["failing"])


@pytest.fixture
def served(installation: Installation) -> Installation:
    installation.changes["web"] = {"enabled": True, "port": 0}
    return installation


def test_the_daemon_is_ready_idle_and_after_work_and_not_without_its_outbox(served: Installation) -> None:
    with served.running():
        served.until(lambda: readiness(served) == (200, []), "readiness")
        served.drop_pair("anna")
        served.until_done("anna")
        assert readiness(served) == (200, [])
        served.path("outbox").rename(served.root / "elsewhere")
        served.until(lambda: readiness(served) == (503, ["outbox"]), "the missing outbox")
        assert ask(served, "/health/live")[0] == 200
        (served.root / "elsewhere").rename(served.path("outbox"))
        served.until(lambda: readiness(served) == (200, []), "its return")


@pytest.mark.slow
def test_without_a_key_readiness_names_the_checks_and_no_paths(served: Installation) -> None:
    with served.running(LIPSYNCD_API_KEY="client:secret-word"):
        served.until(lambda: readiness(served) == (200, []), "readiness")
        hidden = served.root / "elsewhere"
        for kind in ("outbox", "inbox"):
            served.path(kind).rename(hidden)
            served.until(lambda kind=kind: readiness(served) == (503, [kind]), "the missing folder")
            body = ask(served, "/health/ready")[1].decode()
            assert "/" not in body
            assert json.loads(body)["failing"][kind]
            port = json.loads((served.path("state") / "status.json").read_text())["web_port"]
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/health/ready", headers={"X-Api-Key": "client:secret-word"}
            )
            with pytest.raises(urllib.error.HTTPError) as answer:
                urllib.request.urlopen(request, timeout=5)
            with answer.value as error:
                assert str(served.path(kind)) in json.loads(error.read())["failing"][kind]
            hidden.rename(served.path(kind))
            served.until(lambda: readiness(served) == (200, []), "its return")


def test_a_stopping_daemon_is_live_and_not_ready(served: Installation) -> None:
    served.changes["render"] = {"renderer": "hang", "stop_grace_s": 3}
    served.start()
    served.drop_pair("anna")
    served.until_state("anna", JobState.RUNNING)
    served.until(lambda: readiness(served) == (200, []), "readiness")
    assert served.daemon is not None
    served.daemon.terminate()
    served.until(lambda: "draining" in readiness(served)[1], "the draining", seconds=2)
    assert ask(served, "/health/live")[0] == 200
    assert served.daemon.wait(20) == 0
    served.daemon = None


@pytest.mark.slow
def test_a_locked_ledger_leaves_the_daemon_live_and_not_ready(served: Installation) -> None:
    served.start()
    served.until(lambda: readiness(served) == (200, []), "readiness")
    with closing(sqlite3.connect(served.path("state") / "ledger.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        served.until(lambda: "ledger" in readiness(served)[1], "the fault")
        assert ask(served, "/health/live")[0] == 200
        other.execute("COMMIT")
    served.until(lambda: readiness(served) == (200, []), "the end of it")
    served.kill()  # other threads have met the lock too, so a stop would end with status 1
