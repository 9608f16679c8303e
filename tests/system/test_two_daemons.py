"""Two daemons on one state folder or one inbox: at the same time, and after the first was killed."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.kits.installation import Installation
from tests.kits.long_run_figures import report
from tests.kits.machine.machine_kit import LONG, drop_pairs, percentile

TRIES = 20 if LONG else 3


def neighbour(installation: Installation, name: str = "other") -> Installation:
    """An installation with its own folders, except for the inbox."""
    root = installation.root / name
    root.mkdir()
    return Installation(root, {"paths": {"inbox": str(installation.path("inbox"))}})


SECONDS: dict[str, tuple[Callable[[Installation], Installation], str, str]] = {
    "state folder": (
        lambda installation: installation,
        "{state}/lock is held by lipsyncd run, pid {pid}",
        "stop that daemon first, or give",
    ),
    "inbox": (neighbour, "the inbox {inbox} is served by the daemon with pid {pid} on ", "stop that one, or give each"),
}


@pytest.mark.parametrize("what", SECONDS)
def test_the_second_is_refused_at_once_with_the_holder_and_a_remedy(installation: Installation, what: str) -> None:
    make, message, remedy = SECONDS[what]
    with installation.running():
        assert installation.daemon is not None
        second, took_s = make(installation), []
        where = {
            "state": installation.path("state"),
            "inbox": installation.path("inbox"),
            "pid": installation.daemon.pid,
        }
        for _ in range(TRIES):
            began_s = time.monotonic()
            refusal = second.cli("run")
            took_s.append(time.monotonic() - began_s)
            assert refusal.returncode == 75
            assert message.format(**where) in refusal.stderr
            assert remedy in refusal.stderr
        drop_pairs(installation.path("inbox"), [0])
        installation.until_done("p0")
    assert min(took_s) < 20, "on an idle machine it takes less than a second"
    report(
        f"a second daemon on the same {what}",
        f"refused with status 75 after {percentile(took_s, 0.5):.2f} s, quickest {min(took_s):.2f} s",
    )


def test_a_refusal_comes_before_anything_heavy_is_imported(installation: Installation) -> None:
    with installation.running():
        refusal = installation.cli("run", PYTHONPROFILEIMPORTTIME="1")
    imported = {
        line.rpartition("|")[2].strip() for line in refusal.stderr.splitlines() if line.startswith("import time")
    }
    assert refusal.returncode == 75
    assert "lipsyncd.storage.locks" in imported
    assert not imported & {"lipsyncd.daemon.daemon", "sqlalchemy", "aiohttp", "numpy"}


def test_the_inbox_of_a_killed_daemon_is_free_for_another_one_at_once(installation: Installation) -> None:
    """A lock ends with its holder, so it never has to be removed."""
    installation.start()
    drop_pairs(installation.path("inbox"), [0])
    installation.until_done("p0")
    installation.kill()
    other = neighbour(installation)
    with other.running():
        drop_pairs(installation.path("inbox"), [1])
        other.until_done("p1")
    installation.start()
    installation.kill()
    with installation.running():
        drop_pairs(installation.path("inbox"), [2])
        installation.until_done("p2")


@pytest.mark.parametrize("how", ["one state folder", "one inbox"])
def test_of_daemons_that_start_at_once_one_serves(installation: Installation, how: str) -> None:
    installations = (
        [installation] * 3
        if how == "one state folder"
        else [installation, neighbour(installation, "second"), neighbour(installation, "third")]
    )
    installation.start()
    installation.stop()  # the folders are made
    started = [one.start(wait=False) for one in installations]
    try:
        installation.until(lambda: sum(one.poll() is not None for one in started) >= 2, "two refusals")
        assert sorted(one.poll() or 0 for one in started) == [0, 75, 75]
        [serving] = [one for one, process in zip(installations, started, strict=True) if process.poll() is None]
        drop_pairs(installation.path("inbox"), [0])
        serving.until_done("p0")
    finally:
        for process in started:
            process.kill()
            process.wait(10)
        installation.daemon = None
