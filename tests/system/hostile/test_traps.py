"""Files of a member that hang, flood or confuse their reader: pipes, links, gigabytes, nested JSON, folders.

They lie wherever the daemon reads what others may write. It goes on working, in bounded time and memory, ends when it
is asked to, and comes up again among them.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lipsyncd.jobs.job import JobState
from tests.kits.faults.racer_kit import leaks, make_victim, snapshot
from tests.kits.installation import Installation
from tests.kits.machine.users_kit import DAEMON, needs_users, shared_installation
from tests.system.hostile.test_folders import as_member, drop, link, shared

pytestmark = needs_users

MOST_GROWTH_MB = 200
MOST_END_S = 10.0
MOST_START_S = 14.0


@pytest.fixture
def share() -> Iterator[Installation]:
    with shared_installation() as made:
        made.run_as = DAEMON.command(lease=True)
        made.changes["watch"] = {"rescan_s": 0.5}
        made.changes["retention"] = {"outbox_days": 3650, "failed_days": 3650}
        yield made


def fifo(path: Path) -> None:
    os.mkfifo(path)
    as_member(path)


def huge(path: Path) -> None:
    """Three gigabytes of zeros that take no room, after the beginning of an object."""
    as_member(path, b'{"a": "')
    os.truncate(path, 3 << 30)


def deep(path: Path) -> None:
    as_member(path, b'{"id": ' + b"[" * 300_000 + b"]" * 300_000 + b"}")


def wide(path: Path) -> None:
    """An object of 900 KB with 100,000 names."""
    as_member(path, json.dumps(dict.fromkeys(map(str, range(80_000)), 0)).encode()[:900_000])


def folder(path: Path) -> None:
    path.mkdir()
    (path / "inside").write_bytes(b"x")
    as_member(path)


def odd(path: Path) -> None:
    as_member(path, b'{"id": {"a": 1}, "action": [], "job_id": {}, "value": 1e999, "video": 7, "sources": "x"}')


def to_zeros(path: Path) -> None:
    link(path, Path("/dev/zero"))


TRAPS: tuple[Callable[[Path], None], ...] = (fifo, huge, deep, wide, folder, odd, to_zeros)


def memory_mb(pid: int) -> float:
    """The most memory that the process ever had."""
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1000


def set_traps(share: Installation, kept: Path, victim: Path) -> None:
    """A trap of each kind in every place, under a name that comes first and under one that comes last."""
    outbox, control, made = share.path("outbox"), share.path("state") / "control", share.root / "made"
    for number, trap in enumerate(TRAPS):
        for place, suffix in (
            (control, ".json"),
            (control, ".answer"),
            (outbox, ".json"),
            (share.path("inbox"), ".json"),
        ):
            trap(made)  # beside, since the daemon removes some as soon as they are there
            made.rename(place / f"{number}{suffix}")
        inner = kept.parent / f"0000{number}-trap"
        inner.mkdir()
        as_member(inner)
        trap(inner / "job.json")
        as_member(inner / "reason.json", b"{}")
    link(made, victim / "secret").rename(control / "9.json")
    link(outbox / "9.json", victim / "secret")
    link(kept.parent / "00009-trap", victim)


def test_the_daemon_goes_on_among_traps_ends_when_asked_and_starts_again(
    share: Installation, record_property: Callable[[str, object], None]
) -> None:
    victim = make_victim(share.root, DAEMON)
    with share.running():
        drop(share, "failing", renderer="shy")
        failed = share.until_failed("failing")
        assert share.daemon is not None
        pid, before_mb = share.daemon.pid, memory_mb(share.daemon.pid)
        before = snapshot(victim)
        set_traps(share, Path(failed.kept or ""), victim)
        steps = {}
        for name, step in (
            ("a job", lambda: (drop(share, "anna"), share.until_done("anna"))),
            ("a retry", lambda: (share.cli("retry", failed.id), share.until_failed("failing"))),
            ("pruning", lambda: share.cli("prune")),
            ("a cancel", lambda: cancelled(share)),
        ):
            began_s = time.monotonic()
            step()
            steps[name] = round(time.monotonic() - began_s, 1)
        assert max(steps.values()) < 20, steps
        grown_mb = memory_mb(pid) - before_mb
        assert grown_mb < MOST_GROWTH_MB
        began_s = time.monotonic()
        share.daemon.send_signal(signal.SIGTERM)
        share.daemon.wait(60)
        ended_s = time.monotonic() - began_s
        assert ended_s < MOST_END_S
    began_s = time.monotonic()
    with share.running():
        drop(share, "bert", seed=3)
        share.until_done("bert")
        started_s = time.monotonic() - began_s
        assert started_s < MOST_START_S
    record_property("figures", {**steps, "memory_mb": round(grown_mb), "end_s": ended_s, "start_s": started_s})
    assert snapshot(victim) == before
    assert leaks(*shared(share), share.path("spool")) == []


def cancelled(share: Installation) -> None:
    drop(share, "long", seed=5, renderer="hang")
    share.until_state("long", JobState.RUNNING)
    job = share.job("long")
    assert job is not None
    assert share.cli("cancel", job.id).returncode == 0
    share.until_state("long", JobState.CANCELLED)
