"""How much faster several slots of a Ray cluster are: `python -m benchmarks.cluster` prints a table.

Eight jobs on 1, 2 and 4 slots of one Ray node on this machine, with a renderer that waits 0.2 s for each frame, as a
GPU would keep it waiting. So this measures placing, copying, checking and publishing, and neither GPUs nor a network.
The time runs from the first claim, when the first render child is up, to the last publication.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.kits.installation import Installation
from tests.system.executors.ray_kit import RayMachines, installation_on, ray_machines, start_on_ray

JOBS = 8
SECONDS = 2.4  # 60 frames of 0.2 s: 12 s for each job
SLOTS = (1, 2, 4)


def time_s(machines: RayMachines, root: Path, slots: int) -> float:
    """Seconds from the first claim to the last publication of all jobs."""
    root.mkdir()
    daemon = installation_on(machines, Installation(root), workers=slots, resource="nowhere")
    daemon.changes["render"] = {"renderer": "slow", "lazy_load": False}
    start_on_ray(daemon)  # without a slot, so that all jobs are prepared when the first one is claimed
    for number in range(JOBS):
        daemon.drop_pair(f"job{number}", seed=number, seconds=SECONDS)
    daemon.until(lambda: sum(job.prepared for job in daemon.view.jobs(limit=JOBS)) == JOBS, "all inputs")
    daemon.stop()
    daemon.changes["executor.ray"]["resource"] = ""
    start_on_ray(daemon)
    try:
        for number in range(JOBS):
            daemon.until_done(f"job{number}")
        jobs = daemon.view.jobs(limit=JOBS)
        begun_ms = [job.started_ms for job in jobs if job.started_ms is not None]
        ended_ms = [job.finished_ms for job in jobs if job.finished_ms is not None]
        assert len(begun_ms) == len(ended_ms) == JOBS
        return (max(ended_ms) - min(begun_ms)) / 1000
    finally:
        daemon.stop()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        home = root / "home"
        home.mkdir()
        with ray_machines(root, home, head_gpus=max(SLOTS)) as machines:
            took_s = {slots: time_s(machines, root / str(slots), slots) for slots in SLOTS}
    print("| slots | 8 jobs | efficiency |\n|---|---|---|")
    for slots, seconds in took_s.items():
        print(f"| {slots} | {seconds:.1f} s | {took_s[1] / slots / seconds:.3f} |")


if __name__ == "__main__":
    main()
