"""Notice changes in a folder. Where the kernel reports none, the folder is polled instead.

An event only means "scan now", never what happened, so a lost event costs time and no job: the rescan finds the file.
Changes that other machines make in a network folder raise no event here, so such folders are polled. The mount tells
which kind a folder is; a trial would prove nothing, since our own writes do raise events.

A watch heals itself. Where the kernel refuses one (a limit is reached), the folder is polled and the kernel is asked
again later. A reader that has ended, or that does not hear its own tick, is replaced. So is a watch when another folder
lies under the path.

watchdog brings the events, through its public interface. Some changes raise no event that way: a change of mode, a
folder that is moved or unmounted. The rescan finds these; the tick finds a watch that an unmount has ended.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Set
from contextlib import ExitStack

from watchdog.events import (
    EVENT_TYPE_DELETED,
    EVENT_TYPE_MODIFIED,
    DirDeletedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer

from lipsyncd.errors import FolderNotOurs
from lipsyncd.inbox.explain import is_explanation
from lipsyncd.storage.mounts import file_system_type, is_network
from lipsyncd.storage.open_folder import OpenFolder
from lipsyncd.storage.shared_folders import SharedFolder

log = logging.getLogger(__name__)

TICK = "tick"  # in the hidden folder: touched now and then, to see whether the reader still hears
TICK_EVERY_S = 60.0
HEARD_WITHIN_S = 5.0
ASK_AGAIN_S = 60.0
END_WITHIN_S = 2.0
MOST_MODIFIED = 10_000  # names between two scans; a write to one more is shown by its time and size alone

# Neither what our own scan causes (a file is opened) nor, unless it is asked for, each write to a file that grows.
_NEWS = [FileCreatedEvent, FileMovedEvent, FileClosedEvent, FileDeletedEvent, DirDeletedEvent]

_TICK_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_watchdog_log = logging.getLogger("watchdog")


class Watch:
    """Calls `notify` at every change in `folder`, from a thread of its own, while the kernel reports changes.

    `start`, `check` and `stop` belong to one thread, which calls `check` before each scan.

    writes    also note each write, for `modified`; it starts no scan. May be changed before a `check`
    network   other machines may write there, and their changes raise no event
    events    changes are heard; False: poll
    degraded  why changes are not heard although they should be; "" otherwise
    restarts  how often the reader was replaced
    """

    def __init__(
        self,
        folder: SharedFolder,
        *,
        mode: str,
        notify: Callable[[], None],
        writes: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = folder
        self.writes = writes
        self.network = False
        self.degraded = ""
        self.restarts = 0
        self._mode = mode
        self._notify = notify
        self._modified: set[bytes] = set()
        self._noting = threading.Lock()
        self._clock = clock
        self._reader: _Reader | None = None
        self._place: tuple[int, int] | None = None
        self._ask_again_s = 0.0
        self._ticked_s = 0.0

    @property
    def events(self) -> bool:
        return self._reader is not None

    def modified(self) -> Set[bytes]:
        """The names that were written to since the last call."""
        with self._noting:
            modified, self._modified = self._modified, set()
        return modified

    def check(self, root: OpenFolder) -> None:
        """Look after the watch: begin, end or replace it as the setting and the folder that is open now want it."""
        was_network = self.network
        self.network = self._mode == "poll" or (self._mode == "auto" and is_network(root.fileno()))
        if self.network:
            if not was_network:
                kind = file_system_type(root.fileno()) or "unknown"
                log.info("watch: %s is polled (%s)", root.where, kind)
            self._end()
            self.degraded = ""
            return
        fault = self._fault(root)
        if fault:
            self.restarts += 1
            log.warning("watch: %s for %s; it is started anew", fault, root.where)
            self._end()
            self._notify()  # changes were not heard for a while
        if self._reader is not None and self._reader.notes_writes != self.writes:
            self._end()
        if self._reader is None and (fault or self._clock() >= self._ask_again_s):
            self._begin(root)
        self._tick(root)

    def stop(self) -> None:
        self._end()

    def _begin(self, root: OpenFolder) -> None:
        try:
            self._place = _place(root)
            with ExitStack() as stack:
                on_write = self._note_write if self.writes else None
                self._reader = _Reader(root, self._hidden(root, stack), self._notify, on_write)
        except OSError as error:
            self._ask_again_s = self._clock() + ASK_AGAIN_S
            if not self.degraded:
                log.warning("watch: no events for %s (%s); it is polled", root.where, error.strerror)
            self.degraded = f"no events for {root.where}: {error.strerror}"
            return
        if self.degraded:
            log.info("watch: %s is heard again", root.where)
        self.degraded = ""
        self._ticked_s = self._clock()

    def _hidden(self, root: OpenFolder, stack: ExitStack) -> OpenFolder | None:
        """The folder for ticks; None where we have none: then nothing shows whether the reader still hears."""
        try:
            return stack.enter_context(self.folder.private(root))
        except (FolderNotOurs, OSError):
            return None

    def _end(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _note_write(self, name: bytes) -> None:
        """Called by the reader's thread."""
        with self._noting:
            if len(self._modified) < MOST_MODIFIED:
                self._modified.add(name)

    def _fault(self, root: OpenFolder) -> str:
        """Why the reader has to be replaced; "" while it works or while there is none."""
        reader = self._reader
        if reader is None:
            return ""
        if not reader.is_alive():
            return "the reader of events has ended"
        if reader.ended or _place(root) != self._place:
            return "another folder lies in place of the one that was watched"
        unheard_s = 0.0 if reader.heard.is_set() else self._clock() - self._ticked_s
        return "the reader of events hears nothing" if unheard_s > HEARD_WITHIN_S else ""

    def _tick(self, root: OpenFolder) -> None:
        """Close a file of ours that was open for writing: the reader has to hear it. No tick where we may not write."""
        if self._reader is None or self._clock() - self._ticked_s < TICK_EVERY_S or not self._reader.hears_ticks:
            return
        self._ticked_s = self._clock()
        self._reader.heard.clear()
        try:
            with self.folder.private(root) as private:
                os.close(os.open(TICK, _TICK_FLAGS, 0o600, dir_fd=private.fileno()))
        except (FolderNotOurs, OSError):
            self._reader.heard.set()


