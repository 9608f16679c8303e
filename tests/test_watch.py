"""The doorbell, with the kernel's own events, and what the table of mounts says about a folder."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lipsyncd import inotify
from lipsyncd.watch import ASK_AGAIN_S, HEARD_WITHIN_S, TICK, TICK_EVERY_S, Watch
from tests.core_kit import Clock, as_nobody
from tests.home import ROOT
from tests.world_kit import bindfs, needs_fuse, needs_root


class Bell:
    def __init__(self) -> None:
        self._rung = threading.Event()

    def ring(self) -> None:
        self._rung.set()

    def rings(self, within_s: float) -> bool:
        rung = self._rung.wait(within_s)
        self._rung.clear()
        return rung


Watched = tuple[Watch, Bell]


@contextmanager
def watching(folder: Path, *, mode: str = "auto", clock: Callable[[], float] = time.monotonic) -> Iterator[Watched]:
    bell = Bell()
    watch = Watch(folder, mode=mode, hidden=".lipsyncd", bell=bell.ring, clock=clock)
    watch.start()
    try:
        yield watch, bell
    finally:
        watch.stop()


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    (tmp_path / "inbox").mkdir()
    return tmp_path / "inbox"


def test_every_way_to_bring_a_file_rings(inbox: Path, tmp_path: Path) -> None:
    outside = tmp_path / "b.wav"
    outside.write_bytes(b"x")
    with watching(inbox) as (watch, bell):
        assert watch.events
        for change in (
            lambda: (inbox / "a.wav").write_bytes(b"x"),
            lambda: outside.rename(inbox / "b.wav"),
            lambda: (inbox / "b.wav").rename(inbox / "c.wav"),
            lambda: os.link(inbox / "c.wav", inbox / "d.wav"),
            lambda: (inbox / "a.wav").chmod(0o600),
            lambda: (inbox / "a.wav").unlink(),
        ):
            change()
            assert bell.rings(within_s=5)
            while bell.rings(within_s=0.2):
                pass


def test_our_own_looking_does_not_ring(inbox: Path) -> None:
    """Else each scan would wake the next one, for ever."""
    (inbox / "a.wav").write_bytes(b"x")
    with watching(inbox) as (_, bell):
        os.listdir(inbox)
        (inbox / "a.wav").read_bytes()
        (inbox / "a.wav").stat()
        assert not bell.rings(within_s=0.5)
        (inbox / "b.wav").touch()
        assert bell.rings(within_s=5)


def test_an_inbox_from_which_nothing_may_be_removed_does_not_ring_for_the_attempt(inbox: Path) -> None:
    (inbox / "a.wav").write_bytes(b"x")

    def try_to_remove() -> bool:
        with pytest.raises(PermissionError):
            (inbox / "a.wav").unlink()
        return True

    inbox.chmod(0o555)
    assert as_nobody(try_to_remove, inbox)
    with watching(inbox) as (_, bell):
        assert as_nobody(try_to_remove)
        assert not bell.rings(within_s=0.5)
    inbox.chmod(0o755)


@pytest.mark.parametrize(("mode", "events"), [("auto", True), ("inotify", True), ("poll", False)])
def test_a_local_folder_is_heard_unless_the_setting_says_otherwise(inbox: Path, mode: str, events: bool) -> None:
    with watching(inbox, mode=mode) as (watch, bell):
        (inbox / "a.wav").touch()
        assert (watch.events, watch.network, watch.degraded) == (events, not events, "")
        assert bell.rings(within_s=5 if events else 0.3) is events


@needs_fuse
@pytest.mark.parametrize(("mode", "events"), [("auto", False), ("inotify", True)])
def test_a_network_folder_is_polled_unless_the_setting_says_otherwise(inbox: Path, mode: str, events: bool) -> None:
    with bindfs(inbox, inbox.with_name("share")) as share, watching(share, mode=mode) as (watch, _):
        assert (watch.events, watch.network) == (events, not events)


@needs_fuse
def test_a_mount_that_comes_and_goes_changes_how_the_folder_is_watched(inbox: Path) -> None:
    share = inbox.with_name("share")
    share.mkdir()
    with watching(share) as (watch, _):
        assert watch.events
        with bindfs(inbox, share):
            watch.check()
            assert (watch.events, watch.network) == (False, True)
        watch.check()
        assert (watch.events, watch.network, watch.degraded) == (True, False, "")


def test_a_folder_that_cannot_be_watched_is_left_to_the_clock(inbox: Path) -> None:
    with watching(inbox / "nowhere") as (watch, _):
        assert watch.events is False
        assert watch.degraded == f"no events for {inbox / 'nowhere'}: No such file or directory"


def test_a_stopped_watch_rings_no_more(inbox: Path) -> None:
    with watching(inbox) as (watch, bell):
        watch.stop()
        watch.stop()
        before = threading.active_count()
        (inbox / "a.wav").touch()
        assert not bell.rings(within_s=0.3)
        assert threading.active_count() <= before


def test_a_change_is_heard_at_once(inbox: Path) -> None:
    """A rename into the folder, which is how careful writers drop: no waiting for a second half of the move."""
    outside = inbox.parent / "outside"
    outside.mkdir()
    with watching(inbox) as (_, bell):
        for number in range(5):
            (outside / "x").write_bytes(b"x")
            started = time.monotonic()
            (outside / "x").rename(inbox / f"{number}.wav")
            assert bell.rings(within_s=5)
            assert time.monotonic() - started < 0.4
            time.sleep(0.05)
            while bell.rings(within_s=0.05):
                pass


# -- limits, overflows, ends -------------------------------------------------------------------------------------------


def limited(limit: str, work: str, folder: Path) -> list[str]:
    """What `work` prints in a process of its own in a user namespace of its own, whose inotify `limit` is 0 at first.

    There `watch` watches `folder` by the clock `clock`, and `allow(n)` sets the limit.
    """
    program = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from lipsyncd.watch import ASK_AGAIN_S, Watch
from tests.core_kit import Clock

def allow(number):
    Path("/proc/sys/user/{limit}").write_text(str(number))

allow(0)
clock, folder = Clock(), Path({str(folder)!r})
watch = Watch(folder, mode="auto", hidden=".lipsyncd", bell=lambda: print("rung", flush=True), clock=clock)
{work}
watch.stop()
"""
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


