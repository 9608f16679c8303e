"""Disks of 8 MB that fill up at the worst moment: work waits, nothing fails or is lost, and it goes on alone."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lipsyncd.jobs.job import Job, JobState
from tests.kits.installation import Home, put
from tests.kits.long_run_figures import tell
from tests.kits.machine.world_kit import drop_pairs, fill, needs_root, small_picture, small_sound, tmpfs

pytestmark = needs_root

FLOOR_MB = 2
LONG_S = 20.0  # a WAV of 0.6 MB, which prepared is 2.6 MB


@pytest.fixture
def disk(home: Home) -> Iterator[Path]:
    """A tmpfs of 8 MB that holds state and spool."""
    with tmpfs(home.root / "disk") as disk:
        paths = {"state": str(disk / "state"), "spool": str(disk / "spool"), "min_free_mb": FLOOR_MB}
        home.changes = {"paths": paths}
        yield disk
        if home.daemon is not None:
            home.kill()


def spool_of(home: Home) -> list[str]:
    return sorted(os.listdir(home.path("spool")))


def nothing_ended(home: Home) -> bool:
    """No job was given up, and nothing was put away."""
    ended = [job for job in home.view.jobs() if job.state.ended and job.state is not JobState.DONE]
    return not ended and [p.name for p in home.path("failed").iterdir()] == [".lipsyncd"]


def let_pass(home: Home, scans: float = 3.0) -> None:
    """Give the daemon time to do what it should not: the intake looks once a second here."""
    time.sleep(scans)
    assert home.daemon is not None
    assert home.daemon.poll() is None


def until_done_after(home: Home, filler: Path, names: list[str]) -> float:
    """Give the room back; seconds until all of these jobs are done."""
    began_s = time.monotonic()
    filler.unlink()
    for name in names:
        home.until_done(name)
    return time.monotonic() - began_s


def test_a_full_disk_pauses_intake_and_it_goes_on_alone(home: Home, disk: Path) -> None:
    with home.running():
        filler = fill(disk, leave_bytes=500_000)
        drop_pairs(home.path("inbox"), range(3))
        let_pass(home)
        assert home.view.jobs() == []
        assert len(list(home.path("inbox").glob("p*"))) == 6
        took_s = until_done_after(home, filler, ["p0", "p1", "p2"])
        home.until(lambda: spool_of(home) == [], "an empty spool")
    assert home.renders == 3
    assert nothing_ended(home)
    tell("8 MB disk for state and spool full, 3 pairs waiting", f"all done {took_s:.1f} s after there was room again")


def test_a_disk_that_fills_up_during_an_acceptance_leaves_the_drop_where_it_was(home: Home, disk: Path) -> None:
    with home.running():
        filler = fill(disk, leave_bytes=int((FLOOR_MB + 0.5) * 1e6))
        big = small_sound(1, seconds=100.0)  # 3.2 MB: more than is left, though the floor is not reached
        put(home.path("inbox"), "p1.png", small_picture(1))
        put(home.path("inbox"), "p1.wav", big)
        home.until(lambda: "intake: p1 waits" in home.log, "the refusal of the disk")
        assert spool_of(home) == []
        assert home.view.jobs() == []
        assert (home.path("inbox") / "p1.wav").read_bytes() == big
        filler.unlink()
        home.until(lambda: home.job("p1"), "the acceptance")
        assert (home.path("spool") / home.job("p1").id / "audio").read_bytes() == big
        home.cli("cancel", home.job("p1").id)


def test_a_disk_that_fills_up_while_inputs_are_decoded_is_no_fault_of_the_inputs(home: Home, disk: Path) -> None:
    """ffmpeg itself runs out of room. Its copy is accepted, the floor is kept, the samples do not fit."""
    home.changes["paths"]["min_free_mb"] = 1
    with home.running():
        filler = fill(disk, leave_bytes=2_100_000)
        drop_pairs(home.path("inbox"), [1], seconds=LONG_S)
        job = home.until(lambda: (j := home.job("p1")) and j.reason_code and j, "the reason")
        assert (job.state, job.reason_code, job.attempt) == (JobState.QUEUED, "disk-low", 0)
        assert sorted(os.listdir(home.path("spool") / job.id)) == ["audio", "image", "job.json"]
        filler.unlink()
        home.until(lambda: home.job("p1").prepared, "the preparation")
        home.cli("cancel", job.id)


@pytest.mark.parametrize("renderer", ["flat", "slow"])
def test_a_disk_that_fills_up_to_the_last_byte_while_jobs_run_ends_none_of_them(
    home: Home, disk: Path, renderer: str
) -> None:
    """The ledger itself cannot be written any more: whatever was under way is done again, and nothing is given up."""
    home.changes["render"] = {"renderer": renderer}
    with home.running():
        drop_pairs(home.path("inbox"), range(3), seconds=0.4)
        home.until(lambda: any(j.state is JobState.RUNNING for j in home.view.jobs()) or None, "a render")
        filler = fill(disk)
        let_pass(home)
        drop_pairs(home.path("inbox"), [3])
        let_pass(home)
        took_s = until_done_after(home, filler, ["p0", "p1", "p2", "p3"])
        home.until(lambda: spool_of(home) == [], "an empty spool")
    assert nothing_ended(home)
    assert len(list(home.path("outbox").glob("*.mp4"))) == 4
    tell(f"the same disk full to the last byte during a `{renderer}` render", f"4 of 4 done {took_s:.1f} s after")


def test_an_outbox_without_room_keeps_the_video_until_there_is(home: Home) -> None:
    home.start()
    home.stop()
    marker = (home.path("outbox") / ".lipsyncd" / "outbox-id").read_text()
    with tmpfs(home.path("outbox")) as outbox:
        (outbox / ".lipsyncd").mkdir()
        (outbox / ".lipsyncd" / "outbox-id").write_text(marker)
        filler = fill(outbox)
        with home.running():
            drop_pairs(home.path("inbox"), range(2))

            def blocked() -> list[Job]:
                return [j for j in home.view.jobs() if j.reason_code == "outbox-unavailable"]

            waiting = home.until(lambda: len(found := blocked()) == 2 and found, "the reason")
            assert {job.state for job in waiting} == {JobState.PUBLISHING}
            assert list(outbox.glob("*.mp4")) == []
            took_s = until_done_after(home, filler, ["p0", "p1"])
        assert sorted(path.name for path in outbox.glob("p*")) == ["p0.json", "p0.mp4", "p1.json", "p1.mp4"]
        for name in ("p0", "p1"):
            facts = json.loads((outbox / f"{name}.json").read_text())
            assert facts["bytes"] == (outbox / f"{name}.mp4").stat().st_size
        assert [path.name for path in (outbox / ".lipsyncd").iterdir()] == ["outbox-id"]
    assert home.renders == 2
    tell("8 MB outbox full, 2 videos waiting", f"both delivered once {took_s:.1f} s after there was room again")
