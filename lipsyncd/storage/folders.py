"""The folders that jobs travel through, and the markers that tell an unmounted folder from an empty one.

Each shared folder has a marker `.lipsyncd/<kind>-id`, written once. `state/folders.json` records the same ids. A marker
that is missing or differs means that something else is mounted there, or nothing: the folder is then unavailable,
never "empty". Folders are made only by `initialise`; nothing creates the outbox while jobs run.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lipsyncd.errors import ConfigError
from lipsyncd.jobs.job import new_id
from lipsyncd.settings import Paths
from lipsyncd.storage.files import fsync_folder, open_folder, open_regular, read_json, umask, write_json, write_new

KINDS = ("inbox", "outbox", "failed", "archive")  # shared with users; state and spool are ours alone
INBOX_OF = "inbox/{}"  # kind of the folder in the inbox for a queue
HIDDEN = ".lipsyncd"
_LONGEST_MARKER = 100  # characters
_PRIVATE_MODE = 0o750
_CONTROL_MODE = 0o2770  # members of our group leave requests there
_SHARED_MODE = 0o2775


class Folders:
    """The folders of one daemon. `shared` maps each of `KINDS`, and `INBOX_OF` each queue, to its path."""

    def __init__(self, *, state: Path, spool: Path, shared: dict[str, Path]) -> None:
        self.state = state
        self.spool = spool
        self.shared = shared
        self._record: tuple[tuple[int, ...], dict[str, str]] = ((), {})  # its file's stamp, and the content

    @property
    def control(self) -> Path:
        return self.state / "control"

    @property
    def results(self) -> Path:
        return self.state / "results"

    @property
    def again(self) -> Path:
        """Plans for videos that are published once more. The first such plan makes the folder."""
        return self.state / "again"

    def known(self) -> dict[str, str]:
        """The ids that this state folder has recorded; empty before the first start. Read again after a change only."""
        file = self.state / "folders.json"
        try:
            seen = file.stat()
        except FileNotFoundError:
            return {}
        stamp = (seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)
        if stamp != self._record[0]:
            self._record = (stamp, read_json(file) or {})
        record = self._record[1]
        return {kind: found for kind in self.shared if (found := record.get(kind)) and isinstance(found, str)}

    def initialise(self, *, adopt: bool = False) -> list[str]:
        """Make what is missing and write the markers; gives a line for each change.

        A second call changes nothing. A folder whose id is recorded but whose marker is gone is left alone, unless
        `adopt` confirms that the folder that lies there now is the right one.
        """
        private = ((self.state, _PRIVATE_MODE), (self.spool, _PRIVATE_MODE), (self.results, _PRIVATE_MODE))
        done = [f"made {path}" for path, mode in (*private, (self.control, _CONTROL_MODE)) if _make(path, mode)]
        known = self.known()
        for kind in self.shared:
            parent = kind.partition("/")[0]
            # Nothing is made under a bare mount point.
            if parent == kind or _read(self._marker(parent)) == known[parent]:
                done += self._mark(kind, known, adopt=adopt)
        if known != self.known():
            write_json(self.state / "folders.json", known, mode=0o640)  # `submit` reads the inbox's id
        return done

    def _mark(self, kind: str, known: dict[str, str], *, adopt: bool) -> list[str]:
        folder = self.shared[kind]
        if kind in known and not adopt:
            return []
        done = [f"made {folder}"] if _make(folder, _SHARED_MODE) else []
        marker = self._marker(kind)
        _make(marker.parent, _SHARED_MODE)
        found = _read(marker)
        if not found:
            found = new_id()
            write_new(marker, found.encode(), mode=0o644)
            fsync_folder(marker.parent)
            fsync_folder(folder)
            done.append(f"marked {folder} as {kind}")
        known[kind] = found
        return done

    @property
    def inboxes(self) -> list[str]:
        """The kinds of folders that take drops, the inbox itself first."""
        return [kind for kind in self.shared if kind.partition("/")[0] == "inbox"]

    def lock_file(self, kind: str) -> Path:
        """The file that the daemon that serves an inbox has locked."""
        return self.shared[kind] / HIDDEN / "lock"

    def available(self, kind: str) -> bool:
        """Is it really the recorded folder that lies there? False while our own record cannot be read."""
        try:
            expected = self.known().get(kind)
        except OSError:
            return False
        return expected is not None and _read(self._marker(kind)) == expected

    @contextmanager
    def opened(self, kind: str) -> Iterator[int | None]:
        """A descriptor of the recorded folder of that kind; None while it is not available.

        What is done through it happens in that very folder, or not at all: a share may be unmounted at any moment, and
        then a file that is not found under its path need not be gone.
        """
        try:
            expected = self.known().get(kind)
            folder = open_folder(self.shared[kind])
        except OSError:
            yield None
            return
        try:
            marker = self._marker(kind).relative_to(self.shared[kind])
            yield folder if expected is not None and _read(marker, folder=folder) == expected else None
        finally:
            os.close(folder)

    def _marker(self, kind: str) -> Path:
        return self.shared[kind] / HIDDEN / f"{kind.partition('/')[0]}-id"


def folders_of(paths: Paths, queues: Iterable[str] = ()) -> Folders:
    """The folders that the settings name."""
    shared = {"inbox": paths.inbox, "outbox": paths.outbox, "failed": paths.failed, "archive": paths.archive}
    shared |= {INBOX_OF.format(queue): paths.inbox / queue for queue in queues}
    return Folders(state=paths.state, spool=paths.spool, shared=shared)


def _make(folder: Path, mode: int) -> bool:
    """Make a folder and its parents; True when it was not there. Raises ConfigError when that is impossible."""
    try:
        folder.mkdir(mode & 0o777, parents=True)
    except FileExistsError:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is no folder", remedy="move that file away or set another path") from None
        return False
    except OSError as error:
        raise ConfigError(
            f"cannot make the folder {folder}: {error.strerror}", remedy="make it by hand or set another path"
        ) from error
    wanted = mode & ~(umask() & 0o007)  # the group shares the folders; the umask decides for others
    if stat.S_IMODE(folder.stat().st_mode) != wanted:
        _set_mode(folder, wanted)
    return True


def _set_mode(folder: Path, mode: int) -> None:
    """Also where systemd's RestrictSUIDSGID refuses the setgid bit: there a folder inherits it from its parent."""
    try:
        folder.chmod(mode)
    except PermissionError:
        if not mode & stat.S_ISGID:
            raise
        folder.chmod(mode & 0o777)


def _read(marker: Path, *, folder: int | None = None) -> str:
    """The id in a marker; "" when there is none. Others may write the share: a FIFO there must not hold us forever."""
    try:
        with os.fdopen(open_regular(marker, folder=folder)) as file:
            return file.read(_LONGEST_MARKER).strip()
    except (OSError, UnicodeDecodeError):
        return ""
