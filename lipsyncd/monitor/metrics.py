"""The numbers at `/metrics`, in Prometheus' text format. The only home of prometheus_client.

`JobMetrics` counts the moves of jobs while the daemon runs. `exposition` writes these counts and the daemon's `Facts`
as text. Labels come from short closed lists; no job's id and no file's name is ever one.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from lipsyncd.jobs.job import Job, JobState, now_ms
from lipsyncd.jobs.webhook_delivery import DeliveryState
from lipsyncd.monitor.facts import Facts

_Key = TypeVar("_Key", bound=tuple[str, ...])  # one value for each label

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STAGES = ("preparing", "waiting", "rendering", "publishing", "whole")
BUCKETS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)

# Reasons for which a render child ends although the daemon did not end it.
_RESTARTS: Mapping[str, str] = {
    "render-crashed": "crash",
    "render-stalled": "stall",
    "render-timeout": "timeout",
    "out-of-memory": "memory",
    "slot-lost": "machine",
    "lost-twice": "machine",
}


@dataclass
class Histogram:
    """Durations in seconds: how many fell into each of `BUCKETS_S` or beyond, and their sum."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    sum_s: float = 0.0

    def add(self, duration_s: float) -> None:
        self.counts[bisect_left(BUCKETS_S, duration_s)] += 1
        self.sum_s += duration_s

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative, as Prometheus needs them: (upper bound, how many are not larger)."""
        bounds, total, found = [*map(str, BUCKETS_S), "+Inf"], 0, []
        for bound, count in zip(bounds, self.counts, strict=True):
            total += count
            found.append((bound, float(total)))
        return found


class JobMetrics:
    """Counts of the moves since the daemon started. `record` is a listener of the ledger; safe in several threads."""

    def __init__(self, clock_ms: Callable[[], int] = now_ms) -> None:
        self._clock_ms = clock_ms
        self._lock = threading.Lock()
        self._since_ms: dict[str, tuple[str, int]] = {}  # open jobs: their stage, and since when
        self.ended: Counter[tuple[str, str]] = Counter()
        self.failures: Counter[str] = Counter()
        self.restarts: Counter[str] = Counter()
        self.stages = {stage: Histogram() for stage in STAGES}
        self.last_success_ms: int | None = None
        self.realtime_ratio: float | None = None

    def record(self, step: str, job: Job) -> None:
        """Count a move that was committed; `step` is the new state or "prepared"."""
        with self._lock:
            self._time(step, job)
            if step in ("queued", "failed") and (cause := _RESTARTS.get(job.reason_code or "")):
                self.restarts[cause] += 1
            if step == "publishing" and job.render_ms and job.duration_ms:
                self.realtime_ratio = job.duration_ms / job.render_ms
            if job.state.ended:
                self._end(job)

    def _time(self, step: str, job: Job) -> None:
        """End the job's stage and begin the next. A stage that did not end as it should is not counted."""
        now = self._clock_ms()
        stage, since_ms = self._since_ms.pop(job.id, ("preparing", job.accepted_ms))
        if step == _ENDS[stage]:
            self.stages[stage].add((now - since_ms) / 1000)
        if step == "queued":
            self._since_ms[job.id] = "waiting" if job.prepared else "preparing", now
        elif step in _BEGINS:
            self._since_ms[job.id] = _BEGINS[step], now

    def _end(self, job: Job) -> None:
        self.ended["inbox" if job.rest is None else "rest", job.state.value] += 1
        if job.state is JobState.FAILED:
            self.failures[job.reason_code or "unknown"] += 1
        if job.state is JobState.DONE:
            self.last_success_ms = job.finished_ms
            self.stages["whole"].add(((job.finished_ms or self._clock_ms()) - job.accepted_ms) / 1000)


# The step that ends a stage as it should, and the stage that a step begins.
_ENDS = {"preparing": "prepared", "waiting": "running", "rendering": "publishing", "publishing": "done"}
_BEGINS = {"prepared": "waiting", "running": "rendering", "publishing": "publishing"}


def exposition(
    facts: Facts,
    job_metrics: JobMetrics,
    *,
    ready: bool = True,
    webhooks: Mapping[str, int] | None = None,
    refused_connections: Mapping[str, int] | None = None,
) -> bytes:
    """Everything as text of the type `MEDIA_TYPE`.

    ready                what `/health/ready` answers now
    webhooks             tries to deliver, by outcome
    refused_connections  by the rule that refused them
    """
    registry = CollectorRegistry(auto_describe=False)
    counts = _of_counts(job_metrics, webhooks or {}, refused_connections or {})
    registry.register(_Families([*_of_facts(facts, ready), *counts]))
    return generate_latest(registry)


