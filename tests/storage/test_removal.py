"""Names are removed from a folder in which others exchange them: what is not ours gets its name back."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lipsyncd.storage import failpoints
from lipsyncd.storage.open_folder import Name, OpenFolder
from lipsyncd.storage.private_folder import HIDDEN
from lipsyncd.storage.removal import Removal
from lipsyncd.storage.shared_folders import SharedFolder
from tests.kits.machine.users_kit import DAEMON, MEMBER, needs_users
from tests.kits.shared_kit import acting_as, folder_of_daemon, shared_folder


@pytest.fixture
def shared(tmp_path: Path) -> SharedFolder:
    return shared_folder(tmp_path / "outbox", "outbox")


@pytest.fixture
def path(shared: SharedFolder) -> Path:
    return Path(shared.where)


@pytest.fixture
def removal(shared: SharedFolder) -> Iterator[tuple[Removal, OpenFolder]]:
    with shared.opened() as root:
        assert root is not None
        with shared.removal(root) as removal:
            yield removal, root


Removing = tuple[Removal, OpenFolder]


def holds(content: bytes) -> Callable[[OpenFolder, Name], bool]:
    def is_ours(here: OpenFolder, name: Name) -> bool:
        return here.status(name) is not None and here.read(name, 100) == content

    return is_ours


def always(_here: OpenFolder, _name: Name) -> bool:
    return True


def visible(path: Path) -> list[str]:
    return sorted(name for name in os.listdir(path) if name != HIDDEN)


def test_what_is_ours_is_removed_and_nothing_is_left(path: Path, removal: Removing) -> None:
    (path / "a").write_bytes(b"ours")
    (path / "b").write_bytes(b"ours")
    removing, root = removal
    assert removing.take(root, "a", holds(b"ours"))
    assert not removing.take(root, "a", holds(b"ours")), "it is gone"
    removing.close()
    assert visible(path) == ["b"]
    assert sorted(os.listdir(path / HIDDEN)) == ["made", "outbox-id"]


def test_what_was_exchanged_between_look_and_removal_gets_its_name_back(path: Path, removal: Removing) -> None:
    (path / "a").write_bytes(b"ours")
    removing, root = removal
    assert root.read("a", 100) == b"ours"
    (path / "a").unlink()
    (path / "a").write_bytes(b"theirs")
    before = (path / "a").stat()
    assert not removing.take(root, "a", holds(b"ours"))
    assert (path / "a").read_bytes() == b"theirs"
    assert os.path.samestat((path / "a").stat(), before)


def test_what_is_exchanged_while_it_is_proved_is_not_reached(path: Path, removal: Removing) -> None:
    """A member gives the name to another file in the moment of the proof: that file stays."""
    (path / "a").write_bytes(b"ours")
    removing, root = removal

    def is_ours(here: OpenFolder, name: Name) -> bool:
        (path / "a").write_bytes(b"theirs")
        return here.read(name, 100) == b"ours"

    assert removing.take(root, "a", is_ours)
    assert (path / "a").read_bytes() == b"theirs"


def test_a_name_that_another_has_by_now_is_not_replaced(path: Path, removal: Removing) -> None:
    (path / "a").write_bytes(b"first")
    removing, root = removal

    def is_ours(_here: OpenFolder, _name: Name) -> bool:
        (path / "a").write_bytes(b"second")
        (path / "a (2)").write_bytes(b"third")
        return False

    assert not removing.take(root, "a", is_ours)
    found = {name: (path / name).read_bytes() for name in visible(path)}
    assert found == {"a": b"second", "a (2)": b"third", "a (3)": b"first"}


def test_an_error_in_the_proof_gives_the_name_back(path: Path, removal: Removing) -> None:
    (path / "a").mkdir()
    (path / "a" / "file").write_bytes(b"theirs")
    removing, root = removal
    with pytest.raises(IsADirectoryError):
        removing.take(root, "a", lambda here, name: bool(os.open(name, os.O_WRONLY, dir_fd=here.fileno())))
    assert (path / "a" / "file").read_bytes() == b"theirs"


def test_what_cannot_be_removed_gets_its_name_back(
    path: Path, removal: Removing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it would be taken for removed, and the next start would put it back as a new one."""
    (path / "a").write_bytes(b"ours")
    removing, root = removal

    def fail(self: OpenFolder, name: Name) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(OpenFolder, "remove", fail)
        with pytest.raises(OSError, match="Input/output error"):
            removing.take(root, "a", always)
    assert (path / "a").read_bytes() == b"ours"
    assert removing.take(root, "a", always)


