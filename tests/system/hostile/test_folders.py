"""Attacks on the shared folders by a member of the group, with real users and real races.

Each attack changes names while the daemon works. Afterwards nothing outside of the shared folders is changed, read or
added, and every job has ended as it should.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lipsyncd.jobs.job import JobState, new_id
from tests.kits.faults.racer_kit import SECRET, leaks, make_victim, racing, snapshot
from tests.kits.installation import Installation, picture, sound
from tests.kits.machine.machine_kit import needs_compiler
from tests.kits.machine.users_kit import DAEMON, MEMBER, needs_users, shared_installation

pytestmark = [needs_users, needs_compiler]


@pytest.fixture
def share() -> Iterator[Installation]:
    with shared_installation() as made:
        made.run_as = DAEMON.command(lease=True)
        made.changes["watch"] = {"rescan_s": 0.5}
        made.changes["queue.fast"] = {}
        yield made


@pytest.fixture
def victim(share: Installation) -> Path:
    return make_victim(share.root, DAEMON)


def as_member(path: Path, content: bytes | None = None) -> Path:
    """Make that file the member's own."""
    if content is not None:
        path.write_bytes(content)
    os.chown(path, MEMBER.uid, DAEMON.gid, follow_symlinks=False)
    return path


def link(path: Path, to: Path) -> Path:
    """A link of the member."""
    path.symlink_to(to)
    return as_member(path)


def drop(share: Installation, name: str, *, seed: int = 0, **fields: object) -> None:
    """A manifest with its files, as the member drops them."""
    inbox = share.path("inbox")
    for file, content in ((f"{name}.png", picture(seed)), (f"{name}.wav", sound(0.3, seed))):
        as_member(inbox / f".{file}", content).rename(inbox / file)
    order = {"image": f"{name}.png", "audio": f"{name}.wav", "out_name": name, **fields}
    as_member(inbox / f".{name}.json", json.dumps(order).encode()).rename(inbox / f"{name}.json")


def shared(share: Installation) -> list[Path]:
    return [share.path(kind) for kind in ("inbox", "outbox", "failed", "archive")]


def untouched(share: Installation, victim: Path, before: dict[str, tuple[int, int, int, str]]) -> None:
    secrets = list(share.path("state").glob("*-secret"))
    assert snapshot(victim, *secrets) == before
    assert leaks(*shared(share), share.path("spool")) == []


def state_of(share: Installation, victim: Path) -> dict[str, tuple[int, int, int, str]]:
    return snapshot(victim, *share.path("state").glob("*-secret"))


# -- races -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["failed", "outbox", "archive"])
def test_the_hidden_folder_is_exchanged_for_a_link_again_and_again(
    share: Installation, victim: Path, kind: str, record_property: Callable[[str, object], None]
) -> None:
    """`.lipsyncd` and a link to the daemon's own folder change places all the time, while jobs end in that folder."""
    rounds = 12
    with share.running():
        share.until(lambda: (share.path(kind) / ".lipsyncd").is_dir(), "the hidden folder")
        before, folder = state_of(share, victim), share.path(kind)
        trap = link(folder / "trap", victim)
        renderer = {"failed": "shy"}.get(kind, "flat")
        with racing(MEMBER, None, "-", folder / ".lipsyncd", trap, hold_us=300) as race:
            for number in range(rounds):
                drop(share, f"job{number}", seed=number, renderer=renderer)
            end = time.monotonic() + 12
            while time.monotonic() < end and not all(ended(share, number) for number in range(rounds)):
                time.sleep(0.1)
        final = JobState.FAILED if kind == "failed" else JobState.DONE
        for number in range(rounds):
            share.until_state(f"job{number}", final)
        share.until(lambda: not list(share.path("spool").iterdir()), "an empty spool", seconds=90)
        untouched(share, victim, before)
        assert share.daemon is not None
    record_property("swaps", race.swaps)
    if kind == "archive":
        assert race.swaps == 0  # members cannot write there at all
    else:
        assert race.swaps > 100
    videos = sorted(path.name for path in share.path("outbox").glob("job*.mp4"))
    assert len(videos) == (0 if kind == "failed" else rounds), videos


def ended(share: Installation, number: int) -> bool:
    job = share.job(f"job{number}")
    return job is not None and job.state.ended


