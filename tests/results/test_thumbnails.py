"""Thumbnails stay as long as the rows of their jobs, and a missing one costs nothing."""

from __future__ import annotations

import time
from pathlib import Path

from lipsyncd.daemon.housekeeping import Housekeeper
from lipsyncd.settings.sections import Retention as Rules
from tests.kits.jobs_by_hand import JobsByHand


def test_a_thumbnail_goes_with_the_row_of_its_job(tmp_path: Path) -> None:
    by_hand = JobsByHand(tmp_path, retention=Rules(ledger_days=1))
    thumbnails = by_hand.stores.thumbnails
    jobs = [by_hand.published("anna"), by_hand.published("bert"), "0" * 8 + "-0000-0000-0000-" + "0" * 12]
    for job_id in jobs:
        (tmp_path / "drawn").write_bytes(b"jpeg")
        thumbnails.take(job_id, tmp_path / "drawn")
    assert [thumbnails.has(job_id) for job_id in jobs] == [True, True, True]
    keeper = Housekeeper(by_hand.stores, by_hand.finisher)
    keeper.prune()
    assert [thumbnails.has(job_id) for job_id in jobs] == [True, True, False]  # of a job that a crash has lost
    Housekeeper(by_hand.stores, by_hand.finisher, wall=lambda: time.time() + 2 * 86400).prune()
    assert [thumbnails.has(job_id) for job_id in jobs] == [False, False, False]
    by_hand.close()
