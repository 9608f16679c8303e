"""What systemd sees of the daemon: that it is ready, what it does just now, and that it is not stuck.

A thread of its own, because the others may hang with a dead file server, and then a restart would not help. The
watchdog is fed as long as `health.stuck` finds nothing that it would. Without systemd nothing is told.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator

from lipsyncd.errors import LedgerError
from lipsyncd.jobs.job import JobState
from lipsyncd.ledger.view import LedgerView
from lipsyncd.log import printable
from lipsyncd.monitor import health
from lipsyncd.monitor.facts import Facts
from lipsyncd.monitor.sd_notify import Notifier

log = logging.getLogger(__name__)

START_MOST_S = 900.0  # a migration of a large ledger with its backup is no reason to be killed
AFTER_GRACE_S = 45.0  # what ends after the last render: the web server, a webhook under way, the children
_BEAT_S = 1.0
_EXTENSION_S = 30.0
_BEATS_PER_WATCH = 3
_MOST_CHARS = 400


class Pulse:
    """Tells systemd how one daemon does. Its methods are called by the main thread.

    facts  how the daemon stands
    view   its ledger, for what is under way
    """

    def __init__(self, notifier: Notifier, *, facts: Callable[[], Facts], view: LedgerView) -> None:
        self._notifier = notifier
        self._facts = facts
        self._view = view
        self._phase = "starting"
        self._until_s = time.monotonic() + START_MOST_S
        self._told = ""
        self._fed_s = 0.0
        self._stuck = ""
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def starting(self) -> None:
        """From now on systemd waits for us."""
        if self._notifier.heard:
            self._thread.start()

    def ready(self) -> None:
        self._phase = "ready"
        self._notifier.tell("READY=1", f"STATUS={self._status()}")

    def reloading(self) -> None:
        """The settings are read again. Source: sd_notify(3); newer versions of systemd want the time of it."""
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._notifier.tell("RELOADING=1", f"MONOTONIC_USEC={now_us}", "STATUS=reading the settings again")
        self._told = ""

    def stopping(self, grace_s: float) -> None:
        """Running jobs have `grace_s` to finish; systemd must not lose patience before."""
        self._phase, self._until_s = "stopping", time.monotonic() + grace_s + AFTER_GRACE_S
        self._notifier.tell("STOPPING=1", *self._extension(), f"STATUS={self._status()}")

    def end(self) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._end.is_set():
            try:
                self.beat()
            except Exception:
                log.exception("pulse: unexpected failure")  # and the watchdog starves, as it should
            self._end.wait(_BEAT_S)

    def beat(self) -> None:
        """Tell what has changed and what is due."""
        told = [*self._extension(), *self._food()]
        status = self._status()
        if status != self._told:
            self._told = status
            told.append(f"STATUS={status}")
        if told:
            self._notifier.tell(*told)

    def _extension(self) -> Iterator[str]:
        """While we start or stop, and not for ever, ask for more time than the unit gives."""
        if self._phase != "ready" and time.monotonic() < self._until_s:
            yield f"EXTEND_TIMEOUT_USEC={round(_EXTENSION_S * 1e6)}"

    def _food(self) -> Iterator[str]:
        every_s = self._notifier.watchdog_s / _BEATS_PER_WATCH
        if self._phase == "starting" or not every_s or time.monotonic() - self._fed_s < every_s - _BEAT_S:
            return
        stuck = health.stuck(self._facts())
        if stuck and stuck != self._stuck:
            log.critical("stuck: %s; systemd's watchdog will restart the service", stuck)
        self._stuck = stuck
        if not stuck:
            self._fed_s = time.monotonic()
            yield "WATCHDOG=1"

    def _status(self) -> str:
        if self._phase == "starting":
            return "starting"
        try:
            words = doing(self._facts(), self._view)
        except LedgerError as error:
            words = str(error)
        words = f"stopping: {words}" if self._phase == "stopping" else words
        return printable(words)[:_MOST_CHARS]


def doing(facts: Facts, view: LedgerView) -> str:
    """What the daemon does, in one line for `systemctl status`. Raises `LedgerError`."""
    running = view.jobs(states=(JobState.RUNNING, JobState.PUBLISHING), limit=4)
    waiting, blocked = view.queue()
    parts = [
        f"rendering job {job.id} {job.fraction:.0%}" if job.state is JobState.RUNNING else f"publishing job {job.id}"
        for job in running
    ]
    parts = parts or (["idle"] if not blocked else [])
    parts += [f"blocked: {blocked}"] if blocked else []
    parts += [f"{waiting} queued"] if waiting else []
    failing = health.ready(facts)[1]["failing"]
    faults = "; ".join(f"{check}: {why}" for check, why in failing.items() if check not in ("draining", "probe"))
    return ", ".join(parts) + (f"; not ready: {faults}" if faults else "")
