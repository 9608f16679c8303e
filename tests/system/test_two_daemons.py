"""Two daemons where one may be: on one state folder, on one inbox, at once, and after the first was killed."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.kits.installation import Home
from tests.kits.long_run_figures import tell
from tests.kits.machine.world_kit import LONG, drop_pairs, percentile

TRIES = 20 if LONG else 3


def neighbour(home: Home, name: str = "other") -> Home:
    """An installation with folders of its own but for the inbox."""
    root = home.root / name
    root.mkdir()
    return Home(root, {"paths": {"inbox": str(home.path("inbox"))}})


SECONDS: dict[str, tuple[Callable[[Home], Home], str, str]] = {
    "state folder": (
        lambda home: home,
        "{state}/lock is held by lipsyncd run, pid {pid}",
        "stop that one first, or give",
    ),
    "inbox": (neighbour, "the inbox {inbox} is served by the daemon with pid {pid} on ", "stop that one, or give each"),
}


@pytest.mark.parametrize("what", SECONDS)
def test_the_second_is_refused_at_once_and_told_who_and_what_to_do(home: Home, what: str) -> None:
    make, message, remedy = SECONDS[what]
    with home.running():
        assert home.daemon is not None
        second, took_s = make(home), []
        where = {"state": home.path("state"), "inbox": home.path("inbox"), "pid": home.daemon.pid}
        for _ in range(TRIES):
            began_s = time.monotonic()
            told = second.cli("run")
            took_s.append(time.monotonic() - began_s)
            assert told.returncode == 75
            assert message.format(**where) in told.stderr
            assert remedy in told.stderr
        drop_pairs(home.path("inbox"), [0])
        home.until_done("p0")
    assert min(took_s) < 20, "on an idle machine it takes less than a second"
    tell(
        f"a second daemon on the same {what}",
        f"refused with status 75 after {percentile(took_s, 0.5):.2f} s, quickest {min(took_s):.2f} s",
    )


def test_a_refusal_comes_before_anything_heavy_is_imported(home: Home) -> None:
    with home.running():
        told = home.cli("run", PYTHONPROFILEIMPORTTIME="1")
    imported = {line.rpartition("|")[2].strip() for line in told.stderr.splitlines() if line.startswith("import time")}
    assert told.returncode == 75
    assert "lipsyncd.storage.locks" in imported
    assert not imported & {"lipsyncd.daemon.daemon", "sqlalchemy", "aiohttp", "numpy"}


def test_the_inbox_of_a_killed_daemon_is_free_for_another_one_at_once(home: Home) -> None:
    """No lock outlives its holder, so nobody has to remove one."""
    home.start()
    drop_pairs(home.path("inbox"), [0])
    home.until_done("p0")
    home.kill()
    other = neighbour(home)
    with other.running():
        drop_pairs(home.path("inbox"), [1])
        other.until_done("p1")
    home.start()
    home.kill()
    with home.running():
        drop_pairs(home.path("inbox"), [2])
        home.until_done("p2")


@pytest.mark.parametrize("how", ["one state folder", "one inbox"])
def test_of_daemons_that_start_at_once_one_serves(home: Home, how: str) -> None:
    homes = [home] * 3 if how == "one state folder" else [home, neighbour(home, "second"), neighbour(home, "third")]
    home.start()
    home.stop()  # the folders are made
    started = [one.start(wait=False) for one in homes]
    try:
        home.until(lambda: sum(one.poll() is not None for one in started) >= 2, "two refusals")
        assert sorted(one.poll() or 0 for one in started) == [0, 75, 75]
        [serving] = [one for one, process in zip(homes, started, strict=True) if process.poll() is None]
        drop_pairs(home.path("inbox"), [0])
        serving.until_done("p0")
    finally:
        for process in started:
            process.kill()
            process.wait(10)
        home.daemon = None
