"""What the long tests count: one line for each test, in the file that `LIPSYNCD_TEST_TALLY` names."""

from __future__ import annotations

import json
import os


def count(what: str, **figures: int | str) -> None:
    """Note figures of a test that has passed; `tests/long_run.py` makes a table of them."""
    path = os.environ.get("LIPSYNCD_TEST_TALLY")
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"what": what, **figures}) + "\n")