def test_a_folder_of_inputs_is_exchanged_for_a_link_while_it_is_filled(share: Installation, victim: Path) -> None:
    """The attack of the report: `failed/.lipsyncd/<id>.keep` becomes a link into the daemon's own folder."""
    with share.running():
        share.until(lambda: (share.path("failed") / ".lipsyncd").is_dir(), "the hidden folder")
        before, failed = state_of(share, victim), share.path("failed")
        trap = failed / ".lipsyncd/trap"  # folders are exchanged within one folder only, unless they are one's own
        if MEMBER.run("ln", "-s", victim, trap).returncode != 0:
            trap = link(failed / "trap", victim)
        with racing(MEMBER, failed / ".lipsyncd", "*.keep", failed / ".lipsyncd/%s", trap, hold_us=20_000) as race:
            for number in range(8):
                drop(share, f"job{number}", seed=number, renderer="shy")
            for number in range(8):
                share.until_failed(f"job{number}")
        untouched(share, victim, before)
    assert (race.swaps, race.errno) == (0, 13)  # it may not even look into that folder
    assert len(list(failed.glob("*-job*"))) == 8


@pytest.mark.parametrize("trap", ["link", "file"])
def test_an_input_is_exchanged_between_look_and_copy(
    share: Installation, victim: Path, trap: str, record_property: Callable[[str, object], None]
) -> None:
    """The member's own picture changes places with a link to a secret, or with another picture, as soon as the daemon
    has looked into it. What reaches the spool is one of the member's pictures, whole.
    """
    inbox, hits = share.path("inbox"), 0
    with share.running():
        share.until(lambda: (inbox / ".lipsyncd").is_dir(), "the hidden folder")
        before = state_of(share, victim)
        other = inbox / ".trap"
        if trap == "link":
            link(other, victim / "secret")
        else:
            as_member(other, picture(99))
        rounds = 8
        with racing(MEMBER, inbox, "read:job*.png", inbox / "%s", other, hold_us=20_000) as race:
            for number in range(rounds):
                drop(share, f"job{number}", seed=number)
                end = time.monotonic() + 1.5
                while time.monotonic() < end and not ended(share, number):
                    time.sleep(0.05)
        for number in range(rounds):
            job = share.until_state(f"job{number}", JobState.DONE, JobState.FAILED)
            assert job.state is JobState.DONE or (trap, job.reason_code) == ("link", "unsafe-path")
        untouched(share, victim, before)
        log = (share.root / "daemon.log").read_text()
        hits = log.count("changed while it was copied") + log.count("regular file")
    record_property("swaps", race.swaps)
    record_property("hits", hits)
    assert race.swaps >= rounds
    assert hits > 0, "no exchange fell between look and copy"


def test_a_retry_reads_what_it_has_proved(
    share: Installation, victim: Path, record_property: Callable[[str, object], None]
) -> None:
    """A failed job's folder is exchanged for a link to the daemon's own folder, after its `job.json` was read there.

    That file names the secret as the job's inputs, which lies in the linked folder under that name.
    """
    failed, taken = share.path("failed"), 0
    with share.running():
        before = state_of(share, victim)
        for number in range(8):
            drop(share, f"job{number}", seed=number, renderer="shy")
            job = share.until_failed(f"job{number}")
            kept = Path(job.kept or "")
            order = json.loads((kept / "job.json").read_text())
            for source in order["sources"]:
                source["name"] = "secret"
            as_member(kept / "new", json.dumps(order).encode()).rename(kept / "job.json")
            as_member(kept / "secret", picture(number))
            trap = link(failed / f"trap{number}", victim)
            with racing(MEMBER, kept, "read:job.json", kept, trap, hold_us=30_000) as race:
                accepted = share.cli("retry", job.id).returncode == 0
                if accepted:
                    share.until_failed(f"job{number}")
            taken += race.swaps
        untouched(share, victim, before)
    record_property("swaps", taken)
    assert taken > 0


# -- traps that need no race -------------------------------------------------------------------------------------------


def test_a_queues_folder_in_the_outbox_that_is_a_link_is_not_followed(share: Installation, victim: Path) -> None:
    with share.running():
        before = state_of(share, victim)
        trap = link(share.path("outbox") / "fast", victim)
        share.until(lambda: (share.path("inbox") / "fast/.lipsyncd").is_dir(), "the queue's folder")
        queue = share.path("inbox") / "fast"
        for file, content in (("anna.png", picture()), ("anna.wav", sound())):
            as_member(queue / file, content)
        share.until(lambda: (job := share.job("anna")) is not None and job.reason_code, "a reason")
        job = share.job("anna")
        assert job is not None
        assert (job.state, job.reason_code) == (JobState.PUBLISHING, "outbox-unavailable")
        assert "link" in (job.reason or "")
        untouched(share, victim, before)
        trap.unlink()
        share.until_done("anna")
        assert (share.path("outbox") / "fast/anna.mp4").is_file()


