"""Our own folder in the folders that members write: what they put in its place, and when it is made anew."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lipsyncd.errors import FolderNotOurs
from lipsyncd.storage import open_folder
from lipsyncd.storage.open_folder import OpenFolder
from lipsyncd.storage.private_folder import HIDDEN, id_of
from lipsyncd.storage.shared_folders import SharedFolder, keeps_accepted_files
from tests.kits.machine.users_kit import DAEMON, MEMBER, User, needs_users
from tests.kits.shared_kit import acting_as, folder_of_daemon, shared_folder

ROOT = User(0, 0)


def again(shared: SharedFolder) -> SharedFolder:
    """The same folder for another process, which has not proved it yet."""
    hidden = shared.hidden
    return SharedFolder(shared.kind, Path(shared.where), hidden._recorded, hidden._owners, shared.within)


def open_private(shared: SharedFolder) -> tuple[str, os.stat_result, str]:
    """The id, the status and the marker of our own folder, when it is used now."""
    with shared.opened() as root:
        assert root is not None
        with shared.private(root) as private:
            return id_of(private), private.stat(), private.read(shared.hidden.marker, 100).decode()


# -- our own folder, under attack --------------------------------------------------------------------------------------


@pytest.fixture
def outbox() -> Iterator[SharedFolder]:
    """An outbox of the daemon's user, which this process is. Members may rename whatever lies in it."""
    with folder_of_daemon(0o2775) as folder, acting_as(DAEMON):
        yield shared_folder(folder, "outbox")


def moved_away(root: Path) -> None:
    (root / HIDDEN).rename(root / "taken")


def a_link(root: Path) -> None:
    moved_away(root)
    (root / "theirs").mkdir()
    (root / HIDDEN).symlink_to("theirs")


def a_link_to_what_was_ours(root: Path) -> None:
    moved_away(root)
    (root / HIDDEN).symlink_to("taken")


def a_file(root: Path) -> None:
    moved_away(root)
    (root / HIDDEN).write_text("theirs")


def a_fifo(root: Path) -> None:
    moved_away(root)
    os.mkfifo(root / HIDDEN)


def a_folder_with_our_marker(root: Path) -> None:
    moved_away(root)
    (root / HIDDEN).mkdir()
    marker = "outbox-id"
    (root / HIDDEN / marker).write_text((root / "taken" / marker).read_text())


def a_closed_folder(root: Path) -> None:
    a_folder_with_our_marker(root)
    (root / HIDDEN).chmod(0o700)


def an_open_folder(root: Path) -> None:
    a_folder_with_our_marker(root)
    (root / HIDDEN).chmod(0o777)


ATTACKS = (
    moved_away,
    a_link,
    a_link_to_what_was_ours,
    a_file,
    a_fifo,
    a_folder_with_our_marker,
    a_closed_folder,
    an_open_folder,
)