@needs_root
@pytest.mark.parametrize(
    ("limit", "reason"),
    [("max_inotify_watches", "No space left on device"), ("max_inotify_instances", "Too many open files")],
)
def test_at_a_limit_of_the_kernel_the_folder_is_polled_and_heard_again_when_there_is_room(
    inbox: Path, limit: str, reason: str
) -> None:
    told = limited(
        limit,
        """
watch.start()
print(watch.events, watch.degraded.rpartition(": ")[2])
allow(100)
watch.check()
print(watch.events)
clock.wait(ASK_AGAIN_S)
watch.check()
print(watch.events, repr(watch.degraded))
""",
        inbox,
    )
    assert told == [f"False {reason}", "False", "True ''"]


def test_an_overflow_is_counted_and_makes_us_look(inbox: Path) -> None:
    """More events than the queue holds, while the reader is held up by its first one."""
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    held, go, rings = threading.Event(), threading.Event(), 0

    def bell() -> None:
        nonlocal rings
        rings += 1
        held.set()
        go.wait(60)

    watch = Watch(inbox, mode="auto", hidden=".lipsyncd", bell=bell)
    watch.start()
    try:
        one, other = inbox / "a", inbox / "b"
        one.touch()
        assert held.wait(10)
        for _ in range(limit // 2 + 1000):  # two events each
            one.rename(other)
            one, other = other, one
        assert watch.overflows == 0
        go.set()
        deadline = time.monotonic() + 30
        while not watch.overflows and time.monotonic() < deadline:
            time.sleep(0.01)
        assert watch.overflows == 1
        before = rings
        (inbox / "c").touch()
        while rings == before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert rings > before, "it hears on after an overflow"
    finally:
        go.set()
        watch.stop()


def test_a_reader_that_has_ended_is_replaced_at_the_next_look(inbox: Path) -> None:
    with watching(inbox) as (watch, bell):
        reader = watch._reader
        assert reader is not None
        os.dup2(os.open("/dev/null", os.O_WRONLY), reader._queue.descriptor)  # it can be read no more
        (inbox / "a.wav").touch()
        os.eventfd_write(reader._wake, 1)
        reader._thread.join(10)
        assert not reader.is_alive()
        watch.check()
        assert (watch.restarts, watch.events) == (1, True)
        assert bell.rings(within_s=5), "what came meanwhile is looked for"
        (inbox / "b.wav").touch()
        assert bell.rings(within_s=5)


def test_a_reader_that_hangs_is_found_out_by_its_tick_and_replaced(inbox: Path) -> None:
    (inbox / ".lipsyncd").mkdir()
    clock, hang, hangs = Clock(), threading.Event(), threading.Event()

    def bell() -> None:
        if not hangs.is_set() and threading.current_thread().name.startswith("watch-"):
            hangs.set()
            hang.wait(60)

    watch = Watch(inbox, mode="auto", hidden=".lipsyncd", bell=bell, clock=clock)
    watch.start()
    try:
        (inbox / "a.wav").touch()
        assert hangs.wait(10)
        clock.wait(TICK_EVERY_S)
        watch.check()
        clock.wait(HEARD_WITHIN_S + 0.1)
        watch.check()
        assert (watch.restarts, watch.events) == (1, True)
    finally:
        hang.set()
        watch.stop()


def test_a_reader_that_works_hears_its_ticks_and_nobody_else_does(inbox: Path) -> None:
    (inbox / ".lipsyncd").mkdir()
    clock = Clock()
    with watching(inbox, clock=clock) as (watch, bell):
        for _ in range(3):
            clock.wait(TICK_EVERY_S)
            watch.check()
            reader = watch._reader
            assert reader is not None
            assert reader.heard.wait(10)
            clock.wait(HEARD_WITHIN_S + 0.1)
            watch.check()
        assert watch.restarts == 0
        assert (inbox / ".lipsyncd" / TICK).exists()
        assert not bell.rings(within_s=0.3)


def test_another_folder_under_the_same_path_is_watched_in_place_of_the_old_one(inbox: Path) -> None:
    with watching(inbox) as (watch, bell):
        inbox.rename(inbox.with_name("away"))
        inbox.mkdir()
        assert bell.rings(within_s=5)
        watch.check()
        while bell.rings(within_s=0.3):
            pass
        (inbox / "a.wav").touch()
        assert bell.rings(within_s=5)
    assert watch.restarts == 1


def test_the_time_to_ask_again_is_kept(inbox: Path) -> None:
    clock = Clock()
    with watching(inbox / "later", clock=clock) as (watch, _):
        (inbox / "later").mkdir()
        clock.wait(ASK_AGAIN_S - 1)
        watch.check()
        assert not watch.events
        clock.wait(1)
        watch.check()
        assert watch.events


def test_nothing_is_read_that_is_not_there(inbox: Path) -> None:
    queue = inotify.Inotify()
    assert queue.read() == []
    with pytest.raises(NotADirectoryError):
        (inbox / "a.wav").touch()
        queue.add(inbox / "a.wav", inotify.CREATE)
    queue.close()
