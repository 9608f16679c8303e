"""The folders that jobs travel through, and the markers that tell an unmounted folder from an empty one.

Each shared folder has a marker `.lipsyncd/<kind>-id`, written once. `state/folders.json` records the same ids. A marker
that is missing or differs means that something else is mounted there, or nothing: the folder is then unavailable,
never "empty". Folders are made only by `initialise`; nothing creates the outbox while jobs run.

Leaves what is done in a shared folder, and the proof of its marker, to `shared_folders`.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from lipsyncd.errors import ConfigError
from lipsyncd.jobs.job import new_id
from lipsyncd.settings import Paths
from lipsyncd.storage.files import read_json, umask, write_json
from lipsyncd.storage.open_folder import OpenFolder
from lipsyncd.storage.private_folder import marker_in
from lipsyncd.storage.shared_folders import SharedFolder

KINDS = ("inbox", "outbox", "failed", "archive")  # shared with users; state and spool are ours alone
INBOX_OF = "inbox/{}"  # kind of the folder in the inbox for a queue
_PRIVATE_MODE = 0o750
_DROP_MODE = 0o3770  # members of our group leave files there and cannot touch those of others
_MODES = {"inbox": _DROP_MODE, "outbox": 0o2775, "failed": 0o2775, "archive": 0o2750}


class Folders:
    """The folders of one daemon. `shared` has each of `KINDS`, and `INBOX_OF` each queue."""

    def __init__(self, *, state: Path, spool: Path, shared: Mapping[str, Path]) -> None:
        self.state = state
        self.spool = spool
        self.shared: dict[str, SharedFolder] = {}
        for kind, path in shared.items():
            outer, _, queue = kind.partition("/")
            within = (self.shared[outer], queue) if queue and path.parent == shared[outer] else None
            self.shared[kind] = SharedFolder(kind, path, self._recorded_of(kind), self._owners, within)
        self._paths = dict(shared)
        self._record: tuple[tuple[int, ...], dict[str, str]] = ((), {})  # its file's stamp, and the content

    @property
    def results(self) -> Path:
        return self.state / "results"

    @property
    def again(self) -> Path:
        """Plans for videos that are published once more. The first such plan makes the folder."""
        return self.state / "again"

    @property
    def control(self) -> Path:
        """The folder for requests. Members of our group write it: only `control_files` opens it."""
        return self.state / "control"

    def _recorded_of(self, kind: str) -> Callable[[], str | None]:
        return lambda: self.known().get(kind)

    def _owners(self) -> frozenset[int]:
        """The users whose files are the daemon's: root's commands work for the owner of the state folder."""
        try:
            return frozenset((os.geteuid(), self.state.stat().st_uid))
        except OSError:
            return frozenset((os.geteuid(),))

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

    # -- making --------------------------------------------------------------------------------------------------------

    def initialise(self, *, adopt: bool = False) -> list[str]:
        """Make what is missing and write the markers; gives a line for each change.

        A second call changes nothing. A folder whose id is recorded but whose marker is gone is left alone, unless
        `adopt` confirms that the folder that lies there now is the right one.
        """
        private = (self.state, self.spool, self.results)
        done = [f"made {path}" for path in private if _make(path, _PRIVATE_MODE)]
        done += [f"made {path}" for path in [self.control] if _make(path, _DROP_MODE)]
        known = self.known()
        for kind in self.shared:
            parent = kind.partition("/")[0]
            # Nothing is made under a bare mount point.
            if parent == kind or self._marker(parent) == known[parent]:
                done += self._mark(kind, known, adopt=adopt)
        if known != self.known():
            write_json(self.state / "folders.json", known, mode=0o640)  # `submit` reads the inbox's id
        return done

    def _mark(self, kind: str, known: dict[str, str], *, adopt: bool) -> list[str]:
        if kind in known and not adopt:
            return []
        folder = self.shared[kind]
        try:
            done = [f"made {folder.where}"] if self._make_shared(kind) else []
            with folder.open_unproved() as root:
                found = marker_in(root, folder.hidden.marker)
                if not found:
                    found = new_id()
                    folder.hidden.mark(root, found)
                    done.append(f"marked {folder.where} as {kind}")
        except OSError as error:
            raise ConfigError(
                f"cannot mark the folder {folder.where}: {error.strerror or error}",
                remedy="let the daemon's user write it, or set another path",
            ) from error
        known[kind] = found
        return done

    def _make_shared(self, kind: str) -> bool:
        """Make the folder; True when it was not there. A queue's is made through the inbox: its name may be a link."""
        mode, within = _MODES[kind.partition("/")[0]], self.shared[kind].within
        if within is None:
            return _make(self._paths[kind], mode)
        outer, name = within
        with outer.open_unproved() as root:
            try:
                made = root.make_new(name, mode & 0o1777)
            except FileExistsError:
                return False
            with made:
                _set_mode(made, mode)
        return True

    def make_sticky(self) -> list[str]:
        """Give the sticky bit to folders for drops and requests that an earlier version made; gives those that got it.

        Only where the folder is our own. Systemd's RestrictSUIDSGID refuses it; there systemd-tmpfiles does it.
        """
        changed = [self.shared[kind].where for kind in self.inboxes if self._make_one_sticky(kind)]
        with OpenFolder.at(self.control) as control:
            return [*changed, control.where] if _add_sticky(control) else changed

    def _make_one_sticky(self, kind: str) -> bool:
        with self.shared[kind].opened() as root:
            return root is not None and _add_sticky(root)

    def _marker(self, kind: str) -> str:
        folder = self.shared[kind]
        try:
            with folder.open_unproved() as root:
                return marker_in(root, folder.hidden.marker)
        except OSError:
            return ""

    # -- finding -------------------------------------------------------------------------------------------------------

    @property
    def inboxes(self) -> list[str]:
        """The kinds of folders that take drops, the inbox itself first."""
        return [kind for kind in self.shared if kind.partition("/")[0] == "inbox"]

    def available(self, kind: str) -> bool:
        """Is it really the recorded folder that lies there?"""
        return self.shared[kind].available()

    def place_of(self, path: str, kinds: Iterable[str]) -> tuple[SharedFolder, tuple[str, ...]] | None:
        """The shared folder, of these kinds, and the names in it that lead to a path of a ledger's row; else None."""
        for kind in kinds:
            folder = self.shared[kind]
            if path.startswith(f"{folder.where}/"):
                parts = tuple(path.removeprefix(f"{folder.where}/").split("/"))
                return (folder, parts) if all(part not in ("", ".", "..") for part in parts) else None
        return None


