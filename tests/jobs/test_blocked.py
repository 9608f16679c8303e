"""What stands in the way of jobs is looked at less and less often, and at once when it moves."""

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
    """Something that may be there, and how often it was looked at."""

    def __init__(self) -> None:
        self.state, self.looks = "absent", 0

    def __call__(self) -> str:
        self.looks += 1
        if self.state == "being replaced":
            raise FileNotFoundError
        return self.state


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def obstacles(clock: Clock) -> Obstacles:
    return Obstacles(clock)


def test_each_look_in_vain_doubles_the_wait_up_to_five_minutes(obstacles: Obstacles, clock: Clock) -> None:
    waits = []
    for _ in range(9):
        waits.append(obstacles.met(DeviceMissing("none"), HERE, Thing()))
        clock.wait(waits[-1])
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300, 300]


def test_whoever_comes_meanwhile_joins_those_who_wait(obstacles: Obstacles, clock: Clock) -> None:
    thing = Thing()
    assert obstacles.met(DeviceMissing("one"), HERE, thing) == 5
    clock.wait(2)
    for _ in range(100):
        assert obstacles.met(DeviceMissing("two"), HERE, thing) == 3
    clock.wait(3)
    assert obstacles.met(DeviceMissing("one"), HERE, thing) == 10


def test_nobody_runs_into_what_is_known_to_stand_there(obstacles: Obstacles, clock: Clock) -> None:
    assert obstacles.ahead(HERE) is None
    obstacles.met(DeviceMissing("no device"), HERE, Thing())
    known = obstacles.ahead(HERE)
    assert isinstance(known, DeviceMissing)
    assert known.message == "no device"
    assert obstacles.ahead("preview on cpu") is None
    clock.wait(5)
    assert obstacles.ahead(HERE) is None, "time to look again"


def test_what_has_moved_is_told_until_it_is_forgotten_and_the_waits_begin_anew(
    obstacles: Obstacles, clock: Clock
) -> None:
    thing, other = Thing(), Thing()
    for _ in range(3):
        clock.wait(obstacles.met(WeightsMissing("none"), "weights", thing))
    assert obstacles.met(WeightsMissing("none"), "weights", thing) == 40
    obstacles.met(OutboxUnavailable("not mounted"), "outbox", other)
    assert obstacles.moved() == []
    thing.state = "here"
    assert obstacles.moved() == ["weights-missing"]
    obstacles.forget(["weights-missing"])
    assert obstacles.moved() == []
    assert obstacles.met(WeightsMissing("half of them"), "weights", thing) == 5


def test_what_moved_just_before_it_was_met_costs_the_shortest_wait(obstacles: Obstacles, clock: Clock) -> None:
    """It came after somebody had run into it and before it was looked at: no later look will show a difference."""
    thing = Thing()
    for _ in range(4):
        clock.wait(obstacles.met(WeightsMissing("none"), "weights", thing))
    thing.state = "here"
    assert obstacles.met(WeightsMissing("none"), "weights", thing) == 5


def test_a_look_that_fails_is_a_look(obstacles: Obstacles) -> None:
    thing = Thing()
    thing.state = "being replaced"
    assert obstacles.met(WeightsMissing("none"), "weights", thing) == 5
    assert obstacles.moved() == []
    thing.state = "here"
    assert obstacles.moved() == ["weights-missing"]


def test_who_came_through_clears_the_way(obstacles: Obstacles, clock: Clock) -> None:
    clock.wait(obstacles.met(DeviceMissing("none"), HERE, Thing()))
    obstacles.passed(HERE)
    assert obstacles.met(DeviceMissing("none"), HERE, Thing()) == 5


def test_what_nobody_meets_any_more_is_forgotten(obstacles: Obstacles, clock: Clock) -> None:
    thing = Thing()
    clock.wait(obstacles.met(DeviceMissing("none"), HERE, thing) + LONGEST_WAIT_S)
    assert obstacles.moved() == []
    looks = thing.looks
    obstacles.moved()
    assert thing.looks == looks


def test_a_package_that_is_installed_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(tmp_path / "no such folder"), "stdlib.zip"])
    os.utime(tmp_path, ns=(1, 1))
    before = packages()
    assert packages() == before
    (tmp_path / "torch").mkdir()
    assert packages() != before
