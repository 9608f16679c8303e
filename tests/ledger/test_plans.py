"""What workers and lists ask most often is answered by an index, however many rows there are."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from lipsyncd.jobs.job import JobState
from lipsyncd.ledger.ledger import Ledger
from lipsyncd.ledger.tables import CLAIM
from lipsyncd.web.views.pages import ANY, Filters, read_page
from tests.kits.machine.ledger_rows import make_ledger


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
    assert any("USING INDEX job_prepared" in step for step in steps), steps
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


# -- counted in SQLite's own steps, which do not depend on the machine -------------------------------------------------


def steps(connection: sqlite3.Connection, work: Callable[[sqlite3.Cursor], object]) -> int:
    """Instructions of SQLite's virtual machine that the work takes."""
    counted = [0]

    def count() -> int:
        counted[0] += 1
        return 0

    connection.set_progress_handler(count, 1)
    work(connection.cursor())
    connection.set_progress_handler(None, 1)
    return counted[0]


def claim(cursor: sqlite3.Cursor, device: str = "gpu") -> None:
    assert cursor.execute(str(CLAIM), {"token": "t", "device": device, "now": 1 << 50}).fetchone() is not None


def page(before_seq: int | None, filters: Filters, tenant: str | None) -> Callable[[sqlite3.Cursor], None]:
    def read(cursor: sqlite3.Cursor) -> None:
        rows, _ = read_page(cursor, filters, before_seq, 10, tenant)
        assert len(rows) == 10

    return read


def test_a_claim_and_every_page_cost_the_same_in_a_ledger_ten_times_as_large(tmp_path: Path) -> None:
    """Times: `python -m benchmarks.ledger`."""
    counts: list[dict[str, int]] = []
    for rows in (400, 4000):
        make_ledger(tmp_path / f"{rows}.db", rows, waiting=rows // 4)
        with closing(sqlite3.connect(tmp_path / f"{rows}.db")) as connection:
            counted = {"claim": steps(connection, claim)}
            connection.execute("UPDATE job SET prepared=0 WHERE state='queued' AND seq<>(SELECT max(seq) FROM job)")
            counted["claim behind jobs that are not prepared"] = steps(connection, partial(claim, device="gpu-2"))
            for filters, tenant in ((ANY, None), (ANY, "anna"), (Filters(states=(JobState.FAILED,)), None)):
                at = f"{filters.states} {tenant}"
                seqs = sorted(seq for [seq] in connection.execute(
                    "SELECT seq FROM job WHERE (? IS NULL OR tenant=?) AND (?='' OR state=?)",
                    (tenant, tenant, *[filters.states[0].value if filters.states else ""] * 2),
                ))  # fmt: skip
                for place, before in (("first", None), ("middle", seqs[len(seqs) // 2]), ("last", seqs[10])):
                    counted[f"{place} page, {at}"] = steps(connection, page(before, filters, tenant))
        counts.append(counted)
    few, many = counts
    assert min(few.values()) > 100
    assert {name: (few[name], many[name]) for name in few if many[name] > 1.2 * few[name]} == {}
