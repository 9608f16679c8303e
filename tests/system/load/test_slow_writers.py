"""Slow writers: their files are accepted soon after the last byte and never before it."""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from lipsyncd.jobs.job import Job
from tests.kits.core_kit import as_ids
from tests.kits.installation import Installation, put
from tests.kits.long_run_figures import report
from tests.kits.machine.machine_kit import LONG, bindfs, needs_fuse, needs_root, percentile, small_picture, small_sound
from tests.kits.machine.users_kit import DAEMON, MEMBER, needs_users, shared_installation
from tests.kits.media.media_kit import converted

TRIALS = 1000 if LONG else 200
AT_ONCE = 40
SETTLE_S = 0.3
Write = Callable[[Path, bytes, Sequence[float]], None]


def held_open(path: Path, data: bytes, pauses_s: Sequence[float]) -> None:
    """Write as most programs do: one descriptor from the first byte to the last."""
    with path.open("wb", buffering=0) as file:
        for chunk, pause_s in _chunks(data, pauses_s):
            file.write(chunk)
            time.sleep(pause_s)


def reopened(path: Path, data: bytes, pauses_s: Sequence[float]) -> None:
    """Write as file servers do: open and close the file for each chunk."""
    path.touch()
    for chunk, pause_s in _chunks(data, pauses_s):
        time.sleep(pause_s)
        with path.open("ab", buffering=0) as file:
            file.write(chunk)


def _chunks(data: bytes, pauses_s: Sequence[float]) -> Iterator[tuple[bytes, float]]:
    """Cut `data` at random positions, often in its first or last bytes: one chunk for each pause."""
    near = [*range(1, 64), *range(len(data) - 16, len(data))]
    chance = random.Random(hashlib.sha256(data).digest())
    cuts = sorted(chance.choice([chance.randrange(len(data)), chance.choice(near)]) for _ in pauses_s[1:])
    for begin, end, pause_s in zip([0, *cuts], [*cuts, len(data)], pauses_s, strict=True):
        yield data[begin:end], pause_s


@dataclass
class Trial:
    """One pair, and the time of its last byte."""

    number: int
    picture: bytes
    sound: bytes
    done_ms: float = 0.0

    def write(self, folder: Path, how: Write, longest_s: float) -> None:
        chance = random.Random(self.number)
        halves = [(folder / f"t{self.number}.png", self.picture), (folder / f"t{self.number}.wav", self.sound)]
        plans = [[chance.uniform(0, longest_s) for _ in range(chance.randint(2, 5))] for _ in halves]
        writers = [threading.Thread(target=how, args=(*half, plan)) for half, plan in zip(halves, plans, strict=True)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        self.done_ms = time.time() * 1000


def write_all(folder: Path, how: Write, longest_s: float, *, proven: bool = True) -> dict[str, Trial]:
    """Write all pairs. Without `proven` no sound shows by its structure that it has an end."""
    shown = {} if proven else {"data_bytes": 0xFFFFFFFF}
    trials = [Trial(number, small_picture(number), small_sound(number, **shown)) for number in range(TRIALS)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda trial: trial.write(folder, how, longest_s), trials))
    return {f"t{trial.number}": trial for trial in trials}


def check(installation: Installation, trials: dict[str, Trial], what: str) -> None:
    """Each pair is one job with all of its bytes."""
    installation.until(
        lambda: sum(installation.view.counts().values()) >= len(trials), "the acceptance of all", seconds=120
    )
    jobs: dict[str, Job] = {job.name: job for job in installation.view.jobs(limit=2 * len(trials))}
    assert jobs.keys() == trials.keys()
    for name, trial in trials.items():
        folder = installation.path("spool") / jobs[name].id
        assert (folder / "image").read_bytes() == trial.picture
        assert (folder / "audio").read_bytes() == trial.sound
    assert not installation.view.jobs(states=[s for s in installation.view.counts() if s.ended])
    waits_s = [(jobs[name].accepted_ms - trial.done_ms) / 1000 for name, trial in trials.items()]
    p50, p99 = (percentile(waits_s, share) for share in (0.5, 0.99))
    report(
        f"{len(trials)} slow writers, {what}", f"0 taken early; last byte to accepted p50 {p50:.2f} s, p99 {p99:.2f} s"
    )


@pytest.mark.parametrize("how", [held_open, reopened])
def test_nothing_is_taken_from_a_slow_local_writer(installation: Installation, how: Write) -> None:
    installation.changes = {"render": {"renderer": "missing"}, "watch": {"settle_s": SETTLE_S, "settle_proven_s": 0.05}}
    with installation.running():
        trials = write_all(installation.path("inbox"), how, 3 * SETTLE_S)
        check(installation, trials, how.__name__.replace("_", " "))


