"""One thread for each device: claim a job, render it, publish the result; then the next one. Without a job, draw a part
of a long video that another device has claimed.

A failure that may pass is tried again after a while, up to `max_attempts`; one that cannot pass ends the job at once.
The attempt is counted before the run, so a job that crashes the daemon does so only a few times.
"""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time
from collections.abc import Callable
from functools import partial

from lipsyncd.errors import LedgerUnavailable, LipsyncdError, from_reason
from lipsyncd.jobs.job import Job, JobState
from lipsyncd.results.failures import RENDER, Failures
from lipsyncd.results.finish import Finisher
from lipsyncd.results.publish import Publisher
from lipsyncd.results.stores import Stores
from lipsyncd.storage.disk_space import shortage
from lipsyncd.storage.failpoints import reach
from lipsyncd.storage.spool import JobUnderWay
from lipsyncd.weights import RENDERER
from lipsyncd.worker.attempt import Attempt, DaemonStops
from lipsyncd.worker.child_process import RenderCancelled
from lipsyncd.worker.device import Device
from lipsyncd.worker.split.drawing import help_with_a_part

log = logging.getLogger(__name__)

_DISK_AGAIN_S = 0.2
_HEAL_EVERY_S = 1.0
_A_LITTLE_S = 0.01
_PULLING_AGAIN_S = 15.0  # so that a waiting job reports how far its weights are
_LEDGER_AGAIN_S = 1.0


