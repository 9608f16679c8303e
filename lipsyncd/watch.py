"""Hear about changes in the inbox soon, where the kernel tells; say how often to look where it does not.

An event is only a doorbell: it says "look now", never what happened. Losing events therefore costs time and no job.
Other machines' writes to a network folder raise no event here, so such folders are looked at often instead. Which kind
a folder is, its mount tells: trying it out proves nothing, since our own writes do raise events.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

log = logging.getLogger(__name__)

_LOCAL = frozenset(("ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "tmpfs", "overlay", "bcachefs", "ramfs"))


@dataclass(frozen=True)
class _Mount:
    number: str
    parent: str
    point: str
    kind: str

    def holds(self, path: str) -> bool:
        return path == self.point or path.startswith(self.point.rstrip("/") + "/")


def file_system_type(folder: Path, mountinfo: Path = Path("/proc/self/mountinfo")) -> str:
    """The type of the file system that a folder lies on, such as "ext4" or "nfs4"; "" when it cannot be told.

    Walks from mount to mount as the kernel walks the path: the longest matching mount point may be one that a later
    mount above it has covered. Source: proc_pid_mountinfo(5).
    """
    try:
        lines = mountinfo.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    path = os.path.realpath(folder)
    mounts = [mount for mount in map(_mount, lines) if mount.holds(path)]
    numbers = {mount.number for mount in mounts}
    here = next((mount for mount in mounts if mount.parent not in numbers - {mount.number}), None)
    kind = ""
    while here is not None:
        kind, number = here.kind, here.number
        inner = [mount for mount in mounts if mount.parent == number != mount.number]
        here = min(inner, key=lambda mount: len(mount.point), default=None)
    return kind


def _mount(line: str) -> _Mount:
    fields = line.split(" ")
    return _Mount(fields[0], fields[1], _unescape(fields[4]), fields[fields.index("-") + 1])


def is_network(folder: Path) -> bool:
    """May other machines write there without our kernel knowing? Unknown file systems count as network."""
    return file_system_type(folder) not in _LOCAL


def _unescape(field: str) -> str:
    """A path of mountinfo, in which space, tab, newline and backslash are octal escapes."""
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, char)
    return field


class Watch:
    """Rings `bell` at every change in `folder`, from a thread of its own, while it can."""

    def __init__(self, folder: Path, *, mode: str, network: bool, bell: Callable[[], None]) -> None:
        self.folder = folder
        self.events = mode == "inotify" or (mode == "auto" and not network)
        self._bell = bell
        self._observer: BaseObserver | None = None

    def start(self) -> None:
        """Begin. Where the kernel refuses (a limit on watches, say) the rescan clock is left alone with the work."""
        if not self.events:
            log.info("watch: %s is looked at by polling (%s)", self.folder, file_system_type(self.folder) or "unknown")
            return
        observer = Observer()
        try:
            observer.schedule(_Doorbell(self._bell), str(self.folder), recursive=False)
            observer.start()
        except OSError as error:
            log.warning("watch: no events for %s (%s); it is looked at by polling", self.folder, error.strerror)
            self.events = False
            return
        self._observer = observer

    def stop(self) -> None:
        if self._observer is not None:
            self._observer.stop()
            self._observer.join(timeout=5)
            self._observer = None


class _Doorbell(FileSystemEventHandler):
    def __init__(self, bell: Callable[[], None]) -> None:
        self._bell = bell

    def on_any_event(self, event: FileSystemEvent) -> None:
        # Our own reading opens and closes files there: such events would keep us busy with ourselves.
        if event.event_type not in ("opened", "closed_no_write"):
            self._bell()
