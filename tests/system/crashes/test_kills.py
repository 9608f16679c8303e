"""SIGKILL at random moments, again and again, while files are dropped all the time.

In two of three installations a consumer takes every result as soon as it is visible; in the third there is none.

`LIPSYNCD_TEST_KILLS` is the number of kills with the ledger unharmed, `LIPSYNCD_TEST_LEDGER_KILLS` that for each way to
damage it, `LIPSYNCD_TEST_SEED` the seed. The same seed draws the same kills, but processes differ in their timing.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.kits.faults.crash_kit import OutboxWatcher, damage, leftovers, next_number, visible
from tests.kits.installation import READY, Installation
from tests.kits.long_run_figures import count

SEED = int(os.environ.get("LIPSYNCD_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
KILLS = int(os.environ.get("LIPSYNCD_TEST_KILLS", "60"))
LEDGER_KILLS = int(os.environ.get("LIPSYNCD_TEST_LEDGER_KILLS", "20"))
INSTALLATIONS = 3  # at once: a daemon that starts, or waits for a file to settle, leaves the processor to others
LONGEST_LIFE_S = 2.0
DRAIN_S = 600.0
DROP_EVERY_S = (0.3, 1.6)
PAGE_BYTES = 4096

Spoil = Callable[[Path, random.Random], None]


def lose(state: Path, _chance: random.Random) -> None:
    """Delete the ledger with its journal."""
    for path in state.glob("ledger.db*"):
        path.unlink()


def tear(state: Path, chance: random.Random) -> None:
    """Cut the ledger at a page, or fill a page with random bytes; sometimes delete the journal too."""
    ledger = state / "ledger.db"
    pages = ledger.stat().st_size // PAGE_BYTES if ledger.exists() else 0
    if pages == 0:
        return
    page = chance.randrange(pages)
    with ledger.open("r+b") as file:
        if chance.random() < 0.5:
            file.truncate(page * PAGE_BYTES)
        else:
            file.seek(page * PAGE_BYTES)
            file.write(chance.randbytes(PAGE_BYTES))
    if chance.random() < 0.5:
        for suffix in ("-wal", "-shm"):
            ledger.with_name(ledger.name + suffix).unlink(missing_ok=True)


class Feeder:
    """Drops a pair, or sometimes a manifest that must fail, until it is stopped."""

    def __init__(self, installation: Installation, chance: random.Random) -> None:
        self.good: list[str] = []
        self.bad: list[str] = []
        self._installation = installation
        self._chance = chance
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._drop)

    def __enter__(self) -> Feeder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _drop(self) -> None:
        while not self._end.wait(self._chance.uniform(*DROP_EVERY_S)):
            number = next_number()
            if self._chance.random() < 0.2:
                self.bad.append(f"bad{number}")
                self._installation.drop_manifest(f"bad{number}", image="../x.png", audio="x.wav", user_data=str(number))
            else:
                self.good.append(f"job{number}")
                self._installation.drop_pair(f"job{number}", seed=number)


def endure(root: Path, kills: int, seed: int, spoil: Spoil | None, *, greedy: bool) -> tuple[Counter[str], list[str]]:
    """Kill the daemon of one installation so many times, then let it finish; returns its figures and the faults."""
    chance = random.Random(seed)
    root.mkdir()
    installation = Installation(root, {"render": {"max_attempts": 100}})
    installation.folders.initialise()
    figures = Counter(kills=kills)
    with OutboxWatcher(installation.path("outbox"), greedy=greedy) as watcher, Feeder(installation, chance) as feeder:
        for number in range(1, kills + 1):
            daemon = installation.start(wait=False)
            time.sleep(chance.uniform(0, LONGEST_LIFE_S))
            daemon.kill()
            daemon.wait(60)
            if spoil is not None and number % 6 == 0:
                spoil(installation.path("state"), chance)
                figures["spoilt"] += 1
        feeder.__exit__()
        daemon = installation.start(wait=False)
        settled = _until(lambda: _is_quiet(installation, watcher, feeder) or daemon.poll() is not None, DRAIN_S)
        installation.until(lambda: READY in installation.log, "the start")
        daemon.send_signal(15)
        status = daemon.wait(60)
    figures.update(jobs=len(feeder.good), refused=len(feeder.bad), renders=installation.renders)
    faults = [] if settled and status == 0 else [f"not settled within {DRAIN_S} s, the daemon ended with {status}"]
    return figures, [*faults, *_faults(installation, watcher, feeder, kills)]


def _until(done: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.05)
    return done()


def _is_quiet(installation: Installation, watcher: OutboxWatcher, feeder: Feeder) -> bool:
    delivered = all(watcher.seen[f"{name}.json"] for name in feeder.good)
    refused = len(visible(installation.path("failed"))) >= len(feeder.bad)
    return (
        delivered
        and refused
        and not any(installation.path("spool").iterdir())
        and not visible(installation.path("inbox"))
    )


def _faults(installation: Installation, watcher: OutboxWatcher, feeder: Feeder, kills: int) -> list[str]:
    faults = [
        *watcher.faults,
        *leftovers(installation.root / "storage"),
        *damage(installation.path("state") / "ledger.db"),
    ]
    wanted = Counter(f"{name}.{suffix}" for name in feeder.good for suffix in ("mp4", "json"))
    if watcher.seen != wanted:
        faults.append(f"lost {dict(wanted - watcher.seen)}, too often {dict(watcher.seen - wanted)}")
    for name in feeder.good:
        sidecar = json.loads(watcher.content.get(f"{name}.json", b"{}"))
        if sidecar.get("sha256") != hashlib.sha256(watcher.content.get(f"{name}.mp4", b"")).hexdigest():
            faults.append(f"{name}.mp4 has not the digest of its sidecar")
    failed = Counter(json.loads((p / "job.json").read_text())["name"] for p in visible(installation.path("failed")))
    if failed != Counter(feeder.bad):
        faults.append(f"failed/ holds {failed}, not {feeder.bad}")
    archived = Counter(json.loads(p.read_text())["name"] for p in installation.path("archive").glob("*/*/job.json"))
    if archived != Counter(feeder.good):
        faults.append(f"the archive lacks {Counter(feeder.good) - archived}, has {archived - Counter(feeder.good)}")
    if installation.renders > len(feeder.good) + kills:
        faults.append(f"{installation.renders} renders of {len(feeder.good)} jobs with {kills} kills")
    if "Traceback" in installation.log:
        faults.append("the daemon has logged a failure that it did not expect")
    return faults


@pytest.mark.timeout(3 * 3600)
@pytest.mark.parametrize(
    ("what", "kills", "spoil"),
    [
        ("kill at random", KILLS, None),
        ("kill at random, ledger deleted every sixth time", LEDGER_KILLS, lose),
        ("kill at random, ledger torn every sixth time", LEDGER_KILLS, tear),
    ],
)
def test_kills_at_random_lose_nothing_and_deliver_nothing_twice(
    tmp_path: Path, what: str, kills: int, spoil: Spoil | None
) -> None:
    print(f"LIPSYNCD_TEST_SEED={SEED}")
    shares = [len(range(n, kills, INSTALLATIONS)) for n in range(INSTALLATIONS)]
    with ThreadPoolExecutor(INSTALLATIONS) as pool:
        ran = [
            pool.submit(endure, tmp_path / f"home{n}", share, SEED + n, spoil, greedy=n > 0)
            for n, share in enumerate(shares)
        ]
        ended = [one.result() for one in ran]
    faults = [fault for _, found in ended for fault in found]
    assert not faults, "\n".join([f"seed {SEED}, folders under {tmp_path}", *faults])
    figures = sum((figures for figures, _ in ended), Counter[str]())
    print(dict(figures))
    again = max(figures["renders"] - figures["jobs"], 0)
    count(what, cases=figures["jobs"] + figures["refused"], kills=kills, renders=again)
