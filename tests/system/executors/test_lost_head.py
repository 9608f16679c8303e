"""Ray's head node is lost while a daemon renders: the daemon lives, takes files, waits, and connects again."""

from __future__ import annotations

from pathlib import Path

import pytest

from lipsyncd.jobs.job import JobState
from lipsyncd.storage.files import read_json
from tests.kits.installation import Installation
from tests.system.executors.ray_kit import children, installation_on, ray_machines, start_on_ray

pytestmark = pytest.mark.ray


def test_the_daemon_outlives_the_control_store_and_uses_the_next_one(
    tmp_path: Path, ray_home: Path, installation: Installation
) -> None:
    with ray_machines(tmp_path, ray_home, head_gpus=1) as machines:
        daemon = installation_on(machines, installation)
        start_on_ray(daemon)
        daemon.drop_manifest("cut", image="cut.png", audio="cut.wav", renderer="slow")
        daemon.drop_pair("cut", seconds=1.0)
        daemon.until(lambda: children(ray_home), "the render child")
        machines.lose_control_store()

        def fault() -> str:
            status = read_json(daemon.path("state") / "status.json") or {}
            return "" if status.get("slots") else status.get("cluster_fault", "")

        assert "no connections" in daemon.until(fault, "the loss in the status")
        daemon.drop_pair("after", seed=1)
        daemon.until_state("after", JobState.QUEUED)
        daemon.until(lambda: not children(ray_home), "the end of the render child")
    with ray_machines(tmp_path, ray_home, head_gpus=1, port=int(machines.address.rpartition(":")[2])):
        assert daemon.until_done("cut").attempt == 2
        daemon.until_done("after")
        assert daemon.stop() == 0


@pytest.mark.slow
def test_a_control_store_that_hangs_holds_up_no_one(tmp_path: Path, ray_home: Path, installation: Installation) -> None:
    """It still takes connections, as the kernel does for a stopped process, and answers none."""
    with ray_machines(tmp_path, ray_home, head_gpus=1) as machines:
        daemon = installation_on(machines, installation)
        start_on_ray(daemon)
        daemon.until(lambda: (read_json(daemon.path("state") / "status.json") or {}).get("slots"), "the slots")
        with machines.control_store_stopped():
            daemon.until(lambda: "the list of machines took more than" in daemon.log, "the loss in the log")
            daemon.drop_pair("anna", seconds=1.0, seed=1)
            daemon.until_state("anna", JobState.QUEUED)
        assert daemon.until_done("anna").attempt == 1
        assert daemon.stop() == 0
