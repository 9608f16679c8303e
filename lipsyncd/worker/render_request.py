"""What a render child is asked for, and what its answer is worth: the same for the daemon and without one.

Works on the files of one job. Leaves running the child to `child_process`, keeping the video to the caller.
"""

from __future__ import annotations

import math
from pathlib import Path

from lipsyncd.jobs.job import JobSpec
from lipsyncd.jobs.prepared import Output, Prepared, frame_count
from lipsyncd.media import video_frames
from lipsyncd.media.ffmpeg import encoder_threads
from lipsyncd.settings import Output as OutputSettings
from lipsyncd.storage.files import sha256_of
from lipsyncd.worker.check_result import validate
from lipsyncd.worker.protocol import Render, Result


def render_request(spec: JobSpec, prepared: Prepared, target: Path, *, output: OutputSettings, ffmpeg: Path) -> Render:
    """The request to render one job into `target`, a file that the child makes in the folder of the prepared inputs."""
    return Render(
        job_id=spec.id,
        renderer=spec.renderer,
        folder=str(target.parent),
        out_file=target.name,
        picture=prepared.picture,
        sound=prepared.sound,
        fps=str(spec.fps),
        frames=frame_count(prepared.sound.duration, spec.fps),
        stitch=spec.stitch,
        resolution=spec.resolution,
        motion=spec.motion,
        av_offset_ms=spec.av_offset_ms,
        options={name: value for name, value in spec.options.items() if name != video_frames.OPTION},
        encode={
            "ffmpeg": str(ffmpeg),
            "crf": output.crf,
            "preset": output.preset,
            "audio_kbps": output.audio_kbps,
            "encoder": output.encoder,
            "threads": encoder_threads(),
        },
        video=prepared.video,
    )


def checked_output(
    rendered: Path, spec: JobSpec, prepared: Prepared, request: Render, result: Result, *, recipe: str, attempt: int = 1
) -> Output:
    """The facts of a video that a child has rendered, once it is proved to be what was asked for. Raises `BadResult`.

    recipe  of `results.recipe`, for the same settings
    """
    duration = prepared.sound.duration
    validate(
        rendered,
        frames=request.frames,
        fps=spec.fps,
        width=result.width,
        height=result.height,
        duration=duration,
        ffmpeg=Path(request.encode["ffmpeg"]),
    )
    notes = prepared.all_notes
    return Output(
        sha256=sha256_of(rendered),
        size=rendered.stat().st_size,
        frames=result.frames,
        width=result.width,
        height=result.height,
        render_ms=math.ceil(result.took_s * 1000),
        duration_ms=round(duration * 1000),
        attempt=attempt,
        notes={**result.notes, **({"inputs": list(notes)} if notes else {})},
        recipe=recipe,
    )
