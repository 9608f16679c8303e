"""Hear about changes in a folder soon, where the kernel tells; say how often to look where it does not.

An event is only a doorbell: it says "look now", never what happened. Losing events therefore costs time and no job.
Other machines' writes to a network folder raise no event here, so such folders are looked at often instead. Which kind
a folder is, its mount tells: trying it out proves nothing, since our own writes do raise events.

A watch heals itself. Where the kernel refuses one (a limit is reached) the folder is polled and the kernel asked again
later; a reader that ended, or that no longer hears its own tick, is replaced; so is a watch on a folder that another
one has taken the place of.

watchdog brings the events. What it keeps to itself is asked for here: that events were lost, that the folder moved or
was unmounted, that it may not be read.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from watchdog.events import DirDeletedEvent, FileSystemEvent, FileSystemEventHandler
from watchdog.observers.inotify import InotifyEmitter, InotifyObserver
from watchdog.observers.inotify_c import InotifyConstants as In
from watchdog.utils import BaseThread

from lipsyncd.storage.mounts import file_system_type, is_network

if TYPE_CHECKING:  # names that watchdog 6 has not
    from watchdog.observers.inotify_c import Mask
    from watchdog.observers.inotify_move_event_grouper import GroupedInotifyEvent

log = logging.getLogger(__name__)

TICK = "tick"  # in the hidden folder: touched now and then, to see whether the reader still hears
TICK_EVERY_S = 60.0
HEARD_WITHIN_S = 5.0
ASK_AGAIN_S = 60.0
END_WITHIN_S = 2.0

# No MOVED_FROM: watchdog keeps it for 0.5 s, to see whether the other half of a move follows, and every later event
# behind it. Whatever comes by a rename is MOVED_TO; that a file was moved away is seen at the next look.
_NEWS = In.IN_CREATE | In.IN_CLOSE_WRITE | In.IN_MOVED_TO | In.IN_DELETE | In.IN_ATTRIB | In.IN_ONLYDIR
_END = In.IN_MOVE_SELF | In.IN_UNMOUNT  # the kernel tells the second one unasked

# The one line at this level says that the kernel's queue was full (since watchdog 7.1; 6 says nothing).
_overflow_log = logging.getLogger("watchdog.observers.inotify_c")


class Watch:
    """Rings `bell` at every change in `folder`, from a thread of its own, while it can.

    `start`, `check` and `stop` belong to one thread, which calls `check` at each of its looks.

    hidden     name of the folder of our own inside `folder`
    network    other machines may write there, whom no event shows
    events     changes are heard; False: look often
    degraded   why changes are not heard although they should be; "" when all is as it should be
    overflows  how often the kernel's queue was full and events were lost
    restarts   how often the reader had to be replaced
    """

    def __init__(
        self,
        folder: Path,
        *,
        mode: str,
        hidden: str,
        bell: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = folder
        self.network = False
        self.degraded = ""
        self.overflows = 0
        self.restarts = 0
        self._mode = mode
        self._bell = bell
        self._hidden = folder / hidden
        self._clock = clock
        self._reader: _Reader | None = None
        self._place: tuple[int, int] | None = None
        self._ask_again_s = 0.0
        self._ticked_s = 0.0

    @property
    def events(self) -> bool:
        return self._reader is not None

    def check(self) -> None:
        """Look after the watch: begin, end or replace it as the folder and the setting want it now."""
        was_network = self.network
        self.network = self._mode == "poll" or (self._mode == "auto" and is_network(self.folder))
        if self.network:
            if not was_network:
                kind = file_system_type(self.folder) or "unknown"
                log.info("watch: %s is looked at by polling (%s)", self.folder, kind)
            self._end()
            self.degraded = ""
            return
        fault = self._fault()
        if fault:
            self.restarts += 1
            log.warning("watch: %s for %s; it is begun anew", fault, self.folder)
            self._end()
            self._bell()  # nobody has listened for a while
        if self._reader is None and (fault or self._clock() >= self._ask_again_s):
            self._begin()
        self._tick()

    def stop(self) -> None:
        self._end()

    def _begin(self) -> None:
        try:
            self._place = _place(self.folder)
            self._reader = _Reader(self.folder, self._hidden, self._on_change, self._on_overflow)
        except OSError as error:
            self._ask_again_s = self._clock() + ASK_AGAIN_S
            if not self.degraded:
                log.warning("watch: no events for %s (%s); it is looked at by polling", self.folder, error.strerror)
            self.degraded = f"no events for {self.folder}: {error.strerror}"
            return
        if self.degraded:
            log.info("watch: %s is heard again", self.folder)
        self.degraded = ""
        self._ticked_s = self._clock()

    def _end(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _fault(self) -> str:
        """Why the reader has to be replaced; "" while it works or while there is none."""
        reader = self._reader
        if reader is None:
            return ""
        if not reader.is_alive():
            return "the reader of events has ended"
        if reader.ended or _place(self.folder) != self._place:
            return "another folder has come in place of the one that was watched"
        unheard_s = 0.0 if reader.heard.is_set() else self._clock() - self._ticked_s
        return "the reader of events hears nothing" if unheard_s > HEARD_WITHIN_S else ""

    def _tick(self) -> None:
        """Make an event of our own, which the reader has to hear. Where nothing may be written there is no tick."""
        if self._reader is None or self._clock() - self._ticked_s < TICK_EVERY_S or not self._reader.hears_ticks:
            return
        self._ticked_s = self._clock()
        self._reader.heard.clear()
        tick = self._hidden / TICK
        try:
            tick.touch()
            os.utime(tick)  # a file that is new was not heard: only changes of attributes are listened to there
        except OSError:
            self._reader.heard.set()

    def _on_change(self) -> None:
        self._bell()

    def _on_overflow(self) -> None:
        self.overflows += 1
        log.warning("watch: the kernel's queue of events for %s was full; looking now", self.folder)
        self._bell()


class _Reader:
    """watchdog's threads for one folder. Raises OSError when the kernel gives no watch.

    heard        cleared before a tick, set when it is heard
    ended        the folder itself is gone: no more events will come
    hears_ticks  the hidden folder is watched as well
    """

    def __init__(
        self, folder: Path, hidden: Path, on_change: Callable[[], None], on_overflow: Callable[[], None]
    ) -> None:
        self.heard = threading.Event()
        self.heard.set()
        self.ended = False
        self.hears_ticks = hidden.is_dir() and os.access(hidden, os.R_OK)
        self._on_change = on_change
        self._folder = os.path.realpath(folder)  # watchdog would watch a link and not where it leads
        self._tick = os.path.join(os.path.realpath(hidden), TICK)  # noqa: PTH118 - compared with watchdog's strings
        os.close(os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY))  # watchdog passes over a refusal to read it
        others = set(threading.enumerate())
        self._observer = _Observer()
        try:
            self._observer.schedule(_Handler(self._hear), self._folder)
            if self.hears_ticks:
                self._observer.schedule(_Handler(self._hear_tick), os.path.dirname(self._tick))  # noqa: PTH120
            self._observer.start()
        except OSError:
            self._observer.stop()  # a part of it runs already
            raise
        # One thread reads, one for each folder sorts, one calls us: any of them may end alone.
        self._threads = [t for t in threading.enumerate() if isinstance(t, BaseThread) and t not in others]
        for thread in self._threads:
            thread.name = f"watch-{folder.name}"
        self._overflows = _Overflows(self._threads, on_overflow)
        _overflow_log.setLevel(logging.WARNING)  # whatever is logged: it is a signal here
        _overflow_log.propagate = False
        _overflow_log.addHandler(self._overflows)

    def is_alive(self) -> bool:
        return all(thread.is_alive() for thread in self._threads)

    def close(self) -> None:
        """End the threads. One that hangs is left behind with what it holds: watchdog waits for it without a limit."""
        _overflow_log.removeHandler(self._overflows)
        ending = threading.Thread(target=self._end, name="watch-end", daemon=True)
        ending.start()
        ending.join(END_WITHIN_S)

    def _end(self) -> None:
        self._observer.stop()
        self._observer.join()

    def _hear(self, event: FileSystemEvent) -> None:
        self.ended = self.ended or (event.event_type == "deleted" and event.src_path == self._folder)
        self._on_change()

    def _hear_tick(self, event: FileSystemEvent) -> None:
        if event.src_path == self._tick:
            self.heard.set()


class _Observer(InotifyObserver):
    """watchdog's own, with emitters of ours: a plain `BaseObserver` would share one queue that is never replaced."""

    def __init__(self) -> None:
        super().__init__()
        self._emitter_class = _Emitter