@needs_users
@pytest.mark.parametrize(
    ("lease", "how", "proven"),
    [
        pytest.param(True, held_open, False, id="the kernel tells who writes"),
        pytest.param(True, reopened, True, id="the kernel tells, and the file is closed in between"),
        pytest.param(False, held_open, False, id="the kernel does not tell"),
        pytest.param(False, reopened, False, id="it does not tell, and the file is closed in between"),
    ],
)
def test_nothing_is_taken_from_a_slow_writer_who_is_another_user(lease: bool, how: Write, proven: bool) -> None:
    """Pauses are up to three times as long as `settle_s`, and half of `settle_network_s` where the kernel is silent."""
    network_s = SETTLE_S if lease else 6 * SETTLE_S  # twice the longest pause: a busy machine prolongs them
    watch = {"settle_s": SETTLE_S, "settle_proven_s": 0.05, "settle_network_s": network_s}
    with shared_installation() as installation:
        installation.changes |= {"render": {"renderer": "missing"}, "watch": watch}
        installation.run_as = DAEMON.command(lease=lease)

        def write() -> dict[str, Trial]:
            os.umask(0o007)
            return write_all(installation.path("inbox"), how, 3 * SETTLE_S, proven=proven)

        with installation.running():
            trials = as_ids(MEMBER.uid, MEMBER.gid, MEMBER.groups, write)
            told = "" if lease else "out"
            check(installation, trials, f"another user, with{told} CAP_LEASE, {how.__name__.replace('_', ' ')}")


@needs_root
@needs_fuse
def test_nothing_is_taken_from_a_slow_writer_that_raises_no_event(installation: Installation) -> None:
    """The inbox is a FUSE mount and the writer writes to its source, as on an NFS server: no event, no lease."""
    watch = {"settle_s": SETTLE_S, "settle_network_s": 2 * SETTLE_S, "poll_s": 0.2}
    installation.changes = {"render": {"renderer": "missing"}, "watch": watch}
    behind = installation.root / "server"
    behind.mkdir()
    with bindfs(behind, installation.path("inbox")), installation.running():
        installation.until(lambda: "is polled (fuse" in installation.log, "the log line about polling")
        trials = write_all(behind, reopened, 3 * watch["settle_network_s"])
        check(installation, trials, "behind a bindfs mount")


def in_openings(path: Path, data: bytes) -> None:
    """Four pieces, the file closed for 1.5 s between them."""
    for number in range(4):
        with path.open("ab") as file:
            file.write(data[len(data) * number // 4 : len(data) * (number + 1) // 4])
        time.sleep(0.0 if number == 3 else 1.5)


def filled_later(path: Path, data: bytes) -> None:
    """Laid out at full size, and filled 3 s later."""
    path.write_bytes(data[:44].ljust(len(data), b"\0"))
    time.sleep(3.0)
    with path.open("r+b") as file:
        file.write(data)


def downloaded(path: Path, data: bytes) -> None:
    """In random order beside a control file, as aria2 does: the end is there before the middle."""
    control = path.with_name(f"{path.name}.aria2")
    control.write_bytes(b"0")
    for number in range(5):
        path.write_bytes(data[:5000] + bytes(len(data) - 10_000) + data[-5000:])
        control.write_bytes(bytes([number]))
        time.sleep(0.8)
    path.write_bytes(data)
    control.unlink()


@pytest.mark.parametrize(
    ("write", "name", "make", "within_s"),
    [
        (in_openings, "a.mp3", lambda: converted(".mp3", "-write_xing", "0", seconds=6.0), 6.5),
        (in_openings, "a.aac", lambda: converted(".aac", seconds=6.0), 6.5),
        (filled_later, "a.wav", lambda: small_sound(1, 4.0), 2.0),
        (downloaded, "a.wav", lambda: small_sound(1, 4.0), 2.0),
    ],
)
def test_other_writers_files_are_taken_whole(
    installation: Installation,
    write: Callable[[Path, bytes], None],
    name: str,
    make: Callable[[], bytes],
    within_s: float,
) -> None:
    installation.changes = {"render": {"renderer": "missing"}}
    data = make()
    with installation.running():
        put(installation.path("inbox"), "a.png", small_picture(1))
        write(installation.path("inbox") / name, data)
        done_ms = time.time() * 1000
        [job] = installation.until(installation.view.jobs, "the acceptance")
        assert (installation.path("spool") / job.id / "audio").read_bytes() == data
    waited_s = (job.accepted_ms - done_ms) / 1000
    assert waited_s < within_s
    report(f"{write.__name__.replace('_', ' ')}, {name}", f"taken whole {waited_s:.1f} s after the last byte")


def test_files_that_come_byte_by_byte_are_waited_for(installation: Installation) -> None:
    """The last bytes come one by one, each after the settle time: once for a picture, once for a sound."""
    installation.changes = {"render": {"renderer": "missing"}}
    with installation.running():
        inbox = installation.path("inbox")
        slow = {inbox / "anna.png": small_picture(1), inbox / "bert.wav": small_sound(2)}
        (inbox / "anna.wav").write_bytes(small_sound(1))
        (inbox / "bert.png").write_bytes(small_picture(2))
        for path, data in slow.items():
            path.write_bytes(data[:-12])
        for left in range(12, 0, -1):
            time.sleep(0.35)
            assert installation.view.jobs() == []
            for path, data in slow.items():
                with path.open("ab") as file:
                    file.write(data[len(data) - left :][:1])
        installation.until(lambda: len(installation.view.jobs()) == 2, "the acceptance of both")
    assert not any(job.state.ended for job in installation.view.jobs())