class Worker:
    """Renders for one device.

    wake       set when the ledger may hold new work; the ledger is read then, and when a job that waits is due
    stopping   True when the daemon stops: the running job may finish until `cut_off` is True
    """

    def __init__(
        self,
        device: Device,
        stores: Stores,
        finisher: Finisher,
        failures: Failures,
        publisher: Publisher,
        *,
        stopping: Callable[[], bool],
        cut_off: Callable[[], bool],
    ) -> None:
        self.device = device
        self.wake = threading.Event()
        self._stores = stores
        self._finisher = finisher
        self._failures = failures
        self._publisher = publisher
        self._stopping = stopping
        self._cut_off = cut_off
        self._look_s = float("-inf")  # when the ledger is read without being woken
        self._healed_s = float("-inf")
        self._unsettled = False  # a run may have ended without the ledger knowing

    def run(self) -> None:
        """Work until the daemon stops. No job ends this thread."""
        device = self.device
        try:
            self._preload()
            device.shared.enter(device.name, device.fingerprint, self.wake)
            while not self._stopping():
                if self.wake.is_set() or time.monotonic() >= self._look_s:
                    self.wake.clear()
                    worked = self.round()
                    self._look_s = 0.0 if worked else self._next_look_s()
                    if worked:
                        continue
                if not self._heal():
                    self._unload_if_idle()
                    if not self._stopping():  # the stop sets the event after this
                        self.wake.wait(self._until_due_s())
        finally:
            device.shared.leave(device.name)
            device.executor.close()

    def round(self) -> bool:
        """Publish the jobs that wait for it, else render one job, else a part of another one's.

        Returns whether there was work. Raises nothing.
        """
        try:
            return self._publisher.publish_due() or self.run_once() or self._help()
        except LedgerUnavailable as error:
            log.warning("worker for %s: %s", self.device.name, error)
            self.wake.wait(_LEDGER_AGAIN_S)
        except (LipsyncdError, OSError) as error:
            log.warning("worker for %s: %s", self.device.name, error)
        except Exception:
            log.exception("worker for %s: unexpected failure", self.device.name)
        return False

    def _next_look_s(self) -> float:
        """When to read the ledger again unless woken: soon while the disk is low, else when the next job is due."""
        if self._is_disk_low():
            return time.monotonic() + _DISK_AGAIN_S
        return time.monotonic() + self._stores.seconds_until_due()

    def _until_due_s(self) -> float:
        """Seconds until there is something to do, unless it is woken."""
        now_s, idle_s = time.monotonic(), self.device.executor.idle_s()
        due_s = [self._look_s - now_s]
        if self._stores.obstacles:
            due_s.append(self._healed_s + _HEAL_EVERY_S - now_s)
        if idle_s:  # then a child lives
            due_s.append(self._stores.settings.now.render.unload_idle_s - idle_s + _A_LITTLE_S)
        return max(0.0, min(due_s))

    def _is_disk_low(self) -> bool:
        return bool(shortage(self._stores.spool.root, self._stores.settings.now.paths.min_free_mb))

    def _heal(self) -> bool:
        """Release, now and then, the jobs whose obstacle has changed. Raises nothing."""
        if time.monotonic() - self._healed_s < _HEAL_EVERY_S:
            return False
        self._healed_s = time.monotonic()
        try:
            return self._publisher.heal()
        except LedgerUnavailable:
            return False  # the next write reports it
        except Exception:
            log.exception("worker for %s: cannot check the waiting jobs", self.device.name)
            return False

    def _preload(self) -> None:
        render = self._stores.settings.now.render
        if render.lazy_load:
            return
        try:
            if render.renderer == RENDERER:
                self.device.weights.require()
            self.device.executor.start()
        except LipsyncdError as error:
            log.warning("worker for %s: cannot load ahead of the first job: %s", self.device.name, error)

    def _unload_if_idle(self) -> None:
        limit_s = self._stores.settings.now.render.unload_idle_s
        if self.device.executor.idle_s() > limit_s:
            log.info("worker for %s: no job for %g s, unloading", self.device.name, limit_s)
            self.device.executor.close()

    # -- one job -------------------------------------------------------------------------------------------------------

    def run_once(self) -> bool:
        """Claim and render one job; False when there is none, or no room for its result."""
        if self._unsettled:
            self._settle()
        if self._is_disk_low():
            return False
        job = self._stores.ledger.claim(self.device.name, secrets.token_hex(8))
        if job is None:
            return False
        reach("claimed")
        self._unsettled = True
        with self.device.shared.busy(self.device.name):
            self._carry_out(job)
        self._unsettled = False
        return True

    def _help(self) -> bool:
        """Draw a part of a long video of another device's job; False when there is none."""
        return not self._stopping() and not self._is_disk_low() and help_with_a_part(self.device, self._stores)

    def _settle(self) -> None:
        """Continue a run whose end could not be written into the ledger: the spool shows how far it got."""
        spool, ledger = self._stores.spool, self._stores.ledger
        for job in ledger.in_state(JobState.RUNNING):
            if job.device != self.device.name:
                continue
            output, ending = spool.output(job.id), spool.ending(job.id) or {}
            if output is not None:
                ledger.to_publishing(job.id, token=job.run_token, **output.facts)
            elif job.cancel_requested or ending.get("state") == JobState.CANCELLED:
                self._finisher.cancel(job.id)
            elif ending:
                self._finisher.fail(job.id, from_reason(ending))
            else:
                self._failures.requeue(job, "its run could not be recorded", charge=False)
        self._unsettled = False

    def _carry_out(self, job: Job) -> None:
        try:
            work = self._render(job)
        except RenderCancelled:
            self._finisher.cancel(job.id)
        except DaemonStops:
            self._failures.requeue(job, "the daemon stops", charge=False)
            log.info("job %s goes back to the queue: the daemon stops", job.id)
        except Exception as error:
            self._stores.spool.drop_partial_renders(job.id)
            longest_s = _PULLING_AGAIN_S if self.device.weights.busy else math.inf
            obstacle = partial(self.device.obstacle, renderer=job.renderer)
            self._failures.handle(job, error, RENDER, obstacle, attempt=job.attempt, longest_wait_s=longest_s)
        else:
            self._publisher.try_publish(work.job, work)

    def _render(self, job: Job) -> JobUnderWay:
        running = self._stores.running.begin(job.id)
        try:
            if self._stores.ledger.get(job.id).cancel_requested:
                raise RenderCancelled(job.id)  # requested between the claim and `begin`
            work = self._stores.spool.open(job)
            Attempt(self._stores, self.device, work, running, cut_off=self._cut_off).run()
            return work
        finally:
            self._stores.running.end(job.id)
