"""A shared folder with its marker, as an installation has it; and this process acting as one of several users."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lipsyncd.jobs.job import new_id
from lipsyncd.storage.open_folder import OpenFolder
from lipsyncd.storage.private_folder import make_private, marker_in
from lipsyncd.storage.shared_folders import SharedFolder
from tests.kits.machine.users_kit import DAEMON, User


def shared_folder(path: Path, kind: str = "inbox") -> SharedFolder:
    """The folder under that path, made and marked where it is not yet."""
    path.mkdir(exist_ok=True)
    owners = frozenset([os.geteuid()])
    marker = f"{kind.partition('/')[0]}-id"
    with OpenFolder.at(path) as root:
        if not marker_in(root, marker):
            make_private(root, marker, new_id(), owners)
        recorded = marker_in(root, marker)
    return SharedFolder(kind, path, lambda: recorded, lambda: owners)


@contextmanager
def acting_as(user: User) -> Iterator[None]:
    """Do what follows with the rights of that user and its groups, and none of root's. Only a process of root can.

    It is the effective user that changes, so one may act as another within the other's time.
    """
    before = User(os.geteuid(), os.getegid(), tuple(os.getgroups()))
    _become(user)
    try:
        yield
    finally:
        _become(before)


def _become(user: User) -> None:
    os.seteuid(0)
    os.setgroups(user.groups)
    os.setegid(user.gid)
    os.seteuid(user.uid)


@contextmanager
def folder_of_daemon(mode: int) -> Iterator[Path]:
    """A folder of the daemon's user with that mode, under a path that every user may enter."""
    with tempfile.TemporaryDirectory(prefix="lipsyncd-shared-") as name:
        Path(name).chmod(0o755)
        folder = Path(name, "folder")
        folder.mkdir()
        os.chown(folder, DAEMON.uid, DAEMON.gid)
        folder.chmod(mode)
        yield folder
