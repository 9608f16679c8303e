"""What workers and lists ask most often is answered by an index, however many rows there are."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from lipsyncd.jobs.job import JobState
from lipsyncd.ledger.ledger import Ledger
from lipsyncd.ledger.tables import CLAIM
from lipsyncd.web.views.pages import ANY, Filters, read_page


@pytest.fixture
def connection(tmp_path: Path) -> sqlite3.Connection:
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.close()
    return sqlite3.connect(tmp_path / "ledger.db")


def plan(connection: sqlite3.Connection, query: str, values: object = ()) -> list[str]:
    return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {query}", values)]  # type: ignore[arg-type]


def test_a_claim_reads_the_queue_by_its_index_and_sorts_nothing(connection: sqlite3.Connection) -> None:
    with closing(connection):
        steps = plan(connection, str(CLAIM), {"token": "t", "device": "cpu", "now": 0})
    assert any("USING INDEX job_ready" in step for step in steps), steps
    assert [step for step in steps if "TEMP B-TREE" in step or step in ("SCAN job", "SCAN TABLE job")] == []


@pytest.mark.parametrize("filters", [ANY, Filters(states=(JobState.FAILED,)), Filters(states=(JobState.QUEUED,))])
@pytest.mark.parametrize("tenant", [None, "anna"])
def test_a_page_of_a_list_is_found_by_an_index(
    connection: sqlite3.Connection, filters: Filters, tenant: str | None
) -> None:
    asked: list[str] = []
    with closing(connection):
        connection.set_trace_callback(asked.append)  # each query with its values
        read_page(connection.cursor(), filters, None, 50, tenant)
        connection.set_trace_callback(None)
        steps = [step for query in asked if query.startswith("SELECT") for step in plan(connection, query)]
    assert steps
    assert [step for step in steps if step in ("SCAN job", "SCAN TABLE job")] == [], steps
