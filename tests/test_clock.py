"""A wall clock that is set: what waits does not wait for ever, and the order of the queue stays what it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lipsyncd.errors import DiskLow
from lipsyncd.housekeeping import Housekeeper
from lipsyncd.job import now_ms
from lipsyncd.obstacles import LONGEST_WAIT_S
from tests.core_kit import Clock
from tests.shop import Shop

DAY_MS = 86_400_000
LONGEST_MS = round(LONGEST_WAIT_S * 1000)


class Clocks:
    """The wall clock of a machine and its steady one, in seconds."""

    def __init__(self) -> None:
        self.steady = Clock()
        self.set_by_s = 0.0

    def wall(self) -> float:
        return 1.8e9 + self.steady() + self.set_by_s


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(tmp_path)
    yield shop
    shop.close()


def blocked_for(shop: Shop, name: str, delay_ms: int) -> str:
    """A job that waits so long from now on, as the wall clock that noted it saw it."""
    job_id = shop.queued(name)
    assert shop.ledger.set_blocked(job_id, DiskLow("full").reason(), delay_ms=delay_ms)
    return job_id


def wait_ms(shop: Shop, job_id: str) -> int:
    return shop.job(job_id).not_before_ms - now_ms()


def test_what_a_clock_that_ran_ahead_has_noted_is_due_soon_after_the_start(shop: Shop) -> None:
    clocks = Clocks()
    far, near = blocked_for(shop, "far", DAY_MS), blocked_for(shop, "near", 4000)
    Housekeeper(shop.finisher, wall=clocks.wall, steady=clocks.steady).look()
    assert 0 < wait_ms(shop, far) <= LONGEST_MS
    assert wait_ms(shop, near) <= 4000


@pytest.mark.parametrize(("set_by_s", "clamped"), [(-3600.0, True), (-3.0, True), (86_400.0, True), (0.5, False)])
def test_waits_are_looked_at_again_when_the_clock_was_set(shop: Shop, set_by_s: float, clamped: bool) -> None:
    clocks = Clocks()
    keeper = Housekeeper(shop.finisher, wall=clocks.wall, steady=clocks.steady)
    keeper.look()
    job_id = blocked_for(shop, "anna", DAY_MS)
    clocks.steady.wait(60)
    keeper.look()
    assert wait_ms(shop, job_id) > LONGEST_MS, "time that merely goes by changes nothing"
    clocks.set_by_s = set_by_s
    keeper.look()
    assert (wait_ms(shop, job_id) <= LONGEST_MS) is clamped


def test_jobs_keep_their_order_whatever_the_clock_said_when_they_came(shop: Shop) -> None:
    """By 1970, by the far future, by now: first come, first claimed."""
    for name, accepted_ms in (("first", 4_000_000_000_000), ("second", 0), ("third", now_ms())):
        shop.queued(name, accepted_ms=accepted_ms)
    claimed = []
    for number in range(3):
        job = shop.ledger.claim(f"cpu:{number}", f"token {number}")
        assert job is not None
        claimed.append(job.name)
    assert claimed == ["first", "second", "third"]
