"""A job: its states and the legal moves between them, the accepted request (`JobSpec`), and its progress (`Job`).

Pure data. The spool keeps a `JobSpec` as `job.json`; the ledger keeps a `Job` as a row.
"""

from __future__ import annotations

import json
import os
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from types import NoneType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fractions import Fraction


class JobState(StrEnum):
    """The state of a job. Its stage says what it is doing in that state."""

    QUEUED = "queued"
    RUNNING = "running"
    PUBLISHING = "publishing"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """No more work will be done, unless a retry is requested."""
        return self in (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


# State -> the states that it may be entered from. `queued -> publishing` happens when a finished MP4 is found in the
# spool after a crash.
SOURCES: Mapping[JobState, tuple[JobState, ...]] = {
    JobState.QUEUED: (JobState.RUNNING, JobState.FAILED, JobState.CANCELLED),
    JobState.RUNNING: (JobState.QUEUED,),
    JobState.PUBLISHING: (JobState.QUEUED, JobState.RUNNING),
    JobState.DONE: (JobState.QUEUED, JobState.PUBLISHING),
    JobState.FAILED: (JobState.QUEUED, JobState.RUNNING, JobState.PUBLISHING),
    JobState.CANCELLED: (JobState.QUEUED, JobState.RUNNING),
}


ID_PATTERN = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"  # the id of a job or of an upload


def new_id() -> str:
    """A time-ordered UUID (version 7, RFC 9562) as canonical lower-case text, 36 characters."""
    stamp = time.time_ns() // 1_000_000
    value = (stamp & (1 << 48) - 1) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76  # version
    value = value & ~(0x3 << 62) | 0x2 << 62  # variant
    return str(uuid.UUID(int=value))


def id_of_key(owner: str, idempotency_key: str) -> str:
    """The id of the one job that this owner's Idempotency-Key stands for: a UUIDv8 of the SHA-256 of both."""
    import hashlib  # here, as `Fraction` below, since `lipsyncd status` needs neither

    text = f"{owner}\0{idempotency_key}".encode("utf-8", "surrogateescape")  # a header holds any bytes
    value = int.from_bytes(hashlib.sha256(text).digest()[:16], "big")
    value = value & ~(0xF << 76) | 0x8 << 76  # version
    value = value & ~(0x3 << 62) | 0x2 << 62  # variant
    return str(uuid.UUID(int=value))


def now_ms() -> int:
    """Wall clock in milliseconds since 1970: shown to people, never used to order jobs."""
    return time.time_ns() // 1_000_000


@lru_cache(1024)  # polling clients request the same few times again and again
def utc_text(at_ms: int | None) -> str | None:
    """ISO 8601 in UTC to the millisecond, such as 2026-11-22T16:19:00.250Z."""
    if at_ms is None:
        return None
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Identity:
    """Identifies the content of a file at one time: it changes when the file is written or replaced."""

    dev: int
    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, stat: os.stat_result) -> Identity:
        return cls(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)

    def to_json(self) -> dict[str, int]:
        numbers = {"dev": self.dev, "ino": self.ino, "size": self.size}
        return {**numbers, "mtime_ns": self.mtime_ns, "ctime_ns": self.ctime_ns}


# The roles of a job's files. OTHER: an unknown suffix; only a manifest can declare such a file a picture or a sound.
IMAGE, AUDIO, MANIFEST, OTHER = "image", "audio", "manifest", "other"


@dataclass(frozen=True)
class SourceFile:
    """One file that a job took from the inbox.

    role    "image", "audio", "manifest" or "extra-N"; also the file's name in the spool
    name    its name in the inbox; bytes that are not UTF-8 are kept as surrogate escapes (`os.fsencode` restores them)
    """

    role: str
    name: str
    identity: Identity
    sha256: str


# How much the head of a still moves while it speaks: MuseTalk and `preview` alike.
MOTIONS = ("none", "subtle", "lively")
MAX_AV_OFFSET_MS = 200  # of the lips against the sound, either way


