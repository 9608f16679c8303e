"""Many short jobs, with kills and restarts between them: nothing accumulates in the daemon or on its disk."""

from __future__ import annotations

import hashlib
import os
import random
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from lipsyncd.jobs.job import JobState
from lipsyncd.ledger.ledger import Ledger
from tests.kits.core_kit import spec_of
from tests.kits.installation import Installation
from tests.kits.long_run_figures import report
from tests.kits.machine.machine_kit import LONG, drop_pairs, status_kib

JOBS = int(os.environ.get("SOAK_JOBS", "1000" if LONG else "60"))
RESTARTS = 20 if LONG else 3
AT_ONCE = 12
SEED = int(os.environ.get("SOAK_SEED", "7"))
HISTORY = 2000  # jobs of earlier days
CACHE_BYTES = 2_048_000  # SQLite's, for one connection: a ledger that is larger fills it at the start, by its own check
MAX_CREEP_KIB = 1000  # in the full run 400 jobs are watched: a leak of 3 KiB a job is more


def state(pid: int) -> tuple[int, int, int]:
    """Resident KiB, descriptors and threads of a process."""
    return status_kib(pid, "VmRSS"), len(os.listdir(f"/proc/{pid}/fd")), status_kib(pid, "Threads")


def make_history(installation: Installation) -> None:
    """Fill the ledger with jobs of earlier days."""
    with installation.running():
        pass
    with closing(Ledger(installation.path("state") / "ledger.db")) as ledger:
        specs = [spec_of(f"old{number}", user_data="of an earlier day. " * 50) for number in range(HISTORY)]
        assert ledger.insert_all([(spec, None) for spec in specs], max_attempts=3)
    with closing(sqlite3.connect(installation.path("state") / "ledger.db")) as connection, connection:
        connection.execute("UPDATE job SET state='publishing', out_sha256=?", ("0" * 64,))
        connection.execute("UPDATE job SET state='done', inputs_released=1, finished_ms=accepted_ms")
    assert (installation.path("state") / "ledger.db").stat().st_size > CACHE_BYTES


def feed(installation: Installation, jobs: int) -> Iterator[int]:
    """Keep a few pairs waiting until all have been dropped; yields the number of finished jobs."""
    dropped, done = 0, 0
    while done < jobs:
        ahead = min(jobs, done + AT_ONCE) - dropped
        drop_pairs(installation.path("inbox"), range(dropped, dropped + max(ahead, 0)), seconds=0.2)
        dropped += max(ahead, 0)
        time.sleep(0.1)
        counts = installation.view.counts()
        assert not counts[JobState.FAILED] + counts[JobState.CANCELLED]
        done = counts[JobState.DONE] - HISTORY
        yield done


def growth(values: Sequence[float]) -> float:
    """The rise of the fitted line from the first value to the last."""
    slope, _ = np.polyfit(np.arange(len(values)), values, 1)
    return float(slope) * (len(values) - 1)


def creep(values: Sequence[int]) -> float:
    """`growth` without the largest step: a hash table that doubles once is no leak."""
    steps = np.diff(values)
    steps[np.argmax(steps)] = 0
    return growth([0, *np.cumsum(steps).tolist()])


def restart(installation: Installation, chance: random.Random) -> int:
    """Kill or stop the daemon and start it again; returns 1 if it was killed."""
    killed = chance.random() < 0.7
    if killed:
        installation.kill()
    else:
        assert installation.stop() == 0
    installation.start(fresh=True)
    return int(killed)


def test_many_jobs_leave_memory_descriptors_threads_and_disk_as_they_were(installation: Installation) -> None:
    """In the first half the daemon is ended at random moments; in the second half it is measured."""
    print(f"seed {SEED}")
    chance = random.Random(SEED)
    installation.changes = {
        "render": {"unload_idle_s": 3600.0, "max_attempts": RESTARTS + 3},
        "archive": {"mode": "delete"},
    }
    make_history(installation)
    ends_at = sorted(chance.sample(range(1, JOBS // 2), RESTARTS))
    watched_from = JOBS // 2 + JOBS // 10  # by then all code is loaded and all buffers have grown
    kills, began_s = 0, time.monotonic()
    samples: dict[int, tuple[int, int, int]] = {}
    installation.start(fresh=True)  # a fork would have a part of its memory from the start
    for done in feed(installation, JOBS):
        if ends_at and done >= ends_at[0]:
            ends_at.pop(0)
            time.sleep(chance.uniform(0, 0.5))
            kills += restart(installation, chance)
        if done >= watched_from:
            assert installation.daemon is not None
            samples.setdefault(done, state(installation.daemon.pid))
    installation.until(lambda: not os.listdir(installation.path("spool")), "an empty spool")
    took_s = time.monotonic() - began_s
    assert installation.stop() == 0
    assert not ends_at

    memory, descriptors, threads = ([sample[n] for sample in samples.values()] for n in range(3))
    what = f"{JOBS} jobs in {took_s:.0f} s, {RESTARTS} restarts, {kills} of them after kill -9 (seed {SEED})"
    grown = f"memory {memory[0]} to {memory[-1]} KiB, {creep(memory):+.0f} without its largest step"
    flat = f"{grown}, descriptors {growth(descriptors):+.1f}, threads {growth(threads):+.1f}"
    again = f"{installation.renders - JOBS} rendered again; in the last {JOBS - watched_from} jobs {flat}"
    print(what, again, [*zip(samples, memory, descriptors, threads, strict=True)], sep="\n")
    check_results(installation, kills)
    assert abs(growth(descriptors)) < 8, descriptors  # files that are open for a moment; one a job would be 24 and more
    assert abs(growth(threads)) < 3, threads
    assert creep(memory) < MAX_CREEP_KIB, memory
    report(what, f"{JOBS} videos, {again}")


def check_results(installation: Installation, kills: int) -> None:
    """Each job has one whole video, and there are no more repeated renders than kills."""
    shown = {path.name for path in installation.path("outbox").iterdir() if path.is_file()}
    assert shown == {f"p{number}.{suffix}" for number in range(JOBS) for suffix in ("mp4", "json")}
    digests = [sha256(installation.path("outbox") / f"p{number}.mp4") for number in range(JOBS)]
    assert digests == [installation.sidecar(f"p{number}")["sha256"] for number in range(JOBS)]
    assert len(set(digests)) == JOBS
    assert len(installation.view.jobs(limit=2 * (HISTORY + JOBS))) == HISTORY + JOBS
    assert JOBS <= installation.renders <= JOBS + kills
    assert os.listdir(installation.path("inbox")) == [".lipsyncd"]
    assert not list(installation.path("outbox").glob(".lipsyncd/*.part"))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
