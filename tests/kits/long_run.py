"""Run the tests of durability and of faults at full scale, and print dated tables of their figures.

    python -m tests.kits.long_run            run them
    python -m tests.kits.long_run TALLY …    make the tables from the records of several runs (LIPSYNCD_TEST_TALLY)

Every pair of failpoints with and without the greedy consumer, 200 kills at random and 60 for each way to lose the
ledger, every error at every file call; then disks, mounts, clocks, hostile files, bursts and a soak: hours. Environment
variables that are set already make it shorter; LIPSYNCD_TEST_TALLY keeps the records, even if the run is stopped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FULL = {
    "LIPSYNCD_TEST_PAIRS": "all",
    "LIPSYNCD_TEST_KILLS": "200",
    "LIPSYNCD_TEST_LEDGER_KILLS": "60",
    "LIPSYNCD_TEST_RAY_KILLS": "40",
    "LIPSYNCD_TEST_FAULTS": "all",
    "SCHEMATHESIS_EXAMPLES": "200",
    "LONG": "1",
}
TESTS = [
    *(f"crashes/test_{name}.py" for name in ("order", "failpoints", "kills", "file_faults")),
    "executors/test_random_kills.py",
    *(f"load/test_{name}.py" for name in ("burst", "slow_writers")),
    *("machine/test_small_disks.py", "machine/test_mounts.py", "load/test_clock_jumps.py", "test_two_daemons.py"),
    *(f"hostile/test_{name}.py" for name in ("jobs", "jail_trace", "requests")),
    "load/test_soak.py",
]


def tables(lines: Sequence[Mapping[str, Any]]) -> str:
    """Markdown. A test records its figures only when it has passed, so a column of losses would hold zeros only."""
    kills: dict[str, Counter[str]] = {}
    outcomes: dict[str, str] = {}
    for line in lines:
        if "outcome" in line:
            outcomes[line["what"]] = line["outcome"]
        else:
            figures = {key: value for key, value in line.items() if key not in ("what", "date")}
            kills.setdefault(line["what"], Counter()).update(figures)
    rows = [
        "| " + " | ".join([what, *(f"{found[key]:,}" if key in found else "" for key in ("cases", "kills", "renders"))])
        for what, found in kills.items()
    ]
    days = sorted({str(line["date"]) for line in lines})
    dates = " to ".join(dict.fromkeys([days[0], days[-1]]))
    head = f"Run on {dates}. What passed, with 0 lost, 0 delivered twice and 0 torn:"
    first = [head, "", "| what | cases | kills | renders again |", "|---|---|---|---|", *(f"{row} |" for row in rows)]
    second = [
        "| what happened | outcome |",
        "|---|---|",
        *(f"| {what} | {outcome} |" for what, outcome in outcomes.items()),
    ]
    return "\n".join([*first, "", *second])


def recorded(path: Path) -> list[dict[str, Any]]:
    """The lines that `tests.kits.long_run_figures` has written; none if no test has passed."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main(tallies: Sequence[str]) -> int:
    if tallies:
        print(tables([line for name in tallies for line in recorded(Path(name))]))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        environment = {**FULL, "LIPSYNCD_TEST_TALLY": str(Path(folder, "tally.jsonl")), **os.environ}
        command = [sys.executable, "-m", "pytest", "-s", "--timeout", "0", *(f"tests/system/{name}" for name in TESTS)]
        ended = subprocess.run(command, env=environment, check=False)
        if lines := recorded(Path(environment["LIPSYNCD_TEST_TALLY"])):
            print(tables(lines))
        if ended.returncode:
            print("\nNot all tests passed. Those that failed are not in these tables; see above.")
    return ended.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
