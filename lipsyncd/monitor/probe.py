"""Gathers the state of the daemon, in a thread of its own, so that health checks are answered at once.

A probe writes to the ledger and checks folders and disks every `PROBE_EVERY_S`. Each of these may hang, with a dead
file server for minutes. So an answer reads the result of the last probe only, and reports a probe that does not end.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lipsyncd import __version__
from lipsyncd.errors import LedgerError, LipsyncdError
from lipsyncd.jobs.job import now_ms
from lipsyncd.jobs.steps import StepFacts
from lipsyncd.ledger.view import LedgerView
from lipsyncd.monitor import health, metrics, packages
from lipsyncd.monitor.facts import Facts, InboxFacts, WorkerFacts
from lipsyncd.settings import CurrentSettings
from lipsyncd.storage.disk_space import free_mb, lack
from lipsyncd.storage.folders import Folders

log = logging.getLogger(__name__)

METRICS_TYPE = metrics.MEDIA_TYPE
PROBE_EVERY_S = 5.0

# Reasons for which a job waits that concern its renderer, not the job.
RENDERER_CODES = (
    "renderer-not-installed",
    "weights-missing",
    "weights-damaged",
    "weights-unreachable",
    "device-missing",
)


class HealthMonitor:
    """The state of one daemon. `run` is the probing thread's work; everything else may be called from any thread.

    touch                commits a write to the ledger
    scan_age_s           seconds since the inbox was scanned
    scan_due_s           seconds between two scans
    workers              the state of each worker
    refused_connections  by the rule that refused them
    vram                 bytes of GPU memory by kind; empty without a GPU
    weights              why the default renderer has no weights; "" if it has
    jailed               False: this kernel has no Landlock
    inbox                the state of all inboxes
    cluster              why no machine of a cluster takes jobs; "" if one does, or without a cluster
    changed              called when other checks fail than before
    """

    def __init__(
        self,
        settings: CurrentSettings,
        folders: Folders,
        *,
        touch: Callable[[], None],
        scan_age_s: Callable[[], float],
        scan_due_s: Callable[[], float],
        workers: Callable[[], Sequence[WorkerFacts]],
        refused_connections: Mapping[str, int] | None = None,
        vram: Callable[[], Mapping[str, int]] = dict,
        weights: Callable[[], str] = str,
        jailed: bool = True,
        inbox: Callable[[], InboxFacts] = InboxFacts,
        steps: Callable[[], tuple[StepFacts, ...]] = tuple,
        cluster: Callable[[], str] = str,
        probe_every_s: float = PROBE_EVERY_S,
    ) -> None:
        self.job_metrics = metrics.JobMetrics()
        self.webhook_tries: Counter[str] = Counter()  # to deliver, by outcome
        self.settings = settings
        self._folders = folders
        self._view = LedgerView(folders.state / "ledger.db")
        with contextlib.suppress(LedgerError):  # a damaged ledger is repaired later
            self.job_metrics.last_success_ms = self._view.last_done_ms()  # from before this start
        self._touch = touch
        self._scan_age_s = scan_age_s
        self._scan_due_s = scan_due_s
        self._workers = workers
        self._refused_connections = {} if refused_connections is None else refused_connections
        self._vram = vram
        self._weights = weights
        self._jailed = jailed
        self._inbox = inbox
        self._steps = steps
        self._cluster = cluster
        self._probe_every_s = probe_every_s
        self._stop = threading.Event()
        self.changed: Callable[[], None] = lambda: None
        self._draining = False
        self._ticked_s = self._probed_s = time.monotonic()
        self._faults: Mapping[str, str] = {"probe": "the first one has not ended yet"}
        self._probing = ""
        self._outbox_free: int | None = None
        self._spool_free: int | None = None

    # -- reports of the daemon -----------------------------------------------------------------------------------------

    def tick(self) -> None:
        """The main loop has made a round."""
        self._ticked_s = time.monotonic()

    def drain(self) -> None:
        """The daemon is stopping."""
        self._draining = True

    def stop(self) -> None:
        self._stop.set()

    # -- answers -------------------------------------------------------------------------------------------------------

    def live(self) -> tuple[bool, Mapping[str, Any]]:
        """For `/health/live`: 200 or 503, and the body."""
        return health.live(self._facts())

    def ready(self) -> tuple[bool, Mapping[str, Any]]:
        """For `/health/ready`: 200 or 503, and the body."""
        return health.ready(self._facts())

    def fault(self, check: str) -> str:
        """Why a check failed in the last probe; "" if it passed."""
        return self._faults.get(check, "")

    def facts(self) -> Facts:
        """The state of the daemon, without the fields that only metrics need."""
        return self._facts()

    def metrics(self) -> bytes:
        """For `/metrics`: text of the type `METRICS_TYPE`. Reads the ledger. Raises `LedgerError`."""
        oldest_ms = self._view.oldest_queued_ms()
        facts = self._facts(
            jobs=self._view.counts(),
            oldest_queued_s=None if oldest_ms is None else max(0.0, (now_ms() - oldest_ms) / 1000),
            outbox_free_bytes=self._outbox_free,
            spool_free_bytes=self._spool_free,
            vram=self._vram(),
        )
        ready, _ = health.ready(facts)
        return metrics.exposition(
            facts,
            self.job_metrics,
            ready=ready,
            webhooks=self.webhook_tries,
            refused_connections=self._refused_connections,
        )

    def _facts(self, **more: Any) -> Facts:
        now_s = time.monotonic()
        return Facts(
            version=__version__,
            tick_age_s=now_s - self._ticked_s,
            scan_age_s=self._scan_age_s(),
            scan_due_s=self._scan_due_s(),
            draining=self._draining,
            faults=self._faults,
            probe_age_s=now_s - self._probed_s,
            probe_due_s=self._probe_every_s,
            probing=self._probing,
            workers=tuple(self._workers()),
            jailed=self._jailed,
            inbox=self._inbox(),
            steps=self._steps(),
            **more,
        )

    # -- the probing thread --------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Probe until `stop`."""
        while not self._stop.is_set():
            self.probe()
            self._stop.wait(self._probe_every_s)

    def probe(self) -> None:
        """Make every check once."""
        found = {check: self._fault(check, fault) for check, fault in self._checks()}
        for check, why in found.items():
            if why and why != self._faults.get(check):
                log.warning("not ready: %s: %s", check, why)
        is_new = found != self._faults
        self._faults, self._probing, self._probed_s = found, "", time.monotonic()
        if is_new:
            self.changed()

    def _checks(self) -> Iterator[tuple[str, Callable[[], str]]]:
        yield "ledger", self._ledger_fault
        yield "inbox", lambda: self._folder_fault("inbox")
        yield "outbox", lambda: self._folder_fault("outbox")
        yield "disk", self._disk_fault
        yield "renderer", self._renderer_fault
        yield "cluster", self._cluster

    def _fault(self, check: str, fault: Callable[[], str]) -> str:
        self._probing = check
        try:
            return fault()
        except (OSError, LipsyncdError) as error:
            return str(error)
        except Exception as error:  # such as one of the ledger's driver
            return f"{type(error).__name__}: {error}".splitlines()[0]

    def _ledger_fault(self) -> str:
        self._touch()
        return ""

    def _folder_fault(self, kind: str) -> str:
        return self._folders.shared[kind].fault()

    def _disk_fault(self) -> str:
        """Jobs need space on the disks of spool and outbox."""
        floor, spool = self.settings.now.paths.min_free_mb, self._folders.spool
        free = {str(spool): free_mb(spool)}
        self._spool_free, self._outbox_free = round(free[str(spool)] * 1_000_000), None
        with self._folders.shared["outbox"].opened() as outbox:
            if outbox is not None:
                free[outbox.where] = free_mb(outbox.fileno())
                self._outbox_free = round(free[outbox.where] * 1_000_000)
        return "; ".join(filter(None, (lack(where, mb, floor) for where, mb in free.items())))

    def _renderer_fault(self) -> str:
        """Can the default renderer be loaded? Its packages, its weights, and jobs that are blocked for its sake."""
        render = self.settings.now.render
        if fault := packages.fault(render):
            return fault
        blocked = self._view.blocked(render.renderer, RENDERER_CODES)
        return self._weights() if blocked is None else f"{blocked[0]}: {blocked[1]}"
