"""Jobs that need weights, in a real daemon: they wait, other jobs go on, and no other renderer takes them."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from pathlib import Path

import pytest

from lipsyncd.jobs.job import Job, JobState, now_ms
from lipsyncd.storage.files import read_json
from tests.kits.faults.faulty_renderers import NAMES
from tests.kits.hub_kit import Hub, noise, put, running_hub, weight, write_lock
from tests.kits.installation import Installation

EYES = noise(2_000_000)
ENTRY = weight("eyes", EYES)


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    """An installation whose `musetalk` is a stand-in that opens no weights, with a lock list of one small file."""
    lock = write_lock(tmp_path / "lock.json", [ENTRY])
    installation = Installation(
        tmp_path,
        changes={
            "render": {"renderers": [*NAMES, "musetalk=tests.kits.faults.faulty_renderers:Flat"]},
            "weights": {"lock": str(lock), "auto_pull": False},
        },
    )
    yield installation
    if installation.daemon is not None:
        installation.daemon.kill()
        installation.daemon.wait(10)


@pytest.fixture
def hub() -> Iterator[Hub]:
    pytest.importorskip("huggingface_hub")
    with running_hub() as hub:
        hub.has(ENTRY, EYES)
        yield hub


def drop(installation: Installation, name: str, renderer: str, seed: int) -> None:
    installation.drop_pair(f"{name}-in", seed=seed, with_face=True)
    installation.drop_manifest(name, image=f"{name}-in.png", audio=f"{name}-in.wav", renderer=renderer, out_name=name)


def test_a_job_without_weights_waits_without_an_attempt_and_goes_on_once_they_are_there(
    installation: Installation, tmp_path: Path
) -> None:
    with installation.running():
        drop(installation, "anna", "musetalk", seed=1)
        installation.until(
            lambda: (job := installation.job("anna")) and job.reason_code == "weights-missing", "the reason"
        )
        drop(installation, "bert", "flat", seed=2)
        installation.until_done("bert")
        waiting = installation.job("anna")
        assert waiting is not None
        assert waiting.state is JobState.QUEUED
        assert waiting.attempt == 0
        assert "weights.auto_pull is off: eyes" in str(waiting.reason)
        assert "lipsyncd models pull" in str(waiting.remedy)
        put(tmp_path / "given", ENTRY, EYES)
        assert installation.cli("models", "pull", "--from", tmp_path / "given").returncode == 0
        done = installation.until_done("anna")
    assert done.renderer == "musetalk"
    assert installation.renders == 2


def test_new_weights_end_a_wait_that_has_grown(installation: Installation, tmp_path: Path) -> None:
    def waits_long() -> Job | None:
        job = installation.job("anna")
        return job if job is not None and job.not_before_ms > now_ms() + 8_000 else None

    with installation.running():
        drop(installation, "anna", "musetalk", seed=1)
        waiting = installation.until(waits_long, "the second wait")
        put(tmp_path / "given", ENTRY, EYES)
        assert installation.cli("models", "pull", "--from", tmp_path / "given").returncode == 0
        done = installation.until_done("anna")
    runs = [event.at_ms for event in installation.view.events(done.id) if event.state == JobState.RUNNING]
    assert runs[-1] < waiting.not_before_ms, "the job went on before its next attempt was due"
    assert "trying 1 waiting jobs again: weights-missing" in installation.log


def test_readiness_reports_missing_weights_before_the_first_job(installation: Installation) -> None:
    installation.changes["render"]["renderer"] = "musetalk"
    installation.changes["web"] = {"enabled": True, "port": 0}
    with installation.running():
        status = installation.path("state") / "status.json"
        port = installation.until(lambda: (read_json(status) or {}).get("web_port"), "the port")
        answer = installation.until(lambda: "weights" in (body := ready(port)) and body, "the probe")
    assert "weights.auto_pull is off: eyes" in answer
    assert "lipsyncd models pull" in answer


def ready(port: int) -> str:
    """The body of /health/ready, whatever its status."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/health/ready")
    return connection.getresponse().read().decode()


def test_the_first_job_pulls_what_it_needs(installation: Installation, hub: Hub, tmp_path: Path) -> None:
    installation.changes["weights"]["auto_pull"] = True
    with installation.running(HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "hf")):
        drop(installation, "anna", "musetalk", seed=1)
        installation.until_done("anna")
    assert "pulling weights into" in installation.log
    assert "weights are complete" in installation.log
    assert len(hub.asked) == 1


def test_a_damaged_weight_is_found_before_the_render(installation: Installation) -> None:
    path = put(installation.path("models"), ENTRY, EYES[::-1])
    with installation.running():
        drop(installation, "anna", "musetalk", seed=1)
        blocked = installation.until(
            lambda: (job := installation.job("anna")) and job.reason_code and job, "the reason"
        )
    assert blocked.reason_code == "weights-damaged"
    assert ENTRY.sha256 in blocked.reason
    assert not path.exists()
    assert installation.renders == 0
