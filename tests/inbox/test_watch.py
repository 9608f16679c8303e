"""Changes in a folder are noticed, by the kernel's events; what the table of mounts shows of a folder."""

from __future__ import annotations

import errno
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from lipsyncd.inbox.watch import ASK_AGAIN_S, END_WITHIN_S, HEARD_WITHIN_S, TICK, TICK_EVERY_S, Watch, refusal
from lipsyncd.storage.open_folder import OpenFolder
from lipsyncd.storage.shared_folders import SharedFolder
from tests.kits.core_kit import UNPRIVILEGED, Clock, as_nobody
from tests.kits.installation import ROOT
from tests.kits.machine.inotify_kit import MOST_OF_OURS
from tests.kits.machine.machine_kit import bindfs, needs_fuse, needs_root
from tests.kits.shared_kit import shared_folder


class Changes:
    """The changes that a watch has noticed."""

    def __init__(self) -> None:
        self._noticed = threading.Event()

    def notify(self) -> None:
        self._noticed.set()

    def come(self, within_s: float) -> bool:
        noticed = self._noticed.wait(within_s)
        self._noticed.clear()
        return noticed


pytestmark = pytest.mark.inotify

Watched = tuple[Watch, Changes]


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def check(watch: Watch) -> None:
    """Look after the watch, for the folder that lies there now."""
    with watch.folder.open_unproved() as root:
        watch.check(root)


@contextmanager
def watching(
    folder: Path, *, mode: str = "auto", writes: bool = False, clock: Callable[[], float] = time.monotonic
) -> Iterator[Watched]:
    changes = Changes()
    watch = Watch(shared_folder(folder), mode=mode, notify=changes.notify, writes=writes, clock=clock)
    check(watch)
    try:
        yield watch, changes
    finally:
        watch.stop()


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    (tmp_path / "inbox").mkdir()
    return tmp_path / "inbox"


def test_every_way_to_bring_a_file_is_noticed(inbox: Path, tmp_path: Path) -> None:
    outside = tmp_path / "b.wav"
    outside.write_bytes(b"x")
    with watching(inbox) as (watch, changes):
        assert watch.events
        for change in (
            lambda: (inbox / "a.wav").write_bytes(b"x"),
            lambda: outside.rename(inbox / "b.wav"),
            lambda: (inbox / "b.wav").rename(inbox / "c.wav"),
            lambda: os.link(inbox / "c.wav", inbox / "d.wav"),
            lambda: (inbox / "a.wav").unlink(),
        ):
            change()
            assert changes.come(within_s=60)
            while changes.come(within_s=0.2):
                pass


def test_our_own_scan_is_no_change(inbox: Path) -> None:
    """Otherwise each scan would start the next one, forever."""
    (inbox / "a.wav").write_bytes(b"x")
    with watching(inbox) as (_, changes):
        os.listdir(inbox)
        (inbox / "a.wav").read_bytes()
        (inbox / "a.wav").stat()
        assert not changes.come(within_s=0.5)
        (inbox / "b.wav").touch()
        assert changes.come(within_s=60)


def test_an_inbox_from_which_nothing_may_be_removed_gives_no_event_for_the_attempt(inbox: Path) -> None:
    (inbox / "a.wav").write_bytes(b"x")

    def try_to_remove() -> bool:
        with pytest.raises(PermissionError):
            (inbox / "a.wav").unlink()
        return True

    inbox.chmod(0o555)
    assert as_nobody(try_to_remove, inbox)
    with watching(inbox) as (_, changes):
        assert as_nobody(try_to_remove)
        assert not changes.come(within_s=0.5)
    inbox.chmod(0o755)


def test_each_write_is_noted_by_name_and_starts_no_scan(inbox: Path) -> None:
    with (inbox / "a\udcff.wav").open("wb") as file, watching(inbox, writes=True) as (watch, changes):
        file.write(b"x")
        file.flush()
        noted: set[bytes] = set()
        until(lambda: bool(noted.update(watch.modified()) or noted))
        assert noted == {b"a\xff.wav"}
        assert not changes.come(within_s=0.3)
        assert watch.modified() == set()
        (inbox / "a\udcff.wav").read_bytes()
        assert not changes.come(within_s=0.3)
        assert watch.modified() == set(), "reading is no write"


