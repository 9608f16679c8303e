"""Blocked jobs are tried less and less often, and at once when their obstacle has changed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from lipsyncd.errors import DeviceMissing, OutboxUnavailable, WeightsMissing
from lipsyncd.jobs.blocked import LONGEST_WAIT_S, Obstacles, packages
from tests.kits.core_kit import Clock

HERE = "musetalk on cuda:0"


class Thing:
    """Something that may be absent, and how often its state was read."""

    def __init__(self) -> None:
        self.state, self.reads = "absent", 0

    def __call__(self) -> str:
        self.reads += 1
        if self.state == "being replaced":
            raise FileNotFoundError
        return self.state


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def obstacles(clock: Clock) -> Obstacles:
    return Obstacles(clock)


def test_each_failed_try_doubles_the_wait_up_to_five_minutes(obstacles: Obstacles, clock: Clock) -> None:
    waits = []
    for _ in range(9):
        waits.append(obstacles.record(DeviceMissing("none"), HERE, Thing()))
        clock.wait(waits[-1])
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300, 300]


def test_a_job_that_is_blocked_during_a_wait_shares_it(obstacles: Obstacles, clock: Clock) -> None:
    thing = Thing()
    assert obstacles.record(DeviceMissing("one"), HERE, thing) == 5
    clock.wait(2)
    for _ in range(100):
        assert obstacles.record(DeviceMissing("two"), HERE, thing) == 3
    clock.wait(3)
    assert obstacles.record(DeviceMissing("one"), HERE, thing) == 10


def test_a_recorded_obstacle_is_reported_until_its_wait_is_over(obstacles: Obstacles, clock: Clock) -> None:
    assert obstacles.still_blocking(HERE) is None
    obstacles.record(DeviceMissing("no device"), HERE, Thing())
    known = obstacles.still_blocking(HERE)
    assert isinstance(known, DeviceMissing)
    assert known.message == "no device"
    assert obstacles.still_blocking("preview on cpu") is None
    clock.wait(5)
    assert obstacles.still_blocking(HERE) is None, "time to try again"


def test_a_change_is_reported_until_it_is_forgotten_and_the_waits_start_again(
    obstacles: Obstacles, clock: Clock
) -> None:
    thing, other = Thing(), Thing()
    for _ in range(3):
        clock.wait(obstacles.record(WeightsMissing("none"), "weights", thing))
    assert obstacles.record(WeightsMissing("none"), "weights", thing) == 40
    obstacles.record(OutboxUnavailable("not mounted"), "outbox", other)
    assert obstacles.changed() == []
    thing.state = "here"
    assert obstacles.changed() == ["weights-missing"]
    obstacles.forget(["weights-missing"])
    assert obstacles.changed() == []
    assert obstacles.record(WeightsMissing("half of them"), "weights", thing) == 5


def test_a_change_just_before_the_record_costs_the_shortest_wait(obstacles: Obstacles, clock: Clock) -> None:
    """The thing appeared after the job was blocked and before its state was read: later reads show no difference."""
    thing = Thing()
    for _ in range(4):
        clock.wait(obstacles.record(WeightsMissing("none"), "weights", thing))
    thing.state = "here"
    assert obstacles.record(WeightsMissing("none"), "weights", thing) == 5


def test_a_state_that_cannot_be_read_is_a_state_too(obstacles: Obstacles) -> None:
    thing = Thing()
    thing.state = "being replaced"
    assert obstacles.record(WeightsMissing("none"), "weights", thing) == 5
    assert obstacles.changed() == []
    thing.state = "here"
    assert obstacles.changed() == ["weights-missing"]


def test_a_success_clears_the_obstacles_of_its_place(obstacles: Obstacles, clock: Clock) -> None:
    clock.wait(obstacles.record(DeviceMissing("none"), HERE, Thing()))
    obstacles.clear(HERE)
    assert obstacles.record(DeviceMissing("none"), HERE, Thing()) == 5


def test_an_obstacle_that_no_job_meets_any_more_is_forgotten(obstacles: Obstacles, clock: Clock) -> None:
    thing = Thing()
    clock.wait(obstacles.record(DeviceMissing("none"), HERE, thing) + LONGEST_WAIT_S)
    assert obstacles.changed() == []
    reads = thing.reads
    obstacles.changed()
    assert thing.reads == reads


def test_an_installed_package_changes_the_state_of_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(tmp_path / "no such folder"), "stdlib.zip"])
    os.utime(tmp_path, ns=(1, 1))
    before = packages()
    assert packages() == before
    (tmp_path / "torch").mkdir()
    assert packages() != before
