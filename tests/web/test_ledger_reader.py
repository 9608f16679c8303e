"""Many calls share one thread, and each gets its own result, error and wait; the ledger as the server reads it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lipsyncd.errors import LedgerError, NoFaceFound
from lipsyncd.jobs.job import JobState
from lipsyncd.jobs.waits import SAME_WORK
from lipsyncd.ledger.ledger import Ledger
from lipsyncd.web.ledger_reader import BatchThread, JobStatus, LedgerReader
from tests.kits.core_kit import claimed, queued


@pytest.fixture
def batches() -> Iterator[BatchThread]:
    batches = BatchThread("test")
    yield batches
    batches.close()


def test_each_call_gets_its_own_result_and_the_thread_few_batches(batches: BatchThread) -> None:
    """While the thread is busy, all calls that come go over together in its next batch."""
    threads: list[int] = []
    first = threading.Event()

    def slow(_: int) -> None:
        first.wait(20)

    def square(number: int) -> int:
        threads.append(threading.get_ident())
        return number * number

    async def calls() -> list[Any]:
        batches.run(slow, 0)
        await asyncio.sleep(0)  # the slow one begins
        answers = [batches.run(square, number) for number in range(1000)]
        first.set()
        await answers[0]
        assert all(answer.done() for answer in answers)  # they have come back in one batch
        return [answer.result() for answer in answers]

    assert asyncio.run(calls()) == [number * number for number in range(1000)]
    assert set(threads) == {threads[0]}
    assert threads[0] != threading.get_ident()


def test_an_error_reaches_its_own_call_only(batches: BatchThread) -> None:
    async def calls() -> list[Any]:
        whole = ["4", "x", "6"]
        return await asyncio.gather(*(batches.run(int, text) for text in whole), return_exceptions=True)

    four, error, six = asyncio.run(calls())
    assert (four, six) == (4, 6)
    assert isinstance(error, ValueError)


def test_a_client_that_hangs_up_disturbs_no_other_call(batches: BatchThread) -> None:
    async def calls() -> int:
        gone, stays = batches.run(time.sleep, 0.05), batches.run(abs, -7)
        await asyncio.sleep(0)
        gone.cancel()
        return await stays + await batches.run(abs, -1)

    assert asyncio.run(calls()) == 8


def test_the_loop_goes_on_while_the_thread_waits(batches: BatchThread) -> None:
    """A disk that hangs delays no other request and not `/health/live`."""
    hung = threading.Event()

    async def calls() -> bool:
        waiting = batches.run(hung.wait, 20)
        for _ in range(100):
            await asyncio.sleep(0)
        assert not waiting.done()
        hung.set()
        return await waiting

    assert asyncio.run(calls())


# -- reading the ledger ------------------------------------------------------------------------------------------------


def test_a_status_has_the_values_of_the_whole_row(tmp_path: Path) -> None:
    with closing(Ledger(tmp_path / "ledger.db")) as ledger:
        dropped = claimed(ledger)
        ordered = queued(ledger, "bert", rest={"created_ms": 7})
        ledger.to_failed(ordered, NoFaceFound("no face in the picture").reason())
        reader = LedgerReader(ledger.path)
        for job_id, created_ms in ((dropped, ledger.get(dropped).accepted_ms), (ordered, 7)):
            job = ledger.get(job_id)
            same = {name: getattr(job, name) for name in JobStatus._fields if name != "created_ms"}
            assert reader.status(job_id) == JobStatus(created_ms=created_ms, **same)
        assert reader.status("unknown") is None
        failed = reader.status(ordered)
        assert failed is not None
        assert failed.state is JobState.FAILED
        assert failed.reason == "no face in the picture"


def test_a_ledger_that_cannot_be_read_is_an_error_and_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"no ledger at all" * 1000)
    reader = LedgerReader(path)
    with pytest.raises(LedgerError, match="cannot read the ledger"):
        reader.status("x")
    path.unlink()
    with closing(Ledger(path)) as ledger:
        job_id = queued(ledger)
        assert reader.status(job_id) is not None


def test_what_a_job_waits_for_is_told_without_a_look_at_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for in the thread of all requests, where a slow disk would delay every client."""
    with closing(Ledger(tmp_path / "ledger.db")) as ledger:
        job_id, other = queued(ledger), queued(ledger, "other")
        reader = LedgerReader(ledger.path)
        (tmp_path / "status.json").write_text(json.dumps({"paused": "3 MB are free"}))
        job, status = reader.exact(job_id), reader.status(job_id)
        assert job is not None
        assert status is not None
    repeated = replace(job, duplicate_of=other)

    def hang(*_: object, **__: object) -> None:
        raise AssertionError("a disk was asked")

    monkeypatch.setattr("lipsyncd.ledger.live_progress.LiveProgress._read", hang)
    monkeypatch.setattr(LedgerReader, "_connection", hang)
    for seen in (job, status):
        assert (reader.waits_for(seen) or {})["message"] == "3 MB are free"
    assert (reader.waits_for(repeated) or {})["code"] == SAME_WORK