def test_a_day_of_the_archive_is_no_members_to_exchange(share: Installation, victim: Path) -> None:
    """A cancelled job's inputs lie in archive/<day>/<id>; a retry removes them there, and nowhere else."""
    with share.running():
        drop(share, "anna", renderer="hang")
        share.until_state("anna", JobState.RUNNING)
        job = share.job("anna")
        assert job is not None
        share.cli("cancel", job.id)
        share.until_state("anna", JobState.CANCELLED)
        share.until(lambda: not list(share.path("spool").iterdir()), "an empty spool")
        day = next(path for path in share.path("archive").iterdir() if path.name != ".lipsyncd")
        moved = MEMBER.run("mv", day, day.with_name("away"))
        assert moved.returncode != 0, "a member renamed a day of the archive"
        # Were it possible after all: the same folder behind a link, beside something precious.
        shutil.copytree(day / job.id, victim / job.id)
        before = state_of(share, victim)
        day.rename(day.with_name("away"))
        day.symlink_to(victim)
        refused = share.cli("retry", job.id)
        assert refused.returncode != 0
        untouched(share, victim, before)


def test_a_hidden_file_made_beforehand_is_not_written_through(share: Installation, victim: Path) -> None:
    """A link, and a second name of a secret, lie where the sidecar is staged; the job's id is the member's choice."""
    with share.running():
        share.until(lambda: (share.path("outbox") / ".lipsyncd").is_dir(), "the hidden folder")
        before, job_id = state_of(share, victim), new_id()
        hidden = share.path("outbox") / ".lipsyncd"
        for suffix in ("json", "mp4"):
            made = MEMBER.run("ln", "-s", victim / "secret", hidden / f"{job_id}.{suffix}.part")
            assert made.returncode != 0, "a member wrote into the daemon's own folder"
            os.link(victim / "secret", hidden / f"{job_id}.{suffix}.part")  # as root, were it possible after all
        drop(share, "anna", id=job_id)
        share.until_done("anna")
        assert (victim / "secret").read_bytes() == SECRET
        assert leaks(*shared(share), share.path("spool")) == []
        assert snapshot(victim) == {path: value for path, value in before.items() if "victim" in path}


@pytest.mark.parametrize("protected", [True, False])
def test_a_second_name_of_a_secret_is_no_input(share: Installation, victim: Path, protected: bool) -> None:
    """A member drops a hard link to a file that only the daemon may read, and puts one among the inputs of a failed
    job before its retry. Debian's kernels forbid such links (fs.protected_hardlinks); others do not.
    """
    victim.chmod(0o711)  # the member needs only to reach the file
    with hard_links(protected), share.running():
        before, inbox = state_of(share, victim), share.path("inbox")
        linked = MEMBER.run("ln", victim / "secret", inbox / "anna.png")
        assert (linked.returncode != 0) is protected
        as_member(inbox / "anna.wav", sound())
        drop(share, "failing", renderer="shy")
        job = share.until_failed("failing")
        kept = Path(job.kept or "")
        mine = kept.with_name("mine")
        script = f"cp -r {kept} {mine}; rm {mine}/failing.png; ln {victim}/secret {mine}/failing.png"
        put = MEMBER.run("sh", "-euc", f"{script}; mv {kept} {kept}-away; mv {mine} {kept}")
        assert (put.returncode != 0) is protected, put.stderr
        retried = share.cli("retry", job.id)
        assert (retried.returncode != 0) is not protected, retried.stdout
        if protected:
            share.until_failed("failing")
        else:
            share.until(lambda: "a private file of the daemon" in share.cli("status").stdout, "the reason")
        untouched(share, victim, before)
        assert (inbox / "anna.png").exists() is not protected


@contextmanager
def hard_links(protected: bool) -> Iterator[None]:
    """Have the kernel protect hard links, or not."""
    setting = Path("/proc/sys/fs/protected_hardlinks")
    before = setting.read_text()
    try:
        setting.write_text(str(int(protected)))
    except OSError:
        pytest.skip("this machine does not let us change fs.protected_hardlinks")
    try:
        yield
    finally:
        setting.write_text(before)
