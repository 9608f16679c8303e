"""The doorbell, with the kernel's own events, and what the table of mounts says about a folder."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lipsyncd.watch import Watch, file_system_type, is_network
from tests.core_kit import as_nobody


class Bell:
    def __init__(self) -> None:
        self._rung = threading.Event()

    def ring(self) -> None:
        self._rung.set()

    def rings(self, within_s: float) -> bool:
        rung = self._rung.wait(within_s)
        self._rung.clear()
        return rung


@contextmanager
def watching(folder: Path, *, mode: str = "auto", network: bool = False) -> Iterator[tuple[Watch, Bell]]:
    bell = Bell()
    watch = Watch(folder, mode=mode, network=network, bell=bell.ring)
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


@pytest.mark.parametrize(
    ("mode", "network", "events"),
    [("auto", False, True), ("auto", True, False), ("inotify", True, True), ("poll", False, False)],
)
def test_events_are_used_where_the_setting_or_the_folder_says_so(
    inbox: Path, mode: str, network: bool, events: bool
) -> None:
    with watching(inbox, mode=mode, network=network) as (watch, bell):
        (inbox / "a.wav").touch()
        assert watch.events is events
        assert bell.rings(within_s=5 if events else 0.3) is events


def test_a_folder_that_cannot_be_watched_is_left_to_the_clock(inbox: Path) -> None:
    with watching(inbox / "nowhere") as (watch, _):
        assert watch.events is False


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


# -- mounts ------------------------------------------------------------------------------------------------------------

ROOT_MOUNT = "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw"


@pytest.mark.parametrize(
    ("lines", "folder", "expected"),
    [
        ([], "/srv/inbox", "ext4"),
        (["30 27 0:50 / /srv/inbox rw shared:5 master:2 - nfs4 server:/x rw"], "/srv/inbox", "nfs4"),
        (["30 27 0:50 / /srv rw - cifs //server/x rw"], "/srv/inbox", "cifs"),
        (["30 27 0:50 / /srv/inbox2 rw - nfs4 server:/x rw"], "/srv/inbox", "ext4"),
        (["30 27 0:50 / /srv/my\\040inbox\\134x\\011y rw - fuse.sshfs s rw"], "/srv/my inbox\\x\ty", "fuse.sshfs"),
        (["30 27 0:50 / /srv/a\\134040b rw - nfs s rw"], "/srv/a\\040b", "nfs"),
        # Two mounts on one point: the later one lies on top.
        (["30 27 0:50 / /srv rw - nfs4 s rw", "31 30 0:51 / /srv rw - xfs /dev/b rw"], "/srv/inbox", "xfs"),
        (["31 27 0:51 / /srv rw - xfs /dev/b rw", "30 31 0:50 / /srv rw - nfs4 s rw"], "/srv/inbox", "nfs4"),
        # A mount above covers the one below it, although that has the longer path.
        (["30 27 0:50 / /srv/inbox rw - tmpfs t rw", "31 27 0:51 / /srv rw - nfs4 s rw"], "/srv/inbox", "nfs4"),
        (["30 27 0:50 / /srv rw - nfs4 s rw", "31 30 0:51 / /srv/inbox rw - tmpfs t rw"], "/srv/inbox", "tmpfs"),
    ],
)
def test_the_type_is_that_of_the_mount_that_a_path_ends_on(
    tmp_path: Path, lines: list[str], folder: str, expected: str
) -> None:
    table = tmp_path / "mountinfo"
    table.write_text("\n".join([ROOT_MOUNT, *lines]) + "\n")
    assert file_system_type(Path(folder), table) == expected


def test_a_root_that_is_its_own_parent_is_read_too(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text("1 1 0:2 / / rw - rootfs rootfs rw\n2 1 0:3 / / rw - btrfs /dev/a rw\n")
    assert file_system_type(Path("/srv"), table) == "btrfs"


def test_the_real_table_of_this_machine_is_understood(tmp_path: Path) -> None:
    assert file_system_type(Path("/proc")) == "proc"
    assert file_system_type(tmp_path) != ""
    link = tmp_path / "link"
    link.symlink_to("/proc")
    assert file_system_type(link) == "proc"


def test_what_is_unknown_counts_as_network(tmp_path: Path) -> None:
    assert file_system_type(tmp_path, tmp_path / "no such table") == ""
    assert is_network(Path("/proc"))
