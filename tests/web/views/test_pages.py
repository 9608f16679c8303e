"""Pages of the list of jobs: filters, the next page, and the same cost however many jobs there are."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lipsyncd.jobs.job import Job, JobState
from lipsyncd.ledger.ledger import Ledger
from lipsyncd.web.ledger_reader import LedgerReader
from lipsyncd.web.replies import ApiError
from lipsyncd.web.views.pages import ANY, LOOKED_AT, Filters, read_page, seq_of, token_of

MANY = 60_000
# As many steps of SQLite's machine as the largest page may take; looking at 60,000 rows takes 300,000 and more.
MOST_STEPS = 150_000
ROW = """
INSERT INTO job(id, seq, name, state, max_attempts, attempt, renderer, stitch, resolution, fps, out_name, out_key,
                source_sig, inputs_released, reason_code, accepted_ms, tenant, queue)
VALUES(printf('%036d', ?1), ?1, ?2, ?3, 3, 0, 'flat', 0, 64, '25', ?2, printf('%d', ?1),
       printf('%d', ?1), 1, ?4, ?1 * 1000, ?5, ?6)
"""


def state_of(number: int) -> JobState:
    """One job in 10,000 failed, one was cancelled, the newest 50 wait, and all others are done."""
    if number > MANY - 50:
        return JobState.QUEUED
    return {77: JobState.FAILED, 78: JobState.CANCELLED}.get(number % 10_000, JobState.DONE)


def row_of(number: int) -> tuple[Any, ...]:
    state = state_of(number)
    reason = "no-face" if state is JobState.FAILED else None
    name = "Rare_one" if number in (5, 59_000) else f"clip {number}"
    return number, name, state.value, reason, "anna" if number % 20_000 == 77 else None, "news" if number == 9 else ""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pages") / "ledger.db"
    Ledger(path).close()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executemany(ROW, map(row_of, range(1, MANY + 1)))
    return path


@pytest.fixture(scope="module")
def reader(path: Path) -> LedgerReader:
    return LedgerReader(path)


def pages(reader: LedgerReader, filters: Filters, limit: int, tenant: str | None = None) -> Iterator[list[Job]]:
    before: int | None = None
    while True:
        jobs, before = reader.page(before, limit, tenant=tenant, filters=filters)
        assert len(jobs) <= limit
        yield jobs
        if before is None:
            return


def numbers(reader: LedgerReader, filters: Filters, limit: int = 100, tenant: str | None = None) -> list[int]:
    return [job.seq for page in pages(reader, filters, limit, tenant) for job in page]


FAILED = [50_077, 40_077, 30_077, 20_077, 10_077, 77]
CANCELLED = [number + 1 for number in FAILED]


def test_every_wanted_job_is_on_one_page_newest_first(reader: LedgerReader) -> None:
    assert numbers(reader, Filters((JobState.FAILED,)), limit=2) == FAILED
    both = Filters((JobState.CANCELLED, JobState.FAILED))
    assert numbers(reader, both, limit=3) == sorted(FAILED + CANCELLED, reverse=True)
    three = Filters((JobState.QUEUED, JobState.FAILED, JobState.CANCELLED))
    assert numbers(reader, three, limit=7) == [*range(MANY, MANY - 50, -1), *sorted(FAILED + CANCELLED, reverse=True)]
    assert numbers(reader, Filters((JobState.RUNNING,))) == []
    assert [len(page) for page in pages(reader, Filters((JobState.FAILED,)), 6)] == [6]  # no empty last page
    first, following = reader.page(None, 4, filters=ANY)
    assert [job.seq for job in first] == [MANY, MANY - 1, MANY - 2, MANY - 3]
    assert following == MANY - 3
    done = Filters((JobState.DONE, JobState.FAILED))
    assert reader.page(None, 2, filters=done)[0][0].seq == MANY - 50


def test_a_name_a_queue_and_a_time_are_found_however_old(reader: LedgerReader) -> None:
    assert numbers(reader, Filters(name="rare_O")) == [59_000, 5]
    assert numbers(reader, Filters(name="rare%o")) == []  # no pattern of the client's
    assert numbers(reader, Filters(queue="news")) == [9]
    assert numbers(reader, Filters((JobState.FAILED,), queue="")) == FAILED
    assert numbers(reader, Filters(since_ms=(MANY - 2) * 1000)) == [MANY, MANY - 1, MANY - 2]
    assert numbers(reader, Filters((JobState.FAILED,), since_ms=30_077_000)) == FAILED[:3]
    assert numbers(reader, ANY, tenant="anna") == [40_077, 20_077, 77]
    assert numbers(reader, Filters((JobState.FAILED,)), tenant="anna") == [40_077, 20_077, 77]
    assert numbers(reader, Filters((JobState.DONE,)), tenant="anna") == []


def test_a_time_ends_the_list_and_is_not_looked_for_in_all_older_jobs(reader: LedgerReader) -> None:
    found = list(pages(reader, Filters(since_ms=(MANY - 2) * 1000), 100))
    assert len(found) == 2  # those of the first look, and the next one's, none of which is new enough


def test_no_page_reads_the_whole_table(path: Path) -> None:
    nothing = Filters((JobState.DONE,), name="no such name", since_ms=1)
    every = [
        ANY, nothing, Filters((JobState.FAILED,)), Filters((JobState.RUNNING,)), Filters((JobState.DONE,)),
        Filters((JobState.QUEUED, JobState.CANCELLED)), Filters((JobState.DONE, JobState.FAILED)),
        Filters(name="no such name"), Filters(queue="nowhere"),
    ]  # fmt: skip
    for filters in every:
        for tenant in (None, "anna", "nobody"):
            assert steps_of(path, filters, MANY // 2, tenant) < MOST_STEPS, (filters, tenant)
        assert steps_of(path, filters, None, None) < MOST_STEPS, filters


def steps_of(path: Path, filters: Filters, before: int | None, tenant: str | None) -> int:
    """What a page costs, in steps of SQLite's machine."""
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 100
        return 0

    with closing(sqlite3.connect(path)) as connection:
        connection.set_progress_handler(count, 100)
        read_page(connection.cursor(), filters, before, 100, tenant)
    return steps


def test_a_job_without_a_row_is_filtered_as_the_ledger_does(reader: LedgerReader) -> None:
    [job], _ = reader.page(6, 1)
    every = [
        Filters(name="rARE_one"), Filters(name="rare%"), Filters(queue=""), Filters(queue="x"), Filters(since_ms=5000),
        Filters(since_ms=5001), Filters((JobState.DONE,)), Filters((JobState.FAILED,)),
    ]  # fmt: skip
    for filters in every:
        assert filters.match(job) == (5 in numbers(reader, filters)), filters


def test_a_token_names_a_job_and_nothing_else() -> None:
    assert seq_of(token_of(LOOKED_AT)) == LOOKED_AT
    for text in ("", "x", "c2VxOi0x", "c2VxOg", "é", token_of(7) + "!"):
        with pytest.raises(ApiError, match="not issued"):
            seq_of(text)