class _Families(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def _of_facts(facts: Facts, ready: bool) -> Iterator[Metric]:
    yield _gauge("build_info", "The version that runs.", {(facts.version,): 1}, "version")
    yield _gauge(
        "ready", "1 while /health/ready answers 200: jobs can be accepted, rendered, delivered.", {(): int(ready)}
    )
    jobs = {(state.value,): facts.jobs.get(state, 0) for state in JobState}
    yield _gauge("jobs", "Jobs in the ledger, by state.", jobs, "state")
    oldest = "Age of the job that waits longest; 0 when none waits."
    yield _gauge("oldest_queued_job_age_seconds", oldest, {(): facts.oldest_queued_s or 0.0})
    up = {(worker.device,): int(worker.up) for worker in facts.workers}
    yield _gauge("worker_up", "1 while the thread for that device runs.", up, "device")
    busy = {(worker.device,): int(worker.busy) for worker in facts.workers}
    yield _gauge("worker_busy", "1 while that device renders.", busy, "device")
    loads = {(): sum(worker.loads for worker in facts.workers)}
    yield _counter("worker_loads", "Render children started.", loads)
    yield _gauge("vram_bytes", "GPU memory.", {(kind,): size for kind, size in facts.vram.items()}, "kind")
    yield _gauge("inbox_scan_age_seconds", "Time since the inbox was scanned.", {(): facts.scan_age_s})
    due = "Time after which a scan is due, even without an event."
    yield _gauge("inbox_scan_interval_seconds", due, {(): facts.scan_due_s})
    inbox = facts.inbox
    yield _gauge("intake_paused", "1 while no file is accepted because a disk is low.", {(): int(bool(inbox.paused))})
    stuck = "Files in the inboxes that cannot be read, accepted or removed."
    yield _gauge("inputs_blocked", stuck, {(): inbox.stuck_files})
    polled = "1 while a folder is polled because the kernel gives no events for it."
    yield _gauge("watch_degraded", polled, {(): int(bool(inbox.degraded))})
    yield _counter("watch_overflows", "Times that the kernel's queue of events was full.", {(): inbox.overflows})
    yield _counter("watch_restarts", "Readers of events that were replaced.", {(): inbox.restarts})
    free = {} if facts.outbox_free_bytes is None else {(): facts.outbox_free_bytes}
    yield _gauge("outbox_free_bytes", "Free space on the outbox's disk; missing while it is not mounted.", free)
    spool_free = {} if facts.spool_free_bytes is None else {(): facts.spool_free_bytes}
    yield _gauge("spool_free_bytes", "Free space on the disk of spool and ledger.", spool_free)
    missing = "1 if this kernel has no Landlock, so decoders may use all files of the daemon."
    yield _gauge("sandbox_missing", missing, {(): int(not facts.jailed)})


def _of_counts(
    job_metrics: JobMetrics, webhooks: Mapping[str, int], refused_connections: Mapping[str, int]
) -> Iterator[Metric]:
    ended = {(source, state.value): 0 for source in ("inbox", "rest") for state in JobState if state.ended}
    yield _counter("jobs", "Jobs that have ended.", {**ended, **job_metrics.ended}, "source", "result")
    failures = {(reason,): n for reason, n in job_metrics.failures.items()}
    yield _counter("job_failures", "Jobs that have failed, by the code of the reason.", failures, "reason")
    causes = dict.fromkeys(((cause,) for cause in _RESTARTS.values()), 0)
    restarts = {**causes, **{(cause,): n for cause, n in job_metrics.restarts.items()}}
    yield _counter("worker_restarts", "Render children that were lost, by cause.", restarts, "cause")
    tries = {(state.value,): webhooks.get(state.value, 0) for state in DeliveryState}
    yield _counter("webhook_deliveries", "Tries to deliver a webhook, by outcome.", tries, "result")
    refused = {(reason,): n for reason, n in refused_connections.items()}
    yield _counter("fetch_blocked", "Connections that the rule for addresses refused.", refused, "reason")
    stages = HistogramMetricFamily("lipsyncd_job_stage_duration_seconds", "Time in each stage.", labels=["stage"])
    for stage, histogram in job_metrics.stages.items():
        stages.add_metric([stage], histogram.buckets(), histogram.sum_s)
    yield stages
    ratio = {} if job_metrics.realtime_ratio is None else {(): job_metrics.realtime_ratio}
    yield _gauge("render_realtime_ratio", "Seconds of video for each second of the last render.", ratio)
    success = {} if job_metrics.last_success_ms is None else {(): job_metrics.last_success_ms / 1000}
    yield _gauge("last_success_timestamp_seconds", "When a job was last done.", success)


def _gauge(name: str, help: str, values: Mapping[_Key, float], *labels: str) -> Metric:
    family = GaugeMetricFamily(f"lipsyncd_{name}", help, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def _counter(name: str, help: str, values: Mapping[_Key, float], *labels: str) -> Metric:
    """Its samples get the suffix `_total`."""
    family = CounterMetricFamily(f"lipsyncd_{name}", help, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family
