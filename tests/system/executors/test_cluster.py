"""A whole daemon on a real Ray cluster of two machines: lost processes, lost machines, restarts, late answers.

The renderer is `preview`, and `slow` where a job has to outlast what a test does meanwhile and still to end soon.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lipsyncd.jobs.job import Job, JobState
from lipsyncd.media.mp4 import inspect
from lipsyncd.storage.files import read_json
from tests.kits.installation import Installation
from tests.kits.machine.processes import is_gone
from tests.kits.web_kit import Api, Reader, port_of
from tests.system.executors.ray_kit import (
    RayMachines,
    actor_of,
    children,
    installation_on,
    ray_environment,
    ray_machines,
    start_on_ray,
)

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory, ray_home: Path) -> Iterator[RayMachines]:
    root = tmp_path_factory.mktemp("ray")
    with ray_machines(root, ray_home, head_gpus=1) as found:
        yield found


@pytest.fixture
def daemon(machines: RayMachines, installation: Installation) -> Installation:
    one = installation_on(machines, installation)
    one.changes["render"] = {"renderer": "preview", "stop_grace_s": 1, "unload_idle_s": 0}
    return one


def slots(daemon: Installation, state: str = "") -> list[dict[str, Any]]:
    found = (read_json(daemon.path("state") / "status.json") or {}).get("slots", [])
    return [one for one in found if one["name"] and (not state or one["state"] == state)]


def published(daemon: Installation) -> list[str]:
    return sorted(path.name for path in daemon.path("outbox").glob("*.mp4"))


def drop(daemon: Installation, name: str, *, seconds: float = 0.3, seed: int = 0, **options: Any) -> None:
    daemon.drop_manifest(name, image=f"{name}.png", audio=f"{name}.wav", **options)
    daemon.drop_pair(name, seed=seed, seconds=seconds, with_face=True)


def rendering(daemon: Installation, name: str) -> Job:
    """Wait until a job's frames are being drawn."""
    job = daemon.until_state(name, JobState.RUNNING)
    daemon.until(lambda: daemon.view.get(job.id).stage == "rendering", "its frames")
    return job


def caught(daemon: Installation, name: str, home: Path) -> int:
    """The child that starts on the only machine for that job; none outlives a job here, so it renders later."""
    daemon.until_state(name, JobState.RUNNING)
    [child] = daemon.until(lambda: children(home), "its child")
    return int(child)


def test_jobs_run_on_the_cluster_and_survive_actor_and_daemon(
    machines: RayMachines, daemon: Installation, ray_home: Path
) -> None:
    daemon.changes["executor.ray"]["address"] = "auto"
    start_on_ray(daemon)
    drop(daemon, "first")
    assert daemon.until_done("first").attempt == 1

    daemon.until(lambda: not children(ray_home), "the end of its child")
    drop(daemon, "second", seed=1)
    child = caught(daemon, "second", ray_home)
    os.kill(actor_of(child), signal.SIGKILL)
    assert is_gone(child), "the kernel ends the child with its actor"
    assert daemon.until_done("second").attempt == 2

    daemon.until(lambda: not children(ray_home), "the end of its child")
    drop(daemon, "third", seed=2)
    child = caught(daemon, "third", ray_home)
    daemon.kill()
    assert is_gone(child), "no orphan keeps a GPU"
    start_on_ray(daemon)
    assert daemon.until_done("third").attempt == 2
    assert published(daemon) == ["first.mp4", "second.mp4", "third.mp4"]
    assert daemon.stop() == 0
    assert children(ray_home) == []


def test_a_machine_that_joins_is_used_and_the_jobs_of_a_lost_one_run_elsewhere(
    machines: RayMachines, daemon: Installation
) -> None:
    daemon.changes["web"] = {"enabled": True}
    start_on_ray(daemon)
    daemon.until(lambda: slots(daemon), "the slot of the head")
    second = machines.add_node()
    daemon.until(lambda: len(slots(daemon)) == 2, "the slot of the new machine")
    page = Reader(Api(daemon, port_of(daemon)), "/jobs/events")
    assert page.until(slots=2)["busy"] == 0
    page.close()

    shown = daemon.cli("status", "--slots").stdout.splitlines()
    assert [line.split()[0] for line in shown[1:]] == [slot["name"] for slot in slots(daemon)]
    for seed, name in enumerate(("one", "two")):
        drop(daemon, name, seed=seed, seconds=2.5, renderer="slow")
    jobs = {job.device: job for job in (rendering(daemon, "one"), rendering(daemon, "two"))}
    assert len(jobs) == 2, "both machines render at the same time"

    [lost_slot] = [slot["name"] for slot in slots(daemon) if second.node_id[:6] in slot["name"]]
    machines.lose(second)
    lost, other = jobs.pop(lost_slot), jobs.popitem()[1]
    assert daemon.until_done(lost.name).attempt == 2
    assert daemon.until_done(other.name).attempt == 1
    daemon.until(lambda: len(slots(daemon)) == 1, "the end of the lost slot")
    drop(daemon, "after", seed=2)
    assert daemon.until_done("after").attempt == 1
    assert published(daemon) == ["after.mp4", "one.mp4", "two.mp4"]
    assert daemon.stop() == 0


