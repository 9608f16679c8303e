"""The numbers at /metrics: their names, their values, and that no label grows with the number of jobs."""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lipsyncd.errors import FetchRefused, NoFaceFound, RenderCrashed, tree
from lipsyncd.jobs.job import Job, JobState, now_ms
from lipsyncd.jobs.webhook_delivery import DeliveryState
from lipsyncd.ledger.ledger import Ledger
from lipsyncd.monitor import metrics
from lipsyncd.monitor.facts import Facts, WorkerFacts
from lipsyncd.monitor.metrics import BUCKETS_S, STAGES, JobMetrics, exposition
from lipsyncd.network import address_guard
from lipsyncd.network.fetch import fetch
from tests.kits.core_kit import claimed, queued
from tests.kits.installation import Installation
from tests.kits.webhook_receiver import receiving
from tests.monitor.test_health import ask, monitor_of, served  # noqa: F401 - a fixture

FACTS = Facts(
    version="1.2.3",
    workers=(WorkerFacts("cpu", up=True, loads=2), WorkerFacts("cuda:0", up=False, loads=1)),
    scan_age_s=0.5,
    jobs={JobState.QUEUED: 3},
    oldest_queued_s=12.5,
    outbox_free_bytes=5_000_000_000,
    spool_free_bytes=7_000_000_000,
    vram={"used": 1, "total": 2},
)

