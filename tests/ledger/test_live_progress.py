"""What the daemon reports while it renders, as readers of the ledger see it."""

from __future__ import annotations

import os
from pathlib import Path

from lipsyncd.ledger.live_progress import STATUS_FILE, LiveProgress
from lipsyncd.storage.files import write_json


def test_two_reports_within_one_tick_of_the_clock_are_both_seen(tmp_path: Path) -> None:
    live = LiveProgress(tmp_path)
    assert live.of("one") is None
    for fraction in (0.25, 0.75):  # as many bytes
        write_json(
            tmp_path / STATUS_FILE, {"progress": {"one": {"stage": "rendering", "fraction": fraction}}}, mode=0o600
        )
        os.utime(tmp_path / STATUS_FILE, ns=(10**18, 10**18))
        assert live.of("one") == ("rendering", fraction)
    (tmp_path / STATUS_FILE).unlink()
    assert live.of("one") is None
