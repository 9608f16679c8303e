"""Inbox and outbox are unmounted and mounted again at any moment: unmounted is never taken for empty."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from lipsyncd.inbox.accept import Intake
from lipsyncd.inbox.scan import Inbox, rules_of
from lipsyncd.jobs.job import Identity, JobState, now_ms
from lipsyncd.settings import CurrentSettings
from lipsyncd.storage.files import read_json
from lipsyncd.storage.spool import Spool, Staged
from tests.kits.core_kit import Clock
from tests.kits.installation import Installation, put
from tests.kits.jobs_by_hand import JobsByHand
from tests.kits.long_run_figures import report
from tests.kits.machine.machine_kit import LONG, bind, drop_pairs, needs_root, small_picture, small_sound, unmount

ROUNDS = 30 if LONG else 3
HOW = [pytest.param("unmounted", marks=needs_root), "swapped"]


@dataclass
class Share:
    """A shared folder. While it is away, a bare folder without its marker has its name."""

    folder: Path
    aside: Path
    how: str

    def connect(self) -> None:
        """Make the folder a mount of itself if the test unmounts it later."""
        if self.how == "unmounted":
            self.folder.rename(self.aside)
            self.folder.mkdir()
            bind(self.aside, self.folder)

    def disconnect(self) -> None:
        if self.how == "unmounted":
            unmount(self.folder)

    @contextmanager
    def away(self, strays: tuple[str, ...] = ()) -> Iterator[None]:
        """Away for the length of the block; nothing may be written into the bare folder, nor `strays` taken from it."""
        if self.how == "unmounted":
            unmount(self.folder)
        else:
            self.folder.rename(self.aside)
            self.folder.mkdir()
        for name in strays:
            put(self.folder, name, small_picture(999_999) if name.endswith("png") else small_sound(999_999))
        yield
        assert sorted(os.listdir(self.folder)) == sorted(strays)
        for name in strays:
            (self.folder / name).unlink()
        if self.how == "unmounted":
            bind(self.aside, self.folder)
        else:
            self.folder.rmdir()
            self.aside.rename(self.folder)


@contextmanager
def shared(installation: Installation, kind: str, how: str) -> Iterator[Share]:
    """A running daemon with one folder that can go away."""
    installation.start()
    installation.stop()
    share = Share(installation.path(kind), installation.root / f"server-{kind}", how)
    share.connect()
    try:
        with installation.running():
            yield share
    finally:
        share.disconnect()


def delivered_once(installation: Installation, share: Share, numbers: list[int]) -> None:
    """Every job is done, with one video and one sidecar from one render."""
    installation.until(lambda: not os.listdir(installation.path("spool")), "an empty spool")
    outbox = (
        share.aside
        if share.how == "unmounted" and share.folder == installation.path("outbox")
        else installation.path("outbox")
    )
    expected = sorted(f"p{number}.{suffix}" for number in numbers for suffix in ("mp4", "json"))
    assert sorted(name for name in os.listdir(outbox) if name != ".lipsyncd") == expected
    assert sorted(job.name for job in installation.view.jobs(limit=10_000)) == sorted(
        f"p{number}" for number in numbers
    )
    assert {job.state for job in installation.view.jobs(limit=10_000)} == {JobState.DONE}
    assert installation.renders == len(numbers)
    assert sorted(os.listdir(outbox / ".lipsyncd")) == ["made", "outbox-id"]


def until_kept(installation: Installation, number: int) -> None:
    """Wait until the video is rendered and waits for its outbox."""
    job = installation.until(lambda: (j := installation.job(f"p{number}")) and j.reason_code and j, "the reason")
    assert (job.state, job.reason_code, job.attempt) == (JobState.PUBLISHING, "outbox-unavailable", 1)


def stopped_while_publishing(installation: Installation, number: int) -> bool:
    """Stop the daemon (SIGSTOP) between staging a video and publishing it; False if it was too quick."""
    assert installation.daemon is not None
    hidden, shown = installation.path("outbox") / ".lipsyncd", installation.path("outbox") / f"p{number}.json"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if any(name.endswith(".part") for name in os.listdir(hidden)):
            os.kill(installation.daemon.pid, signal.SIGSTOP)
            return not shown.exists()
        if shown.exists():
            return False
    raise AssertionError("nothing was published")


@pytest.mark.parametrize("how", HOW)
def test_an_outbox_that_goes_away_gets_each_video_once_when_it_is_back(installation: Installation, how: str) -> None:
    installation.changes = {"render": {"renderer": "slow"}}
    with shared(installation, "outbox", how) as share:
        assert installation.daemon is not None
        with share.away():  # before anything has come
            drop_pairs(installation.path("inbox"), [0])
            until_kept(installation, 0)
        installation.until_done("p0")

        drop_pairs(installation.path("inbox"), [1])
        installation.until_state("p1", JobState.RUNNING)
        with share.away():  # while it renders
            until_kept(installation, 1)
        installation.until_done("p1")

        caught, numbers = 0, [0, 1]
        while caught < (10 if LONG else 2) and len(numbers) < 60:
            numbers.append(len(numbers))
            drop_pairs(installation.path("inbox"), numbers[-1:], seconds=0.2)
            if stopped_while_publishing(installation, numbers[-1]):
                with share.away():  # with the video staged, and perhaps shown without its sidecar
                    os.kill(installation.daemon.pid, signal.SIGCONT)
                    time.sleep(0.5)
                caught += 1
            os.kill(installation.daemon.pid, signal.SIGCONT)
            installation.until_done(f"p{numbers[-1]}")
        assert caught
        delivered_once(installation, share, numbers)
    report(
        f"outbox {how} before, during and after renders, {caught} times in the middle of publishing", "0 lost, 0 twice"
    )


def reported_unavailable(installation: Installation, since_ms: int) -> bool:
    status = read_json(installation.path("state") / "status.json") or {}
    return not status.get("inbox_available", True) and status["at_ms"] > since_ms


@pytest.mark.parametrize("how", HOW)
def test_an_inbox_that_goes_away_is_waited_for(installation: Installation, how: str) -> None:
    chance = random.Random(5)
    pairs = 3
    with shared(installation, "inbox", how) as share:
        numbers: list[int] = []
        for _ in range(ROUNDS):
            new = range(len(numbers), len(numbers) + pairs)
            numbers += new
            drop_pairs(installation.path("inbox"), new)
            time.sleep(chance.uniform(0, 0.6))  # anywhere between the first look and the last file's unlinking
            with share.away(strays=("stray.png", "stray.wav")):
                installation.until(partial(reported_unavailable, installation, now_ms()), "the report that it is gone")
        for number in numbers:
            installation.until_done(f"p{number}")
        delivered_once(installation, share, numbers)
        inbox = share.aside if how == "unmounted" else share.folder
        assert [name for name in os.listdir(inbox) if name != ".lipsyncd"] == []
    report(
        f"inbox {how} {ROUNDS} times with drops under way, strays in the bare folder", f"{len(numbers)} jobs, each once"
    )


@pytest.mark.parametrize("moment", ["accepted", "about to be given back"])
def test_an_input_is_not_believed_to_be_gone_while_its_inbox_is_away(tmp_path: Path, moment: str) -> None:
    by_hand, clock, leaving = JobsByHand(tmp_path / "storage"), Clock(), ExitStack()
    inbox_folder = by_hand.path("inbox")
    share = Share(inbox_folder, tmp_path / "server", "swapped")

    class LeavingSpool(Spool):
        def accept_all(self, staged: Sequence[Staged]) -> None:
            super().accept_all(staged)
            if moment == "accepted":
                leaving.enter_context(share.away())

    class LeavingInbox(Inbox):
        def named_by_manifests(self, taken: Mapping[bytes, Identity]) -> Container[bytes]:
            if moment != "accepted" and inbox_folder.exists() and taken:
                leaving.enter_context(share.away())
            return super().named_by_manifests(taken)

    inbox = LeavingInbox(by_hand.folders.shared["inbox"], rules_of(by_hand.settings), network=False, clock=clock)
    intake = Intake(CurrentSettings(by_hand.settings), inbox, LeavingSpool(by_hand.spool.root), by_hand.ledger)
    drop_pairs(inbox_folder, [0])
    intake.scan()
    clock.wait(2.0)
    [accepted] = intake.scan()
    # The whole scan works in the folder that it has opened: there the inputs are really gone.
    assert by_hand.ledger.unreleased() == []
    assert os.listdir(share.aside) == [".lipsyncd"]
    assert os.listdir(inbox_folder) == []
    assert by_hand.job(accepted.job.id).state is JobState.QUEUED
    leaving.close()
    for _ in range(3):
        clock.wait(2.0)
        assert intake.scan() == []
    assert (by_hand.ledger.unreleased(), os.listdir(inbox_folder)) == ([], [".lipsyncd"])
    by_hand.close()


@pytest.mark.parametrize("year", [1970, 2100], ids=["1970", "2100"])
def test_a_server_whose_clock_is_wrong_changes_nothing(installation: Installation, year: int) -> None:
    at_s = (year - 1970) * 31_556_952.0
    with installation.running():
        for number in range(2):
            for suffix, data in (("png", small_picture(number)), ("wav", small_sound(number))):
                hidden = installation.path("inbox") / f".p{number}.{suffix}.part"
                hidden.write_bytes(data)
                os.utime(hidden, (at_s, at_s))
                hidden.rename(installation.path("inbox") / f"p{number}.{suffix}")
        for number in range(2):
            installation.until_done(f"p{number}")
        installation.until(lambda: os.listdir(installation.path("inbox")) == [".lipsyncd"], "an empty inbox")
    assert installation.renders == 2
