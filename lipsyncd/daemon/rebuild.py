"""Read how jobs ended from the files that they left, for a ledger that is new or an older copy.

    done        sidecars in `state/results` and in the outbox
    failed      `job.json` and `reason.json` in failed/
    cancelled   the same in the archive, which also has the `job.json` of the jobs that were done

Others may write into these folders. Whose job it was counts only with the manifest beside it that REST has signed.

The spool holds the open jobs and overrides all this. A mark in the state folder means that these folders are to be
read. It stays until each of them could be read, so a crash or a share that is not mounted loses nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from lipsyncd.jobs import manifest_mac
from lipsyncd.jobs.job import Identity, JobSpec, JobState, SourceFile, idempotency_key, is_component
from lipsyncd.jobs.manifest import MAX_BYTES
from lipsyncd.ledger.ended_jobs import EndedJob
from lipsyncd.results import leftovers
from lipsyncd.results.archive import REASON
from lipsyncd.results.leftovers import ARCHIVE, FAILED, OUTBOX, RESULTS, Piece
from lipsyncd.storage.files import fsync_folder, write_new
from lipsyncd.storage.folders import Folders
from lipsyncd.storage.secret_file import secret_in

log = logging.getLogger(__name__)

_MARK = "endings-due"
_DAMAGED = (KeyError, TypeError, ValueError, ArithmeticError)
_UNKNOWN = Identity(0, 0, 0, 0, 0)


def set_due(state: Path) -> None:
    """Mark that the ledger there does not know how jobs ended, before anything writes to it."""
    write_new(state / _MARK, b"")
    fsync_folder(state)


def is_due(state: Path) -> bool:
    return (state / _MARK).exists()


def set_read(state: Path) -> None:
    (state / _MARK).unlink()
    fsync_folder(state)


def missing(folders: Folders) -> list[str]:
    """The folders that cannot be read now."""
    return [kind for kind in ("outbox", "failed", "archive") if not folders.available(kind)]


def read(folders: Folders) -> dict[str, EndedJob]:
    """Every ended job that has left files, by its id. A folder that is not mounted gives none."""
    spec_of = partial(_spec_of, folders, secret_in(folders.state / manifest_mac.SECRET_FILE))
    archived = leftovers.listed(folders, ARCHIVE)
    orders = {piece.id: (piece.where, spec) for piece in archived if (spec := spec_of(piece))}

    def without_video(piece: Piece) -> EndedJob | None:
        return _without_video(piece, spec_of(piece), leftovers.read_in(folders, piece, REASON))

    def done(piece: Piece) -> EndedJob:
        return _done(piece, leftovers.read_in(folders, piece, piece.names[-1]), orders)

    found = _ended_by_id(archived, without_video)
    found |= _ended_by_id(leftovers.listed(folders, FAILED), without_video)
    found |= _ended_by_id(leftovers.listed(folders, OUTBOX), done)
    return found | _ended_by_id(leftovers.listed(folders, RESULTS), done)


def _ended_by_id(found: Iterable[Piece], read_one: Callable[[Piece], EndedJob | None]) -> dict[str, EndedJob]:
    """The end of each piece's job, by its id. A damaged piece gives none."""
    ended_jobs = {}
    for piece in found:
        try:
            ended = read_one(piece)
        except _DAMAGED as error:
            log.warning("endings: %s cannot be read: %s: %s", piece.where, type(error).__name__, error)
            continue
        if ended is not None:
            ended_jobs[piece.id] = ended
    return ended_jobs


def _spec_of(folders: Folders, secret: bytes, piece: Piece) -> JobSpec | None:
    """The spec of the job whose inputs a piece is; its client and uploads only if REST's own manifest proves them."""
    spec = leftovers.spec_in(folders, piece)
    if spec is None or not {"tenant", "uploads"} & (spec.rest or {}).keys():
        return spec
    manifest = leftovers.bytes_in(folders, piece, f"rest-{spec.id}.json", MAX_BYTES + 1)
    return spec if manifest_mac.is_proof_of(manifest, spec, secret) else manifest_mac.without_tenant(spec)


def _without_video(piece: Piece, spec: JobSpec | None, why: Mapping[str, Any]) -> EndedJob | None:
    """A failed or cancelled job; None for the inputs of one that was done."""
    if spec is None or why.get("id") != piece.id:
        return None
    state = JobState(why["state"])
    reason = {"reason_code": str(why["code"]), "reason": str(why["message"]), "remedy": str(why["remedy"])}
    columns = {"attempt": int(why["attempts"]), "kept": piece.where}
    if state is JobState.FAILED:
        columns |= reason
    return EndedJob(spec, state, _ms(why["ended_at"]), idempotency_key(spec), columns)


def _done(piece: Piece, facts: Mapping[str, Any], orders: Mapping[str, tuple[str, JobSpec]]) -> EndedJob:
    """A job whose sidecar lies there. Its `job.json` in the archive is the better source of what was requested."""
    kept, spec = orders.get(piece.id, (None, None))
    spec = replace(_spec(facts) if spec is None else spec, out_name=_stem(piece, facts))
    if not is_component(spec.out_name) or (spec.queue and not is_component(spec.queue)):
        raise ValueError(f"it is called {spec.out_name!r}, of queue {spec.queue!r}")
    columns = {
        "out_sha256": str(facts["sha256"]),
        "out_size": int(facts["bytes"]),
        "frames": int(facts["frames"]),
        "duration_ms": round(facts["duration_s"] * 1000),
        "render_ms": round(facts["render_s"] * 1000),
        "attempt": int(facts["attempt"]),
        "started_ms": None if facts["started_at"] is None else _ms(facts["started_at"]),
        "duplicate_of": facts.get("duplicate_of"),
        "kept": kept,
    }
    return EndedJob(spec, JobState.DONE, round(piece.at_s * 1000), idempotency_key(spec), columns)


def _stem(piece: Piece, facts: Mapping[str, Any]) -> str:
    """The name that the job published under: its video's, or its sidecar's when it has no video of its own."""
    alone = piece.kind == leftovers.OUTBOX and facts.get("duplicate_of") and len(piece.names) == 1
    return str(piece.names[0] if alone else facts["video"]).removesuffix(".json").removesuffix(".mp4")


def _spec(facts: Mapping[str, Any]) -> JobSpec:
    """What was requested, as far as the sidecar shows it."""
    name = str(facts["video"]).removesuffix(".mp4")
    return JobSpec(
        id=facts["id"],
        name=name,
        out_name=name,
        renderer=str(facts["renderer"]),
        stitch=bool(facts["stitch"]),
        resolution=int(facts["width"]),
        fps=Fraction(facts["fps"]),
        motion=str(facts.get("motion", "none")),
        av_offset_ms=int(facts.get("av_offset_ms", 0)),
        accepted_ms=_ms(facts["accepted_at"]),
        sources=tuple(SourceFile(str(s["role"]), str(s["name"]), _UNKNOWN, str(s["sha256"])) for s in facts["inputs"]),
        text=facts.get("text"),
        user_data=facts.get("user_data"),
        rest={"persist": True} if facts.get("persist") else None,
        queue=str(facts.get("queue") or ""),
    )


def _ms(text: str) -> int:
    """Milliseconds since 1970 of what `utc_text` wrote."""
    return round(datetime.fromisoformat(text).timestamp() * 1000)
