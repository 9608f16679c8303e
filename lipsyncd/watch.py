"""Hear about changes in a folder soon, where the kernel tells; say how often to look where it does not.

An event is only a doorbell: it says "look now", never what happened. Losing events therefore costs time and no job.
Other machines' writes to a network folder raise no event here, so such folders are looked at often instead. Which kind
a folder is, its mount tells: trying it out proves nothing, since our own writes do raise events.

A watch heals itself. Where the kernel refuses one (a limit is reached) the folder is polled and the kernel asked again
later; a reader that ended, or that no longer hears its own tick, is replaced; so is a watch on a folder that another
one has taken the place of.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable
from pathlib import Path

from lipsyncd import inotify
from lipsyncd.inotify import Event, Inotify
from lipsyncd.mounts import file_system_type, is_network

log = logging.getLogger(__name__)

TICK = "tick"  # in the hidden folder: touched now and then, to see whether the reader still hears
TICK_EVERY_S = 60.0
HEARD_WITHIN_S = 5.0
ASK_AGAIN_S = 60.0

_NEWS = (
    inotify.CREATE | inotify.CLOSE_WRITE | inotify.MOVED_FROM | inotify.MOVED_TO | inotify.DELETE | inotify.ATTRIB
) | (inotify.DELETE_SELF | inotify.MOVE_SELF)
_END = inotify.DELETE_SELF | inotify.MOVE_SELF | inotify.UNMOUNT | inotify.IGNORED


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

    def start(self) -> None:
        self.check()
        if not self.events and not self.degraded:
            log.info("watch: %s is looked at by polling (%s)", self.folder, file_system_type(self.folder) or "unknown")

    def check(self) -> None:
        """Look after the watch: begin, end or replace it as the folder and the setting want it now."""
        self.network = self._mode == "poll" or (self._mode == "auto" and is_network(self.folder))
        if self.network:
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
    """A thread that waits for events. Raises OSError when the kernel gives no watch.

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
        self._on_change = on_change
        self._on_overflow = on_overflow
        self._queue = Inotify()
        try:
            self._folder = self._queue.add(folder, _NEWS)
            self.hears_ticks = hidden.is_dir()
            self._hidden = self._queue.add(hidden, inotify.ATTRIB) if self.hears_ticks else -1
            self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        except OSError:
            self._queue.close()
            raise
        self._thread = threading.Thread(target=self._run, name=f"watch-{folder.name}", daemon=True)
        self._thread.start()

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def close(self) -> None:
        """End the thread. One that hangs is left behind with its descriptors: it may still use them."""
        os.eventfd_write(self._wake, 1)
        self._thread.join(timeout=2)
        if not self._thread.is_alive():
            os.close(self._wake)

    def _run(self) -> None:
        try:
            poll = select.poll()
            poll.register(self._queue.descriptor, select.POLLIN)
            poll.register(self._wake, select.POLLIN)
            while self._wake not in dict(poll.poll()):
                for event in self._queue.read():
                    self._hear(event)
        except OSError as error:
            log.warning("watch: the reader of events ends: %s", error)
        finally:
            self._queue.close()

    def _hear(self, event: Event) -> None:
        if event.mask & inotify.OVERFLOW:
            self._on_overflow()
        elif event.watch == self._hidden:
            if event.name == os.fsencode(TICK):
                self.heard.set()
        else:
            self.ended = self.ended or bool(event.mask & _END)
            self._on_change()


def _place(folder: Path) -> tuple[int, int] | None:
    """Which folder lies under that path now; None when none does."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
