"""One attempt to render one job: ask for the weights, run the render, check the video and make it safe in the spool.

Nothing here decides what a failure means for the job; errors climb to the loop.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from functools import partial

from lipsyncd.errors import InputsLost, LedgerUnavailable, LipsyncdError, from_reason
from lipsyncd.jobs.running import RunningJob
from lipsyncd.results.recipe import recipe_of
from lipsyncd.results.stores import Stores
from lipsyncd.storage.failpoints import reach
from lipsyncd.storage.spool import JobUnderWay
from lipsyncd.weights import RENDERER
from lipsyncd.worker.child_process import RenderCancelled, any_of
from lipsyncd.worker.device import Device, OneRender
from lipsyncd.worker.gpu_lock import WAITING
from lipsyncd.worker.protocol import Next, Progress, Render, Result
from lipsyncd.worker.render_request import checked_output, render_request
from lipsyncd.worker.split.drawing import draw_in_parts, split_of

log = logging.getLogger(__name__)

_MOST_EVENTS, _LONGEST_EVENT = 10, 300  # of one render, in its job's history


class DaemonStops(Exception):
    """The render was ended because the daemon stops: the attempt is given back."""


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
        result = self._draw(request)
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

    def _upcoming(self, present: Render) -> Next | None:
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
        return Next(**{**vars(request), "most": present.most})

    def _draw(self, request: Render) -> Result:
        """Have the whole video drawn, here or in parts on several slots."""
        stop = any_of(self._cut_off, self._running.cancelled.is_set)
        try:
            attempt = self._work.job.attempt
            split = split_of(
                request, self._device, self._stores, attempt=attempt, stop=stop, on_fraction=self._on_fraction
            )
            if split is not None:
                parts = len(split.ranges)
                log.info("job %s is drawn in %d parts: %d other slots are free", self._work.id, parts, split.others)
                return draw_in_parts(split, self._device, self._stores, stage=self._on_stage, waits=self._on_wait)
            one = OneRender(self._device, self._stores, request)
            upcoming = partial(self._upcoming, one.request)
            return one.run(stop=stop, progress=self._on_progress, waits=self._on_wait, upcoming=upcoming)
        except RenderCancelled:
            if self._cut_off() and not self._stores.ledger.get(request.job_id).cancel_requested:
                raise DaemonStops from None
            raise

    def _on_wait(self, why: str) -> None:
        log.info("job %s waits: %s", self._work.id, why)
        self._on_stage(WAITING)

    def _on_progress(self, message: Progress) -> None:
        """The fraction stays in memory; a new stage is recorded."""
        self._on_fraction(message.done / max(message.total, 1))
        self._on_stage(message.stage)

    def _on_fraction(self, fraction: float) -> None:
        self._running.fraction = min(max(fraction, 0.0), 1.0)

    def _on_stage(self, stage: str) -> None:
        if stage != self._running.stage:
            self._running.stage = stage
            with contextlib.suppress(LedgerUnavailable):
                self._stores.ledger.set_progress(self._work.id, self._token, stage, self._running.fraction)

    def _record_events(self, result: Result) -> None:
        """What the renderer did otherwise than usual, into the job's history; the sidecar has it with all notes."""
        events = result.notes.get("events")
        for event in events[:_MOST_EVENTS] if isinstance(events, list) else ():
            text = str(event)[:_LONGEST_EVENT]
            with contextlib.suppress(LedgerUnavailable):
                self._stores.ledger.note(self._work.id, text)
            log.warning("job %s: %s", self._work.id, text)
