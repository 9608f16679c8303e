"""The housekeeper: nights, full disks, clocks that lie, and `lipsyncd prune` with and without a daemon."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from lipsyncd.daemon.housekeeping import Housekeeper, last_night
from lipsyncd.jobs.job import JobState
from lipsyncd.ledger import backups
from lipsyncd.settings import Paths
from lipsyncd.settings.sections import Retention as Rules
from lipsyncd.storage.disk_space import free_mb
from tests.kits.installation import Installation
from tests.kits.jobs_by_hand import JobsByHand

HOUR_S, DAY_S = 3600.0, 86400.0
BEGAN = datetime(2026, 11, 22, 12, 0).timestamp()


class Time:
    """A wall clock that can be set, and the steady one that cannot."""

    def __init__(self) -> None:
        self.wall_s = BEGAN
        self.steady_s = 1000.0

    def goes_by(self, seconds: float) -> None:
        self.wall_s += seconds
        self.steady_s += seconds


@pytest.fixture
def clocks() -> Time:
    return Time()


@pytest.fixture
def by_hand(tmp_path: Path) -> Iterator[JobsByHand]:
    by_hand = JobsByHand(tmp_path, retention=Rules(backups=3))
    yield by_hand
    by_hand.close()


def housekeeper(by_hand: JobsByHand, clocks: Time) -> Housekeeper:
    return Housekeeper(by_hand.stores, by_hand.finisher, wall=lambda: clocks.wall_s, steady=lambda: clocks.steady_s)


def aged(by_hand: JobsByHand, clocks: Time, *, days: float) -> None:
    """Make everything that lies there now so old, by the clocks of the test."""
    at_s = clocks.wall_s - days * DAY_S
    for kind in ("outbox", "archive", "failed"):
        for path in by_hand.path(kind).rglob("*.json"):
            os.utime(path, (at_s, at_s))
    for path in by_hand.folders.results.iterdir():
        os.utime(path, (at_s, at_s))


# -- nights ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "began"),
    [
        ("2026-11-22 03:29:59", "2026-11-21 03:30"),
        ("2026-11-22 03:30:00", "2026-11-22 03:30"),
        ("2026-11-22 23:00:00", "2026-11-22 03:30"),
        ("2026-03-01 00:00:00", "2026-02-28 03:30"),
    ],
)
def test_a_night_begins_at_its_local_time(now: str, began: str) -> None:
    at_s = datetime.fromisoformat(now).timestamp()
    assert datetime.fromtimestamp(last_night(at_s, "03:30")) == datetime.fromisoformat(began)


def test_each_night_has_one_copy_and_one_pruning_and_the_first_start_has_none(
    by_hand: JobsByHand, clocks: Time
) -> None:
    folder = by_hand.folders.state / "backups"
    by_hand.published("anna")
    keeper = housekeeper(by_hand, clocks)
    keeper.look()
    assert backups.copies(folder) == []
    for night in range(1, 6):
        while last_night(clocks.wall_s, "03:30") < BEGAN + (night - 1) * DAY_S:
            clocks.goes_by(HOUR_S / 2)
            keeper.look()
        copies = backups.copies(folder)
        clocks.goes_by(HOUR_S)
        keeper.look()
        assert backups.copies(folder) == copies
        assert len(copies) == min(night, 3)
    aged(by_hand, clocks, days=31)
    clocks.goes_by(HOUR_S)
    keeper.look()
    assert by_hand.shown("archive") != []  # not before the night
    clocks.goes_by(DAY_S)
    keeper.look()
    assert by_hand.shown("archive") == []
    assert by_hand.shown() == ["anna.json", "anna.mp4"]


def test_a_night_that_was_slept_through_is_made_up_for(by_hand: JobsByHand, clocks: Time) -> None:
    housekeeper(by_hand, clocks).look()
    by_hand.published("anna")
    clocks.goes_by(3 * DAY_S)
    aged(by_hand, clocks, days=31)
    again = housekeeper(by_hand, clocks)  # the daemon starts again
    again.look()
    assert len(backups.copies(by_hand.folders.state / "backups")) == 1
    assert by_hand.shown("archive") != []  # the clock may be wrong still, just after a start
    clocks.goes_by(301)
    again.look()
    assert by_hand.shown("archive") == []
    assert len(backups.copies(by_hand.folders.state / "backups")) == 1


def test_a_copy_that_cannot_be_made_is_no_reason_to_try_all_night(
    by_hand: JobsByHand, clocks: Time, caplog: pytest.LogCaptureFixture
) -> None:
    keeper = housekeeper(by_hand, clocks)
    keeper.look()
    (by_hand.folders.state / "backups").write_bytes(b"in the way")
    clocks.goes_by(DAY_S)
    for _ in range(3):
        keeper.look()
        clocks.goes_by(5)
    assert len([r for r in caplog.records if "no copy of the ledger this night" in r.getMessage()]) == 1
    (by_hand.folders.state / "backups").unlink()
    clocks.goes_by(DAY_S)
    keeper.look()
    assert len(backups.copies(by_hand.folders.state / "backups")) == 1


def test_without_backups_none_are_made(tmp_path: Path, clocks: Time) -> None:
    by_hand = JobsByHand(tmp_path, retention=Rules(backups=0))
    keeper = housekeeper(by_hand, clocks)
    keeper.look()
    clocks.goes_by(DAY_S)
    keeper.look()
    assert not (by_hand.folders.state / "backups").exists()
    by_hand.close()


def test_results_and_uploads_do_not_wait_for_the_night(by_hand: JobsByHand, clocks: Time) -> None:
    by_hand.published("anna")
    keeper = housekeeper(by_hand, clocks)
    clocks.goes_by(301)
    keeper.look()
    aged(by_hand, clocks, days=1.01)
    keeper.look()
    assert list(by_hand.folders.results.iterdir()) != []
    clocks.goes_by(601)
    keeper.look()
    assert list(by_hand.folders.results.iterdir()) == []
    assert by_hand.shown("archive") != []


# -- clocks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump_s", [400 * DAY_S, -400 * DAY_S])
def test_a_clock_that_is_set_costs_nothing_but_a_day(
    by_hand: JobsByHand, clocks: Time, jump_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    by_hand.published("anna")
    aged(by_hand, clocks, days=1)
    keeper = housekeeper(by_hand, clocks)
    clocks.goes_by(301)
    keeper.look()
    assert list(by_hand.folders.results.iterdir()) == []
    clocks.wall_s += jump_s
    for _ in range(20):
        keeper.look()
        clocks.goes_by(HOUR_S)
    assert by_hand.shown("archive") != []
    clocks.wall_s -= jump_s
    for _ in range(40):
        keeper.look()
        clocks.goes_by(HOUR_S)
    assert by_hand.shown("archive") != []
    assert [r.getMessage() for r in caplog.records if "the clock was set" in r.getMessage()] == [
        f"the clock was set by {hours:+.1f} h: nothing is pruned by its age for a day"
        for hours in (jump_s / HOUR_S, -jump_s / HOUR_S)
    ]


# -- the ledger --------------------------------------------------------------------------------------------------------


def test_changes_are_written_home_while_nothing_runs(by_hand: JobsByHand, clocks: Time) -> None:
    keeper = housekeeper(by_hand, clocks)
    by_hand.running("anna")
    for number in range(20):
        by_hand.queued(f"job {number}")
    size = by_hand.ledger.path.stat().st_size
    keeper.look()
    assert by_hand.ledger.path.stat().st_size == size
    by_hand.ledger.requeue(by_hand.ledger.in_state(JobState.RUNNING)[0].id, note="", charge=False)
    keeper.look()
    assert by_hand.ledger.path.stat().st_size > size


# -- a full disk -------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", folder], check=False).returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def crowded(small: Path, **rules: float | str) -> JobsByHand:
    """Three videos of 3 MB, each in the outbox and once more in results, on a disk whose floor is 10 MB."""
    by_hand = JobsByHand(small, retention=Rules(**rules))  # type: ignore[arg-type]
    object.__setattr__(by_hand.settings, "paths", Paths(storage=small, min_free_mb=10))
    for number in range(3):
        by_hand.published(f"video {number}", content=bytes([number]) * 3_000_000)
        for path in [*by_hand.folders.results.iterdir(), *by_hand.path("outbox").glob("*.json")]:
            at_s = time.time() - 5 * HOUR_S
            os.utime(path, (at_s, at_s))
    assert free_mb(small) < 10
    return by_hand


def test_what_has_a_limit_goes_early_when_the_disk_is_low_and_no_more_than_needed(small: Path) -> None:
    by_hand = crowded(small)
    keeper = Housekeeper(by_hand.stores, by_hand.finisher)
    assert keeper.make_room()
    assert free_mb(small) >= 10
    left = [path for path in by_hand.folders.results.iterdir() if path.suffix == ".mp4"]
    assert len(left) == 1
    assert len(by_hand.shown()) == 6  # the outbox is for ever
    by_hand.close()


def test_what_is_due_goes_first_and_with_that_rule_nothing_else(small: Path) -> None:
    by_hand = crowded(small, below_floor="due", results_h=24)
    steady = [1000.0]
    keeper = Housekeeper(by_hand.stores, by_hand.finisher, steady=lambda: steady[0])
    steady[0] += 301
    assert not keeper.make_room()
    assert len(list(by_hand.folders.results.iterdir())) == 6
    oldest = min(by_hand.folders.results.glob("*.json"))
    os.utime(oldest, (1, 1))
    assert not keeper.make_room()  # it looked a moment ago
    steady[0] += 61
    keeper.make_room()
    assert len(list(by_hand.folders.results.iterdir())) == 4
    by_hand.close()


def test_what_is_young_is_not_taken_early(small: Path) -> None:
    by_hand = crowded(small)
    for path in by_hand.folders.results.iterdir():
        os.utime(path)
    assert not Housekeeper(by_hand.stores, by_hand.finisher).make_room()
    assert len(list(by_hand.folders.results.iterdir())) == 6
    by_hand.close()


def test_intake_does_not_pause_for_what_can_be_pruned(installation: Installation, small: Path) -> None:
    """The daemon starts on a disk below its floor and takes a job all the same; below it for good, the job waits."""
    installation.changes["paths"] = {"storage": str(small), "min_free_mb": 10}
    installation.path = lambda kind: small / kind  # type: ignore[method-assign]
    crowded(small).close()
    with installation.running():
        installation.drop_pair("anna")
        installation.until_done("anna")
        assert "is nearly full: pruned" in installation.log
        ballast = small / "ballast"
        ballast.write_bytes(bytes(round((free_mb(small) - 8) * 1e6)))
        installation.drop_pair("bert", seed=1)
        installation.until(lambda: installation.log.count("is nearly full") > 0 and free_mb(small) < 10, "a low disk")
        assert installation.job("bert") is None
        ballast.unlink()
        installation.until_done("bert")


# -- by hand -----------------------------------------------------------------------------------------------------------

NOTHING = {"outbox": 0, "archive": 0, "failed": 0, "results": 0, "uploads": 0, "ledger": 0}


def goes(text: str) -> dict[str, int]:
    """The numbers in the second column of what `prune` prints."""
    return {kind: int(n) for kind, n in re.findall(r"^(\w+) +(\d+)  ", text, re.MULTILINE)}


def make_old(paths: Iterable[Path]) -> None:
    for path in paths:
        os.utime(path, (1, 1))


def test_prune_says_what_goes_and_removes_it_with_a_daemon_and_without(installation: Installation) -> None:
    archive, results = installation.path("archive"), installation.path("state") / "results"
    with installation.running():
        for number, name in enumerate(("anna", "bert")):
            installation.drop_pair(name, seed=number)
        for name in ("anna", "bert"):
            installation.until_done(name)
        installation.until(lambda: not list(installation.path("spool").iterdir()), "the inputs in the archive")
        make_old(archive.glob("*/*/job.json"))

        done = installation.cli("prune", "--dry-run")
        assert done.returncode == 0, done.stderr
        assert goes(done.stdout) == {**NOTHING, "archive": 2}
        assert re.search(r"^would free \d+ kB$", done.stdout, re.MULTILINE)
        assert len(list(archive.glob("*/*/job.json"))) == 2

        answers: list[str] = []  # of several who ask at once, one gets them all
        asking = [threading.Thread(target=lambda: answers.append(installation.cli("prune").stdout)) for _ in range(2)]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join(60)
        assert sorted(goes(answer)["archive"] for answer in answers) == [0, 2]
        assert [path.name for path in archive.iterdir()] == [".lipsyncd"]
        assert [job.kept for job in installation.view.jobs()] == [None, None]
        assert list((installation.path("state") / "control").iterdir()) == []

    make_old(results.iterdir())
    done = installation.cli("prune", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {count["kind"]: count["goes"] for count in report["counts"]} == {**NOTHING, "results": 2}
    assert report["dry_run"] is False
    assert list(results.iterdir()) == []


def test_a_stop_at_the_beginning_of_a_look_is_not_slept_over(
    by_hand: JobsByHand, clocks: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = housekeeper(by_hand, clocks)
    begin = keeper._wake.clear

    def stopped_just_before() -> None:
        keeper.stop()
        begin()

    monkeypatch.setattr("lipsyncd.daemon.housekeeping._LOOK_EVERY_S", 600.0)
    monkeypatch.setattr(keeper._wake, "clear", stopped_just_before)
    thread = threading.Thread(target=keeper.run, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()


def test_before_the_first_start_there_is_nothing_to_prune(installation: Installation) -> None:
    assert set(goes(installation.cli("prune", "--dry-run").stdout).values()) == {0}
    refused = installation.cli("prune")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "there is no ledger" in refused.stderr