@needs_users
@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("attack", ATTACKS)
def test_what_a_member_puts_in_place_of_our_folder_is_not_used_and_a_new_one_is_made(
    outbox: SharedFolder, attack: Callable[[Path], None], exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without a file system that lets two names change places in one step."""
    if not exchange:
        monkeypatch.setattr(open_folder, "rename_exchange", lambda *_, **__: False)
    root = Path(outbox.where)
    before, _, marker = open_private(outbox)
    with acting_as(MEMBER):
        attack(root)
    there = {path for path in root.iterdir() if path.name != HIDDEN}
    content = {path: sorted(os.listdir(path)) for path in there if path.is_dir() and os.access(path, os.R_OK)}

    assert outbox.available(), "it is the folder that was proved before"
    after, status, found = open_private(outbox)

    assert (after != before, found) == (True, marker)
    assert (status.st_uid, stat.S_IMODE(status.st_mode) & 0o777) == (DAEMON.uid, 0o711)
    assert {path: sorted(os.listdir(path)) for path in content} == content, "nothing was done in any other folder"
    assert open_private(outbox)[0] == after, "it is made once"
    assert again(outbox).available()


@needs_users
def test_the_folder_of_an_earlier_version_is_replaced_with_its_marker_and_goes(outbox: SharedFolder) -> None:
    """Members could write it: 2775, and what they have put into it goes with it."""
    root = Path(outbox.where)
    _, _, marker = open_private(outbox)
    (root / HIDDEN).chmod(0o2775)
    with acting_as(MEMBER):
        (root / HIDDEN / "job.mp4.part").symlink_to("/etc/passwd")
        (root / HIDDEN / "theirs").mkdir()
    shared = again(outbox)
    _, status, found = open_private(shared)
    assert found == marker
    assert stat.S_IMODE(status.st_mode) & 0o777 == 0o711
    assert os.listdir(root) == [HIDDEN]
    assert sorted(os.listdir(root / HIDDEN)) == ["made", "outbox-id"]


@needs_users
def test_a_folder_of_ours_that_members_may_write_and_that_never_was_our_hidden_one_is_kept(
    outbox: SharedFolder,
) -> None:
    """A member may give the name to a queue's folder with its videos."""
    root = Path(outbox.where)
    open_private(outbox)
    (root / "night").mkdir()
    (root / "night").chmod(0o775)
    (root / "night" / "anna.mp4").write_bytes(b"a video")
    with acting_as(MEMBER):
        moved_away(root)
        (root / "night").rename(root / HIDDEN)
    open_private(outbox)
    [kept] = [path for path in root.iterdir() if path.name not in (HIDDEN, "taken")]
    assert (kept / "anna.mp4").read_bytes() == b"a video"


@needs_users
@pytest.mark.parametrize("attack", [moved_away, a_file, a_closed_folder, a_link])
def test_a_folder_that_was_not_proved_before_is_unavailable_and_nothing_is_made_in_it(
    outbox: SharedFolder, attack: Callable[[Path], None]
) -> None:
    root = Path(outbox.where)
    with acting_as(MEMBER):
        attack(root)
    if attack is a_closed_folder:  # its marker could be read by its owner only
        (root / "taken").rename(root / "elsewhere")
    before = sorted(os.listdir(root))
    other = again(outbox)
    assert not other.available()
    with other.opened() as opened:
        assert opened is None
    assert "is not mounted, or is another folder than before" in other.fault()
    assert sorted(os.listdir(root)) == before


@needs_users
def test_another_folder_in_place_of_the_one_that_was_proved_is_unavailable(outbox: SharedFolder) -> None:
    root = Path(outbox.where)
    assert outbox.available()
    with acting_as(ROOT):
        root.rename(root.with_name("away"))
        root.mkdir()
    assert not outbox.available()
    assert os.listdir(root) == []


@needs_users
def test_a_member_cannot_write_in_our_folder(outbox: SharedFolder) -> None:
    """Where the inputs of a failed job are filled in, and staged videos wait for their names."""
    hidden = Path(outbox.where, HIDDEN)
    open_private(outbox)
    with outbox.opened() as root:
        assert root is not None
        with outbox.private(root) as private, private.make("job.keep", 0o770) as folder:
            folder.write("a.png", b"x", mode=0o640)
    with acting_as(MEMBER):
        assert (hidden / "outbox-id").read_text()
        for attempt in (
            lambda: (hidden / "job.keep").rename(hidden / "theirs"),
            lambda: (hidden / "job.keep" / "b.png").symlink_to("/etc/passwd"),
            lambda: (hidden / "lock").touch(),
            lambda: os.listdir(hidden),
        ):
            with pytest.raises(PermissionError):
                attempt()


@needs_users
def test_a_folder_in_which_we_may_replace_nothing_is_a_named_fault() -> None:
    """Sticky, and not ours: the member's folder stays where it is."""
    with folder_of_daemon(0o3777) as folder:
        shared_folder(folder, "outbox")
        os.chown(folder, 0, 0)
        with acting_as(MEMBER):
            theirs = shared_folder(folder / "x", "outbox")
        shutil.move(folder / "x" / HIDDEN, folder / "theirs")
        shutil.rmtree(folder / HIDDEN)
        (folder / "theirs").rename(folder / HIDDEN)
        recorded = (folder / HIDDEN / "outbox-id").read_text()
        with acting_as(DAEMON):
            shared = SharedFolder("outbox", folder, lambda: recorded, lambda: frozenset([DAEMON.uid]))
            with shared.opened() as root:
                assert root is not None
                assert keeps_accepted_files(root)
                with pytest.raises(
                    FolderNotOurs, match=r"\.lipsyncd is not the daemon's own folder.*remove it, or let"
                ):
                    shared.private(root)
        assert sorted(os.listdir(folder)) == [HIDDEN, "x"]
        assert theirs.kind == "outbox"


@needs_users
def test_a_disk_without_room_leaves_the_older_folder_and_its_marker(outbox: SharedFolder) -> None:
    """Otherwise the outbox would be without a marker, and the next start would take it for one that is not mounted."""
    root = Path(outbox.where)
    open_private(outbox)
    (root / HIDDEN).chmod(0o2775)
    ignored, most = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, most[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            open_private(outbox)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, most)
        signal.signal(signal.SIGXFSZ, ignored)
    assert os.listdir(root) == [HIDDEN]
    assert again(outbox).available()


def test_a_lack_of_descriptors_replaces_nothing(tmp_path: Path) -> None:
    shared = shared_folder(tmp_path, "outbox")
    before = open_private(shared)[0]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with shared.opened() as root:
        assert root is not None
        taken: list[int] = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                while True:
                    taken.append(os.open("/dev/null", os.O_RDONLY))
            for _ in range(2):  # none for the folder, then one for it and none for its marker
                with pytest.raises(OSError, match="Too many open files"):
                    shared.private(root)
                os.close(taken.pop())
        finally:
            for descriptor in taken:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert open_private(shared)[0] == before
    assert os.listdir(tmp_path) == [HIDDEN]


def test_a_marker_that_was_deleted_is_written_again_and_keeps_what_is_staged(tmp_path: Path) -> None:
    shared = shared_folder(tmp_path, "outbox")
    before, _, marker = open_private(shared)
    (tmp_path / HIDDEN / "outbox-id").unlink()
    assert (open_private(shared)[0], open_private(shared)[2]) == (before, marker)


def test_a_closed_folder_lists_no_other(tmp_path: Path) -> None:
    """The system takes -1 for the working directory."""
    folder = OpenFolder.at(tmp_path)
    folder.close()
    with pytest.raises(OSError) as caught:
        folder.entries()
    assert caught.value.errno == errno.EBADF
