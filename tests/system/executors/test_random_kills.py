"""SIGKILL of daemon, actors, raylets and render children at random moments, while a consumer empties the outbox.

`LIPSYNCD_TEST_RAY_KILLS` is the number of kills, `LIPSYNCD_TEST_SEED` the seed.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from lipsyncd.jobs.job import JobState
from tests.kits.faults.crash_kit import OutboxWatcher
from tests.kits.installation import Installation
from tests.kits.long_run_figures import count
from tests.system.executors.ray_kit import actor_of, children, installation_on, ray_machines, start_on_ray

pytestmark = pytest.mark.ray

KILLS = int(os.environ.get("LIPSYNCD_TEST_RAY_KILLS", "8"))
SEED = int(os.environ.get("LIPSYNCD_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
WHAT = ("child", "actor", "raylet", "daemon")
SECONDS = 0.6  # of each voice, 15 frames of 0.2 s: long enough to be hit


@pytest.mark.timeout(300 + 60 * KILLS)
def test_every_job_is_published_once_whatever_is_killed(
    tmp_path: Path, ray_home: Path, installation: Installation
) -> None:
    chance = random.Random(SEED)
    with ray_machines(tmp_path, ray_home, head_gpus=1) as machines:
        daemon = installation_on(machines, installation)
        daemon.changes["render"] = {"renderer": "slow", "max_attempts": 100, "stop_grace_s": 20}
        extra = machines.add_node()
        start_on_ray(daemon)
        killed: Counter[str] = Counter()
        names: list[str] = []
        with OutboxWatcher(daemon.path("outbox"), greedy=True) as watcher:
            for what in [WHAT[number % len(WHAT)] for number in range(KILLS)]:
                names.append(f"job{len(names)}")
                daemon.drop_pair(names[-1], seed=len(names), seconds=SECONDS)
                daemon.until(lambda: children(ray_home), "a render child")
                time.sleep(chance.uniform(0.0, 2.0))
                found = children(ray_home)
                with suppress(ProcessLookupError, FileNotFoundError):
                    if what == "child" and found:
                        os.kill(chance.choice(found), signal.SIGKILL)
                    elif what == "actor" and found:
                        os.kill(actor_of(chance.choice(found)), signal.SIGKILL)
                    elif what == "raylet":
                        machines.lose(extra)
                        extra = machines.add_node()
                    elif what == "daemon":
                        daemon.kill()
                        start_on_ray(daemon)
                    killed[what] += 1
            daemon.until(
                lambda: [job.state for job in daemon.view.jobs(limit=1000)] == [JobState.DONE] * len(names),
                f"the end of all jobs (seed {SEED})",
                seconds=240.0,
            )
            assert daemon.stop() == 0
        assert watcher.faults == [], f"seed {SEED}"
        assert watcher.seen == dict.fromkeys([f"{name}.{kind}" for name in names for kind in ("mp4", "json")], 1)
        assert not children(ray_home)
        assert sum(killed.values()) >= KILLS * 3 // 4, killed
    count("kills on a Ray cluster", cases=len(names), kills=sum(killed.values()))
