"""Reads the ledger with `sqlite3` alone, for the CLI and the web server.

Opens the file read-only for each query, and holds no transaction. Only `ledger` writes.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lipsyncd.errors import LedgerError, UnknownJob
from lipsyncd.jobs.job import JOB_COLUMNS, Job, JobEvent, JobState, job_from_row
from lipsyncd.jobs.waits import SAME_WORK, UnfinishedJob, waits_for
from lipsyncd.ledger.live_progress import LiveProgress

if TYPE_CHECKING:
    from lipsyncd.jobs.webhook_delivery import Delivery

_COLUMNS = ", ".join(JOB_COLUMNS)


class LedgerView:
    """The ledger at `path`. A missing file reads as an empty ledger."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._progress = LiveProgress(path.parent)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection | None]:
        if not self.path.exists():
            yield None
            return
        try:
            with closing(self._connect()) as connection:
                connection.row_factory = sqlite3.Row
                [schema] = connection.execute("PRAGMA user_version").fetchone()
                yield connection if schema else None  # 0: a daemon is about to create the tables
        except sqlite3.Error as error:
            raise LedgerError(
                f"cannot read the ledger {self.path}: {error}",
                remedy="check that you are in its group; `lipsyncd run` repairs a damaged ledger from the spool",
            ) from error

    def _connect(self) -> sqlite3.Connection:
        """Open read-only; where SQLite may not create its shared memory file, read the file without it."""
        quoted = str(self.path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
        connection = sqlite3.connect(f"file:{quoted}?mode=ro", uri=True, timeout=5.0)
        try:
            connection.execute("SELECT 1 FROM sqlite_master LIMIT 1")
        except sqlite3.OperationalError:
            connection.close()
            if self.path.with_name(self.path.name + "-wal").exists():
                raise
            connection = sqlite3.connect(f"file:{quoted}?mode=ro&immutable=1", uri=True)
        return connection

    def jobs(self, *, states: Sequence[JobState] = (), limit: int = 50) -> list[Job]:
        """Running jobs, then queued ones in the order in which they will run, then ended ones from the newest on."""
        marks = ",".join("?" * len(states))
        where = f"WHERE state IN ({marks})" if states else ""
        order = (
            "ORDER BY state IN ('running','publishing') DESC, state='queued' DESC, "
            "CASE state WHEN 'queued' THEN -priority END, CASE state WHEN 'queued' THEN seq ELSE -seq END LIMIT ?"
        )
        with self._open() as connection:
            if connection is None:
                return []
            rows = connection.execute(f"SELECT {_COLUMNS} FROM job {where} {order}", (*states, limit))
            return [self._progress.onto(job_from_row(row)) for row in rows]

    def find(self, job_id: str) -> Job | None:
        """The job with exactly that id; `find_job` takes what users write."""
        found = self.jobs_where("id=:id", {"id": job_id}, limit=1)
        return found[0] if found else None

    def get(self, job_id: str) -> Job:
        """As `find`. Raises `UnknownJob`."""
        job = self.find(job_id)
        if job is None:
            raise UnknownJob(f"the ledger has no job {job_id!r}")
        return job

    def jobs_where(self, condition: str, values: Mapping[str, object], *, limit: int) -> list[Job]:
        """The jobs for which an SQL condition of ours holds, the newest first."""
        wanted = f"SELECT {_COLUMNS} FROM job WHERE {condition} ORDER BY seq DESC LIMIT :most"
        with self._open() as connection:
            rows = [] if connection is None else connection.execute(wanted, {**values, "most": limit})
            return [self._progress.onto(job_from_row(row)) for row in rows]

    def shared_ends(self, ends: str, length: int) -> int:
        """How many of these ends of ids, a JSON list, belong to more than one job; each has `length` characters."""
        alike = (
            "SELECT 1 FROM job WHERE substr(id, -:length) IN (SELECT value FROM json_each(:ends)) "
            "GROUP BY substr(id, -:length) HAVING count(*) > 1"
        )
        with self._open() as connection:
            if connection is None:
                return 0
            found = connection.execute(f"SELECT count(*) FROM ({alike})", {"length": length, "ends": ends}).fetchone()
            return int(found[0])

    def published_without_video(self, jobs: Sequence[Job]) -> set[str]:
        """The ids of those jobs that were published as a sidecar alone (`intake.on_redrop = "skip"`)."""
        ids = [job.id for job in jobs if job.duplicate_of is not None and job.state is JobState.DONE]
        wanted = (
            "SELECT job_id FROM job_event WHERE state='done' AND note LIKE 'published as %.json' "
            "AND job_id IN (SELECT value FROM json_each(?))"
        )
        with self._open() as connection:
            rows = [] if connection is None or not ids else connection.execute(wanted, (json.dumps(ids),))
            return {row["job_id"] for row in rows}

    def waits_for(self, job: UnfinishedJob) -> dict[str, str] | None:
        """Code, message and remedy of what a job waits for besides its turn; None when for nothing.

        A job that waits for an earlier one with the same work waits for what that one waits for.
        """
        reason = waits_for(job, paused=self._progress.paused if job.state is JobState.QUEUED else "")
        if reason is None or reason["code"] != SAME_WORK or job.duplicate_of is None:
            return reason
        first = self.find(job.duplicate_of)
        if first is None or first.state.ended:
            return None  # it is about to get that one's video, or to be rendered itself
        of_first = waits_for(first, paused=self._progress.paused) if first.attempt == 0 else None
        if of_first is None or of_first["code"] == SAME_WORK:
            return reason
        return {**of_first, "message": f"an earlier job makes the same video, and waits: {of_first['message']}"}

    def events(self, job_id: str) -> list[JobEvent]:
        """The job's history, oldest first."""
        return self._events("job_id=?", job_id)

    def latest_events(self, *, job_id: str = "", since_ms: int = 0, after: int = 0, limit: int = -1) -> list[JobEvent]:
        """The newest events of one job or of all, oldest first.

        since_ms  only events at or after that time
        after     only events with a larger number
        limit     the maximum number; negative: all
        """
        mine, values = ("job_id=? AND ", (job_id,)) if job_id else ("", ())
        where = f"{mine}e.id>? AND e.at_ms>=? ORDER BY e.id DESC LIMIT ?"
        return self._events(where, *values, after, since_ms, limit)

    def events_before(self, number: int, job_ids: Sequence[str]) -> list[JobEvent]:
        """The events of these jobs before the event with that number, oldest first."""
        return self._events(f"e.id<? AND job_id IN ({','.join('?' * len(job_ids))})", number, *job_ids)

    def _events(self, where: str, *values: object) -> list[JobEvent]:
        wanted = "SELECT e.id, job_id, name, at_ms, e.state, note FROM job_event e JOIN job ON job.id=job_id WHERE"
        with self._open() as connection:
            rows = [] if connection is None else connection.execute(f"{wanted} {where}", values).fetchall()
        found = [JobEvent(r["at_ms"], r["state"], r["note"], r["id"], r["job_id"], r["name"]) for r in rows]
        return sorted(found, key=lambda event: event.number)

    def deliveries(self, job_id: str) -> list[Delivery]:
        """The webhooks of a job, oldest first."""
        from lipsyncd.jobs.webhook_delivery import DELIVERY_COLUMNS, delivery_from_row

        wanted = (
            f"SELECT {', '.join(DELIVERY_COLUMNS)} FROM webhook_delivery WHERE job_id=? ORDER BY made_ms, webhook_id"
        )
        with self._open() as connection:
            rows = [] if connection is None else connection.execute(wanted, (job_id,))
            return [delivery_from_row(row) for row in rows]

    def oldest_queued_ms(self) -> int | None:
        """When the oldest queued job was accepted; None when none is queued."""
        return self._number("SELECT min(accepted_ms) FROM job WHERE state='queued'")

    def queue(self) -> tuple[int, str]:
        """The number of queued jobs, and the error code of a blocked one; "" when none is blocked."""
        wanted = (
            "SELECT count(*), coalesce(max(CASE WHEN attempt=0 THEN reason_code END), '') FROM job WHERE state='queued'"
        )
        with self._open() as connection:
            if connection is None:
                return 0, ""
            length, code = connection.execute(wanted).fetchone()
            return int(length), str(code)

    def blocked(self, renderer: str, codes: Sequence[str]) -> tuple[str, str] | None:
        """Error code and message of a queued job of that renderer with one of these codes; None if there is none."""
        marks = ",".join("?" * len(codes))
        wanted = f"SELECT reason_code, reason FROM job WHERE state='queued' AND renderer=? AND reason_code IN ({marks})"
        with self._open() as connection:
            if connection is None:
                return None
            row = connection.execute(f"{wanted} LIMIT 1", (renderer, *codes)).fetchone()
            return None if row is None else (row["reason_code"], row["reason"])

    def persisting(self) -> set[str]:
        """Jobs whose clients requested that they are kept without limit."""
        with self._open() as connection:
            wanted = "SELECT id FROM job WHERE json_extract(rest, '$.persist')=1"
            return set() if connection is None else {row["id"] for row in connection.execute(wanted)}

    def uploads_in_use(self) -> set[str]:
        """Uploads that open jobs may still read."""
        live = "rest IS NOT NULL AND (state='queued' OR state='running' OR state='publishing')"
        wanted = f"SELECT value FROM job, json_each(rest, '$.uploads') WHERE {live}"
        with self._open() as connection:
            return set() if connection is None else {row["value"] for row in connection.execute(wanted)}

    def known(self, job_ids: Collection[str]) -> set[str]:
        """Which of some ids have a row; all of them while there is no ledger, since then nothing is known."""
        with self._open() as connection:
            if connection is None:
                return set(job_ids)
            marks = ",".join("?" * len(job_ids))
            return {row["id"] for row in connection.execute(f"SELECT id FROM job WHERE id IN ({marks})", [*job_ids])}

    def old_rows(self, before_ms: int, most: int) -> list[tuple[str, bool, str | None]]:
        """Ended jobs beyond the newest `most` (0: no bound), or that ended before `before_ms`, oldest first.

        Leaves out jobs that a client wants kept, that have an undelivered webhook, or whose files are in the inbox.
        Gives the id of each, whether it failed, and where its inputs were kept.
        """
        ended = "state IN ('done','failed','cancelled')"
        bound = f"seq <= (SELECT seq FROM job WHERE {ended} ORDER BY seq DESC LIMIT 1 OFFSET :most)"
        wanted = (
            f"SELECT id, state='failed' AS failed, kept FROM job WHERE {ended} AND inputs_released=1 "
            "AND coalesce(json_extract(rest, '$.persist'), 0)=0 AND NOT EXISTS "
            "(SELECT 1 FROM webhook_delivery w WHERE w.job_id=job.id AND w.state='waiting') "
            f"AND (finished_ms < :before OR (:most > 0 AND {bound})) ORDER BY seq"
        )
        with self._open() as connection:
            if connection is None:
                return []
            rows = connection.execute(wanted, {"before": before_ms, "most": most})
            return [(row["id"], bool(row["failed"]), row["kept"]) for row in rows]

    def counts(self) -> dict[JobState, int]:
        """How many jobs are in each state."""
        with self._open() as connection:
            found = (
                {} if connection is None else dict(connection.execute("SELECT state, count(*) FROM job GROUP BY state"))
            )
        return {state: int(found.get(state.value, 0)) for state in JobState}

    # -- the file itself -----------------------------------------------------------------------------------------------

    def schema(self) -> int | None:
        """The version of the tables; None while there are none."""
        with self._open() as connection:
            return None if connection is None else int(connection.execute("PRAGMA user_version").fetchone()[0])

    def damage(self) -> str:
        """Read every page and index; gives the first damage found, "" when there is none."""
        with self._open() as connection:
            found = "ok" if connection is None else connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
            return "" if found == "ok" else " ".join(str(found).split())

    def newest_event_ms(self) -> int | None:
        """The time of the newest event; None when there is none."""
        return self._number("SELECT at_ms FROM job_event ORDER BY id DESC LIMIT 1")

    def last_done_ms(self) -> int | None:
        """When a job was last done; None when none was."""
        return self._number("SELECT max(finished_ms) FROM job WHERE state='done'")

    def _number(self, query: str) -> int | None:
        with self._open() as connection:
            row = None if connection is None else connection.execute(query).fetchone()
            return None if row is None or row[0] is None else int(row[0])
