"""Thousands of pairs at once while the daemon is stopped: each is accepted once. And the time that takes."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from lipsyncd.jobs.job import JobState
from tests.kits.installation import Installation
from tests.kits.long_run_figures import report
from tests.kits.machine.machine_kit import LONG, drop_pairs, percentile
from tests.kits.web_kit import serving

PAIRS = 10_000 if LONG else 2_000
EVENTS = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
STOPPED_S = 5.0
SINGLE = 200 if LONG else 20
RESTARTS = 20 if LONG else 3


def jobs(installation: Installation) -> int:
    return sum(installation.view.counts().values())


def fill_queue(inbox: Path) -> None:
    """Make more events than the kernel queues, so that it reports none of the later ones."""
    names = [inbox / ".here", inbox / ".there"]
    names[0].touch()
    for number in range(EVENTS + 100):
        names[number % 2].rename(names[1 - number % 2])
    for name in names:
        name.unlink(missing_ok=True)


@pytest.mark.inotify
def test_a_burst_while_the_daemon_is_stopped_is_accepted_whole(installation: Installation) -> None:
    changes = {"render": {"renderer": "missing"}, "watch": {"rescan_s": 3600.0}}
    with serving(installation.root, changes=changes) as api:
        installation = api.installation
        assert installation.daemon is not None
        os.kill(installation.daemon.pid, signal.SIGSTOP)
        stopped_s = time.monotonic()
        fill_queue(installation.path("inbox"))
        drop_pairs(installation.path("inbox"), range(PAIRS))
        time.sleep(max(0.0, STOPPED_S - (time.monotonic() - stopped_s)))
        assert jobs(installation) == 0
        os.kill(installation.daemon.pid, signal.SIGCONT)
        began_s = time.monotonic()
        installation.until(lambda: jobs(installation) >= PAIRS, "the acceptance of all", seconds=PAIRS / 10)
        took_s = time.monotonic() - began_s
        installation.until(lambda: os.listdir(installation.path("inbox")) == [".lipsyncd"], "an empty inbox")
        [lost] = re.findall(r"^lipsyncd_watch_overflows_total (\S+)$", api.get("/metrics").body.decode(), re.MULTILINE)
        assert float(lost) >= 1, "no event was lost, so nothing was proved"
    names = [job.name for job in installation.view.jobs(limit=2 * PAIRS)]
    assert sorted(names) == sorted(f"p{number}" for number in range(PAIRS))
    assert len([p for p in installation.path("spool").iterdir() if not p.name.startswith(".")]) == PAIRS
    report(
        f"{PAIRS} pairs dropped while the daemon stands still for 5 s", f"all accepted, {PAIRS / took_s:.0f} a second"
    )


def test_the_time_from_a_drop_to_its_acceptance(installation: Installation) -> None:
    """Printed, not asserted, since other work on the machine changes it."""
    installation.changes = {"render": {"renderer": "missing"}, "watch": {"settle_proven_s": 0.2}}
    waits_s = []
    with installation.running():
        for number in range(SINGLE):
            drop_pairs(installation.path("inbox"), [number])
            dropped_ms = time.time() * 1000
            job = installation.until(lambda name=f"p{number}": installation.job(name), "the acceptance")
            waits_s.append((job.accepted_ms - dropped_ms) / 1000)
            assert job.state is JobState.QUEUED
    p50, p99 = (percentile(waits_s, share) for share in (0.5, 0.99))
    report(f"drop to accepted, {SINGLE} local rename-ins, 0.2 s of settling", f"p50 {p50:.2f} s, p99 {p99:.2f} s")


def test_a_killed_daemon_is_back_at_its_job_after_the_restart(installation: Installation) -> None:
    installation.changes = {"render": {"renderer": "slow", "max_attempts": RESTARTS + 2}}
    installation.start()
    drop_pairs(installation.path("inbox"), [1], seconds=60)
    installation.until_state("p1", JobState.RUNNING)
    waits_s = []
    for _ in range(RESTARTS):
        installation.kill()
        began_ms = time.time() * 1000
        installation.start(fresh=True)
        job = installation.until(
            lambda since=began_ms: (j := installation.job("p1")) and (j.started_ms or 0) >= since and j, "resuming"
        )
        waits_s.append((job.started_ms - began_ms) / 1000)
    assert job.attempt == RESTARTS + 1
    installation.kill()
    report(f"kill -9 to the job's next attempt, {RESTARTS} restarts", f"p50 {percentile(waits_s, 0.5):.2f} s")
