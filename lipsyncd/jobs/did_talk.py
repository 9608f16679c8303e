"""A job as a talk of D-ID's API: the body of `GET /talks/{id}` and of a webhook.

Pure: takes a row of the ledger and returns an object for JSON. The fields that a client sent are copied unchanged from
the row's column `rest`; a job from the inbox lacks them. The address of the video is a parameter, since only the server
knows its own address.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

from lipsyncd.jobs.faces import Faces, SeenFace
from lipsyncd.jobs.job import Job, JobState, utc_text

OWNER = "local"  # the owner of jobs that were submitted without a key
_PREFIX = "tlk_"

# The first words of the message about a failed fetch, by input.
FETCHED = {"image": "the picture", "audio": "the voice"}

# Prefix of an error code -> D-ID's kind of error. For `fetch-` the kind depends on the message.
_KINDS: Mapping[str, str] = {
    "image-": "SourceError",
    "video-": "SourceError",
    "no-face": "FaceError",
    "face-": "FaceError",
    "audio-": "AudioError",
    "speech-": "AudioError",
    "voice-": "AudioError",
    "encode-": "VideoEnhanceError",
    "bad-result": "VideoEnhanceError",
}


def talk_id(job_id: str) -> str:
    """The id that D-ID's clients see: `tlk_` and the 32 hexadecimal digits of the job's id."""
    return _PREFIX + job_id.replace("-", "")


def rest_of(job: Job) -> dict[str, Any]:
    """The stored fields of a REST request (`rest_fields.FIELDS`); empty for a job that did not come over REST."""
    found = json.loads(job.rest) if job.rest else {}
    return found if isinstance(found, dict) else {}


def status(job: Job) -> str:
    """D-ID's name of the state: created, started, done or error. A started job never becomes "created" again."""
    if job.state is JobState.DONE:
        return "done"
    if job.state.ended:
        return "error"
    return "created" if job.state is JobState.QUEUED and job.started_ms is None else "started"


def talk(job: Job, *, result_url: str | None = None, waits_for: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The whole talk object, without the fields that have no value. Only a finished job has a `result_url`.

    waits_for  what the job waits for besides its turn (`jobs.waits`), for the one field of our own

    Source: D-ID's Talks API, the response of GET.
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
        "lipsyncd": None if waits_for is None else {"waits_for": waits_for},
    }
    return {name: value for name, value in fields.items() if value is not None}


class EndedJob(Protocol):
    """The fields of a job that `description` reads."""

    @property
    def state(self) -> JobState: ...
    @property
    def reason(self) -> str | None: ...
    @property
    def remedy(self) -> str | None: ...


def description(job: EndedJob) -> str:
    """The reason why a job ended without a video, and the remedy, in one sentence."""
    if job.state is JobState.CANCELLED:
        return "cancelled on request"
    reason = job.reason or "unknown internal error"
    return f"{reason}; {job.remedy}" if job.remedy else reason


def error(job: Job) -> dict[str, str]:
    """The talk's `error`: the description, D-ID's kind of error, and our error code."""
    if job.state is JobState.CANCELLED:
        return {"kind": "UnknownError", "description": description(job), "code": "cancelled"}
    code = job.reason_code or "internal-error"
    kind = next((kind for prefix, kind in _KINDS.items() if code.startswith(prefix)), "UnknownError")
    if code.startswith("fetch-"):
        kind = "AudioError" if (job.reason or "").startswith(FETCHED["audio"]) else "SourceError"
    return {"kind": kind, "description": description(job), "code": code}


def _user_data(job: Job) -> str | None:
    """The client's own text. It is always text in D-ID's API, so other JSON of a manifest is written as text."""
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


def faces(found: Faces) -> list[dict[str, object]]:
    """The faces of an upload as D-ID describes them, the largest first."""
    return [_face(face, [other for other in found.seen if other is not face]) for face in found.seen]


def _face(face: SeenFace, others: list[SeenFace]) -> dict[str, object]:
    size = max(face.width, face.height)
    covered = max((_shared(face, other) for other in others), default=0.0)
    left, top = (round(start + (side - size) / 2) for start, side in ((face.x, face.width), (face.y, face.height)))
    return {
        "size": size,
        "top_left": [left, top],
        "overlap": "NO" if covered == 0 else "PARTIAL" if covered < 0.5 else "YES",
        "detect_confidence": face.confidence,
        "face_occluded": "covered" in face.fault,
        "detection": {"top": face.y, "left": face.x, "bottom": face.y + face.height, "right": face.x + face.width},
    }


def _shared(face: SeenFace, other: SeenFace) -> float:
    """The part of a face's box that another one covers, 0 to 1."""
    across = min(face.x + face.width, other.x + other.width) - max(face.x, other.x)
    down = min(face.y + face.height, other.y + other.height) - max(face.y, other.y)
    return max(across, 0) * max(down, 0) / (face.width * face.height)
