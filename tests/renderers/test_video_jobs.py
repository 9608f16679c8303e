"""An installation that moves to another disk with everything in it, and goes on there."""

from __future__ import annotations

import subprocess
from pathlib import Path

from lipsyncd.daemon.offline import finisher_of
from lipsyncd.daemon.recovery import open_ledger
from lipsyncd.errors import NoFaceFound
from lipsyncd.jobs.job import JobState
from lipsyncd.settings import Paths, Settings
from tests.kits.installation import Home
from tests.kits.jobs_by_hand import Shop


def test_a_daemon_goes_on_with_what_was_copied_to_another_disk(home: Home, tmp_path: Path) -> None:
    with home.running():
        home.drop_pair("anna")
        home.until_done("anna")
        home.drop_manifest("bad", image="bad.png", audio="bad.wav", renderer="nosuch")
        home.drop_pair("bad", seed=1)
        bad = home.until_failed("bad")
        home.drop_pair("slow", seed=2, seconds=3)
        home.until_state("slow", JobState.RUNNING)
    (tmp_path / "new").mkdir()
    subprocess.run(["cp", "-a", home.root / "storage", tmp_path / "new" / "storage"], check=True)
    subprocess.run(["mv", home.root / "storage", home.root / "gone"], check=True)
    away = Home(tmp_path / "new")
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
    shop = Shop(tmp_path / "storage")
    done, failed = shop.published("done"), shop.queued("failed")
    shop.finisher.fail(failed, NoFaceFound("no face"))
    shop.restart()
    elsewhere = str(shop.folders.shared["failed"]) + "-2/x"
    shop.ledger.set_kept(done, Path(elsewhere))
    shop.close()
    shop.folders.shared["failed"].rename(tmp_path / "failed (1)")
    shop.settings = Settings(Paths(storage=tmp_path / "storage", failed=tmp_path / "failed (1)"))
    shop.folders.shared["failed"] = tmp_path / "failed (1)"
    shop.ledger = open_ledger(shop.folders.state / "ledger.db")
    shop.finisher = finisher_of(shop.settings, shop.folders, shop.ledger)
    shop.restart()
    kept = shop.job(failed).kept
    assert kept is not None
    assert Path(kept).parent == tmp_path / "failed (1)"
    assert shop.job(done).kept == elsewhere
    shop.finisher.retry(failed)
    shop.close()
