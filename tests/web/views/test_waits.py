"""Requests that wait for a job: they look when the daemon signals a change, and not otherwise."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lipsyncd.jobs.job import JobState
from lipsyncd.settings import CurrentSettings
from lipsyncd.web.clients import UNLIMITED
from lipsyncd.web.jobs import Jobs
from lipsyncd.web.ledger_reader import JobStatus
from lipsyncd.web.views import waits
from tests.kits.core_kit import queued, spec_of
from tests.kits.jobs_by_hand import JobsByHand

LONG_S = 60.0  # a request that hears nothing waits so long


class ByHand:
    """The jobs of a ledger without a server. `looks` counts how often a status was read."""

    def __init__(self, root: Path) -> None:
        self.by_hand = JobsByHand(root)
        self.ledger = self.by_hand.ledger
        self.jobs = Jobs(CurrentSettings(self.by_hand.settings), self.by_hand.folders)
        self.looks = 0
        read = self.jobs.view.status

        def counted(job_id: str) -> JobStatus | None:
            self.looks += 1
            return read(job_id)

        self.jobs.view.status = counted  # type: ignore[method-assign]
        self.ledger.commit_listeners.append(self.jobs.waits.signal)

    async def until_looked(self, times: int) -> None:
        async with asyncio.timeout(LONG_S):
            while self.looks < times:
                await asyncio.sleep(0.01)

    def waiting(self, job_id: str) -> asyncio.Task[None]:
        return asyncio.create_task(self.jobs.wait_until_ended(job_id, LONG_S, UNLIMITED))

    async def stays_at(self, looks: int, seconds: float) -> None:
        await asyncio.sleep(seconds)
        assert self.looks == looks

    def cancel_elsewhere(self, job_id: str) -> None:
        """End a job in another thread, as a worker does."""
        ending = threading.Thread(target=self.ledger.to_cancelled, args=(job_id,))
        ending.start()
        ending.join()


@pytest.fixture
def by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ByHand]:
    monkeypatch.setattr(waits, "_WITHOUT_NEWS_S", 10 * LONG_S)
    by_hand = ByHand(tmp_path)
    yield by_hand
    by_hand.jobs.close()
    by_hand.by_hand.close()


def test_a_request_that_waits_looks_at_each_change_and_not_between(by_hand: ByHand) -> None:
    async def wait() -> None:
        job_id = queued(by_hand.ledger)
        waiting = by_hand.waiting(job_id)
        await by_hand.until_looked(1)
        await by_hand.stays_at(1, 0.5)
        by_hand.ledger.insert(spec_of("another"), max_attempts=3)
        await by_hand.until_looked(2)
        await by_hand.stays_at(2, 0.3)
        by_hand.cancel_elsewhere(job_id)
        await asyncio.wait_for(waiting, LONG_S / 2)
        assert by_hand.looks == 3

    asyncio.run(wait())


def test_a_change_during_the_look_is_not_missed(by_hand: ByHand) -> None:
    async def wait() -> None:
        job_id = queued(by_hand.ledger)
        read = by_hand.jobs.view.status

        def ends_after(wanted: str) -> JobStatus | None:
            found = read(wanted)
            if found is not None and found.state is JobState.QUEUED:
                by_hand.cancel_elsewhere(job_id)
            return found

        by_hand.jobs.view.status = ends_after  # type: ignore[method-assign]
        await asyncio.wait_for(by_hand.waiting(job_id), LONG_S / 2)
        assert by_hand.looks == 2

    asyncio.run(wait())


def test_many_changes_cause_few_looks(by_hand: ByHand) -> None:
    async def wait() -> None:
        job_id = queued(by_hand.ledger)
        waiting = by_hand.waiting(job_id)
        await by_hand.until_looked(1)
        began_s, signals = time.monotonic(), 0
        while time.monotonic() - began_s < 0.5:
            by_hand.jobs.waits.signal()
            signals += 1
            await asyncio.sleep(0.001)
        most = 2 + (time.monotonic() - began_s) / 0.1
        assert 2 <= by_hand.looks <= most
        assert signals > most
        waiting.cancel()

    asyncio.run(wait())


def test_what_changes_without_a_signal_is_found_some_seconds_later(
    by_hand: ByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waits, "_WITHOUT_NEWS_S", 0.2)
    by_hand.ledger.commit_listeners.clear()

    async def wait() -> None:
        job_id = queued(by_hand.ledger)
        waiting = by_hand.waiting(job_id)
        await by_hand.until_looked(1)
        by_hand.cancel_elsewhere(job_id)
        await asyncio.wait_for(waiting, LONG_S / 2)

    asyncio.run(wait())


def test_every_request_is_answered_when_the_server_stops(by_hand: ByHand) -> None:
    async def wait() -> None:
        job_id = queued(by_hand.ledger)
        waiting = [by_hand.waiting(job_id) for _ in range(5)]
        await by_hand.until_looked(5)
        by_hand.jobs.waits.end()
        await asyncio.wait_for(asyncio.gather(*waiting), LONG_S / 2)
        await asyncio.wait_for(by_hand.waiting(job_id), LONG_S / 2)  # one that comes later does not begin to wait
        assert by_hand.looks == 5

    asyncio.run(wait())
