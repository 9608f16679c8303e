"""Reports to systemd: that the daemon is ready, what it does, and that it is not stuck.

`Notifier` sends one datagram for each message, over the socket that systemd names in the environment. Without that
socket nothing is sent, and no failure to send reaches the daemon.

`SystemdReporter` has a thread of its own, because other threads may hang with a dead file server, where a restart
would not help. It feeds the watchdog as long as `health.stuck` finds nothing that a restart would mend.

Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from functools import partial

from lipsyncd import __version__
from lipsyncd.errors import LedgerError
from lipsyncd.jobs.job import JobState
from lipsyncd.ledger.view import LedgerView
from lipsyncd.log import printable
from lipsyncd.monitor import health
from lipsyncd.monitor.facts import Facts

log = logging.getLogger(__name__)

START_MOST_S = 900.0  # a migration of a large ledger with its backup is no reason to be killed
AFTER_GRACE_S = 45.0  # what ends after the last render: the web server, a webhook under way, the children
_REPORT_EVERY_S = 1.0  # at most, and while we start or stop
_QUIET_S = 5.0  # without news
_EXTENSION_S = 30.0
_FEEDS_PER_LIMIT = 3
_MOST_STATUS_CHARS = 400
_SEND_TIMEOUT_S = 2.0  # systemd reads nothing while it reloads itself


class Notifier:
    """The socket of systemd, if there is one. Takes its variables out of `environ`, so that no child uses them.

    watchdog_s  systemd ends a service that sends no WATCHDOG=1 for this long; 0 when it does not watch
    """

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        self._address = environ.pop("NOTIFY_SOCKET", "")
        watched = environ.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        limit_us = environ.pop("WATCHDOG_USEC", "")
        self.watchdog_s = int(limit_us) / 1e6 if watched and limit_us.isdecimal() else 0.0

    @property
    def has_listener(self) -> bool:
        return self._address.startswith(("/", "@"))

    def send(self, *assignments: str) -> None:
        """Send assignments such as "READY=1"; a line break in one of them would begin another."""
        if not self.has_listener:
            return
        address = f"\0{self._address[1:]}" if self._address[0] == "@" else self._address
        message = "\n".join(line.replace("\n", " ") for line in assignments)
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as ours,
        ):
            ours.settimeout(_SEND_TIMEOUT_S)
            ours.sendto(message.encode("utf-8", "replace"), address)


class SystemdReporter:
    """Reports on one daemon. Its methods are called by the main thread.

    view  its ledger, for the jobs under way
    """

    def __init__(self, notifier: Notifier, *, view: LedgerView) -> None:
        self._notifier = notifier
        self._facts: Callable[[], Facts] = partial(Facts, __version__)  # until it has started
        self._view = view
        self._phase = "starting"
        self._until_s = time.monotonic() + START_MOST_S
        self._sent_status = ""
        self._fed_s = 0.0
        self._stuck = ""
        self._end, self._news = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="systemd", daemon=True)

    def starting(self) -> None:
        """From now on systemd waits for us."""
        if self._notifier.has_listener:
            self._thread.start()

    def started(self, facts: Callable[[], Facts]) -> None:
        """The daemon works now; `facts` gives its state."""
        self._facts = facts
        self.ready()

    def changed(self) -> None:
        """There may be something new to report."""
        self._news.set()

    def ready(self) -> None:
        self._phase = "ready"
        self._notifier.send("READY=1", f"STATUS={self._status()}")

    def reloading(self) -> None:
        """The settings are read again. Newer versions of systemd want the time of it."""
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._notifier.send("RELOADING=1", f"MONOTONIC_USEC={now_us}", "STATUS=reading the settings again")
        self._sent_status = ""
        self._news.set()

    def stopping(self, grace_s: float) -> None:
        """Running jobs have `grace_s` to finish; systemd must not kill us before."""
        self._phase, self._until_s = "stopping", time.monotonic() + grace_s + AFTER_GRACE_S
        self._notifier.send("STOPPING=1", *self._extension(), f"STATUS={self._status()}")
        self._news.set()

    def end(self) -> None:
        self._end.set()
        self._news.set()
        if self._thread.is_alive():
            self._thread.join()

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._end.is_set():
            try:
                self.report()
            except Exception:
                log.exception("systemd: unexpected failure")  # and the watchdog is not fed, as it should be
            self._end.wait(_REPORT_EVERY_S)
            self._news.wait(self._rest_s())
            self._news.clear()

    def _rest_s(self) -> float:
        """How long nothing is due unless there is news."""
        if self._phase != "ready" or self._end.is_set():
            return 0.0
        feed_s = self._notifier.watchdog_s / _FEEDS_PER_LIMIT or _QUIET_S
        return max(0.0, min(feed_s, _QUIET_S) - _REPORT_EVERY_S)

    def report(self) -> None:
        """Send what has changed and what is due."""
        message = [*self._extension(), *self._watchdog()]
        status = self._status()
        if status != self._sent_status:
            self._sent_status = status
            message.append(f"STATUS={status}")
        if message:
            self._notifier.send(*message)

    def _extension(self) -> Iterator[str]:
        """While we start or stop, but not forever, ask for more time than the unit gives."""
        if self._phase != "ready" and time.monotonic() < self._until_s:
            yield f"EXTEND_TIMEOUT_USEC={round(_EXTENSION_S * 1e6)}"

    def _watchdog(self) -> Iterator[str]:
        every_s = self._notifier.watchdog_s / _FEEDS_PER_LIMIT
        if self._phase == "starting" or not every_s or time.monotonic() - self._fed_s < every_s - _REPORT_EVERY_S:
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
            status = activity(self._facts(), self._view)
        except LedgerError as error:
            status = str(error)
        status = f"stopping: {status}" if self._phase == "stopping" else status
        return printable(status)[:_MOST_STATUS_CHARS]


def activity(facts: Facts, view: LedgerView) -> str:
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
