"""How much faster several slots of a Ray cluster are: `python -m benchmarks.cluster` prints a table.

Eight jobs on 1, 2 and 4 slots of one Ray node on this machine, with a renderer that waits 0.2 s for each frame, as a
GPU would keep it waiting. So this measures placing, copying, checking and publishing, and neither GPUs nor a network.
The time runs from the moment at which all jobs are due to the last publication. Before it, all inputs are prepared and
every slot has its child: how long a child starts is another figure.
"""

from __future__ import annotations

import argparse
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from lipsyncd.jobs.job import now_ms
from lipsyncd.storage.files import read_json
from tests.kits.installation import Installation
from tests.system.executors.ray_kit import RayMachines, installation_on, ray_machines, start_on_ray

JOBS = 8
SECONDS = 2.4  # 60 frames of 0.2 s: 12 s for each job
SLOTS = (1, 2, 4)
WARM_MS = 30_000  # longest start of the daemon and of all children


def time_s(machines: RayMachines, root: Path, slots: int, seconds: float) -> float:
    """Seconds until the last publication, of jobs that are all due at once."""
    root.mkdir()
    daemon = installation_on(machines, Installation(root), workers=slots, resource="nowhere")
    daemon.changes["render"] = {"renderer": "slow", "lazy_load": False}
    start_on_ray(daemon)  # without a slot, so that all jobs are prepared before the first one is claimed
    for number in range(JOBS):
        daemon.drop_pair(f"job{number}", seed=number, seconds=seconds)
    daemon.until(lambda: sum(job.prepared for job in daemon.view.jobs(limit=JOBS)) == JOBS, "all inputs")
    daemon.stop()
    daemon.changes["executor.ray"]["resource"] = ""
    due_ms = now_ms() + WARM_MS
    with closing(sqlite3.connect(daemon.path("state") / "ledger.db")) as ledger, ledger:
        ledger.execute("UPDATE job SET not_before_ms = ?", (due_ms,))
    start_on_ray(daemon)
    try:
        daemon.until(lambda: loaded(daemon) == slots, "a child in each slot")
        assert now_ms() < due_ms, "the children started too late"
        for number in range(JOBS):
            daemon.until_done(f"job{number}")
        jobs = daemon.view.jobs(limit=JOBS)
        ended_ms = [job.finished_ms for job in jobs if job.finished_ms is not None]
        assert len(ended_ms) == JOBS
        return (max(ended_ms) - due_ms) / 1000
    finally:
        daemon.stop()


def loaded(daemon: Installation) -> int:
    """How many slots have a child that is ready."""
    status = read_json(daemon.path("state") / "status.json") or {}
    return sum(slot["state"] == "loaded" for slot in status.get("slots", []))


def main() -> None:
    parser = argparse.ArgumentParser(description="Time eight jobs on 1, 2 and 4 slots.")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each voice; a second takes 5 s to render")
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        home = root / "home"
        home.mkdir()
        with ray_machines(root, home, head_gpus=max(SLOTS)) as machines:
            took_s = {slots: time_s(machines, root / str(slots), slots, seconds) for slots in SLOTS}
    print("| slots | 8 jobs | efficiency |\n|---|---|---|")
    for slots, seconds in took_s.items():
        print(f"| {slots} | {seconds:.1f} s | {took_s[1] / slots / seconds:.3f} |")


if __name__ == "__main__":
    main()
