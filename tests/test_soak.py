"""Many short jobs in one go, with kills and restarts between them: nothing piles up in the daemon or on its disk."""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lipsyncd.job import JobState
from tests.home import Home
from tests.world_kit import LONG, drop_pairs, status_kib, tell

JOBS = 1000 if LONG else 60
RESTARTS = 20 if LONG else 3
AT_ONCE = 12
WARM_UP = 8  # jobs until all code is loaded and all buffers are grown
SEED = int(os.environ.get("SOAK_SEED", "7"))
MAX_GROWTH_KIB = 6_000
MAX_GROWTH_PER_JOB_KIB = 20  # 12 were measured, SQLite's own cache among them


def state(pid: int) -> tuple[int, int, int]:
    """Resident KiB, descriptors and threads of a process."""
    return status_kib(pid, "VmRSS"), len(os.listdir(f"/proc/{pid}/fd")), status_kib(pid, "Threads")


def feed(home: Home, jobs: int) -> Iterator[int]:
    """Keep a few pairs waiting until all have been dropped; gives the number of finished jobs again and again."""
    dropped, done = 0, 0
    while done < jobs:
        ahead = min(jobs, done + AT_ONCE) - dropped
        drop_pairs(home.path("inbox"), range(dropped, dropped + max(ahead, 0)), seconds=0.2)
        dropped += max(ahead, 0)
        time.sleep(0.1)
        counts = home.view.counts()
        assert not counts[JobState.FAILED] + counts[JobState.CANCELLED]
        done = counts[JobState.DONE]
        yield done


def growth(values: list[int]) -> float:
    """By how much the straight line through the values rises from the first to the last."""
    slope, _ = np.polyfit(np.arange(len(values)), values, 1)
    return float(slope) * (len(values) - 1)


def restart(home: Home, chance: random.Random) -> int:
    """End the daemon in one of two ways and start it again; 1 when it was killed."""
    killed = chance.random() < 0.7
    if killed:
        home.kill()
    else:
        assert home.stop() == 0
    home.start()
    return int(killed)


def test_many_jobs_leave_memory_descriptors_threads_and_disk_as_they_were(home: Home) -> None:
    """In the first half the daemon is ended at random moments; in the second half it is watched."""
    print(f"seed {SEED}")
    chance = random.Random(SEED)
    home.changes = {"render": {"unload_idle_s": 3600.0, "max_attempts": RESTARTS + 3}, "archive": {"mode": "delete"}}
    ends_at = sorted(chance.sample(range(1, JOBS // 2), RESTARTS))
    kills, samples, began_s = 0, [], time.monotonic()
    home.start()
    for done in feed(home, JOBS):
        if ends_at and done >= ends_at[0]:
            ends_at.pop(0)
            time.sleep(chance.uniform(0, 0.5))
            kills += restart(home, chance)
        if done >= JOBS // 2 + WARM_UP and (not samples or done > len(samples) + JOBS // 2 + WARM_UP):
            assert home.daemon is not None
            samples.append(state(home.daemon.pid))
    home.until(lambda: not os.listdir(home.path("spool")), "an empty spool")
    took_s = time.monotonic() - began_s
    assert home.stop() == 0
    assert not ends_at

    memory, descriptors, threads = ([sample[n] for sample in samples] for n in range(3))
    assert growth(memory) < max(MAX_GROWTH_KIB, MAX_GROWTH_PER_JOB_KIB * len(samples)), str(memory)
    assert abs(growth(descriptors)) < 3, descriptors
    assert abs(growth(threads)) < 3, threads
    check_results(home, kills)
    what = f"{JOBS} jobs in {took_s:.0f} s, {RESTARTS} restarts, {kills} of them after kill -9 (seed {SEED})"
    flat = f"memory {growth(memory):+.0f} KiB, descriptors {growth(descriptors):+.1f}, threads {growth(threads):+.1f}"
    tell(what, f"{JOBS} videos, {home.renders - JOBS} rendered again; in the last {len(samples)} jobs {flat}")


def check_results(home: Home, kills: int) -> None:
    """Each job has its one video, whole; what was rendered again is paid for by kills."""
    shown = {path.name for path in home.path("outbox").iterdir() if path.is_file()}
    assert shown == {f"p{number}.{suffix}" for number in range(JOBS) for suffix in ("mp4", "json")}
    for number in range(JOBS):
        facts = home.sidecar(f"p{number}")
        assert facts["sha256"] == sha256(home.path("outbox") / f"p{number}.mp4")
    assert len(home.view.jobs(limit=2 * JOBS)) == JOBS
    assert JOBS <= home.renders <= JOBS + kills
    assert os.listdir(home.path("inbox")) == [".lipsyncd"]
    assert not list(home.path("outbox").glob(".lipsyncd/*.part"))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
