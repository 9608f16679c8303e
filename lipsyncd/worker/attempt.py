"""One attempt to render one job: ask for the weights, run the render, check the video and make it safe in the spool.

Nothing here decides what a failure means for the job; errors climb to the loop.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from pathlib import Path

from lipsyncd import __version__
from lipsyncd.errors import (
    Blocked,
    DeviceMissing,
    InputsLost,
    LedgerUnavailable,
    OutOfMemory,
    RendererNotInstalled,
    from_reason,
)
from lipsyncd.jobs.blocked import ReadState, packages
from lipsyncd.jobs.job import JobSpec
from lipsyncd.jobs.prepared import Output, Prepared, frame_count
from lipsyncd.jobs.running import RunningJob
from lipsyncd.media import video_frames
from lipsyncd.monitor import gpu
from lipsyncd.results.recipe import recipe_of
from lipsyncd.results.stores import Stores
from lipsyncd.storage.failpoints import reach
from lipsyncd.storage.files import sha256_of
from lipsyncd.storage.spool import JobUnderWay
from lipsyncd.weights import RENDERER, AutoPull
from lipsyncd.worker.batch_limits import BatchLimits
from lipsyncd.worker.check_result import validate
from lipsyncd.worker.child_process import Executor, RenderCancelled, any_of
from lipsyncd.worker.protocol import Batch, Progress, Render, Result

log = logging.getLogger(__name__)


class DaemonStops(Exception):
    """The render was ended because the daemon stops: the attempt is given back."""


@dataclass
class Device:
    """What renders on one device.

    weights       verified, or pulled, before each render that opens weights
    batch_limits  how many frames at a time have fitted into each device
    """

    name: str
    executor: Executor
    ffmpeg: Path
    weights: AutoPull
    batch_limits: BatchLimits

    def place(self, renderer: str) -> str:
        return f"{renderer} on {self.name}"

    def obstacle(self, blocked: Blocked, renderer: str) -> tuple[str, ReadState]:
        """Where a blocked job stands, and a cheap look at what blocks it."""
        if isinstance(blocked, DeviceMissing):
            return self.place(renderer), gpu.sight
        if isinstance(blocked, RendererNotInstalled):
            return self.place(renderer), packages
        return f"weights of {renderer}", self._state_of_weights

    def _state_of_weights(self) -> Hashable:
        return tuple(found.state for found in self.weights.store.status())

    def terms(self, renderer: str, max_vram_gb: float) -> str:
        """What decides how many frames at a time fit: the cap, the device, the program, the networks."""
        found = gpu.find(self.name)
        return " ".join(
            [
                f"cap={max_vram_gb:g}GB",
                f"device={self.name if found is None else f'{found.name} {found.memory.total_gb:.1f}GB'}",
                f"version={__version__}",
                f"weights={self.weights.store.fingerprint if renderer == RENDERER else '-'}",
            ]
        )


class Attempt:
    """One attempt of a claimed job.

    running  the job's progress, and the request to cancel it
    cut_off  True when the daemon stops and the job's time to finish is over
    """

    def __init__(
        self, stores: Stores, device: Device, work: JobUnderWay, running: RunningJob, *, cut_off: Callable[[], bool]
    ) -> None:
        self._stores = stores
        self._device = device
        self._work = work
        self._running = running
        self._cut_off = cut_off
        self._token = work.job.run_token or ""
        self._at_a_time = 1  # frames

    def run(self) -> None:
        """Render, check the result, and commit it: afterwards this job is never rendered again.

        Raises `RenderCancelled`, `DaemonStops`, and every error of `LipsyncdError` or OSError that a render may meet.
        """
        work, stores = self._work, self._stores
        spec, job = work.spec, work.job
        if work.prepared is None:
            raise InputsLost(f"the prepared inputs of job {job.id} are gone from the spool")
        if spec.renderer == RENDERER:
            self._device.weights.require(spec.options)
        if (blocked := stores.obstacles.still_blocking(self._device.place(spec.renderer))) is not None:
            raise from_reason(blocked.reason())  # another try would start a new child, which is expensive
        duration = work.prepared.sound.duration
        stores.spool.drop_partial_renders(job.id)
        frames = frame_count(duration, spec.fps)
        request = render_request(stores, spec, work.prepared, self._token, frames, ffmpeg=self._device.ffmpeg)
        log.info("job %s starts: %s, %d frames, attempt %d", job.id, spec.renderer, request.frames, job.attempt)
        result = self._execute(request)
        stores.obstacles.clear(self._device.place(spec.renderer))
        reach("rendered")
        rendered = stores.spool.partial_render(job.id, self._token)
        validate(
            rendered,
            frames=request.frames,
            fps=spec.fps,
            width=result.width,
            height=result.height,
            duration=duration,
            ffmpeg=self._device.ffmpeg,
        )
        notes = work.prepared.all_notes
        work.output = Output(
            sha256=sha256_of(rendered),
            size=rendered.stat().st_size,
            frames=result.frames,
            width=result.width,
            height=result.height,
            render_ms=math.ceil(result.took_s * 1000),
            duration_ms=round(duration * 1000),
            attempt=job.attempt,
            notes={**result.notes, **({"inputs": list(notes)} if notes else {})},
            recipe=recipe_of(stores.settings.now),
        )
        stores.spool.keep_output(job.id, rendered, work.output)
        work.job = stores.ledger.to_publishing(job.id, token=self._token, **work.output.facts)
        reach("publishing")

    def _execute(self, request: Render) -> Result:
        terms = self._device.terms(request.renderer, self._stores.settings.now.render.max_vram_gb)
        most = self._device.batch_limits.most(self._device.name, request.renderer, terms)
        try:
            return self._device.executor.render(
                replace(request, most=most),
                progress=self._on_progress,
                stop=any_of(self._cut_off, self._running.cancelled.is_set),
                batch=lambda message: self._on_batch(message, request.renderer, terms),
            )
        except OutOfMemory:
            if self._at_a_time > 1:  # the child had no chance to try fewer by itself
                self._lower(self._at_a_time, self._at_a_time // 2, request.renderer, terms)
            self._device.executor.close()  # only the end of the process gives all memory back
            raise
        except Blocked:
            self._device.executor.close()  # a process that looked for a device or package once never finds a new one
            raise
        except RenderCancelled:
            if self._cut_off() and not self._stores.ledger.get(request.job_id).cancel_requested:
                raise DaemonStops from None
            raise

    def _on_progress(self, message: Progress) -> None:
        """The fraction stays in memory; a new stage is recorded."""
        self._running.fraction = min(max(message.done / max(message.total, 1), 0.0), 1.0)
        if message.stage != self._running.stage:
            self._running.stage = message.stage
            with contextlib.suppress(LedgerUnavailable):
                self._stores.ledger.set_progress(message.job_id, self._token, message.stage, self._running.fraction)

    def _on_batch(self, message: Batch, renderer: str, terms: str) -> None:
        self._at_a_time = message.size
        if message.too_many:
            self._lower(message.too_many, message.size, renderer, terms)

    def _lower(self, too_many: int, most: int, renderer: str, terms: str) -> None:
        self._device.batch_limits.lower(self._device.name, renderer, terms, most)
        note = f"{too_many} frames at a time did not fit into memory, {most} are tried"
        self._stores.ledger.note(self._work.id, note)
        log.warning("job %s: %s", self._work.id, note)


def render_request(
    stores: Stores, spec: JobSpec, prepared: Prepared, token: str, frames: int, *, ffmpeg: Path
) -> Render:
    """What a render child is asked to do for one job."""
    output = stores.settings.now.output
    return Render(
        job_id=spec.id,
        renderer=spec.renderer,
        folder=str(stores.spool.folder(spec.id)),
        out_file=stores.spool.partial_render(spec.id, token).name,
        picture=prepared.picture,
        sound=prepared.sound,
        fps=str(spec.fps),
        frames=frames,
        stitch=spec.stitch,
        resolution=spec.resolution,
        options={name: value for name, value in spec.options.items() if name != video_frames.OPTION},
        encode={
            "ffmpeg": str(ffmpeg),
            "crf": output.crf,
            "preset": output.preset,
            "audio_kbps": output.audio_kbps,
        },
        video=prepared.video,
    )