class _Emitter(InotifyEmitter):
    """watchdog's watch on one folder, which asks for our news and tells that the folder has moved or is unmounted."""

    def get_event_mask_from_filter(self) -> Mask:
        return cast("Mask", _NEWS | In.IN_DELETE_SELF | In.IN_MOVE_SELF)

    def build_and_queue_event(self, event: GroupedInotifyEvent, *, full_events: bool = False) -> None:
        """Called by watchdog 7 for each event; with 6 these ends are found at the next look or tick."""
        if (one := getattr(event, "ev", None)) is not None and one.mask & _END:
            self.queue_event(DirDeletedEvent(self.watch.path))
        else:
            super().build_and_queue_event(event, full_events=full_events)


class _Handler(FileSystemEventHandler):
    def __init__(self, hear: Callable[[FileSystemEvent], None]) -> None:
        self._hear = hear

    def on_any_event(self, event: FileSystemEvent) -> None:
        self._hear(event)


class _Overflows(logging.Handler):
    """watchdog tells of lost events in its log alone, from the thread that has read of them."""

    def __init__(self, threads: list[BaseThread], on_overflow: Callable[[], None]) -> None:
        super().__init__(logging.WARNING)
        self._threads = threads
        self._on_overflow = on_overflow

    def emit(self, record: logging.LogRecord) -> None:
        if threading.current_thread() in self._threads and "overflow" in record.getMessage():
            self._on_overflow()


def refusal(folder: Path) -> OSError | None:
    """Why the kernel would not tell us of changes in `folder`: a real watch is set, and taken away again."""
    try:
        _Reader(folder, folder / "no ticks", lambda: None, lambda: None).close()
    except OSError as error:
        return error
    return None


def _place(folder: Path) -> tuple[int, int] | None:
    """Which folder lies under that path now; None when none does."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
