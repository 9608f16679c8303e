"""The folders that others may write: found by their administrator's path, proved by their marker, used by descriptor.

A shared folder is opened anew for each piece of work. The path that the administrator set may contain links; what lies
there counts as the folder only if the marker in it, read through the same descriptor, holds the recorded id. Once that
was so, the same folder stays ours in this process, also when a member has taken our hidden folder with the marker away:
that is made anew, and is not taken for a share that is not mounted.

The only module that knows the paths of shared folders; `where` is a text for messages.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lipsyncd.storage import mounts
from lipsyncd.storage.disk_space import free_mb
from lipsyncd.storage.files import NotRegular
from lipsyncd.storage.open_folder import OpenFolder
from lipsyncd.storage.private_folder import PrivateFolder, keeps_modes, marker_in
from lipsyncd.storage.removal import IsOurs, Removal, end_removals


class SharedFolder:
    """One shared folder of an installation.

    kind      "inbox", "outbox", "failed", "archive", or "inbox/<queue>"
    hidden    the daemon's own folder in it
    within    for a folder that lies in another shared one: that one, and the name in it
    recorded  gives the id that our state folder has for it, or None
    owners    gives the users whose files are the daemon's: its own, and that of the state folder
    """

    def __init__(
        self,
        kind: str,
        path: Path,
        recorded: Callable[[], str | None],
        owners: Callable[[], frozenset[int]],
        within: tuple[SharedFolder, str] | None = None,
    ) -> None:
        self.kind = kind
        self.where = str(path)
        self._path = path
        self.within = within
        self.hidden = PrivateFolder(f"{kind.partition('/')[0]}-id", recorded, owners)
        self._recorded = recorded
        self._proved: tuple[int, int, str] | None = None  # device, inode and mount of the folder
        self._mount = ""

    # -- opening -------------------------------------------------------------------------------------------------------

    @contextmanager
    def opened(self) -> Iterator[OpenFolder | None]:
        """The recorded folder; None while another one, or nothing, lies there.

        What is done through it happens in that very folder, or not at all: a share may be unmounted at any moment, and
        then a file that is not found under its path need not be gone.
        """
        try:
            root = self.open_unproved()
        except OSError:
            yield None
            return
        with root:
            yield root if self._prove(root) else None

    def open_unproved(self) -> OpenFolder:
        """What lies there now. Raises OSError, also for a queue's folder that is a link."""
        if self.within is None:
            return OpenFolder.at(self._path)
        outer, name = self.within
        with outer.open_unproved() as root:
            return root.enter(name)

    def available(self) -> bool:
        """Is it really the recorded folder that lies there? False while our own record cannot be read."""
        with self.opened() as root:
            return root is not None

    def fault(self) -> str:
        """Why it cannot be used, in a sentence; "" when it can."""
        with self.opened() as root:
            if root is None:
                return self.absence
            writable = os.access(root.watchable, os.R_OK | os.W_OK | os.X_OK)
        return "" if writable else f"{self.where} cannot be written"

    @property
    def absence(self) -> str:
        """The sentence for a folder that `opened` does not give."""
        try:
            self.open_unproved().close()
        except (FileNotFoundError, NotADirectoryError, NotRegular):
            pass
        except OSError as error:
            return f"{self.where} cannot be opened: {error.strerror}"
        return f"{self.where} is not mounted, or is another folder than before"

    def _prove(self, root: OpenFolder) -> bool:
        try:
            expected = self._recorded()
        except OSError:
            return False
        if expected is None:
            return False
        if marker_in(root, self.hidden.marker) == expected:
            self._remember(root)
            return True
        return self._proved is not None and self._place(root, anew=True) == self._proved

    def _remember(self, root: OpenFolder) -> None:
        place = self._place(root)
        if place != self._proved:
            self._proved = self._place(root, anew=True)

    def _place(self, root: OpenFolder, *, anew: bool = False) -> tuple[int, int, str]:
        """Device, inode and mount. Numbers alone are reused: another share may come with those of the one before."""
        status = root.stat()
        number = mounts.mount_number(root.fileno())
        if anew or not self._mount.startswith(f"{number} "):
            self._mount = mounts.mount_of(root.fileno())
        return status.st_dev, status.st_ino, self._mount

    # -- the daemon's own folder in it ---------------------------------------------------------------------------------

    def private(self, root: OpenFolder) -> OpenFolder:
        """The hidden folder that the daemon alone writes, made anew when it is gone or another's.

        root  the folder as `opened` gave it

        Raises `FolderNotOurs` when it belongs to another user and cannot be replaced, OSError.
        """
        return self.hidden.open(root)

    # -- removing ------------------------------------------------------------------------------------------------------

    @contextmanager
    def removal(self, root: OpenFolder) -> Iterator[Removal]:
        """Remove names from this folder; see `Removal`."""
        with self.private(root) as private, Removal(private, root) as removal:
            yield removal

    def sweep_removals(self, is_ours: IsOurs = lambda _here, _name: False) -> int:
        """`end_removals`, while the folder is there. Only at start."""
        with self.opened() as root:
            if root is None:
                return 0
            with self.private(root) as private:
                return end_removals(root, private, is_ours)

    # -- facts ---------------------------------------------------------------------------------------------------------

    def file_system(self) -> str:
        """The type of the file system that lies there now; "" when that is unknown."""
        try:
            with self.open_unproved() as root:
                return mounts.file_system_type(root.fileno())
        except OSError:
            return ""

    def is_network(self) -> bool:
        """As `mounts.is_network`, for what lies there now; False while nothing does."""
        try:
            with self.open_unproved() as root:
                return mounts.is_network(root.fileno())
        except OSError:
            return False

    def known_network(self) -> str:
        """As `mounts.known_network`, for what lies there now."""
        try:
            with self.open_unproved() as root:
                return mounts.known_network(root.fileno())
        except OSError:
            return ""

    def free_mb(self) -> float:
        """Space that we may still use there, in megabytes. Raises OSError."""
        with self.open_unproved() as root:
            return free_mb(root.fileno())

    def device(self) -> int | None:
        """The number of its file system; None while it is not available."""
        with self.opened() as root:
            return None if root is None else root.stat().st_dev


def keeps_accepted_files(root: OpenFolder) -> bool:
    """Is the folder sticky and another's? Then only the owners of its files may remove them."""
    status, user = root.stat(), os.geteuid()
    return bool(status.st_mode & stat.S_ISVTX) and user not in (0, status.st_uid) and keeps_modes(root)
