"""A job as a talk of D-ID's API: the body of `GET /talks/{id}` and of a webhook.

Pure: a row of the ledger in, an object for JSON out. The fields that a client sent come from the row's column `rest`,
unchanged; a job that was dropped into the inbox lacks them. The address of the video is a parameter, since only the
server knows its own address.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

from lipsyncd.jobs.job import Job, JobState, utc_text

OWNER = "local"  # of jobs that were submitted without a key
_PREFIX = "tlk_"

# How the message about a failed fetch begins, by the input.
FETCHED = {"image": "the picture", "audio": "the voice"}

# The first letters of a reason's code -> D-ID's kind of error. The kind of `fetch-` depends on the message.
_KINDS: Mapping[str, str] = {
    "image-": "SourceError",
    "video-": "SourceError",
    "no-face": "FaceError",
    "face-": "FaceError",
    "audio-": "AudioError",
    "speech-": "AudioError",
    "encode-": "VideoEnhanceError",
    "bad-result": "VideoEnhanceError",
}


def talk_id(job_id: str) -> str:
    """The id for D-ID's clients: `tlk_` and the 32 hexadecimal digits of ours."""
    return _PREFIX + job_id.replace("-", "")


def rest_of(job: Job) -> dict[str, Any]:
    """The fields that are kept of a REST request (`rest_fields.FIELDS`); empty for a job that came otherwise."""
    found = json.loads(job.rest) if job.rest else {}
    return found if isinstance(found, dict) else {}


def status(job: Job) -> str:
    """D-ID's word for the state: created, started, done or error. Never back from started to created."""
    if job.state is JobState.DONE:
        return "done"
    if job.state.ended:
        return "error"
    return "created" if job.state is JobState.QUEUED and job.started_ms is None else "started"


def talk(job: Job, *, result_url: str | None = None) -> dict[str, Any]:
    """The whole talk object; it has `result_url` only if the job is done. Fields without a value are left out.

    Source: D-ID's Talks API, the fields of its GET answer.
    """
    rest = rest_of(job)
    owner = rest.get("by", OWNER)
    created_ms = rest.get("created_ms", job.accepted_ms)
    fields: dict[str, Any] = {
        "id": talk_id(job.id),
        "object": "talk",
        "user_id": owner,
        "created_by": owner,
        "status": status(job),
        "created_at": utc_text(created_ms),
        "started_at": utc_text(job.started_ms),
        "modified_at": utc_text(max(created_ms, job.started_ms or 0, job.finished_ms or 0)),
        "source_url": rest.get("source_url", ""),
        "audio_url": rest.get("audio_url", ""),
        "driver_url": rest.get("driver_url"),
        "duration": None if job.duration_ms is None else job.duration_ms / 1000,
        "config": {"result_format": "mp4", "fluent": False, **rest.get("config", {}), "stitch": job.stitch},
        "metadata": _metadata(job) if job.state is JobState.DONE else None,
        "name": rest.get("name") or job.name,
        "user_data": _user_data(job),
        "webhook": job.webhook,
        "subtitles": False,
        "error": error(job) if status(job) == "error" else None,
        "result_url": result_url if job.state is JobState.DONE else None,
    }
    return {name: value for name, value in fields.items() if value is not None}


class Ended(Protocol):
    """The fields of a job that `description` reads."""

    @property
    def state(self) -> JobState: ...
    @property
    def reason(self) -> str | None: ...
    @property
    def remedy(self) -> str | None: ...


def description(job: Ended) -> str:
    """Why a job ended without a video, and the remedy, in one sentence."""
    if job.state is JobState.CANCELLED:
        return "cancelled on request"
    why = job.reason or "unknown internal error"
    return f"{why}; {job.remedy}" if job.remedy else why


def error(job: Job) -> dict[str, str]:
    """The same with D-ID's kind of error and our own code."""
    if job.state is JobState.CANCELLED:
        return {"kind": "UnknownError", "description": description(job), "code": "cancelled"}
    code = job.reason_code or "internal-error"
    kind = next((kind for prefix, kind in _KINDS.items() if code.startswith(prefix)), "UnknownError")
    if code.startswith("fetch-"):
        kind = "AudioError" if (job.reason or "").startswith(FETCHED["audio"]) else "SourceError"
    return {"kind": kind, "description": description(job), "code": code}


def _user_data(job: Job) -> str | None:
    """The client's own text. D-ID's is always text, so other JSON out of a manifest becomes the text of that JSON."""
    if job.user_data is None:
        return None
    value = json.loads(job.user_data)
    return value if isinstance(value, str) else job.user_data


def _metadata(job: Job) -> dict[str, Any]:
    facts = {
        "num_frames": job.frames,
        "resolution": None if job.stitch else [job.resolution, job.resolution],
        "processing_fps": None if job.render_fps is None else round(job.render_fps, 1),
        "size_kib": None if job.out_size is None else round(job.out_size / 1024, 1),
    }
    return {name: value for name, value in facts.items() if value is not None}
