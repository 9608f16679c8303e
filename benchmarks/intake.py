"""How many dropped pairs a second become jobs, and what a scan costs while files wait.

    python -m benchmarks.intake [pairs ...]      # 1000 10000 without arguments

Beside each figure of the intake stands a plain loop that writes the same files and rows with shared fsyncs, in the same
run. Files lie in the folder for temporary ones (TMPDIR): it has to be on a real disk, since fsyncs in memory are free.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from tests.kits.installation import Installation
from tests.kits.machine.intake_rate import intake, plain_loop, scan_s
from tests.kits.machine.machine_kit import drop_pairs

PAIRS = (1000, 10_000)
ROUNDS = 3
DAEMON_PAIRS = 1000
WAITING = (1000, 10_000)


def rate(root: Path, pairs: int, rounds: int) -> None:
    """Intake and loop, one after the other."""
    ours_s, loop_s, cpu = [], [], []
    for number in range(rounds):
        ours, by_hand = intake(root / f"{pairs}-{number}-intake", pairs)
        loop = plain_loop(root / f"{pairs}-{number}-loop", by_hand)
        by_hand.ledger.close()
        ours_s.append(ours.wall_s)
        loop_s.append(loop.wall_s)
        cpu.append((ours.cpu_s, loop.cpu_s))
    ratio = median(loop / ours for ours, loop in zip(ours_s, loop_s, strict=True))
    ours_ms, loop_ms = (min(column) / pairs * 1000 for column in zip(*cpu, strict=True))
    ours_rate, loop_rate = pairs / median(ours_s), pairs / median(loop_s)
    print(
        f"| {pairs:,} | {ours_rate:.0f} | {loop_rate:.0f} | {ratio:.2f} | {ours_ms:.2f} / {loop_ms:.2f} ms |",
        flush=True,
    )


def whole_daemon(root: Path) -> float:
    """Pairs that a daemon accepts in a second, while it also begins to prepare them."""
    root.mkdir()
    installation = Installation(root)
    installation.changes = {"render": {"renderer": "missing"}}
    with installation.running():
        (root / "aside").mkdir()
        drop_pairs(root / "aside", range(DAEMON_PAIRS))
        inbox, began_s = installation.path("inbox"), time.perf_counter()
        for name in os.listdir(root / "aside"):
            (root / "aside" / name).rename(inbox / name)
        installation.until(
            lambda: sum(installation.view.counts().values()) >= DAEMON_PAIRS, "the acceptance of all", seconds=600
        )
        return DAEMON_PAIRS / (time.perf_counter() - began_s)


def main(wanted: Sequence[str]) -> None:
    versions = f"Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(f"{time.strftime('%Y-%m-%d')}, {versions}, files in {tempfile.gettempdir()}\n")
    with tempfile.TemporaryDirectory(prefix="lipsyncd-intake-") as folder:
        root = Path(folder)
        print("| pairs at once | intake, pairs/s | plain loop | ratio | processor time a pair |\n|---|---|---|---|---|")
        for pairs in map(int, wanted) if wanted else PAIRS:
            rate(root, pairs, ROUNDS if pairs <= PAIRS[0] else 1)
        daemon_rate = whole_daemon(root / "daemon")
        print(f"\na whole daemon, {DAEMON_PAIRS:,} pairs renamed into its inbox: {daemon_rate:.0f} a second")
        for name, apart_s in (("judges each file", 1000.0), ("finds nothing new", 10.0)):
            few_s, many_s = (scan_s(root / f"{files}-{apart_s:g}", files, apart_s=apart_s) for files in WAITING)
            few, many = (
                f"{s * 1000:.1f} ms for {files:,} waiting files"
                for s, files in zip((few_s, many_s), WAITING, strict=True)
            )
            times = f"{many_s / few_s:.1f} times the time for {WAITING[1] // WAITING[0]} times the files"
            print(f"a scan that {name}: {few}, {many}; {times}")


if __name__ == "__main__":
    main(sys.argv[1:])
