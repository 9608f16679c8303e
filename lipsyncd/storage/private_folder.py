"""`.lipsyncd` in each shared folder: the daemon's own, in which no one else may write.

    <kind>-id   the marker: read by everyone, written by us alone
    made        an id of this very hidden folder, so that one made anew is recognised
    lock        of an inbox: see `locks`
    …           what is under way: results that are staged, inputs that are kept, things that are being removed

Where members may rename what lies in the shared folder (outbox, failed), one of them can move it away or put another in
its place. So it is proved at each use: ours, closed to others, and with the marker. Otherwise a new one takes its
place. What lay there gets another name; nothing is done in it.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lipsyncd.errors import FolderNotOurs
from lipsyncd.jobs.job import new_id
from lipsyncd.storage import mounts
from lipsyncd.storage.files import NotRegular
from lipsyncd.storage.open_folder import Name, OpenFolder
from lipsyncd.storage.removal import Removal

log = logging.getLogger(__name__)

HIDDEN = ".lipsyncd"
LOCK = "lock"
_MADE = "made"
_MODE = 0o711
_MARKER_MODE = 0o644
_LONGEST_MARKER = 100  # bytes
_TRIES = 5  # a member may exchange it again while it is made


class PrivateFolder:
    """The hidden folder of one kind of shared folder.

    marker    the name of its marker
    recorded  gives the id that the marker has to hold
    owners    gives the users whose files are the daemon's

    Each method is given the shared folder that it works in, opened and proved.
    """

    def __init__(self, marker: str, recorded: Callable[[], str | None], owners: Callable[[], frozenset[int]]) -> None:
        self.marker = marker
        self._recorded = recorded
        self._owners = owners

    def open(self, root: OpenFolder) -> OpenFolder:
        """The hidden folder, made anew when it is gone or another's.

        Raises `FolderNotOurs` when it belongs to another user and cannot be replaced, OSError.
        """
        recorded = self._recorded() or ""
        for _ in range(_TRIES):
            try:
                inner = root.enter(HIDDEN)
            except FileNotFoundError:
                make_private(root, self.marker, recorded, self._owners())
                continue
            except NotRegular:
                self._replace(root, recorded)
                continue
            except PermissionError:
                if not self._is_anothers(root):
                    raise
                self._replace(root, recorded)
                continue
            with contextlib.ExitStack() as stack:
                stack.enter_context(inner)
                if self._is_closed(root, inner) and self._has_marker(inner, recorded):
                    stack.pop_all()
                    return inner
                older = self._is_older(inner, recorded)
            aside = self._replace(root, recorded, quietly=older)
            if older and aside:
                self._remove_older(root, aside, recorded)
        raise FolderNotOurs(f"{root.shown(HIDDEN)} was exchanged {_TRIES} times while it was made")

    def mark(self, root: OpenFolder, marker_id: str) -> None:
        """Give a folder a marker that has none of ours. Raises as `open`."""
        try:
            with root.enter(HIDDEN) as inner:
                if self._is_closed(root, inner):
                    self._write_marker(inner, marker_id)
                    return
        except FileNotFoundError:
            make_private(root, self.marker, marker_id, self._owners())
            return
        except (NotRegular, PermissionError):
            pass
        self._replace(root, marker_id)

    def _is_anothers(self, root: OpenFolder) -> bool:
        """Does what lies there belong to another user, as far as this file system knows owners?"""
        status = root.status(HIDDEN)
        return status is not None and status.st_uid not in self._owners() and keeps_modes(root)

    def _has_marker(self, inner: OpenFolder, recorded: str) -> bool:
        """Has our own folder the marker of this one? It gets it where there is none. Raises OSError."""
        found = _content(inner, self.marker)
        if not found:
            self._write_marker(inner, recorded)
        return found in ("", recorded)

    def _write_marker(self, inner: OpenFolder, marker_id: str) -> None:
        inner.write(self.marker, marker_id.encode(), mode=_MARKER_MODE)
        inner.fsync()

    def _is_closed(self, root: OpenFolder, inner: OpenFolder) -> bool:
        """Can no one but the daemon write it, as far as this file system knows owners and modes?"""
        status = inner.stat()
        return (status.st_uid in self._owners() and not status.st_mode & 0o022) or not keeps_modes(root)

    def _is_older(self, inner: OpenFolder, recorded: str) -> bool:
        """Did an earlier version of the daemon make it? Members could write it."""
        status = inner.stat()
        ours = status.st_uid in self._owners() and bool(status.st_mode & 0o022)
        return ours and _content(inner, self.marker) == recorded

    def _replace(self, root: OpenFolder, marker_id: str, *, quietly: bool = False) -> str:
        """Put a new folder in the place of what lies there, which gets another name: that is returned.

        In one step where the file system can: a crash in between would leave the folder without its marker. Nothing is
        done in what lay there; "" when that has gone meanwhile.
        """
        try:
            with _filled(root, self.marker, marker_id, self._owners()) as new:
                aside = new
                if not root.exchange(new, HIDDEN):
                    aside = f"{new}-replaced"
                    root.rename(HIDDEN, root, aside)
                    root.rename(new, root, HIDDEN)
        except (FileNotFoundError, FileExistsError):
            return ""
        except PermissionError as error:
            raise FolderNotOurs(
                f"{root.shown(HIDDEN)} is not the daemon's own folder, and cannot be replaced: {error.strerror}",
                remedy=f"remove it, or let the daemon's user own {root.where}",
            ) from error
        root.fsync()
        if not quietly:
            log.warning("%s was not the daemon's own folder: it is called %s now", root.shown(HIDDEN), aside)
        return aside

    def _remove_older(self, root: OpenFolder, aside: str, recorded: str) -> None:
        """Remove the folder of an earlier version, if that is what lies under the name."""

        def is_ours(here: OpenFolder, name: Name) -> bool:
            with here.enter(name) as inner:
                return self._is_older(inner, recorded)

        with contextlib.suppress(OSError), root.enter(HIDDEN) as private:
            if self._is_closed(root, private):
                with Removal(private, root) as removal:
                    removal.take(root, aside, is_ours)


def id_of(private: OpenFolder) -> str:
    """The id of this very hidden folder: another one when it had to be made anew. Raises OSError."""
    return _content(private, _MADE)


def marker_in(root: OpenFolder, marker: str) -> str:
    """The id in the marker of that folder; "" when there is none, or when it cannot be read."""
    try:
        with root.passage(HIDDEN) as hidden:  # a member may read the marker, and not list our folder
            return _content(hidden, marker)
    except OSError:
        return ""


def _content(hidden: OpenFolder, name: str) -> str:
    """The id in a small file of the hidden folder; "" when there is none. Raises OSError when it cannot be read."""
    try:
        return hidden.read(name, _LONGEST_MARKER).decode("ascii").strip()
    except (FileNotFoundError, NotRegular, UnicodeDecodeError):
        return ""


def make_private(root: OpenFolder, marker: str, marker_id: str, owners: frozenset[int]) -> None:
    """Make the hidden folder with its marker; nothing happens when something of that name is there already.

    It is filled under another name and gets its own one whole, so that no other process sees it without its marker.
    """
    with contextlib.suppress(FileExistsError), _filled(root, marker, marker_id, owners) as new:
        root.rename(new, root, HIDDEN)
    root.fsync()


@contextmanager
def _filled(root: OpenFolder, marker: str, marker_id: str, owners: frozenset[int]) -> Iterator[str]:
    """The name of a new folder that is filled as our hidden one. An error removes what is in it, by its descriptor."""
    name = f"{HIDDEN}-{os.urandom(6).hex()}"
    with root.make_new(name, _MODE) as inner:
        try:
            owner = min(owners - {0}, default=0)
            if os.geteuid() == 0 and owner:  # a command of root works for the daemon's user
                os.fchown(inner.fileno(), owner, -1)
            for one, content in ((marker, marker_id), (_MADE, new_id())):
                inner.write(one, content.encode(), mode=_MARKER_MODE)
            inner.fsync()
            yield name
        except OSError:
            for one in (marker, _MADE):
                inner.remove(one)
            with contextlib.suppress(OSError):
                root.remove_folder(name)
            raise


def keeps_modes(root: OpenFolder) -> bool:
    """Does the file system store owners and modes? CIFS, FUSE and others show the same for all files."""
    return not mounts.is_network(root.fileno())