@pytest.mark.parametrize("ours", [True, False])
def test_a_link_is_removed_or_put_back_and_never_followed(
    path: Path, removal: Removing, tmp_path: Path, ours: bool
) -> None:
    target = tmp_path / "precious"
    target.mkdir()
    (target / "file").write_bytes(b"x")
    (path / "a").symlink_to(target)
    removing, root = removal
    assert removing.take(root, "a", lambda _here, _name: ours) is ours
    assert (path / "a").is_symlink() is not ours
    assert (target / "file").read_bytes() == b"x"


def test_a_tree_is_removed_without_what_its_links_lead_to(path: Path, removal: Removing, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_bytes(b"x")
    (path / "a" / "b" / "c").mkdir(parents=True)
    (path / "a" / "b" / "link").symlink_to(tmp_path / "precious")
    (path / "a" / "b" / "file").write_bytes(b"x")
    removing, root = removal
    assert removing.take(root, "a", always)
    assert visible(path) == []
    assert (tmp_path / "precious" / "file").exists()


def test_a_file_is_taken_by_its_identity(path: Path, removal: Removing) -> None:
    (path / "a").write_bytes(b"ours")
    removing, root = removal
    seen = root.identity("a")
    assert seen is not None
    (path / "b").write_bytes(b"ours")
    (path / "b").replace(path / "a")
    assert not removing.take_file(root, "a", seen)
    now = root.identity("a")
    assert now is not None
    (path / "a").chmod(0o600)  # only its status has changed
    assert removing.take_file(root, "a", now)
    assert visible(path) == []


# -- a crash -----------------------------------------------------------------------------------------------------------


def crash_while_removing(shared: SharedFolder, folder: str, name: str) -> None:
    """Let another process die when it has taken the thing, and not yet proved it."""
    pid = os.fork()
    if pid == 0:
        failpoints.arm("removal-taken")
        with shared.opened() as root:
            assert root is not None
            with root.walk([folder] if folder else []) as place, shared.removal(root) as removal:
                removal.take(place, name, always)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    assert not Path(shared.where, folder, name).exists()


@pytest.mark.parametrize("folder", ["", "night"])
def test_what_a_crash_has_left_is_put_back_where_it_was(shared: SharedFolder, path: Path, folder: str) -> None:
    (path / "night").mkdir()
    (path / folder / "a").write_bytes(b"theirs")
    crash_while_removing(shared, folder, "a")
    assert shared.sweep_removals() == 1
    assert (path / folder / "a").read_bytes() == b"theirs"
    assert sorted(os.listdir(path / HIDDEN)) == ["made", "outbox-id"]
    assert shared.sweep_removals() == 0


def test_a_removal_of_ours_is_completed_after_a_crash(shared: SharedFolder, path: Path) -> None:
    (path / "a").mkdir()
    (path / "a" / "b").write_bytes(b"ours")
    crash_while_removing(shared, "", "a")

    def is_ours(here: OpenFolder, name: Name) -> bool:
        with here.enter(name) as folder:
            return folder.read("b", 9) == b"ours"

    assert shared.sweep_removals(is_ours) == 1
    assert visible(path) == []
    assert sorted(os.listdir(path / HIDDEN)) == ["made", "outbox-id"]


def test_what_came_out_of_a_folder_that_is_gone_is_put_back_beside(shared: SharedFolder, path: Path) -> None:
    (path / "night").mkdir()
    (path / "night" / "a").write_bytes(b"theirs")
    crash_while_removing(shared, "night", "a")
    (path / "night").rmdir()
    (path / "night").symlink_to("/tmp")
    assert shared.sweep_removals() == 1
    assert (path / "a").read_bytes() == b"theirs"


# -- two users ---------------------------------------------------------------------------------------------------------


@needs_users
def test_a_member_who_exchanges_names_all_the_time_loses_nothing() -> None:
    """The member gives the name of our file to an own one, 200 times in the window, and finds each one again."""
    swaps = 300
    with folder_of_daemon(0o2775) as path:
        with acting_as(DAEMON):
            shared = shared_folder(path, "outbox")
        put_back = removed = 0
        for number in range(swaps):
            with acting_as(DAEMON):
                (path / "a").write_bytes(b"ours")
            with acting_as(MEMBER):
                (path / f"theirs {number}").write_bytes(b"theirs")
            with acting_as(DAEMON), shared.opened() as root:
                assert root is not None
                with shared.removal(root) as removal:
                    assert root.read("a", 100) == b"ours"
                    if number % 3:
                        with acting_as(MEMBER):  # after the look, before the removal
                            (path / "a").rename(path / f"kept {number}")
                            (path / f"theirs {number}").rename(path / "a")
                    if removal.take(root, "a", holds(b"ours")):
                        removed += 1
                    else:
                        put_back += 1
                        with acting_as(MEMBER):
                            assert (path / "a").read_bytes() == b"theirs"
                            (path / "a").rename(path / f"theirs {number}")
        theirs = [name for name in os.listdir(path) if name.startswith("theirs")]
        assert (put_back, removed, len(theirs)) == (200, 100, swaps)
