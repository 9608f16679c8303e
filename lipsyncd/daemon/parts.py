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
from lipsyncd.results.stores import stores_of
from lipsyncd.sandbox.jail import landlock_abi
from lipsyncd.settings import CurrentSettings, Settings
from lipsyncd.storage.folders import Folders
from lipsyncd.storage.locks import FolderLock
from lipsyncd.storage.mounts import known_network
from lipsyncd.web.server import WebServer
from lipsyncd.weights import RENDERER, AutoPull, store_of
from lipsyncd.worker.attempt import Device
from lipsyncd.worker.batch_limits import FILE as BATCH_LIMITS_FILE
from lipsyncd.worker.batch_limits import BatchLimits
from lipsyncd.worker.child_process import LocalChild, Timeouts
from lipsyncd.worker.loop import Worker

log = logging.getLogger(__name__)

_ARENA_MAX = -8  # M_ARENA_MAX of <malloc.h>


@dataclass(frozen=True)
class RenderThread:
    """The worker of one device, its render child, and the thread that it runs in."""

    worker: Worker
    child: LocalChild
    thread: threading.Thread

    @property
    def facts(self) -> WorkerFacts:
        child = self.child
        return WorkerFacts(child.device, self.thread.is_alive(), child.starts, child.unwatched_s())


class Parts:
    """The parts of one daemon.

    locks    of the inboxes, by kind of folder
    stop     set when the daemon stops: a running job may finish
    cut_off  set when a running job has to go back to the queue
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
        self.preparer = Preparer(self.stores, self.finisher, failures, publisher, ffmpeg, self.fetcher)
        self.weights = AutoPull(store_of(settings.now), allowed=weights.auto_pull, min_free_mb=paths.min_free_mb)
        self.workers = self._workers(settings, failures, publisher, ffmpeg, stop=stop, cut_off=cut_off)
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
        )
        web = settings.now.web
        self.web = WebServer(settings, folders, ffmpeg, self._is_loaded, self.monitor) if web.enabled else None
        self.webhooks = Webhooks(
            ledger.deliveries,
            keys=load_keys(folders.state, web.webhook_secret_file, os.environ),
            allow=web.webhook_allow,
            result_url=self._result_url,
            tries=self.monitor.webhook_tries,
        )
        settings.before_change(self._prepare_webhook_keys)
        self.stores.waiting += [self.prepare_due, *(one.worker.wake for one in self.workers)]
        ledger.listeners += [self.monitor.job_metrics.record, self._on_move]

    def _workers(
        self,
        settings: CurrentSettings,
        failures: Failures,
        publisher: Publisher,
        ffmpeg: Path,
        *,
        stop: threading.Event,
        cut_off: threading.Event,
    ) -> list[RenderThread]:
        """A worker with its child for each device."""
        render = settings.now.render
        batch_limits = BatchLimits(self.stores.folders.state / BATCH_LIMITS_FILE)
        made = []
        for name in render.devices[: render.max_concurrent_jobs]:
            child = LocalChild(
                name,
                partial(_timeouts, settings),
                renderers=render.renderers,
                preload="" if render.lazy_load else render.renderer,
                environment=render.environment,
                variables={
                    "LIPSYNCD_WEIGHTS_DIR": str(self.weights.store.folder),
                    "LIPSYNCD_RENDER_MAX_VRAM_GB": f"{render.max_vram_gb:g}",
                    "LIPSYNCD_RENDER_CLEAR_CACHE": str(render.clear_cache).lower(),
                },
            )
            device = Device(name, child, ffmpeg, self.weights, batch_limits)
            worker = Worker(
                device, self.stores, self.finisher, failures, publisher, stopping=stop.is_set, cut_off=cut_off.is_set
            )
            made.append(RenderThread(worker, child, threading.Thread(target=worker.run, name=f"worker-{name}")))
        return made

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


def _timeouts(settings: CurrentSettings) -> Timeouts:
    render = settings.now.render
    return Timeouts(render.start_timeout_s, render.job_timeout_s, render.stall_timeout_s)


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
