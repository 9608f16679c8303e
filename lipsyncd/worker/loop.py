"""One thread for each device: claim a job, have it rendered, make the result safe, publish it; then the next one.

A failure that may pass is tried again after a while, up to `max_attempts`; what cannot pass ends the job at once. The
attempt is counted before the run, so a job that takes the daemon down with it does not do so for ever.
"""

from __future__ import annotations

import contextlib
import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lipsyncd import __version__
from lipsyncd.errors import (
    Blocked,
    DeviceMissing,
    DiskLow,
    IllegalTransition,
    InputsLost,
    LedgerUnavailable,
    LipsyncdError,
    OutOfMemory,
    RenderCrashed,
    RendererNotInstalled,
    from_reason,
)
from lipsyncd.jobs.blocked import packages
from lipsyncd.jobs.job import Job, JobSpec, JobState
from lipsyncd.jobs.prepared import Output, Prepared, frame_count
from lipsyncd.jobs.retry import BACK_OFF_S
from lipsyncd.media import video_frames
from lipsyncd.monitor import gpu
from lipsyncd.results.finish import Finisher
from lipsyncd.results.recipe import recipe_of
from lipsyncd.settings import CurrentSettings
from lipsyncd.storage.disk_space import says_full, shortage
from lipsyncd.storage.failpoints import reach
from lipsyncd.storage.files import sha256_of
from lipsyncd.weights import RENDERER, AutoPull
from lipsyncd.worker.batch_limits import Ceilings
from lipsyncd.worker.check_result import validate
from lipsyncd.worker.child_process import Executor, RenderCancelled
from lipsyncd.worker.protocol import Batch, Progress, Render, Result

log = logging.getLogger(__name__)

_TELL_EVERY_S = 0.5  # each note of progress is a durable write
_LOOK_EVERY_S = 0.2
_HEAL_EVERY_S = 1.0
_PULLING_AGAIN_S = 15.0  # so that a waiting job tells how far its weights are
_DISK_AGAIN_MS = 3_000  # nothing is claimed while a disk is below its floor
_LEDGER_AGAIN_S = 1.0


class DaemonStops(Exception):
    """The render was ended because the daemon goes down: the attempt is given back."""


