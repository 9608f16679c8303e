"""Several devices in one machine: one child for each, one queue for all. A renderer of the tests uses no GPU, so that
the name of one stands for a second processor here.
"""

from __future__ import annotations

from lipsyncd.jobs.job import JobState
from tests.kits.installation import Installation


def test_two_devices_render_two_jobs_at_the_same_time_in_a_child_each(installation: Installation) -> None:
    installation.changes["render"] = {"devices": ["cpu", "cuda:7"], "renderer": "slow"}
    with installation.running():
        for seed, name in enumerate(("one", "two", "three")):
            installation.drop_pair(name, seed=seed, seconds=0.6)

        def at_once() -> list[str | None]:
            running = installation.view.jobs(states=[JobState.RUNNING], limit=10)
            return [job.device for job in running] if len(running) == 2 else []

        assert sorted(map(str, installation.until(at_once, "two renders"))) == ["cpu", "cuda:7"]
        for name in ("one", "two", "three"):
            assert installation.until_done(name).attempt == 1
        assert installation.log.count("render child for cpu started") == 1
        assert installation.log.count("render child for cuda:7 started") == 1