def test_writes_are_not_noted_unless_they_are_asked_for(inbox: Path) -> None:
    with watching(inbox) as (watch, changes):
        (inbox / "a.wav").write_bytes(b"x")
        assert changes.come(within_s=60)
        assert watch.modified() == set()


def test_writes_are_noted_from_the_next_look_on_when_they_are_asked_for_later(inbox: Path) -> None:
    with watching(inbox) as (watch, changes):
        watch.writes = True
        check(watch)
        (inbox / "a.wav").write_bytes(b"x")
        until(lambda: watch.modified() == {b"a.wav"})
        assert changes.come(within_s=60)
        assert (watch.events, watch.restarts) == (True, 0)


def test_a_flood_of_names_is_noted_up_to_a_limit(inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lipsyncd.inbox.watch.MOST_MODIFIED", 3)
    with watching(inbox, writes=True) as (watch, changes):
        for number in range(10):
            (inbox / f"{number}.wav").write_bytes(b"x")
        while changes.come(within_s=0.3):
            pass
        assert len(watch.modified()) == 3


@pytest.mark.parametrize(("mode", "events"), [("auto", True), ("inotify", True), ("poll", False)])
def test_a_local_folder_is_heard_unless_the_setting_decides_otherwise(inbox: Path, mode: str, events: bool) -> None:
    with watching(inbox, mode=mode) as (watch, changes):
        (inbox / "a.wav").touch()
        assert (watch.events, watch.network, watch.degraded) == (events, not events, "")
        assert changes.come(within_s=60 if events else 0.3) is events


@needs_fuse
@pytest.mark.parametrize(("mode", "events"), [("auto", False), ("inotify", True)])
def test_a_network_folder_is_polled_unless_the_setting_decides_otherwise(inbox: Path, mode: str, events: bool) -> None:
    with bindfs(inbox, inbox.with_name("share")) as share, watching(share, mode=mode) as (watch, _):
        assert (watch.events, watch.network) == (events, not events)


@needs_fuse
def test_a_mount_that_comes_and_goes_changes_how_the_folder_is_watched(inbox: Path) -> None:
    share = inbox.with_name("share")
    share.mkdir()
    with watching(share) as (watch, _):
        assert watch.events
        with bindfs(inbox, share):
            check(watch)
            assert (watch.events, watch.network) == (False, True)
        check(watch)
        assert (watch.events, watch.network, watch.degraded) == (True, False, "")


def test_a_folder_that_cannot_be_watched_is_left_to_the_clock(inbox: Path) -> None:
    """The kernel refuses one whose content this user may not read any more."""
    watch = Watch(shared_folder(inbox), mode="auto", notify=lambda: None)

    def refused() -> tuple[bool, str]:
        with watch.folder.open_unproved() as root:
            inbox.chmod(0o311)
            watch.check(root)
        watch.stop()
        return watch.events, watch.degraded

    os.chown(inbox, UNPRIVILEGED, UNPRIVILEGED)
    assert as_nobody(refused, inbox) == (False, f"no events for {inbox}: Permission denied")


def test_without_a_folder_of_our_own_changes_are_heard_and_nothing_ticks(inbox: Path) -> None:
    """As another user: the hidden folder is root's, and cannot be replaced."""
    shared = shared_folder(inbox)

    def heard() -> tuple[bool, bool, int]:
        clock, changes = Clock(), Changes()
        watch = Watch(shared, mode="auto", notify=changes.notify, clock=clock)
        watch.folder = SharedFolder("inbox", inbox, lambda: "another", lambda: frozenset([UNPRIVILEGED]))
        check(watch)
        tick_unheard(watch, clock)
        os.utime(inbox / "a.wav")
        (inbox / "a.wav").open("ab").close()
        outcome = watch.events, changes.come(within_s=60), watch.restarts
        watch.stop()
        return outcome

    (inbox / "a.wav").touch()
    (inbox / "a.wav").chmod(0o666)
    assert as_nobody(heard, inbox) == (True, True, 0)


def test_a_stopped_watch_notices_nothing(inbox: Path) -> None:
    with watching(inbox) as (watch, changes):
        watch.stop()
        watch.stop()
        before = threading.active_count()
        (inbox / "a.wav").touch()
        assert not changes.come(within_s=0.3)
        assert threading.active_count() <= before


def test_a_rename_into_the_folder_is_heard_at_once(inbox: Path) -> None:
    """This is how careful writers drop: no waiting for a second half of the move."""
    outside = inbox.parent / "outside"
    outside.mkdir()
    took_s = []
    with watching(inbox) as (_, changes):
        for number in range(5):
            (outside / "x").write_bytes(b"x")
            started = time.monotonic()
            (outside / "x").rename(inbox / f"{number}.wav")
            assert changes.come(within_s=60)
            took_s.append(time.monotonic() - started)
            time.sleep(0.05)
            while changes.come(within_s=0.05):
                pass
    assert min(took_s) < 0.4, took_s  # other programs may delay any of them


# -- limits, overflows, ends -------------------------------------------------------------------------------------------


def limited(limit: str, work: str, folder: Path, *namespaces: str) -> list[str]:
    """What `work` prints in a process of its own in a user namespace of its own, whose inotify `limit` is 0 at first.

    There `watch` watches `folder` by the clock `clock`, and `allow(n)` sets the limit.
    """
    program = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from lipsyncd.inbox.watch import ASK_AGAIN_S, Watch
from tests.inbox.test_watch import check, tick_unheard
from tests.kits.core_kit import Clock
from tests.kits.shared_kit import shared_folder

def allow(number):
    Path("/proc/sys/user/{limit}").write_text(str(number))

allow(0)
clock, folder = Clock(), Path({str(folder)!r})
shared = shared_folder(folder)
watch = Watch(shared, mode="auto", notify=lambda: print("noticed", flush=True), clock=clock)
{work}
watch.stop()
"""
    command = ["unshare", "--user", "--map-root-user", *namespaces, sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


@needs_root
@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ("max_inotify_watches", "inotify watch limit reached"),
        ("max_inotify_instances", "inotify instance limit reached"),
    ],
)
def test_at_a_limit_of_the_kernel_the_folder_is_polled_and_heard_again_when_there_is_room(
    inbox: Path, limit: str, reason: str
) -> None:
    printed = limited(
        limit,
        """
check(watch)
print(watch.events, watch.degraded.rpartition(": ")[2])
allow(100)
check(watch)
print(watch.events)
clock.wait(ASK_AGAIN_S)
check(watch)
print(watch.events, repr(watch.degraded))
""",
        inbox,
    )
    assert printed == [f"False {reason}", "False", "True ''"]


def test_an_overflow_is_counted_and_starts_a_scan_at_every_level_of_the_log(inbox: Path) -> None:
    """More events than the queue holds, while the process that reads it stands still."""
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    program = f"""
import logging, os, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from lipsyncd.inbox.watch import Overflows, Watch
from tests.inbox.test_watch import check
from tests.kits.shared_kit import shared_folder

logging.getLogger().setLevel(logging.ERROR)
notify = lambda: os.write(1, b"noticed %d." % overflows.count)
overflows = Overflows(notify)
watch = Watch(shared_folder(Path({str(inbox)!r})), mode="auto", notify=notify)
other = Watch(shared_folder(Path({str(inbox.parent)!r})), mode="auto", notify=notify)
check(watch)
check(other)
os.write(1, b"ready.")
sys.stdin.read()
watch.stop()
other.stop()
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        output = child.stdout.fileno()

        def printed(within_s: float = 30.0) -> bytes:
            return os.read(output, 1 << 20) if select.select([output], [], [], within_s)[0] else b""

        assert printed() == b"ready."
        os.kill(child.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED)  # before that, a thread may read some of what comes now
        names = [inbox / "a", inbox / "b"]
        names[0].touch()
        for number in range(limit + 100):
            names[number % 2].rename(names[1 - number % 2])
        os.kill(child.pid, signal.SIGCONT)
        heard = bytearray()  # a word may come in two pieces

        def overflowed() -> bool:
            heard.extend(printed())
            return b"noticed 1." in heard

        until(overflowed)
        while printed(within_s=0.3):
            pass
        (inbox / "c").touch()
        assert printed().startswith(b"noticed 1."), "events come on after an overflow"
        child.stdin.close()
    assert child.returncode == 0


def inotify_descriptors() -> set[int]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if "inotify" in os.readlink(f"/proc/self/fd/{name}"):
                found.add(int(name))
    return found


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_reader_that_has_ended_is_found_by_its_tick_and_replaced(inbox: Path) -> None:
    clock, others = Clock(), inotify_descriptors()
    with watching(inbox, clock=clock) as (watch, changes):
        [queue] = inotify_descriptors() - others
        unreadable = os.open(inbox, os.O_RDONLY)
        os.dup2(unreadable, queue)
        (inbox / "a.wav").touch()  # wakes the thread that reads, and it fails
        while changes.come(within_s=0.2):
            pass
        tick_unheard(watch, clock)
        assert (watch.restarts, watch.events) == (1, True)
        assert changes.come(within_s=60), "the folder is scanned for what came meanwhile"
        while changes.come(within_s=0.2):
            pass
        (inbox / "b.wav").touch()
        assert changes.come(within_s=60)
    os.close(unreadable)


def tick_unheard(watch: Watch, clock: Clock) -> None:
    """The looks of a little more than a minute, in which the watch ticks and does not hear it."""
    clock.wait(TICK_EVERY_S)
    check(watch)
    clock.wait(HEARD_WITHIN_S + 0.1)
    check(watch)


def test_a_reader_that_hangs_is_found_by_its_tick_and_replaced(inbox: Path) -> None:
    clock, hang, hangs = Clock(), threading.Event(), threading.Event()

    def notify() -> None:
        if not hangs.is_set() and threading.current_thread().name.startswith("watch-"):
            hangs.set()
            hang.wait(60)

    watch = Watch(shared_folder(inbox), mode="auto", notify=notify, clock=clock)
    check(watch)
    try:
        (inbox / "a.wav").touch()
        assert hangs.wait(60)
        started = time.monotonic()
        tick_unheard(watch, clock)
        assert time.monotonic() - started < END_WITHIN_S + 10, "it is not waited for"
        assert (watch.restarts, watch.events) == (1, True)
    finally:
        hang.set()
        watch.stop()


def test_a_reader_that_works_hears_its_ticks_and_does_not_notify_of_them(inbox: Path) -> None:
    clock = Clock()
    with watching(inbox, clock=clock) as (watch, changes):
        for _ in range(3):
            clock.wait(TICK_EVERY_S)
            check(watch)
            reader = watch._reader
            assert reader is not None
            assert reader.heard.wait(60)
            clock.wait(HEARD_WITHIN_S + 0.1)
            check(watch)
        assert watch.restarts == 0
        assert (inbox / ".lipsyncd" / TICK).exists()
        assert not changes.come(within_s=0.3)


def test_another_folder_under_the_same_path_is_watched_in_place_of_the_old_one(inbox: Path) -> None:
    with watching(inbox) as (watch, changes):
        inbox.rename(inbox.with_name("away"))
        inbox.mkdir()
        check(watch)  # at the next rescan: the move itself raises no event
        while changes.come(within_s=0.3):
            pass
        (inbox / "a.wav").touch()
        assert changes.come(within_s=60)
    assert watch.restarts == 1


def test_the_time_to_ask_again_is_kept(inbox: Path) -> None:
    clock = Clock()
    watch = Watch(shared_folder(inbox), mode="auto", notify=lambda: None, clock=clock)

    def events() -> list[bool]:
        with watch.folder.open_unproved() as root:
            inbox.chmod(0o311)
            watch.check(root)
            found = [watch.events]
            inbox.chmod(0o755)
            for wait_s in (ASK_AGAIN_S - 1, 1):
                clock.wait(wait_s)
                watch.check(root)
                found.append(watch.events)
        watch.stop()
        return found

    os.chown(inbox, UNPRIVILEGED, UNPRIVILEGED)
    assert as_nobody(events, inbox) == [False, False, True]


def test_the_same_folder_made_anew_is_watched_again(inbox: Path) -> None:
    """It may well get the number that the old one had."""
    with watching(inbox) as (watch, changes):
        for made in range(3):
            shutil.rmtree(inbox)
            assert changes.come(within_s=60)
            inbox.mkdir()
            while changes.come(within_s=0.2):
                pass
            check(watch)
            assert watch.restarts == made + 1
            while changes.come(within_s=0.2):
                pass
            (inbox / "a.wav").touch()
            assert changes.come(within_s=60)
            (inbox / "a.wav").unlink()
            while changes.come(within_s=0.2):
                pass


@needs_root
def test_after_an_unmount_the_same_file_system_is_heard_again_within_a_minute(inbox: Path) -> None:
    """Mounted again, it has the same numbers: only the tick tells that the watch has ended. The rescan goes on."""
    work = """
import subprocess, threading
noticed = threading.Event()
watch = Watch(shared, mode="inotify", notify=noticed.set, clock=clock)
def mount():
    subprocess.run(["mount", "-t", "tmpfs", "none", str(folder)], check=True)
mount()
check(watch)
subprocess.run(["umount", str(folder)], check=True)
mount()
tick_unheard(watch, clock)
print(noticed.is_set(), watch.restarts)
noticed.clear()
(folder / "a").touch()
print(noticed.wait(60))
"""
    assert limited("max_inotify_watches", f"allow(100)\n{work}", inbox, "--mount") == ["True 1", "True"]


def test_a_link_to_the_folder_leads_to_it(inbox: Path) -> None:
    link, elsewhere = inbox.with_name("link"), inbox.with_name("elsewhere")
    link.symlink_to(inbox)
    elsewhere.mkdir()
    with watching(link) as (watch, changes):
        (inbox / "a.wav").touch()
        assert changes.come(within_s=60)
        link.unlink()
        link.symlink_to(elsewhere)
        check(watch)
        assert watch.restarts == 1
        while changes.come(within_s=0.2):
            pass
        (elsewhere / "a.wav").touch()
        assert changes.come(within_s=60)


def test_a_folder_that_may_not_be_read_is_not_reported_as_heard(inbox: Path) -> None:
    def refused() -> bool:
        with OpenFolder.at(inbox) as folder:
            inbox.chmod(0o311)
            error = refusal(folder)
            inbox.chmod(0o755)
            return error is not None and error.errno == errno.EACCES and refusal(folder) is None

    os.chown(inbox, UNPRIVILEGED, UNPRIVILEGED)
    assert as_nobody(refused, inbox)


def test_what_comes_right_after_a_file_has_left_is_heard_within_a_second(inbox: Path) -> None:
    """watchdog waits half a second for the other half of a move, and what comes meanwhile waits behind it."""
    (inbox / "old.wav").touch()
    took_s = []
    with watching(inbox) as (_, changes):
        for number in range(5):
            (inbox / "old.wav").rename(inbox.with_name("old.wav"))
            started = time.monotonic()
            (inbox / f"{number}.wav").touch()
            assert changes.come(within_s=60)
            took_s.append(time.monotonic() - started)
            inbox.with_name("old.wav").rename(inbox / "old.wav")
            while changes.come(within_s=0.7):
                pass
    assert min(took_s) < 1.0, took_s  # other programs may delay any of them


def test_refused_watches_leave_nothing_open(inbox: Path) -> None:
    count = (
        "def count():\n    import os, threading; return len(os.listdir('/proc/self/fd')), threading.active_count()\n"
    )
    work = "check(watch); first = count()\nfor _ in range(5):\n    clock.wait(ASK_AGAIN_S); check(watch)\n"
    for limit in ("max_inotify_watches", "max_inotify_instances"):
        assert limited(limit, f"{count}{work}print(count() == first, watch.events)", inbox) == ["True False"]


# -- the marker `inotify` ----------------------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize(("limit", "ours", "skips"), [(0, 0, True), (MOST_OF_OURS + 1, MOST_OF_OURS + 1, False)])
def test_a_test_skips_without_an_instance_unless_these_tests_hold_them_all(limit: int, ours: int, skips: bool) -> None:
    program = f"""
import ctypes, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tests.kits.machine.inotify_kit import taken_by_others

Path("/proc/sys/user/max_inotify_instances").write_text("{limit}")
held = [ctypes.CDLL(None).inotify_init1(0) for _ in range({ours})]
print(min(held, default=0) >= 0, taken_by_others())
"""
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("True no inotify instance is left" if skips else "True \n"), done.stdout
