"""The JSON files beside a finished video and beside the inputs of a failed job, for people and scripts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lipsyncd import __version__
from lipsyncd.jobs.job import Job, JobSpec, utc_text
from lipsyncd.jobs.prepared import Output


def of_video(job: Job, spec: JobSpec, output: Output, out_name: str) -> bytes:
    """The sidecar `stem.json`: which file it describes, from which inputs it was made, and how."""
    render_fps = output.frames * 1000 / output.render_ms if output.render_ms else None
    return _dump(
        {
            "id": job.id,
            "state": "done",
            "video": output.shown_as or f"{out_name}.mp4",
            "duplicate_of": output.duplicate_of,
            "queue": spec.queue or None,
            "sha256": output.sha256,
            "bytes": output.size,
            "width": output.width,
            "height": output.height,
            "frames": output.frames,
            "fps": str(spec.fps),
            "duration_s": output.duration_ms / 1000,
            "renderer": spec.renderer,
            "stitch": spec.stitch,
            "motion": spec.motion,
            "av_offset_ms": spec.av_offset_ms,
            "attempt": output.attempt,
            "render_s": output.render_ms / 1000,
            "render_fps": None if render_fps is None else round(render_fps, 1),
            "accepted_at": utc_text(job.accepted_ms),
            "started_at": utc_text(job.started_ms),
            "inputs": [{"role": s.role, "name": s.name, "sha256": s.sha256} for s in spec.sources],
            "text": spec.text,
            "notes": output.notes,
            "recipe": output.recipe,
            "user_data": spec.user_data,
            **({"persist": True} if spec.persists else {}),
            "lipsyncd": __version__,
        }
    )


def of_failure(job: Job, spec: JobSpec, ending: Mapping[str, Any]) -> bytes:
    """`reason.json` beside the inputs: code, message, remedy, and how to try again."""
    return _dump(
        {
            "id": job.id,
            "state": ending["state"],
            "code": ending["code"],
            "message": ending["message"],
            "remedy": ending["remedy"],
            "attempts": job.attempt,
            "renderer": spec.renderer,
            "accepted_at": utc_text(job.accepted_ms),
            "ended_at": utc_text(int(ending["at_ms"])),
            "inputs": [{"role": s.role, "name": s.name, "sha256": s.sha256} for s in spec.sources],
            "retry": f"lipsyncd retry {job.id}",
            "user_data": spec.user_data,
            "lipsyncd": __version__,
        }
    )


def renamed(content: bytes, out_name: str) -> bytes:
    """The same sidecar for a video that is shown under another name."""
    return _dump({**json.loads(content), "video": f"{out_name}.mp4"})


def _dump(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
