"""Many who ask at once share the thread's turns, and nobody gets another's answer, error or wait."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lipsyncd.errors import LedgerError, NoFaceFound
from lipsyncd.jobs.job import JobState
from lipsyncd.ledger.ledger import Ledger
from lipsyncd.web.ledger_reader import Reader, Standing
from lipsyncd.web.turns import Turns
from tests.kits.core_kit import claimed, queued


@pytest.fixture
def turns() -> Iterator[Turns]:
    turns = Turns("test")
    yield turns
    turns.close()


def test_everybody_gets_his_own_answer_and_the_thread_few_visits(turns: Turns) -> None:
    """While the thread is at work, those who come go over together in its next turn."""
    threads: list[int] = []
    first = threading.Event()

    def slow(_: int) -> None:
        first.wait(20)

    def square(number: int) -> int:
        threads.append(threading.get_ident())
        return number * number

    async def ask() -> list[Any]:
        turns.ask(slow, 0)
        await asyncio.sleep(0)  # the slow one begins
        answers = [turns.ask(square, number) for number in range(1000)]
        first.set()
        await answers[0]
        assert all(answer.done() for answer in answers)  # they have come back together
        return [answer.result() for answer in answers]

    assert asyncio.run(ask()) == [number * number for number in range(1000)]
    assert set(threads) == {threads[0]}
    assert threads[0] != threading.get_ident()


def test_an_error_reaches_the_one_who_asked(turns: Turns) -> None:
    async def ask() -> list[Any]:
        whole = ["4", "x", "6"]
        return await asyncio.gather(*(turns.ask(int, text) for text in whole), return_exceptions=True)

    four, error, six = asyncio.run(ask())
    assert (four, six) == (4, 6)
    assert isinstance(error, ValueError)


def test_a_client_that_hangs_up_takes_nobody_along(turns: Turns) -> None:
    async def ask() -> int:
        gone, stays = turns.ask(time.sleep, 0.05), turns.ask(abs, -7)
        await asyncio.sleep(0)
        gone.cancel()
        return await stays + await turns.ask(abs, -1)

    assert asyncio.run(ask()) == 8


def test_the_loop_goes_on_while_the_thread_waits(turns: Turns) -> None:
    """A disk that hangs holds up no other request, and not `/health/live`."""
    hung = threading.Event()

    async def ask() -> bool:
        waiting = turns.ask(hung.wait, 20)
        for _ in range(100):
            await asyncio.sleep(0)
        assert not waiting.done()
        hung.set()
        return await waiting

    assert asyncio.run(ask())


# -- what is asked that way --------------------------------------------------------------------------------------------


def test_a_standing_is_what_the_whole_row_says(tmp_path: Path) -> None:
    with closing(Ledger(tmp_path / "ledger.db")) as ledger:
        dropped = claimed(ledger)
        asked = queued(ledger, "bert", rest={"created_ms": 7})
        ledger.to_failed(asked, NoFaceFound("no face in the picture").reason())
        reader = Reader(ledger.path)
        for job_id, created_ms in ((dropped, ledger.get(dropped).accepted_ms), (asked, 7)):
            job = ledger.get(job_id)
            assert reader.standing(job_id) == Standing(
                job.state, job.fraction, created_ms, job.started_ms, job.finished_ms, job.reason, job.remedy
            )
        assert reader.standing("nobody") is None
        failed = reader.standing(asked)
        assert failed is not None
        assert failed.state is JobState.FAILED
        assert failed.reason == "no face in the picture"


def test_a_ledger_that_cannot_be_read_is_told_and_opened_anew(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"no ledger at all" * 1000)
    reader = Reader(path)
    with pytest.raises(LedgerError, match="cannot read the ledger"):
        reader.standing("x")
    path.unlink()
    with closing(Ledger(path)) as ledger:
        job_id = queued(ledger)
        assert reader.standing(job_id) is not None
