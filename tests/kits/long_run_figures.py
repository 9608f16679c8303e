"""Records the figures of the long tests: a dated line each, in the file that $LIPSYNCD_TEST_TALLY names."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime


def count(what: str, **figures: int | str) -> None:
    """Record the figures of a test that has passed; `tests/kits/long_run.py` makes tables of them."""
    path = os.environ.get("LIPSYNCD_TEST_TALLY")
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"date": f"{datetime.now(UTC):%Y-%m-%d}", "what": what, **figures}) + "\n")


def report(what: str, outcome: str) -> None:
    """Print a fault test and its outcome, and record it as `count` does."""
    print(f"| {what} | {outcome} |", flush=True)
    count(what, outcome=outcome)
