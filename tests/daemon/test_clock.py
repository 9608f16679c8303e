"""A wall clock that is set: what waits does not wait for ever, and the order of the queue stays what it was."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lipsyncd.daemon.clock import SETTLED_S, WallClock
from lipsyncd.daemon.housekeeping import Housekeeper
from lipsyncd.errors import DiskLow
from lipsyncd.jobs.blocked import LONGEST_WAIT_S
from lipsyncd.jobs.job import now_ms
from lipsyncd.settings.sections import Retention as Rules
from tests.kits.core_kit import Clock
from tests.kits.jobs_by_hand import JobsByHand

HOUR_S, DAY_S = 3600.0, 86_400.0
DAY_MS = 86_400_000
LONGEST_MS = round(LONGEST_WAIT_S * 1000)


class Clocks:
    """The wall clock of a machine and its steady one, in seconds."""

    def __init__(self) -> None:
        self.steady = Clock()
        self.set_by_s = 0.0
        self.boots = 1

    def wall(self) -> float:
        return 1.8e9 + self.steady() + self.set_by_s

    def reboot(self, *, off_s: float) -> None:
        """Switched off for so long: the wall clock goes on, the steady one begins anew."""
        self.set_by_s += self.steady.now_s + off_s
        self.steady.now_s = 0.0
        self.boots += 1

    def boot(self) -> str:
        return f"boot {self.boots}"


@pytest.fixture
def by_hand(tmp_path: Path) -> Iterator[JobsByHand]:
    by_hand = JobsByHand(tmp_path)
    yield by_hand
    by_hand.close()


def blocked_for(by_hand: JobsByHand, name: str, delay_ms: int) -> str:
    """A job that waits so long from now on, as the wall clock that noted it saw it."""
    job_id = by_hand.queued(name)
    assert by_hand.ledger.set_blocked(job_id, DiskLow("full").reason(), delay_ms=delay_ms)
    return job_id


def wait_ms(by_hand: JobsByHand, job_id: str) -> int:
    return by_hand.job(job_id).not_before_ms - now_ms()


def test_what_a_clock_that_ran_ahead_has_noted_is_due_soon_after_the_start(by_hand: JobsByHand) -> None:
    clocks = Clocks()
    far, near = blocked_for(by_hand, "far", DAY_MS), blocked_for(by_hand, "near", 4000)
    Housekeeper(by_hand.stores, by_hand.finisher, wall=clocks.wall, steady=clocks.steady).look()
    assert wait_ms(by_hand, far) <= 0
    assert wait_ms(by_hand, near) <= 4000


@pytest.mark.parametrize(("set_by_s", "clamped"), [(-3600.0, True), (-3.0, True), (86_400.0, True), (0.5, False)])
def test_waits_are_looked_at_again_when_the_clock_was_set(by_hand: JobsByHand, set_by_s: float, clamped: bool) -> None:
    clocks = Clocks()
    keeper = Housekeeper(by_hand.stores, by_hand.finisher, wall=clocks.wall, steady=clocks.steady)
    keeper.look()
    job_id = blocked_for(by_hand, "anna", DAY_MS)
    clocks.steady.wait(60)
    keeper.look()
    assert wait_ms(by_hand, job_id) > LONGEST_MS, "time that merely goes by changes nothing"
    clocks.set_by_s = set_by_s
    keeper.look()
    assert (wait_ms(by_hand, job_id) <= LONGEST_MS) is clamped


def test_jobs_keep_their_order_whatever_the_clock_showed_when_they_came(by_hand: JobsByHand) -> None:
    """By 1970, by the far future, by now: first come, first claimed."""
    for name, accepted_ms in (("first", 4_000_000_000_000), ("second", 0), ("third", now_ms())):
        by_hand.queued(name, accepted_ms=accepted_ms)
    claimed = []
    for number in range(3):
        job = by_hand.ledger.claim(f"cpu:{number}", f"token {number}")
        assert job is not None
        claimed.append(job.name)
    assert claimed == ["first", "second", "third"]


# -- whether to believe it ---------------------------------------------------------------------------------------------


def watched(tmp_path: Path, clocks: Clocks) -> WallClock:
    """What a daemon that starts now makes of the clock, after its first minutes."""
    watched = WallClock(tmp_path, wall=clocks.wall, steady=clocks.steady, boot=clocks.boot)
    watched.look()
    assert not watched.trusted
    clocks.steady.wait(SETTLED_S)
    watched.look()
    return watched


@pytest.mark.parametrize("set_by_s", [2 * HOUR_S, -2 * HOUR_S, DAY_S, -DAY_S, 3653 * DAY_S, -1.79e9])
def test_a_clock_that_is_set_is_not_trusted_for_a_day_also_after_restarts(tmp_path: Path, set_by_s: float) -> None:
    clocks = Clocks()
    assert watched(tmp_path, clocks).trusted
    clocks.set_by_s = set_by_s
    assert not watched(tmp_path, clocks).trusted, "it was set while no daemon ran"
    clock = watched(tmp_path, clocks)
    assert not clock.trusted, "nor is doubt forgotten with a restart"
    clocks.steady.wait(DAY_S)
    clock.look()
    assert clock.trusted
    assert watched(tmp_path, clocks).trusted, "this is what time it is now"
    clocks.set_by_s = 0.0
    assert not watched(tmp_path, clocks).trusted, "and it is set right"


@pytest.mark.parametrize(
    ("off_s", "trusted"), [(60.0, True), (3 * DAY_S, True), (8 * DAY_S, False), (3653 * DAY_S, False), (-DAY_S, True)]
)
def test_after_a_reboot_years_without_a_daemon_are_not_trusted(tmp_path: Path, off_s: float, trusted: bool) -> None:
    """A clock that fell back makes everything younger, so nothing goes too early by it."""
    clocks = Clocks()
    assert watched(tmp_path, clocks).trusted
    clocks.reboot(off_s=off_s)
    assert watched(tmp_path, clocks).trusted is trusted


def test_small_steps_do_not_add_up_to_nothing(tmp_path: Path) -> None:
    clocks = Clocks()
    clock = watched(tmp_path, clocks)
    for _ in range(3):
        clocks.set_by_s += 1500
        clock.look()
    assert not clock.trusted


@pytest.mark.parametrize("noted", [b"", b"{}", b"[]", b'{"wall_s": "noon", "steady_s": null}', b"\0" * 40])
def test_a_record_that_says_nothing_is_written_anew(tmp_path: Path, noted: bytes) -> None:
    (tmp_path / "clock.json").write_bytes(noted)
    clocks = Clocks()
    assert watched(tmp_path, clocks).trusted
    clocks.set_by_s = DAY_S
    assert not watched(tmp_path, clocks).trusted


# -- what was dated by a clock that ran ahead --------------------------------------------------------------------------


def test_nights_go_on_after_a_clock_that_was_years_ahead(tmp_path: Path) -> None:
    by_hand, clocks = JobsByHand(tmp_path, retention=Rules(backups=7)), Clocks()
    keeper = Housekeeper(by_hand.stores, by_hand.finisher, wall=clocks.wall, steady=clocks.steady)
    keeper.look()
    clocks.set_by_s = 3653 * DAY_S
    keeper.look()
    clocks.set_by_s = 0.0
    copies = by_hand.folders.state / "backups"
    before = len(list(copies.iterdir()))
    for _ in range(3 * 24):
        clocks.steady.wait(HOUR_S)
        keeper.look()
    by_hand.close()
    assert len(list(copies.iterdir())) == before + 3


def test_an_upload_that_is_being_sent_outlives_a_jump_of_the_clock(by_hand: JobsByHand) -> None:
    clocks = Clocks()
    keeper = Housekeeper(by_hand.stores, by_hand.finisher, wall=clocks.wall, steady=clocks.steady)
    sent = by_hand.folders.state / "uploads" / ".tmp-1"
    sent.mkdir(parents=True)
    os.utime(sent, (0, 0))  # as a clock that has jumped sees it
    keeper.look()
    clocks.set_by_s = DAY_S
    keeper.look()
    clocks.steady.wait(HOUR_S)
    keeper.look()
    assert sent.exists()
    clocks.steady.wait(DAY_S)
    keeper.look()
    assert not sent.exists()