class Worker:
    """Renders for one device.

    weights    asked before each render that opens weights: it has them proved, or brings them
    ceilings   how many frames at a time have fitted into each device
    stopping   True when the daemon wants to end: the running job may finish until `cut_off` says that its time is up
    """

    def __init__(
        self,
        device: str,
        settings: CurrentSettings,
        finisher: Finisher,
        executor: Executor,
        ffmpeg: Path,
        weights: AutoPull,
        ceilings: Ceilings,
        *,
        stopping: Callable[[], bool],
        cut_off: Callable[[], bool],
    ) -> None:
        self.device = device
        self.settings = settings
        self.finisher = finisher
        self.executor = executor
        self.ffmpeg = ffmpeg
        self.weights = weights
        self.ceilings = ceilings
        self.wake = threading.Event()
        self.current: str | None = None
        self._healed_s = float("-inf")
        self._unsettled = False  # a run may have ended without the ledger knowing
        self._stopping = stopping
        self._cut_off = cut_off

    def run(self) -> None:
        """Work until the daemon stops. Nothing that a job brings up ends this thread."""
        try:
            self._preload()
            while not self._stopping():
                worked = self.round()
                if not self._heal() and not worked:
                    self._unload_if_idle()
                    self.wake.wait(_LOOK_EVERY_S)
                    self.wake.clear()
        finally:
            self.executor.close()

    def round(self) -> bool:
        """Publish what waits for that, else render one job; says whether there was anything to do. Raises nothing."""
        try:
            return self.finisher.publish_due() or self.run_once()
        except LedgerUnavailable as error:
            log.warning("worker for %s: %s", self.device, error)
            self.wake.wait(_LEDGER_AGAIN_S)
        except (LipsyncdError, OSError) as error:
            log.warning("worker for %s: %s", self.device, error)
        except Exception:
            log.exception("worker for %s: unexpected failure", self.device)
        return False

    def _heal(self) -> bool:
        """See now and then whether what jobs wait for has moved; that must never end the thread either."""
        if time.monotonic() - self._healed_s < _HEAL_EVERY_S:
            return False
        self._healed_s = time.monotonic()
        try:
            return self.finisher.heal()
        except LedgerUnavailable:
            return False  # who writes into it says so
        except Exception:
            log.exception("worker for %s: cannot look after waiting jobs", self.device)
            return False

    def _preload(self) -> None:
        if self.settings.now.render.lazy_load:
            return
        try:
            if self.settings.now.render.renderer == RENDERER:
                self.weights.require()
            self.executor.start()
        except LipsyncdError as error:
            log.warning("worker for %s: cannot load ahead of the first job: %s", self.device, error)

    def _unload_if_idle(self) -> None:
        limit_s = self.settings.now.render.unload_idle_s
        if self.executor.idle_s() > limit_s:
            log.info("worker for %s: no job for %g s, unloading", self.device, limit_s)
            self.executor.close()

    # -- one job -------------------------------------------------------------------------------------------------------

    def run_once(self) -> bool:
        """Claim and render one job; False when there is none, or no room for its result."""
        if self._unsettled:
            self._settle()
        if shortage(self.finisher.spool.root, self.settings.now.paths.min_free_mb):
            return False
        token = secrets.token_hex(8)
        job = self.finisher.ledger.claim(self.device, token)
        if job is None:
            return False
        reach("claimed")
        self.current, self._unsettled = job.id, True
        try:
            self._carry_out(job, token)
            self._unsettled = False
        finally:
            self.current = None
        return True

    def _settle(self) -> None:
        """Take up a run whose end could not be written into the ledger: the spool says how far it came."""
        spool = self.finisher.spool
        for job in self.finisher.ledger.in_state(JobState.RUNNING):
            output, ending = spool.output(job.id), spool.ending(job.id) or {}
            if job.device != self.device:
                continue
            if output is not None:
                self._to_publishing(job.id, job.run_token, output)
            elif job.cancel_requested or ending.get("state") == JobState.CANCELLED:
                self.finisher.cancel(job.id)
            elif ending:
                self.finisher.fail(job.id, from_reason(ending))
            else:
                self._put_back(job, note="its run could not be recorded", charge=False)
        self._unsettled = False

    def _carry_out(self, job: Job, token: str) -> None:
        try:
            self._render(job, token)
        except RenderCancelled:
            self.finisher.cancel(job.id)
        except DaemonStops:
            self._put_back(job, note="the daemon stops", charge=False)
            log.info("job %s goes back to the queue: the daemon stops", job.id)
        except Blocked as blocked:
            self._wait(job, blocked)
        except LedgerUnavailable:
            raise
        except IllegalTransition as error:
            log.warning("job %s: its result is dropped: %s", job.id, error)
            if self.finisher.ledger.get(job.id).cancel_requested:
                self.finisher.cancel(job.id)
        except LipsyncdError as error:
            self._failed(job, error)
        except OSError as error:
            self._failed(job, RenderCrashed(f"the result could not be kept: {error}"))
        except Exception as error:
            log.exception("job %s: unexpected failure", job.id)
            self._failed(job, LipsyncdError(f"{type(error).__name__}: {error}"))
        else:
            self.finisher.try_publish(job)

    def _put_back(self, job: Job, **how: Any) -> None:
        """Requeue a run that ended without a video, unless somebody has asked to cancel it meanwhile."""
        if self.finisher.ledger.requeue(job.id, **how).cancel_requested:
            self.finisher.cancel(job.id)

    def _wait(self, job: Job, blocked: Blocked) -> None:
        """Put a job back until what stops it has moved, or until it is time to look again."""
        wait_s = self.finisher.obstacles.met(blocked, *self._obstacle(blocked, job.renderer))
        if self.weights.busy:
            wait_s = min(wait_s, _PULLING_AGAIN_S)
        reason = blocked.reason()
        self._put_back(job, note=str(blocked), delay_ms=round(wait_s * 1000), charge=False, error=reason)
        log.warning("job %s waits, next look in %.0f s: %s", job.id, wait_s, blocked)

    def _obstacle(self, blocked: Blocked, renderer: str) -> tuple[str, Callable[[], Hashable]]:
        """Where it stands, and a cheap look at it."""
        if isinstance(blocked, DeviceMissing):
            return self._place(renderer), gpu.sight
        if isinstance(blocked, RendererNotInstalled):
            return self._place(renderer), packages
        return f"weights of {renderer}", lambda: tuple(found.state for found in self.weights.store.status())

    def _place(self, renderer: str) -> str:
        return f"{renderer} on {self.device}"

    def _no_room(self, job: Job, error: LipsyncdError) -> None:
        """Put a job back that a full disk has stopped."""
        low = DiskLow(f"no room to render job {job.id}: {error.message}")
        self._put_back(job, note=str(low), delay_ms=_DISK_AGAIN_MS, charge=False, error=low.reason())
        log.warning("job %s waits: %s", job.id, low)

    def _failed(self, job: Job, error: LipsyncdError) -> None:
        low = shortage(self.finisher.spool.root, self.settings.now.paths.min_free_mb)
        self.finisher.spool.drop_partial_renders(job.id)
        if says_full(error) or (low and not error.permanent):
            self._no_room(job, error)
            return
        if error.permanent or job.attempt >= job.max_attempts:
            self.finisher.fail(job.id, error)
            return
        wait_s = BACK_OFF_S[min(job.attempt, len(BACK_OFF_S)) - 1]
        self._put_back(job, note=str(error), delay_ms=wait_s * 1000, charge=True, error=error.reason())
        log.warning(
            "job %s failed, attempt %d of %d, next in %d s: %s", job.id, job.attempt, job.max_attempts, wait_s, error
        )

    def _render(self, job: Job, token: str) -> None:
        """Render, prove the result, and commit it: afterwards this job is never rendered again."""
        spool = self.finisher.spool
        spec, prepared = spool.spec(job.id), spool.prepared(job.id)
        if spec is None or prepared is None:
            raise InputsLost(f"the spool folder of job {job.id} is gone or damaged")
        if spec.renderer == RENDERER:
            self.weights.require(spec.options)
        if (ahead := self.finisher.obstacles.ahead(self._place(spec.renderer))) is not None:
            raise from_reason(ahead.reason())  # to look again takes a new child, which is not cheap
        duration = prepared.sound.duration
        spool.drop_partial_renders(job.id)
        request = self._request(spec, prepared, token, frame_count(duration, spec.fps))
        log.info("job %s starts: %s, %d frames, attempt %d", job.id, spec.renderer, request.frames, job.attempt)
        result = self._execute(job, token, request)
        self.finisher.obstacles.passed(self._place(spec.renderer))
        reach("rendered")
        rendered = spool.partial_render(job.id, token)
        validate(
            rendered,
            frames=request.frames,
            fps=spec.fps,
            width=result.width,
            height=result.height,
            duration=duration,
            ffmpeg=self.ffmpeg,
        )
        output = Output(
            sha256=sha256_of(rendered),
            size=rendered.stat().st_size,
            frames=result.frames,
            width=result.width,
            height=result.height,
            render_ms=math.ceil(result.took_s * 1000),
            duration_ms=round(duration * 1000),
            attempt=job.attempt,
            notes={**result.notes, **({"inputs": list(prepared.all_notes)} if prepared.all_notes else {})},
            recipe=recipe_of(self.settings.now),
        )
        spool.keep_output(job.id, rendered, output)
        self._to_publishing(job.id, token, output)
        reach("publishing")

    def _to_publishing(self, job_id: str, token: str | None, output: Output) -> None:
        self.finisher.ledger.to_publishing(
            job_id,
            token=token,
            sha256=output.sha256,
            size=output.size,
            frames=output.frames,
            render_ms=output.render_ms,
        )

    def _request(self, spec: JobSpec, prepared: Prepared, token: str, frames: int) -> Render:
        output = self.settings.now.output
        return Render(
            job_id=spec.id,
            renderer=spec.renderer,
            folder=str(self.finisher.spool.folder(spec.id)),
            out_file=self.finisher.spool.partial_render(spec.id, token).name,
            picture=prepared.picture,
            sound=prepared.sound,
            fps=str(spec.fps),
            frames=frames,
            stitch=spec.stitch,
            resolution=spec.resolution,
            options={name: value for name, value in spec.options.items() if name != video_frames.OPTION},
            encode={
                "ffmpeg": str(self.ffmpeg),
                "crf": output.crf,
                "preset": output.preset,
                "audio_kbps": output.audio_kbps,
            },
            video=prepared.video,
        )

    def _terms(self, renderer: str) -> str:
        """What decides how many frames at a time fit: the cap, the device, the program, the networks."""
        found = gpu.find(self.device)
        return " ".join(
            [
                f"cap={self.settings.now.render.max_vram_gb:g}GB",
                f"device={self.device if found is None else f'{found.name} {found.memory.total_gb:.1f}GB'}",
                f"version={__version__}",
                f"weights={self.weights.store.fingerprint if renderer == RENDERER else '-'}",
            ]
        )

    def _execute(self, job: Job, token: str, request: Render) -> Result:
        ledger, terms = self.finisher.ledger, self._terms(request.renderer)
        request = replace(request, most=self.ceilings.most(self.device, request.renderer, terms))
        told_s, stage, at_a_time = 0.0, "", 1

        def progress(message: Progress) -> None:
            nonlocal told_s, stage
            if message.stage != stage or time.monotonic() - told_s >= _TELL_EVERY_S:
                told_s, stage = time.monotonic(), message.stage
                with contextlib.suppress(LedgerUnavailable):
                    ledger.set_progress(job.id, token, message.stage, message.done / max(message.total, 1))

        def lower(too_many: int, most: int) -> None:
            self.ceilings.lower(self.device, request.renderer, terms, most)
            note = f"{too_many} frames at a time did not fit into memory, {most} are tried"
            ledger.note(job.id, note)
            log.warning("job %s: %s", job.id, note)

        def batch(message: Batch) -> None:
            nonlocal at_a_time
            at_a_time = message.size
            if message.too_many:
                lower(message.too_many, message.size)

        def stop() -> bool:
            try:
                now = ledger.find(job.id)
            except LedgerUnavailable:
                return self._cut_off()
            return self._cut_off() or now is None or now.cancel_requested

        try:
            return self.executor.render(request, progress=progress, stop=stop, batch=batch)
        except OutOfMemory:
            if at_a_time > 1:  # the child had no chance to try fewer by itself
                lower(at_a_time, at_a_time // 2)
            self.executor.close()  # only an end gives all memory back
            raise
        except Blocked:
            self.executor.close()  # a process that has looked for a device or a package once finds no new one
            raise
        except RenderCancelled:
            if self._cut_off() and not ledger.get(job.id).cancel_requested:
                raise DaemonStops from None
            raise
