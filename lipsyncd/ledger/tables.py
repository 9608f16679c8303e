"""The ledger's rows as SQLModel classes, and the columns that are written together.

`schema` holds the tables with their constraints.
"""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Mapping
from typing import Any

from sqlmodel import Field, SQLModel, text

from lipsyncd.jobs.job import JOB_COLUMNS, JobSpec, JobState, now_ms


class JobRow(SQLModel, table=True):
    """One job."""

    __tablename__ = "job"

    id: str = Field(primary_key=True)
    seq: int
    name: str
    state: str
    stage: str = ""
    fraction: float = 0.0
    priority: int = 0
    attempt: int = 0
    max_attempts: int
    not_before_ms: int = 0
    run_token: str | None = None
    device: str | None = None
    prepared: int = 0
    cancel_requested: int = 0
    renderer: str
    stitch: int
    resolution: int
    fps: str
    out_name: str
    out_key: str
    out_sha256: str | None = None
    out_size: int | None = None
    staged: int = 0
    source_sig: str
    idem_key: str | None = None
    duplicate_of: str | None = None
    inputs_released: int = 0
    kept: str | None = None
    frames: int | None = None
    duration_ms: int | None = None
    render_ms: int | None = None
    reason_code: str | None = None
    reason: str | None = None
    remedy: str | None = None
    user_data: str | None = None
    webhook: str | None = None
    accepted_ms: int
    started_ms: int | None = None
    finished_ms: int | None = None
    rest: str | None = None
    queue: str = ""
    tenant: str | None = None


class JobSourceRow(SQLModel, table=True):
    """One file that a job took from the inbox, with its name there."""

    __tablename__ = "job_source"

    job_id: str = Field(primary_key=True, foreign_key="job.id")
    role: str = Field(primary_key=True)
    name: bytes
    sha256: str


class JobEventRow(SQLModel, table=True):
    """One line of a job's history."""

    __tablename__ = "job_event"

    id: int | None = Field(default=None, primary_key=True)
    job_id: str = Field(foreign_key="job.id")
    at_ms: int
    state: str
    note: str = ""


class WebhookRow(SQLModel, table=True):
    """One message about a job's end to one receiver."""

    __tablename__ = "webhook_delivery"

    webhook_id: str = Field(primary_key=True)
    job_id: str = Field(foreign_key="job.id")
    url: str
    body: str
    state: str
    attempt: int = 0
    next_at_ms: int
    last_status: int | None = None
    last_error: str | None = None
    made_ms: int
    ended_ms: int | None = None


# One statement, so that only one of two workers gets the job.
_NEXT = """job INDEXED BY job_prepared
          WHERE state='queued' AND prepared=1 AND not_before_ms<=:now AND cancel_requested=0
            AND attempt<max_attempts ORDER BY priority DESC, seq LIMIT 1"""
NEXT = text(f"SELECT {', '.join(JOB_COLUMNS)} FROM {_NEXT}")
CLAIM = text(f"""
UPDATE job SET state='running', attempt=attempt+1, run_token=:token, device=:device, stage='starting', fraction=0,
               started_ms=:now, reason_code=NULL, reason=NULL, remedy=NULL
 WHERE id=(SELECT id FROM {_NEXT})
RETURNING {", ".join(JOB_COLUMNS)}
""")

# The most frequent query, so its text is built only once.
FIND = text(f"SELECT {', '.join(JOB_COLUMNS)} FROM job WHERE id=:job_id")

NO_REASON: Mapping[str, Any] = {"reason_code": None, "reason": None, "remedy": None}


def reason_columns(error: Mapping[str, str]) -> dict[str, str]:
    """The columns for an error's `reason()`."""
    return {"reason_code": error["code"], "reason": error["message"], "remedy": error["remedy"]}


def requested_columns(spec: JobSpec) -> dict[str, Any]:
    """The columns of the request, which a late manifest replaces."""
    return {
        "name": spec.name,
        "priority": spec.priority,
        "renderer": spec.renderer,
        "stitch": int(spec.stitch),
        "resolution": spec.resolution,
        "fps": str(spec.fps),
        "user_data": None if spec.user_data is None else json.dumps(spec.user_data),
        "webhook": spec.webhook,
        "rest": None if spec.rest is None else json.dumps(spec.rest),
        "tenant": spec.tenant,
    }


def new_row(spec: JobSpec, out_name: str, max_attempts: int, idem_key: str | None) -> dict[str, Any]:
    """All columns of a new job but `seq`."""
    return {
        "id": spec.id,
        "state": JobState.QUEUED.value,
        "stage": "accepted",
        "max_attempts": max_attempts,
        "source_sig": spec.signature,
        "idem_key": idem_key,
        "inputs_released": int(not spec.sources),
        "accepted_ms": spec.accepted_ms,
        "queue": spec.queue,
        **requested_columns(spec),
        **name_columns(out_name),
    }


def source_rows(spec: JobSpec) -> list[dict[str, Any]]:
    """The rows of the files that a job took."""
    return [{"job_id": spec.id, "role": s.role, "name": os.fsencode(s.name), "sha256": s.sha256} for s in spec.sources]


def name_columns(out_name: str) -> dict[str, Any]:
    """The columns of an output name: the name itself, and its key for comparison."""
    return {"out_name": out_name, "out_key": out_key(out_name)}


def out_key(out_name: str) -> str:
    """Equal for names that are one file on a share that ignores case or normalises Unicode."""
    return unicodedata.normalize("NFC", out_name).casefold()


def event(job_id: str, state: str, note: str) -> JobEventRow:
    """A line of history with the current time."""
    return JobEventRow(**event_row(job_id, state, note))


def event_row(job_id: str, state: str, note: str) -> dict[str, Any]:
    """The columns of `event`, to write many rows at once."""
    return {"job_id": job_id, "at_ms": now_ms(), "state": str(state), "note": note}