class _Reader:
    """watchdog's threads for one folder. Raises OSError when the kernel refuses a watch.

    heard         cleared before a tick, set when the event of the tick arrives
    ended         the folder was deleted: no more events will come
    hears_ticks   the hidden folder is watched as well
    notes_writes  each write is noted

    watchdog takes paths and no descriptors: it is given the kernel's names of those, which stand for the same folders.
    """

    def __init__(
        self,
        folder: OpenFolder,
        hidden: OpenFolder | None,
        on_change: Callable[[], None],
        on_write: Callable[[bytes], None] | None = None,
    ) -> None:
        self.heard = threading.Event()
        self.heard.set()
        self.ended = False
        self.hears_ticks = hidden is not None
        self._on_change = on_change
        self._on_write = on_write
        self.notes_writes = on_write is not None
        self._folder, self._tick = folder.watchable, "" if hidden is None else f"{hidden.watchable}/{TICK}"
        os.close(os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY))  # watchdog ignores a refusal to read the folder
        self._observer = Observer()
        self._observer.name = f"watch-{folder.where}"
        try:
            self._schedule(self._on_event, self._folder, _NEWS if on_write is None else [*_NEWS, FileModifiedEvent])
            if hidden is not None:
                self._schedule(self._on_tick, hidden.watchable, [FileClosedEvent])
            self._observer.start()
        except OSError:
            self._observer.stop()  # some of its threads run already
            raise

    def _schedule(
        self, call: Callable[[FileSystemEvent], None], path: str, events: list[type[FileSystemEvent]]
    ) -> None:
        self._observer.schedule(_Handler(call), path, event_filter=events, follow_symlink=True)

    def is_alive(self) -> bool:
        return self._observer.is_alive() and all(emitter.is_alive() for emitter in self._observer.emitters)

    def close(self) -> None:
        """End the threads. One that hangs is left behind with what it holds: watchdog waits for it without a limit."""
        ending = threading.Thread(target=self._end, name="watch-end", daemon=True)
        ending.start()
        ending.join(END_WITHIN_S)

    def _end(self) -> None:
        self._observer.stop()
        self._observer.join()

    def _on_event(self, event: FileSystemEvent) -> None:
        names = [os.fsencode(path).rpartition(b"/")[2] for path in (event.src_path, event.dest_path) if path]
        if all(map(is_explanation, names)):
            return
        if event.event_type == EVENT_TYPE_MODIFIED:
            if self._on_write is not None:
                self._on_write(os.fsencode(event.src_path).rpartition(b"/")[2])
            return
        self.ended = self.ended or (event.event_type == EVENT_TYPE_DELETED and event.src_path == self._folder)
        self._on_change()

    def _on_tick(self, event: FileSystemEvent) -> None:
        if event.src_path == self._tick:
            self.heard.set()


class FolderEvents:
    """Calls `notify` at every change in a folder of our own, which nothing replaces, while the kernel reports changes.

    Who uses it looks into the folder now and then all the same, and more often while `heard` is False.
    """

    def __init__(self, folder: OpenFolder, notify: Callable[[], None]) -> None:
        self._reader: _Reader | None = None
        try:
            self._reader = _Reader(folder, None, notify)
        except OSError as error:
            log.warning("watch: no events for %s (%s); it is polled", folder.where, error.strerror)

    @property
    def heard(self) -> bool:
        """Are changes reported?"""
        return self._reader is not None and self._reader.is_alive() and not self._reader.ended

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()


class _Handler(FileSystemEventHandler):
    def __init__(self, call: Callable[[FileSystemEvent], None]) -> None:
        self._call = call

    def on_any_event(self, event: FileSystemEvent) -> None:
        self._call(event)


class Overflows(logging.Handler):
    """Counts how often the kernel's queue was full and events were lost, for all folders, and calls `notify` each time.

    watchdog reports it as a warning in its log, and does not name the folder.
    """

    def __init__(self, notify: Callable[[], None]) -> None:
        super().__init__(logging.WARNING)
        self.count = 0
        self._notify = notify
        _watchdog_log.setLevel(logging.WARNING)  # at whatever level we log: the warning is a signal here
        _watchdog_log.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if "overflow" in record.getMessage():
            self.count += 1
            log.warning("watch: events were lost, since the kernel's queue was full; every inbox is scanned now")
            self._notify()

    def close(self) -> None:
        _watchdog_log.removeHandler(self)
        super().close()


def refusal(folder: OpenFolder) -> OSError | None:
    """Why the kernel refuses to report changes in `folder`; None when it does not. Sets a real watch and removes it."""
    try:
        _Reader(folder, None, lambda: None).close()
    except OSError as error:
        return error
    return None


def _place(folder: OpenFolder) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