def test_late_answers_cancels_and_restarts_change_nothing_that_is_decided(
    machines: RayMachines, daemon: Installation, ray_home: Path
) -> None:
    daemon.changes["executor.ray"]["release_idle_s"] = 0.5
    start_on_ray(daemon, LIPSYNCD_FAIL="publishing")
    drop(daemon, "published", seed=3)
    assert daemon.daemon is not None
    assert daemon.daemon.wait(60) == -signal.SIGKILL
    start_on_ray(daemon)
    assert daemon.until_done("published").attempt == 1
    assert daemon.log.count(" starts: preview") == 1, "a video that was checked is not rendered again"

    drop(daemon, "late", seed=4, seconds=1.0, renderer="slow")
    job = rendering(daemon, "late")
    stale = machines.share / "work" / job.id / "0123456789abcdef"
    stale.mkdir()
    (stale / "video.mp4").write_bytes((daemon.path("outbox") / "published.mp4").read_bytes())
    assert daemon.until_done("late").attempt == 1
    assert inspect(daemon.path("outbox") / "late.mp4").video.frames == 25
    assert stale.exists(), "it is swept later, since its machine may still write"

    drop(daemon, "never", seed=5, seconds=240.0, resolution=1024)
    job = rendering(daemon, "never")
    assert job.id in daemon.cli("status", "--slots").stdout
    began_s = time.monotonic()
    assert daemon.cli("cancel", job.id).returncode == 0
    daemon.until_state("never", JobState.CANCELLED)
    assert time.monotonic() - began_s < 3.0  # a second, and the start of the command
    daemon.until(lambda: slots(daemon, "free"), "the release of the idle GPU")
    assert children(ray_home) == []
    assert published(daemon) == ["late.mp4", "published.mp4"]
    assert daemon.stop() == 0


def test_doctor_asks_the_machines_and_names_what_is_wrong(machines: RayMachines, daemon: Installation) -> None:
    environment = ray_environment()
    report = daemon.cli("doctor", "--executor", "ray", "--json", **environment)
    checks = {check["name"]: check for check in json.loads(report.stdout)["checks"]}
    assert [checks[name]["verdict"] for name in ("ray", "token", "share", "machines")] == ["ok"] * 4, checks
    assert "share seen" in checks["machines"]["seen"]

    elsewhere = daemon.root / "another-share"
    elsewhere.mkdir()
    open_token = daemon.root / "token"
    open_token.write_text("0" * 64)
    open_token.chmod(0o644)
    daemon.changes["roots"]["share"] = str(elsewhere / "not-mounted")
    report = daemon.cli(
        "doctor", "--executor", "ray", "--json", **{**environment, "RAY_AUTH_TOKEN_PATH": str(open_token)}
    )
    checks = {check["name"]: check for check in json.loads(report.stdout)["checks"]}
    assert [checks[name]["verdict"] for name in ("token", "share", "machines")] == ["fault"] * 3
    assert "0644" in checks["token"]["seen"]


def test_a_start_without_a_token_is_refused(daemon: Installation) -> None:
    environment = ray_environment()
    refused = daemon.cli("run", **{**environment, "RAY_AUTH_TOKEN_PATH": str(daemon.root / "no-token")})
    assert refused.returncode == 78
    assert "does not exist" in refused.stderr
    assert not (daemon.root / "no-token").exists()


def test_a_start_with_the_address_auto_is_refused_where_no_cluster_runs(
    machines: RayMachines, daemon: Installation
) -> None:
    """At once, and not after the minutes that Ray would wait for a control store that has gone."""
    daemon.changes["executor.ray"]["address"] = "auto"
    scratch = daemon.root / "scratch"
    named = scratch / "ray" / "ray_current_cluster"
    named.parent.mkdir(parents=True)
    environment = {**ray_environment(), "RAY_TMPDIR": str(scratch)}

    def refused() -> str:
        began_s = time.monotonic()
        ended = daemon.cli("run", **environment)
        assert ended.returncode == 1
        assert time.monotonic() - began_s < 60.0  # on an idle machine a second
        assert 'executor.ray.address is "auto"' in ended.stderr
        assert "start Ray first" in ended.stderr
        return ended.stderr

    assert f"RAY_ADDRESS is not set; {named} does not exist" in refused()
    with closing(socket.socket()) as left:
        left.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{left.getsockname()[1]}"
        named.write_text(address)
        assert f"{named} is {address}, which takes no connections" in refused()
    named.write_text("nonsense")
    assert "nonsense, which takes no connections" in refused()
