"""One attempt to render one job: ask for the weights, run the render, check the video and make it safe in the spool.

Nothing here decides what a failure means for the job; errors climb to the loop.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from lipsyncd import __version__
from lipsyncd.errors import (
    Blocked,
    DeviceMissing,
    InputsLost,
    LedgerUnavailable,
    LipsyncdError,
    OutOfMemory,
    RendererNotInstalled,
    ShareUnavailable,
    from_reason,
)
from lipsyncd.jobs.blocked import ReadState, packages
from lipsyncd.jobs.running import RunningJob
from lipsyncd.monitor import gpu
from lipsyncd.results.recipe import recipe_of
from lipsyncd.results.stores import Stores
from lipsyncd.storage.failpoints import reach
from lipsyncd.storage.spool import JobUnderWay
from lipsyncd.weights import RENDERER, AutoPull
from lipsyncd.worker.batch_limits import BatchLimits
from lipsyncd.worker.child_process import Executor, RenderCancelled, any_of
from lipsyncd.worker.gpu_lock import WAITING, gpu_lock
from lipsyncd.worker.protocol import Batch, Next, Progress, Render, Result
from lipsyncd.worker.render_request import checked_output, render_request

log = logging.getLogger(__name__)

_MOST_EVENTS, _LONGEST_EVENT = 10, 300  # of one render, in its job's history


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
        if isinstance(blocked, ShareUnavailable):
            return "the shared folder", str  # no cheap look: a dead file server would hold it up
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
        stores.spool.drop_partial_renders(job.id)
        rendered = stores.spool.partial_render(job.id, self._token)
        settings = stores.settings.now
        request = render_request(spec, work.prepared, rendered, output=settings.output, ffmpeg=self._device.ffmpeg)
        log.info("job %s starts: %s, %d frames, attempt %d", job.id, spec.renderer, request.frames, job.attempt)
        result = self._execute(request)
        stores.obstacles.clear(self._device.place(spec.renderer))
        reach("rendered")
        work.output = checked_output(
            rendered,
            spec,
            work.prepared,
            request,
            result,
            recipe=recipe_of(settings, work.prepared.voice),
            attempt=job.attempt,
        )
        stores.spool.keep_output(job.id, rendered, work.output)
        self._record_events(result)
        work.job = stores.ledger.to_publishing(job.id, token=self._token, **work.output.facts)
        reach("publishing")

    def _upcoming(self, present: Render, most: int) -> Next | None:
        """The job that follows as things are, for the child to open ahead; None where it cannot gain by that.

        The same renderer only, since two may not fit into the memory, and with weights that are verified already.
        """
        try:
            job = self._stores.ledger.next_job()
            if job is None or job.renderer != present.renderer:
                return None
            work = self._stores.spool.open(job)
        except (LipsyncdError, OSError) as error:
            log.debug("no hint at the next job: %s", error)
            return None
        spec, prepared = work.spec, work.prepared
        same_weights = spec.renderer != RENDERER or spec.options == self._work.spec.options
        if prepared is None or prepared.video is not None or not same_weights:
            return None
        target = self._stores.spool.partial_render(job.id, "")
        settings = self._stores.settings.now
        request = render_request(spec, prepared, target, output=settings.output, ffmpeg=self._device.ffmpeg)
        return Next(**{**vars(request), "most": most})

    def _execute(self, request: Render) -> Result:
        terms = self._device.terms(request.renderer, self._stores.settings.now.render.max_vram_gb)
        most = self._device.batch_limits.most(self._device.name, request.renderer, terms)
        stop = any_of(self._cut_off, self._running.cancelled.is_set)
        try:
            with gpu_lock(self._device.name, request.renderer, stop=stop, waits_for=self._on_wait):
                return self._device.executor.render(
                    replace(request, most=most),
                    progress=self._on_progress,
                    stop=stop,
                    batch=lambda message: self._on_batch(message, request.renderer, terms),
                    upcoming=partial(self._upcoming, request, most),
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

    def _on_wait(self, why: str) -> None:
        log.info("job %s waits: %s", self._work.id, why)
        self._on_stage(WAITING)

    def _on_progress(self, message: Progress) -> None:
        """The fraction stays in memory; a new stage is recorded."""
        self._running.fraction = min(max(message.done / max(message.total, 1), 0.0), 1.0)
        self._on_stage(message.stage)

    def _on_stage(self, stage: str) -> None:
        if stage != self._running.stage:
            self._running.stage = stage
            with contextlib.suppress(LedgerUnavailable):
                self._stores.ledger.set_progress(self._work.id, self._token, stage, self._running.fraction)

    def _on_batch(self, message: Batch, renderer: str, terms: str) -> None:
        self._at_a_time = message.size
        if message.too_many:
            self._lower(message.too_many, message.size, renderer, terms)

    def _record_events(self, result: Result) -> None:
        """What the renderer did otherwise than usual, into the job's history; the sidecar has it with all notes."""
        events = result.notes.get("events")
        for event in events[:_MOST_EVENTS] if isinstance(events, list) else ():
            text = str(event)[:_LONGEST_EVENT]
            with contextlib.suppress(LedgerUnavailable):
                self._stores.ledger.note(self._work.id, text)
            log.warning("job %s: %s", self._work.id, text)

    def _lower(self, too_many: int, most: int, renderer: str, terms: str) -> None:
        self._device.batch_limits.lower(self._device.name, renderer, terms, most)
        note = f"{too_many} frames at a time did not fit into memory, {most} are tried"
        self._stores.ledger.note(self._work.id, note)
        log.warning("job %s: %s", self._work.id, note)
