"""Pages of a list of jobs, the newest first: filters, and tokens that name where the next page begins.

A page costs the same however many jobs there are. Each state has an index, apart from `done`, and so has a tenant. What
no index knows (a name, a queue, a time) is looked for in the next `LOOKED_AT` jobs only: such a page may be short or
empty, and still have a next one. New jobs never shift a page.
"""

from __future__ import annotations

import base64
import binascii
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lipsyncd.jobs.job import JOB_COLUMNS, Job, JobState
from lipsyncd.web.replies import bad_request

LOOKED_AT = 3000  # jobs of one page; a few milliseconds
_COLUMNS = ", ".join(JOB_COLUMNS)
_SEQ = JOB_COLUMNS.index("seq")
_NEWEST = 1 << 62  # more than any `seq`

# The index of each state and what selects it; `done` has none. Without these words SQLite may read all jobs by `seq`.
_INDEXED: Mapping[JobState, str] = {
    state: f"job INDEXED BY job_ready WHERE state = '{state}'"
    if state is JobState.QUEUED
    else f"job INDEXED BY job_attention WHERE state = '{state}' AND state NOT IN('queued','done')"
    for state in JobState
    if state is not JobState.DONE
}


@dataclass(frozen=True)
class Filters:
    """Which jobs a client wants listed.

    states    only jobs in one of these; none: in any
    name      only jobs whose name contains this; ASCII letters match in either case
    queue     only jobs of that folder of the inbox, "" for the inbox itself; None: of any
    since_ms  only jobs that were accepted at that time or later, milliseconds since 1970
    """

    states: tuple[JobState, ...] = ()
    name: str = ""
    queue: str | None = None
    since_ms: int | None = None

    def match(self, job: Job) -> bool:
        """As the ledger would, for a job that has no row yet."""
        return (
            (not self.states or job.state in self.states)
            and _folded(self.name) in _folded(job.name)
            and self.queue in (None, job.queue)
            and (self.since_ms is None or job.accepted_ms >= self.since_ms)
        )

    def rules(self) -> dict[str, Any]:
        """Conditions that no index serves, as SQL, each with its value."""
        escaped = self.name.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_")
        every = {
            r"name LIKE ? ESCAPE '\'": f"%{escaped}%" if self.name else None,
            "queue = ?": self.queue,
            "accepted_ms >= ?": self.since_ms,
        }
        return {rule: value for rule, value in every.items() if value is not None}


ANY = Filters()


def read_page(
    cursor: sqlite3.Cursor, filters: Filters, before_seq: int | None, limit: int, tenant: str | None
) -> tuple[list[tuple[Any, ...]], int | None]:
    """The rows of a page with the columns `JOB_COLUMNS`, and the `before_seq` of the next one; None after the last.

    before_seq  only jobs older than this one; None: from the newest on
    tenant      only the jobs of that one; None: all jobs
    """
    rules, before = filters.rules(), _NEWEST if before_seq is None else before_seq
    found: list[tuple[Any, ...]] = []
    floor = 0  # jobs from here on were looked at in every index
    for source, values in _sources(filters.states, tenant):
        if rules or (tenant is not None and filters.states):
            floor = max(floor, _floor(cursor, source, (*values, before), filters.since_ms))
        where = " AND ".join([source, "seq < ?", "seq >= ?", *rules, _in(filters.states)])
        query = f"SELECT {_COLUMNS} FROM {where} ORDER BY seq DESC LIMIT ?"
        found += cursor.execute(query, (*values, before, floor, *rules.values(), limit + 1)).fetchall()
    rows = sorted((row for row in found if row[_SEQ] >= floor), key=lambda row: -row[_SEQ])
    if len(rows) > limit:
        return rows[:limit], int(rows[limit - 1][_SEQ])
    return rows, floor or None


def _sources(states: tuple[JobState, ...], tenant: str | None) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Tables with conditions that have an index, and the conditions' values; together they have every wanted job."""
    if tenant is not None:
        yield "job INDEXED BY job_tenant WHERE tenant = ?", (tenant,)
    elif states and JobState.DONE not in states:
        yield from ((_INDEXED[state], ()) for state in states)
    else:
        yield "job WHERE 1", ()


def _floor(cursor: sqlite3.Cursor, source: str, values: tuple[Any, ...], since_ms: int | None) -> int:
    """The oldest job to look at; 0 when these are the last ones, or none of them is new enough."""
    newest = "accepted_ms" if since_ms is not None else "0"
    inner = f"SELECT seq, {newest} AS at_ms FROM {source} AND seq < ? ORDER BY seq DESC LIMIT ?"
    oldest, number, newest_ms = cursor.execute(
        f"SELECT min(seq), count(*), max(at_ms) FROM ({inner})", (*values, LOOKED_AT)
    ).fetchone()
    is_last = number < LOOKED_AT or (since_ms is not None and newest_ms < since_ms)
    return 0 if is_last else int(oldest)


def _in(states: tuple[JobState, ...]) -> str:
    return f"state IN ({','.join(repr(str(state)) for state in states)})" if states else "1"


def _folded(text: str) -> str:
    """As SQLite's LIKE compares: ASCII letters alone lose their case."""
    return "".join(char.lower() if char.isascii() else char for char in text)


# -- tokens ------------------------------------------------------------------------------------------------------------


def token_of(seq: int) -> str:
    """The text that names a job as the last one of a page."""
    return base64.urlsafe_b64encode(f"seq:{seq}".encode()).decode().rstrip("=")


def seq_of(token: str) -> int:
    """The job that a token names. Raises 400 for a text that is none."""
    try:
        text = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True).decode("ascii")
        word, _, seq = text.partition(":")
        if word == "seq" and seq.isdecimal() and len(seq) < 19:
            return int(seq)
    except (binascii.Error, ValueError):
        pass
    raise bad_request("the token was not issued by this server")