# The names that dashboards and alert rules use, with their labels. None of them is ever renamed.
NAMES = {
    "lipsyncd_build_info": {"version"},
    "lipsyncd_ready": set(),
    "lipsyncd_jobs_total": {"source", "result"},
    "lipsyncd_job_failures_total": {"reason"},
    "lipsyncd_jobs": {"state"},
    "lipsyncd_oldest_queued_job_age_seconds": set(),
    "lipsyncd_job_stage_duration_seconds": {"stage"},
    "lipsyncd_render_realtime_ratio": set(),
    "lipsyncd_last_success_timestamp_seconds": set(),
    "lipsyncd_worker_up": {"device"},
    "lipsyncd_worker_busy": {"device"},
    "lipsyncd_worker_restarts_total": {"cause"},
    "lipsyncd_worker_loads_total": set(),
    "lipsyncd_vram_bytes": {"kind"},
    "lipsyncd_inbox_scan_age_seconds": set(),
    "lipsyncd_inbox_scan_interval_seconds": set(),
    "lipsyncd_intake_paused": set(),
    "lipsyncd_inputs_blocked": set(),
    "lipsyncd_watch_degraded": set(),
    "lipsyncd_watch_overflows_total": set(),
    "lipsyncd_watch_restarts_total": set(),
    "lipsyncd_outbox_free_bytes": set(),
    "lipsyncd_spool_free_bytes": set(),
    "lipsyncd_webhook_deliveries_total": {"result"},
    "lipsyncd_fetch_blocked_total": {"reason"},
    "lipsyncd_sandbox_missing": set(),
}
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(text: bytes) -> Samples:
    """Every sample by its name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    return found[f"lipsyncd_{name}", frozenset(labels.items())]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.db")


@pytest.fixture
def job_metrics(ledger: Ledger) -> JobMetrics:
    job_metrics = JobMetrics()
    ledger.listeners.append(job_metrics.record)
    return job_metrics


def finished(ledger: Ledger, name: str = "anna") -> str:
    job_id = claimed(ledger, name)
    ledger.to_publishing(job_id, token="t", sha256="0" * 64, size=1, frames=25, render_ms=250)
    ledger.to_done(job_id, note="published")
    return job_id


def test_the_names_and_labels_are_these(ledger: Ledger, job_metrics: JobMetrics) -> None:
    finished(ledger)
    ledger.to_failed(queued(ledger), NoFaceFound("no face").reason())
    text = exposition(FACTS, job_metrics, webhooks={"delivered": 1}, refused_connections={"port": 1})
    labels_of: dict[str, set[str]] = {}
    for name, labels in samples(text):
        base = re.sub(r"_(bucket|count|sum)$", "", name) if "duration" in name else name
        labels_of.setdefault(base, set()).update(label for label, _ in labels if label != "le")
    assert labels_of == NAMES


def test_names_carry_base_units_and_counters_end_in_total(ledger: Ledger, job_metrics: JobMetrics) -> None:
    for family in text_string_to_metric_families(exposition(FACTS, job_metrics).decode()):
        assert family.documentation.endswith("."), family.name
        assert not re.search(r"_(ms|mb|gb|minutes|percent)(_|$)", family.name)
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)


def test_the_state_of_the_daemon_is_exported(job_metrics: JobMetrics) -> None:
    found = samples(exposition(FACTS, job_metrics))
    assert value(found, "build_info", version="1.2.3") == 1
    assert value(found, "jobs", state="queued") == 3
    assert value(found, "jobs", state="failed") == 0
    assert value(found, "oldest_queued_job_age_seconds") == 12.5
    assert (value(found, "worker_up", device="cpu"), value(found, "worker_up", device="cuda:0")) == (1, 0)
    assert value(found, "worker_loads_total") == 3
    assert value(found, "vram_bytes", kind="total") == 2
    assert value(found, "outbox_free_bytes") == 5e9
    assert value(found, "spool_free_bytes") == 7e9
    assert value(found, "inbox_scan_interval_seconds") == FACTS.scan_due_s
    assert value(found, "ready") == 1
    assert value(samples(exposition(FACTS, job_metrics, ready=False)), "ready") == 0
    assert value(found, "sandbox_missing") == 0
    assert value(samples(exposition(replace(FACTS, jailed=False), job_metrics)), "sandbox_missing") == 1


def test_unknown_values_are_left_out_and_not_exported_as_zero(job_metrics: JobMetrics) -> None:
    names = {name for name, _ in samples(exposition(Facts(version="1"), job_metrics))}
    assert "lipsyncd_outbox_free_bytes" not in names
    assert "lipsyncd_last_success_timestamp_seconds" not in names
    assert "lipsyncd_render_realtime_ratio" not in names


def test_every_end_of_a_webhook_has_its_series_from_the_start(job_metrics: JobMetrics) -> None:
    """A counter that appears with its first event has no increase, so Prometheus would miss that event."""
    found = samples(exposition(FACTS, job_metrics, webhooks={"delivered": 2}))
    tries = {state.value: value(found, "webhook_deliveries_total", result=state.value) for state in DeliveryState}
    assert tries == {**dict.fromkeys(tries, 0), "delivered": 2}


def test_the_last_success_is_remembered_over_a_restart(installation: Installation) -> None:
    installation.folders.initialise()
    ledger = Ledger(installation.path("state") / "ledger.db")
    done = ledger.get(finished(ledger))
    monitor = monitor_of(installation, ledger)
    ledger.close()
    assert done.finished_ms is not None
    assert value(samples(monitor.metrics()), "last_success_timestamp_seconds") == done.finished_ms / 1000


def test_ends_are_counted_by_where_a_job_came_from_and_how_it_ended(ledger: Ledger, job_metrics: JobMetrics) -> None:
    finished(ledger)
    finished(ledger, "bert")
    ledger.to_failed(queued(ledger, "carl", rest={"by": "local"}), NoFaceFound("no face").reason())
    ledger.to_cancelled(queued(ledger, "dora"))
    found = samples(exposition(FACTS, job_metrics))
    assert value(found, "jobs_total", source="inbox", result="done") == 2
    assert value(found, "jobs_total", source="rest", result="failed") == 1
    assert value(found, "jobs_total", source="inbox", result="cancelled") == 1
    assert value(found, "job_failures_total", reason="no-face") == 1
    assert value(found, "last_success_timestamp_seconds") == pytest.approx(time.time(), abs=5)
    assert value(found, "render_realtime_ratio") == 4  # 1000 ms of video in 250 ms


def test_counters_only_grow_also_when_a_job_is_tried_again_or_deleted(ledger: Ledger, job_metrics: JobMetrics) -> None:
    job_id = queued(ledger)
    ledger.to_failed(job_id, NoFaceFound("no face").reason())
    ledger.retry(job_id, "anna")
    ledger.to_failed(job_id, NoFaceFound("no face").reason())
    before = value(samples(exposition(FACTS, job_metrics)), "jobs_total", source="inbox", result="failed")
    assert ledger.delete(job_id)
    assert value(samples(exposition(FACTS, job_metrics)), "jobs_total", source="inbox", result="failed") == before == 2


def test_a_lost_render_child_is_counted_by_its_cause(ledger: Ledger, job_metrics: JobMetrics) -> None:
    job_id = claimed(ledger)
    ledger.requeue(job_id, note="crash", charge=True, error=RenderCrashed("it fell over").reason())
    assert ledger.claim("cpu", "t2") is not None
    ledger.requeue(job_id, note="the daemon stops", charge=False)
    found = samples(exposition(FACTS, job_metrics))
    assert value(found, "worker_restarts_total", cause="crash") == 1
    assert value(found, "worker_restarts_total", cause="memory") == 0


def test_each_stage_is_timed_from_one_move_to_the_next(tmp_path: Path) -> None:
    clock = Counter(now=10_000)
    job_metrics = JobMetrics(clock_ms=lambda: clock["now"])
    job = _job(tmp_path)
    moves = [("prepared", 300), ("running", 2_000), ("publishing", 7_000), ("done", 40)]
    for step, wait_ms in moves:
        clock["now"] += wait_ms
        state = JobState.QUEUED if step == "prepared" else JobState(step)
        ended_ms = clock["now"] if step == "done" else None
        job_metrics.record(step, replace(job, state=state, accepted_ms=10_000, finished_ms=ended_ms))
    found = samples(exposition(FACTS, job_metrics))
    for stage, took_s in zip(STAGES, (0.3, 2.0, 7.0, 0.04, 9.34), strict=True):
        assert value(found, "job_stage_duration_seconds_sum", stage=stage) == pytest.approx(took_s)
        assert value(found, "job_stage_duration_seconds_count", stage=stage) == 1
        for bound in BUCKETS_S:
            inside = value(found, "job_stage_duration_seconds_bucket", stage=stage, le=str(bound))
            assert inside == (1 if took_s <= bound + 1e-9 else 0), (stage, bound)


def test_an_interrupted_stage_is_not_timed(tmp_path: Path) -> None:
    job_metrics, job = JobMetrics(), replace(_job(tmp_path), accepted_ms=now_ms())
    for step in ("prepared", "running", "queued", "running", "failed"):
        state = JobState.QUEUED if step == "prepared" else JobState(step)
        job_metrics.record(
            step, replace(job, state=state, prepared=True, reason_code="no-face" if step == "failed" else None)
        )
    found = samples(exposition(FACTS, job_metrics))
    assert value(found, "job_stage_duration_seconds_count", stage="waiting") == 2
    assert value(found, "job_stage_duration_seconds_count", stage="rendering") == 0
    assert value(found, "job_stage_duration_seconds_count", stage="whole") == 0


def test_a_thousand_jobs_add_no_line_and_no_memory(tmp_path: Path, ledger: Ledger, job_metrics: JobMetrics) -> None:
    finished(ledger)
    lines = len(exposition(FACTS, job_metrics).splitlines())
    job = ledger.get(finished(ledger, "bert"))
    for number in range(1000):
        one = replace(job, id=f"{number:036d}", name=f"job {number}")
        for step in ("prepared", "running", "publishing", "done"):
            job_metrics.record(step, replace(one, state=JobState.QUEUED if step == "prepared" else JobState(step)))
    assert len(exposition(FACTS, job_metrics).splitlines()) == lines
    assert job_metrics._since_ms == {}
    assert value(samples(exposition(FACTS, job_metrics)), "jobs_total", source="inbox", result="done") == 1002


def test_a_refused_connection_is_counted_by_its_rule(tmp_path: Path) -> None:
    before = Counter(address_guard.refused_connections)
    with receiving() as canary:
        for address in (canary.url, f"http://localhost:{canary.port}/"):
            with pytest.raises(FetchRefused):
                fetch(address, tmp_path / "x", max_bytes=1, timeout_s=5)
        assert canary.hits == []
    assert Counter(address_guard.refused_connections) - before == {"not-public": 2}


def test_the_daemon_exports_them_in_the_text_format(served: Installation) -> None:  # noqa: F811
    with served.running():
        served.drop_manifest("bert", image="bert.png", audio="bert.wav", renderer="nosuch")
        served.drop_pair("bert")
        served.drop_pair("anna", seed=1)
        served.until_done("anna")
        served.until_failed("bert")
        status, body, media_type = ask(served, "/metrics")
        found = samples(body)
    assert (status, media_type) == (200, metrics.MEDIA_TYPE)
    assert value(found, "jobs_total", source="inbox", result="done") == 1
    assert value(found, "job_failures_total", reason="unknown-renderer") == 1
    assert value(found, "jobs", state="done") == value(found, "jobs", state="failed") == 1
    assert value(found, "worker_loads_total") >= 1
    assert value(found, "job_stage_duration_seconds_count", stage="rendering") == 1
    assert {name for name, _ in found if not re.search("duration", name)} <= set(NAMES)
    assert all(code in _codes() for code in _labels(found, "reason"))


def _labels(found: Samples, label: str) -> set[str]:
    return {text for _, labels in found for name, text in labels if name == label}


def _codes() -> set[str]:
    return {cls.code for cls in tree()} | {"port", "no-tls", "not-public"}


def _job(folder: Path) -> Job:
    """A job out of a ledger."""
    ledger = Ledger(folder / "made.db")
    job = ledger.get(queued(ledger))
    ledger.close()
    return job