def folders_of(paths: Paths, queues: Iterable[str] = ()) -> Folders:
    """The folders that the settings name."""
    shared = {"inbox": paths.inbox, "outbox": paths.outbox, "failed": paths.failed, "archive": paths.archive}
    shared |= {INBOX_OF.format(queue): paths.inbox / queue for queue in queues}
    return Folders(state=paths.state, spool=paths.spool, shared=shared)


def _make(folder: Path, mode: int) -> bool:
    """Make a folder and its parents; True when it was not there. Raises ConfigError when that is impossible."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode & 0o1777)
    except FileExistsError:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is no folder", remedy="move that file away or set another path") from None
        return False
    except OSError as error:
        raise ConfigError(
            f"cannot make the folder {folder}: {error.strerror}", remedy="make it by hand or set another path"
        ) from error
    with OpenFolder.at(folder) as made:
        _set_mode(made, mode)
    return True


def _set_mode(made: OpenFolder, mode: int) -> None:
    """Share a new folder with its group; our umask decides for others.

    Where systemd's RestrictSUIDSGID refuses the setgid bit, the folder keeps the one that it has inherited.
    """
    mode &= ~(umask() & 0o007)
    if stat.S_IMODE(made.stat().st_mode) != mode:
        with contextlib.suppress(PermissionError):
            os.fchmod(made.fileno(), mode)


def _add_sticky(folder: OpenFolder) -> bool:
    """Let only the owner of a file remove it, if the folder is ours and others write it; True when that is new."""
    status = folder.stat()
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != os.geteuid() or mode & stat.S_ISVTX or not mode & 0o022:
        return False
    with contextlib.suppress(OSError):  # also of a file system without modes
        os.fchmod(folder.fileno(), mode | stat.S_ISVTX)
    return bool(folder.stat().st_mode & stat.S_ISVTX)
