"""An installation that moves to another disk with everything in it, and goes on there."""

from __future__ import annotations

import subprocess
from pathlib import Path

from lipsyncd.daemon.recovery import open_ledger
from lipsyncd.errors import NoFaceFound
from lipsyncd.jobs.job import JobState
from lipsyncd.settings import Paths, Settings
from lipsyncd.storage.folders import folders_of
from tests.kits.installation import Installation
from tests.kits.jobs_by_hand import JobsByHand


def test_a_daemon_goes_on_with_what_was_copied_to_another_disk(installation: Installation, tmp_path: Path) -> None:
    with installation.running():
        installation.drop_pair("anna")
        installation.until_done("anna")
        installation.drop_manifest("bad", image="bad.png", audio="bad.wav", renderer="nosuch")
        installation.drop_pair("bad", seed=1)
        bad = installation.until_failed("bad")
        installation.drop_pair("slow", seed=2, seconds=3)
        installation.until_state("slow", JobState.RUNNING)
    (tmp_path / "new").mkdir()
    subprocess.run(["cp", "-a", installation.root / "storage", tmp_path / "new" / "storage"], check=True)
    subprocess.run(["mv", installation.root / "storage", installation.root / "gone"], check=True)
    away = Installation(tmp_path / "new")
    try:
        with away.running():
            away.until_done("slow")
            assert [job.name for job in away.view.jobs()].count("slow") == 1
            kept = away.view.get(bad.id).kept
            assert kept is not None
            assert Path(kept).is_relative_to(tmp_path / "new")
            assert (Path(kept) / "reason.json").exists()
            assert away.cli("retry", bad.id).returncode == 0
            away.until(lambda: away.view.get(bad.id).attempt == 1, "the retry")
            anna = away.job("anna")
            assert anna is not None
            assert away.cli("republish", anna.id).returncode == 0
            assert (away.path("outbox") / "anna (2).mp4").exists()
    finally:
        if away.daemon is not None:
            away.daemon.kill()
            away.daemon.wait(10)


def test_only_what_lies_below_the_old_place_has_moved(tmp_path: Path) -> None:
    by_hand = JobsByHand(tmp_path / "storage")
    done, failed = by_hand.published("done"), by_hand.queued("failed")
    by_hand.finisher.fail(failed, NoFaceFound("no face"))
    by_hand.restart()
    elsewhere = f"{by_hand.path('failed')}-2/x"
    by_hand.ledger.set_kept(done, elsewhere)
    by_hand.close()
    by_hand.path("failed").rename(tmp_path / "failed (1)")
    by_hand.settings = Settings(Paths(storage=tmp_path / "storage", failed=tmp_path / "failed (1)"))
    by_hand.folders = folders_of(by_hand.settings.paths)
    by_hand.ledger = open_ledger(by_hand.folders.state / "ledger.db")
    by_hand.open_stores()
    by_hand.restart()
    kept = by_hand.job(failed).kept
    assert kept is not None
    assert Path(kept).parent == tmp_path / "failed (1)"
    assert by_hand.job(done).kept == elsewhere
    by_hand.finisher.retry(failed)
    by_hand.close()
