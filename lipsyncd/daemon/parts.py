"""Everything that one daemon consists of, put together in order: each part is given the parts that it works with.

Starts no thread and changes no job: the daemon recovers first, and starts the threads afterwards.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lipsyncd.cluster.ray_child import RayChild
from lipsyncd.cluster.slots import Slots
from lipsyncd.daemon.housekeeping import Housekeeper
from lipsyncd.errors import ConfigError
from lipsyncd.inbox.service import InboxService
from lipsyncd.jobs.did_talk import rest_of
from lipsyncd.jobs.job import Job, JobState
from lipsyncd.ledger.ledger import Ledger
from lipsyncd.monitor import gpu
from lipsyncd.monitor.facts import WorkerFacts
from lipsyncd.monitor.probe import HealthMonitor
from lipsyncd.network import address_guard
from lipsyncd.network.webhooks import Webhooks, load_keys
from lipsyncd.prepare.fetcher import Fetcher
from lipsyncd.prepare.preparer import Preparer
from lipsyncd.results.failures import Failures
from lipsyncd.results.finish import Finisher
from lipsyncd.results.publish import Publisher
from lipsyncd.results.stores import Stores, stores_of
from lipsyncd.sandbox.jail import landlock_abi
from lipsyncd.settings import CurrentSettings, Settings
from lipsyncd.storage.folders import Folders
from lipsyncd.storage.locks import FolderLock
from lipsyncd.storage.mounts import known_network
from lipsyncd.web.server import WebServer
from lipsyncd.web.views.queue import SlotCount
from lipsyncd.weights import RENDERER, AutoPull, store_of
from lipsyncd.worker.batch_limits import FILE as BATCH_LIMITS_FILE
from lipsyncd.worker.batch_limits import BatchLimits
from lipsyncd.worker.child_process import LocalChild, any_of
from lipsyncd.worker.device import Device
from lipsyncd.worker.local_child import local_child, timeouts_of
from lipsyncd.worker.loop import Worker
from lipsyncd.worker.split.shared_video import SharedVideos

log = logging.getLogger(__name__)

_ARENA_MAX = -8  # M_ARENA_MAX of <malloc.h>


@dataclass(frozen=True)
class RenderThread:
    """The worker of one device or slot, its render child, and the thread that it runs in."""

    worker: Worker
    child: LocalChild | RayChild
    thread: threading.Thread

    @property
    def facts(self) -> WorkerFacts:
        child = self.child
        return WorkerFacts(child.device, self.thread.is_alive(), child.starts, child.unwatched_s(), child.busy)


class _WorkerParts:
    """What every worker is made of besides its child."""

    def __init__(
        self,
        stores: Stores,
        finisher: Finisher,
        failures: Failures,
        publisher: Publisher,
        ffmpeg: Path,
        weights: AutoPull,
        batch_limits: BatchLimits,
        *,
        stop: threading.Event,
        cut_off: threading.Event,
    ) -> None:
        self._of_jobs = stores, finisher, failures, publisher
        self._of_devices = ffmpeg, weights, batch_limits, SharedVideos()
        self._stop = stop
        self._cut_off = cut_off

    def render_thread(self, child: LocalChild | RayChild, gone: threading.Event | None = None) -> RenderThread:
        """A worker in a thread that is not started yet. It ends with the daemon, or once `gone` is set."""
        build = child.build if isinstance(child, RayChild) else ""
        device = Device(child.device, child, *self._of_devices, build=build)
        stopping = self._stop.is_set if gone is None else any_of(self._stop.is_set, gone.is_set)
        worker = Worker(device, *self._of_jobs, stopping=stopping, cut_off=self._cut_off.is_set)
        return RenderThread(worker, child, threading.Thread(target=worker.run, name=f"worker-{child.device}"))


class Parts:
    """The parts of one daemon.

    locks    of the inboxes, by kind of folder
    stop     set when the daemon stops: a running job may finish
    cut_off  set when a running job has to go back to the queue

    Raises `ConfigError`, `ClusterUnavailable`.
    """

    def __init__(
        self,
        settings: CurrentSettings,
        folders: Folders,
        ledger: Ledger,
        locks: Mapping[str, FolderLock],
        ffmpeg: Path,
        *,
        stop: threading.Event,
        cut_off: threading.Event,
    ) -> None:
        weights, paths = settings.now.weights, settings.now.paths
        self.prepare_due = threading.Event()
        self.stores = stores_of(settings, folders, ledger)
        self.finisher = Finisher(self.stores)
        failures = Failures(self.stores, self.finisher)
        publisher = Publisher(self.stores, self.finisher, failures)
        self.housekeeper = Housekeeper(self.stores, self.finisher)
        self.inboxes = InboxService(
            settings, folders, self.stores.spool, ledger, locks, make_room=self.housekeeper.make_room
        )
        self.fetcher = Fetcher(settings, self.prepare_due.set)
        self.preparer = Preparer(
            self.stores, self.finisher, failures, publisher, ffmpeg, self.fetcher, stopping=stop.is_set
        )
        self.weights = AutoPull(store_of(settings.now), allowed=weights.auto_pull, min_free_mb=paths.min_free_mb)
        self.workers: list[RenderThread] = []
        self.ended_workers: list[RenderThread] = []  # of slots that were lost; their threads end by themselves
        self._worker_parts = _WorkerParts(
            self.stores,
            self.finisher,
            failures,
            publisher,
            ffmpeg,
            self.weights,
            BatchLimits(folders.state / BATCH_LIMITS_FILE),
            stop=stop,
            cut_off=cut_off,
        )
        self.slots: Slots | None = None
        if settings.now.executor.kind == "ray":
            timeouts = partial(timeouts_of, settings)
            self.slots = Slots(settings, timeouts, self._add_slot, self._remove_slot)
        else:
            self._add_devices(settings)
        self.monitor = HealthMonitor(
            settings,
            folders,
            touch=ledger.touch,
            scan_age_s=self.inboxes.scan_age_s,
            scan_due_s=self.inboxes.scan_due_s,
            workers=lambda: [one.facts for one in self.workers],
            refused_connections=address_guard.refused_connections,
            vram=partial(_vram, settings),
            weights=partial(_missing_weights, settings, self.weights),
            jailed=landlock_abi() > 0,
            inbox=self.inboxes.facts,
            steps=self.stores.steps.facts,
            cluster=self._cluster_fault,
        )
        web = settings.now.web
        self.web = (
            WebServer(settings, folders, ffmpeg, self._is_loaded, self.monitor, self.slot_count)
            if web.enabled
            else None
        )
        self.webhooks = Webhooks(
            ledger.deliveries,
            keys=load_keys(folders.state, web.webhook_secret_file, os.environ),
            allow=web.webhook_allow,
            result_url=self._result_url,
            tries=self.monitor.webhook_tries,
        )
        settings.before_change(self._prepare_webhook_keys)
        settings.before_change(lambda _settings: self.stores.wake)  # a limit that is waited for may be another one now
        self.stores.waiting.append(self.prepare_due)
        ledger.listeners += [self.monitor.job_metrics.record, self._on_move]
        if self.web is not None:
            ledger.commit_listeners.append(self.web.changed)
            ledger.deletion_listeners.append(self.web.deleted)

    def _add_devices(self, settings: CurrentSettings) -> None:
        """A worker with its child for each device of this machine."""
        render = settings.now.render
        for name in render.devices[: render.max_concurrent_jobs]:
            preload = "" if render.lazy_load else render.renderer
            child = local_child(settings, name, self.weights.store.folder, preload=preload)
            self._add(self._worker_parts.render_thread(child))

    def _add(self, one: RenderThread) -> None:
        self.workers = [*self.workers, one]  # other threads read these lists meanwhile
        self.stores.waiting = [*self.stores.waiting, one.worker.wake]

    def _add_slot(self, child: RayChild) -> None:
        """Start a worker for a slot of the cluster."""
        one = self._worker_parts.render_thread(child, gone=child.gone)
        one.worker.wake.set()
        self._add(one)
        one.thread.start()

    def _remove_slot(self, child: RayChild) -> None:
        """Let the worker of a lost slot end."""
        lost = [one for one in self.workers if one.child is child]
        self.workers = [one for one in self.workers if one.child is not child]
        self.ended_workers = [one for one in self.ended_workers if one.thread.is_alive()] + lost
        for one in lost:
            self.stores.waiting = [event for event in self.stores.waiting if event is not one.worker.wake]
            one.worker.wake.set()

    def worker_threads(self) -> list[threading.Thread]:
        return [one.thread for one in (*self.workers, *self.ended_workers)]

    def _cluster_fault(self) -> str:
        """Why no slot of the cluster takes jobs; "" if one does, or without a cluster."""
        if self.slots is None or self.workers:
            return ""
        return self.slots.fault or "no machine of the cluster has passed the probe; see `lipsyncd status --slots`"

    def slot_count(self) -> SlotCount:
        """How many jobs can be rendered at a time now, and how many are. Any thread may call this."""
        workers = self.workers
        return SlotCount(len(workers), sum(one.child.busy for one in workers))

    def _is_loaded(self) -> bool:
        """Does a render child live? It keeps the renderer of its last job."""
        return any(one.child.pid is not None for one in self.workers)

    def _result_url(self, job_id: str) -> str:
        """Where a receiver finds the video; "" when it is not served."""
        job = None if self.web is None else self.stores.ledger.find(job_id)
        if job is None or self.web is None:
            return ""
        base = rest_of(job).get("base") or self.web.address  # the receiver reaches us where the client does
        return self.web.links.talk(job_id, job.out_name, base)

    def _prepare_webhook_keys(self, settings: Settings) -> Callable[[], None]:
        """Read the keys again. Raises `ConfigError`."""
        keys = load_keys(self.stores.folders.state, settings.web.webhook_secret_file, os.environ)
        return partial(self.webhooks.take_keys, keys)

    def _on_move(self, step: str, job: Job) -> None:
        """Accepted and requeued jobs are prepared; the end of a job serves those that wait for the same work."""
        if job.state.ended or step in ("accepted", JobState.QUEUED):
            self.prepare_due.set()
        if job.webhook:
            self.webhooks.wake()


def _vram(settings: CurrentSettings) -> dict[str, int]:
    found = gpu.memory(settings.now.render.devices[0])
    return {} if found is None else {"used": round(found.used_gb * 1e9), "total": round(found.total_gb * 1e9)}


def _missing_weights(settings: CurrentSettings, weights: AutoPull) -> str:
    return weights.fault() if settings.now.render.renderer == RENDERER else ""


def make_folders(folders: Folders) -> None:
    """Make all folders at the very first start; later only state and spool, which are ours alone.

    Raises `ConfigError` when these two are not on one local disk.
    """
    if folders.known():
        folders.state.mkdir(parents=True, exist_ok=True)
        folders.spool.mkdir(parents=True, exist_ok=True)
    for kind, folder in (("state", folders.state), ("spool", folders.spool)):
        if found := known_network(folder):
            raise ConfigError(
                f"paths.{kind} ({folder}) lies on {found}, where SQLite's locks do not hold",
                remedy="put state and spool on a local disk; inbox, outbox, failed and archive may be shares",
            )
    for line in folders.initialise():
        log.info("%s", line)
    for where in folders.make_sticky():
        log.info("%s: only the owner of a file can remove it from now on", where)
    if folders.state.stat().st_dev != folders.spool.stat().st_dev:
        raise ConfigError(
            f"paths.state ({folders.state}) and paths.spool ({folders.spool}) lie on different file systems",
            remedy="put both on one local disk",
        )


def share_heap() -> bool:
    """Let threads that start from now on share the first one's heap; False where the C library has no arenas.

    glibc gives each thread an arena and never moves free memory between them. So memory that one thread allocates and
    another frees leaves holes in all of them: several KiB for each job were measured. Python's threads hardly ever
    allocate at the same moment, so many arenas gain nothing. Children do not inherit this: the threads of a renderer
    work outside of Python's lock and need their arenas.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_ARENA_MAX, 1))
