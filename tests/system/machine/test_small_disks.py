"""Disks of 8 MB that fill up at the worst moment: jobs wait, none fails or is lost, and go on when there is room."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lipsyncd.jobs.job import Job, JobState
from tests.kits.installation import Installation, put
from tests.kits.long_run_figures import report
from tests.kits.machine.machine_kit import drop_pairs, fill, needs_root, small_picture, small_sound, tmpfs

pytestmark = needs_root

FLOOR_MB = 2
LONG_S = 20.0  # a WAV of 0.6 MB, which prepared is 2.6 MB


@pytest.fixture
def disk(installation: Installation) -> Iterator[Path]:
    """A tmpfs of 8 MB that holds state and spool."""
    with tmpfs(installation.root / "disk") as disk:
        paths = {"state": str(disk / "state"), "spool": str(disk / "spool"), "min_free_mb": FLOOR_MB}
        installation.changes = {"paths": paths}
        yield disk
        if installation.daemon is not None:
            installation.kill()


def spool_of(installation: Installation) -> list[str]:
    return sorted(os.listdir(installation.path("spool")))


def nothing_ended(installation: Installation) -> bool:
    """No job has failed, and nothing was archived."""
    ended = [job for job in installation.view.jobs() if job.state.ended and job.state is not JobState.DONE]
    return not ended and [p.name for p in installation.path("failed").iterdir()] == [".lipsyncd"]


def let_pass(installation: Installation, scans: float = 3.0) -> None:
    """Wait for some scans of the intake, one a second here, in which nothing must happen."""
    time.sleep(scans)
    assert installation.daemon is not None
    assert installation.daemon.poll() is None


def until_done_after(installation: Installation, filler: Path, names: list[str]) -> float:
    """Free the disk; returns the seconds until all of these jobs are done."""
    began_s = time.monotonic()
    filler.unlink()
    for name in names:
        installation.until_done(name)
    return time.monotonic() - began_s


def test_a_full_disk_pauses_intake_and_it_goes_on_alone(installation: Installation, disk: Path) -> None:
    with installation.running():
        filler = fill(disk, leave_bytes=500_000)
        drop_pairs(installation.path("inbox"), range(3))
        let_pass(installation)
        assert installation.view.jobs() == []
        assert len(list(installation.path("inbox").glob("p*"))) == 6
        took_s = until_done_after(installation, filler, ["p0", "p1", "p2"])
        installation.until(lambda: spool_of(installation) == [], "an empty spool")
    assert installation.renders == 3
    assert nothing_ended(installation)
    report("8 MB disk for state and spool full, 3 pairs waiting", f"all done {took_s:.1f} s after there was room again")


def test_a_disk_that_fills_up_during_an_acceptance_leaves_the_drop_where_it_was(
    installation: Installation, disk: Path
) -> None:
    with installation.running():
        filler = fill(disk, leave_bytes=int((FLOOR_MB + 0.5) * 1e6))
        big = small_sound(1, seconds=100.0)  # 3.2 MB: more than is left, though the floor is not reached
        put(installation.path("inbox"), "p1.png", small_picture(1))
        put(installation.path("inbox"), "p1.wav", big)
        installation.until(lambda: "intake: p1 waits" in installation.log, "the refusal of the disk")
        assert spool_of(installation) == []
        assert installation.view.jobs() == []
        assert (installation.path("inbox") / "p1.wav").read_bytes() == big
        filler.unlink()
        installation.until(lambda: installation.job("p1"), "the acceptance")
        assert (installation.path("spool") / installation.job("p1").id / "audio").read_bytes() == big
        installation.cli("cancel", installation.job("p1").id)


def test_a_disk_that_fills_up_while_inputs_are_decoded_is_no_fault_of_the_inputs(
    installation: Installation, disk: Path
) -> None:
    """ffmpeg runs out of room: the job is accepted with the minimum of free space kept, but the samples do not fit."""
    installation.changes["paths"]["min_free_mb"] = 1
    with installation.running():
        filler = fill(disk, leave_bytes=2_100_000)
        drop_pairs(installation.path("inbox"), [1], seconds=LONG_S)
        job = installation.until(lambda: (j := installation.job("p1")) and j.reason_code and j, "the reason")
        assert (job.state, job.reason_code, job.attempt) == (JobState.QUEUED, "disk-low", 0)
        assert sorted(os.listdir(installation.path("spool") / job.id)) == ["audio", "image", "job.json"]
        filler.unlink()
        installation.until(lambda: installation.job("p1").prepared, "the preparation")
        installation.cli("cancel", job.id)


@pytest.mark.parametrize("renderer", ["flat", "slow"])
def test_a_disk_that_fills_up_to_the_last_byte_while_jobs_run_ends_none_of_them(
    installation: Installation, disk: Path, renderer: str
) -> None:
    """The ledger cannot be written either: what was under way is done again, and no job fails."""
    installation.changes["render"] = {"renderer": renderer}
    with installation.running():
        drop_pairs(installation.path("inbox"), range(3), seconds=0.4)
        installation.until(
            lambda: any(j.state is JobState.RUNNING for j in installation.view.jobs()) or None, "a render"
        )
        filler = fill(disk)
        let_pass(installation)
        drop_pairs(installation.path("inbox"), [3])
        let_pass(installation)
        took_s = until_done_after(installation, filler, ["p0", "p1", "p2", "p3"])
        installation.until(lambda: spool_of(installation) == [], "an empty spool")
    assert nothing_ended(installation)
    assert len(list(installation.path("outbox").glob("*.mp4"))) == 4
    report(f"the same disk full to the last byte during a `{renderer}` render", f"4 of 4 done {took_s:.1f} s after")


def test_an_outbox_without_room_keeps_the_video_until_there_is(installation: Installation) -> None:
    installation.start()
    installation.stop()
    marker = (installation.path("outbox") / ".lipsyncd" / "outbox-id").read_text()
    with tmpfs(installation.path("outbox")) as outbox:
        (outbox / ".lipsyncd").mkdir()
        (outbox / ".lipsyncd" / "outbox-id").write_text(marker)
        filler = fill(outbox)
        with installation.running():
            drop_pairs(installation.path("inbox"), range(2))

            def blocked() -> list[Job]:
                return [j for j in installation.view.jobs() if j.reason_code == "outbox-unavailable"]

            waiting = installation.until(lambda: len(found := blocked()) == 2 and found, "the reason")
            assert {job.state for job in waiting} == {JobState.PUBLISHING}
            assert list(outbox.glob("*.mp4")) == []
            took_s = until_done_after(installation, filler, ["p0", "p1"])
        assert sorted(path.name for path in outbox.glob("p*")) == ["p0.json", "p0.mp4", "p1.json", "p1.mp4"]
        for name in ("p0", "p1"):
            facts = json.loads((outbox / f"{name}.json").read_text())
            assert facts["bytes"] == (outbox / f"{name}.mp4").stat().st_size
        assert [path.name for path in (outbox / ".lipsyncd").glob("*.part")] == []
    assert installation.renders == 2
    report("8 MB outbox full, 2 videos waiting", f"both delivered once {took_s:.1f} s after there was room again")