@dataclass(frozen=True)
class JobSpec:
    """The whole request as it was accepted: the content of `job.json`, and the authority when records differ.

    image_url, audio_url    fetched in the prepare stage when the job names an address in place of a file
    text                    spoken in the prepare stage in place of a sound
    pad_s                   seconds of silence after the sound
    rest                    the stored fields of a REST request, None for every other job
    queue                   the folder in the inbox that it came from, "" for the inbox itself, and the folder in the
                            outbox that gets its result; a job of REST comes from the inbox itself, and this is
                            `web.outbox_folder` as it was when the job was accepted
    motion                  how much the head of a still moves, one of `MOTIONS`
    av_offset_ms            how much later than the sound the lips move; negative is earlier
    refusal                 the reason, when intake has found that the job cannot be done; it fails without a render
    """

    id: str
    name: str
    out_name: str
    renderer: str
    stitch: bool
    resolution: int
    fps: Fraction
    accepted_ms: int
    priority: int = 0
    sources: tuple[SourceFile, ...] = ()
    image_url: str | None = None
    audio_url: str | None = None
    text: str | None = None
    voice: str | None = None
    ssml: bool = False
    user_data: Any = None
    webhook: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    refusal: Mapping[str, str] | None = None
    pad_s: float = 0.0
    rest: Mapping[str, Any] | None = None
    queue: str = ""
    motion: str = "none"
    av_offset_ms: int = 0

    @property
    def signature(self) -> str:
        """Identifies one drop while its files lie in the inbox: the same bytes dropped again have another signature."""
        parts = [
            f"{s.name}\0{s.identity.dev}:{s.identity.ino}:{s.identity.size}:{s.identity.mtime_ns}:{s.identity.ctime_ns}"
            for s in self.sources
        ]
        place = [self.queue] if parts and self.queue else []
        return "\n".join(place + sorted(parts)).encode("utf-8", "surrogateescape").hex() or self.id

    @property
    def persists(self) -> bool:
        """The client requested that it is kept without limit."""
        return bool((self.rest or {}).get("persist"))

    @property
    def tenant(self) -> str | None:
        """The client of REST whose job it is; None for a job of the folder or of a server without keys."""
        tenant = (self.rest or {}).get("tenant")
        return tenant if isinstance(tenant, str) else None

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads. Not `asdict`, which copies each value and takes ten times as long."""
        sources = [{**vars(source), "identity": source.identity.to_json()} for source in self.sources]
        return {**vars(self), "fps": str(self.fps), "sources": sources}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> JobSpec:
        """The spec that `to_json` wrote. Raises KeyError, TypeError or ValueError when it is damaged.

        Members of the group can rewrite the file in failed/. So each name has to be one component of a path, each role
        one of ours, and each value of the right type.
        """
        from fractions import Fraction

        known = {f.name for f in fields(cls)}
        values = {k: v for k, v in data.items() if k in known}
        _check_types(values)
        try:
            values["fps"] = Fraction(values["fps"])
        except ArithmeticError as error:
            raise ValueError(f"{values['fps']!r} is not a frame rate") from error
        values["sources"] = tuple(
            SourceFile(s["role"], s["name"], Identity(**s["identity"]), s["sha256"]) for s in values["sources"]
        )
        spec = cls(**values)
        _check_names(spec)
        return spec


_TYPES: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("id", "name", "out_name", "renderer", "fps", "queue", "motion"), (str,)),
    **dict.fromkeys(("image_url", "audio_url", "text", "voice", "webhook"), (str, NoneType)),
    **dict.fromkeys(("resolution", "accepted_ms", "priority", "av_offset_ms"), (int,)),
    **dict.fromkeys(("stitch", "ssml"), (bool,)),
    **dict.fromkeys(("refusal", "rest"), (dict, NoneType)),
    "options": (dict,),
    "pad_s": (int, float),
    "sources": (list, tuple),
}
_ROLE = r"image|audio|manifest|extra-\d{1,6}"


def _check_types(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if name in _TYPES and type(value) not in _TYPES[name]:
            raise TypeError(f"{name} is {value!r}")
    refusal = values.get("refusal") or {}
    if not all(isinstance(text, str) for text in refusal.values()):
        raise TypeError(f"refusal is {refusal!r}")


def _check_names(spec: JobSpec) -> None:
    if spec.motion not in MOTIONS:
        raise ValueError(f"motion is {spec.motion!r}")
    if not -MAX_AV_OFFSET_MS <= spec.av_offset_ms <= MAX_AV_OFFSET_MS:
        raise ValueError(f"av_offset_ms is {spec.av_offset_ms!r}")
    for source in spec.sources:
        texts = isinstance(source.role, str) and isinstance(source.name, str) and isinstance(source.sha256, str)
        numbers = all(type(value) is int for value in asdict(source.identity).values())
        if not (texts and numbers and re.fullmatch(_ROLE, source.role) and is_component(source.name)):
            raise ValueError(f"{source} is no file of a job")
    if not (
        re.fullmatch(ID_PATTERN, spec.id)
        and is_component(spec.out_name)
        and (not spec.queue or is_component(spec.queue))
    ):
        raise ValueError(f"job {spec.id!r} is called {spec.out_name!r}, of queue {spec.queue!r}")


def is_component(name: str) -> bool:
    """Is it one component of a path, and neither this folder nor the one above?"""
    return "/" not in name and "\0" not in name and name not in ("", ".", "..")


def idempotency_key(spec: JobSpec) -> str | None:
    """Equal for equal work: the same bytes with the same options. None when a fetched input may differ each time."""
    import hashlib

    if spec.image_url or spec.audio_url or spec.refusal:
        return None
    content: Mapping[str, object] = {s.role: s.sha256 for s in spec.sources if s.role in (IMAGE, AUDIO)}
    requested = {
        "renderer": spec.renderer,
        "stitch": spec.stitch,
        "resolution": None if spec.stitch else spec.resolution,
        "fps": str(spec.fps),
        "text": spec.text,
        "voice": spec.voice,
        "ssml": spec.ssml,
        "options": spec.options,
        "pad_s": spec.pad_s,
        "motion": spec.motion,
        "av_offset_ms": spec.av_offset_ms,
    }
    return hashlib.sha256(json.dumps([content, requested], sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Job:
    """One row of the ledger. Times are milliseconds since 1970, or None while they lie in the future.

    duplicate_of  the earlier job with the same work: this one waits for it, or was given its video
    tenant        the client of REST whose job it is; None: only administrators' keys see it
    """

    id: str
    seq: int
    name: str
    state: JobState
    stage: str
    fraction: float
    priority: int
    attempt: int
    max_attempts: int
    out_name: str
    renderer: str
    stitch: bool
    resolution: int
    fps: str
    accepted_ms: int
    prepared: bool = False
    cancel_requested: bool = False
    not_before_ms: int = 0
    run_token: str | None = None
    device: str | None = None
    frames: int | None = None
    duration_ms: int | None = None
    render_ms: int | None = None
    out_sha256: str | None = None
    out_size: int | None = None
    staged: bool = False
    inputs_released: bool = False
    reason_code: str | None = None
    reason: str | None = None
    remedy: str | None = None
    user_data: str | None = None
    webhook: str | None = None
    duplicate_of: str | None = None
    queue: str = ""
    kept: str | None = None
    rest: str | None = None
    tenant: str | None = None
    started_ms: int | None = None
    finished_ms: int | None = None

    @property
    def place(self) -> str:
        """The path of its result in the outbox, without a suffix."""
        return f"{self.queue}/{self.out_name}" if self.queue else self.out_name

    @property
    def blocked(self) -> bool:
        """Waits for something outside the job, which costs no attempt."""
        return self.state is JobState.QUEUED and self.reason_code is not None and self.attempt == 0

    @property
    def render_fps(self) -> float | None:
        """Frames rendered and encoded per second of wall time."""
        return self.frames * 1000 / self.render_ms if self.frames and self.render_ms else None

    def to_json(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if k != "run_token"}


JOB_COLUMNS = tuple(f.name for f in fields(Job))
JOB_FLAGS = ("stitch", "prepared", "cancel_requested", "staged", "inputs_released")


def job_from_row(row: Mapping[str, Any]) -> Job:
    """A `Job` from a mapping with the columns `JOB_COLUMNS`."""
    values = {name: row[name] for name in JOB_COLUMNS}
    return Job(**{**values, "state": JobState(values["state"]), **{name: bool(values[name]) for name in JOB_FLAGS}})


@dataclass(frozen=True)
class JobEvent:
    """One line of a job's history. A later event has a larger number."""

    at_ms: int
    state: str
    note: str
    number: int = 0
    job_id: str = ""
    name: str = ""
