"""The daemon: one process that holds the lock, repairs what a crash left, and runs its threads until it is stopped.

    main      handles signals and control files, writes the status file after changes
    intake    scans the inboxes after a change and at least every `rescan_s`
    prepare   fetches, speaks and decodes the inputs of waiting jobs
    worker    one for each device or slot: renders and publishes
    slots     follows the machines of a cluster
    web       answers REST, in an event loop of its own
    webhooks  delivers webhooks
    monitor   probes ledger, folders and disks
    keeper    prunes expired files, copies the ledger
    systemd   reports to systemd

Threads wake each other by events, or wake up when something is due; the ledger records what is to be done.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from types import FrameType

from lipsyncd import __version__
from lipsyncd.cluster.slots import Slots
from lipsyncd.daemon.commands import carry_out
from lipsyncd.daemon.parts import Parts, make_folders, share_heap
from lipsyncd.daemon.recovery import open_ledger, recover
from lipsyncd.daemon.reload import reload
from lipsyncd.daemon.wakeup import Wakeup
from lipsyncd.errors import LedgerUnavailable, LipsyncdError
from lipsyncd.inbox import order_rules
from lipsyncd.inbox.service import lock_inboxes
from lipsyncd.inbox.watch import FolderEvents
from lipsyncd.jobs.job import now_ms
from lipsyncd.ledger.live_progress import STATUS_FILE
from lipsyncd.ledger.view import LedgerView
from lipsyncd.media.ffmpeg import find as find_ffmpeg
from lipsyncd.monitor import reload_request
from lipsyncd.monitor.running_daemon import leave_pointer
from lipsyncd.monitor.systemd import Notifier, SystemdReporter
from lipsyncd.processes import raise_file_limit
from lipsyncd.sandbox import subreaper
from lipsyncd.settings import CurrentSettings, Settings
from lipsyncd.storage import control_files
from lipsyncd.storage.disk_space import free_mb
from lipsyncd.storage.files import write_json
from lipsyncd.storage.folders import folders_of
from lipsyncd.storage.leases import expect_lease_signals, keep_rights_from_children
from lipsyncd.storage.locks import InstanceLock
from lipsyncd.worker.encoder_process import require_encoder

log = logging.getLogger(__name__)

_TICK_S = 0.1  # while a folder is polled, and while the daemon stops
_LOOK_EVERY_S = 5.0  # into the control folder although its changes are heard, and the status is as old at most
_LEDGER_AGAIN_S = 1.0
_TIDY_EVERY_S = 30.0
_TIDY_LIMIT_S = 300.0  # it may copy a video to a slow archive
_KEEPER_S = 5.0  # for the housekeeper's last step; a dead share may hold it forever
_STATUS_EVERY_S = 1.0  # at most


@dataclass(frozen=True)
class _Threads:
    """The threads that were started. Those of `jobs` work on jobs until the daemon stops."""

    jobs: list[threading.Thread]
    webhooks: threading.Thread
    keeper: threading.Thread
    monitor: threading.Thread
    slots: threading.Thread | None


class Daemon:
    """Everything that `lipsyncd run` runs. `run` returns the exit status after a signal or `stop`.

    read_again  reads the settings as they are on disk now, for SIGHUP
    """

    def __init__(self, settings: Settings, read_again: Callable[[], Settings] | None = None) -> None:
        self.settings = CurrentSettings(settings)
        self._read_again = read_again or (lambda: settings)
        self.folders = folders_of(settings.paths, [queue.name for queue in settings.queues])
        self._stop = threading.Event()
        self._cut_off = threading.Event()
        self._signals: list[int] = []
        self._unexpected = 0
        self._wakeup: Wakeup | None = None  # while it runs
        self._news = True  # something has changed since the status was written
        self._shown: tuple[object, ...] = ()  # of the status, to the readers of streams
        self._left_out: set[str] = set()  # requests that were answered and cannot be removed
        self._systemd = SystemdReporter(Notifier(), view=LedgerView(self.folders.state / "ledger.db"))

    # -- start and stop ------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Work until SIGTERM or SIGINT. Raises `ConfigError` or `AnotherDaemonRuns` when it cannot start."""
        started_s = time.monotonic()
        keep_rights_from_children()
        share_heap()
        subreaper.become()
        raise_file_limit()
        self._systemd.starting()
        for note in self.settings.now.notes:
            log.info("%s", note)
        ffmpeg = find_ffmpeg(self.settings.now.render.ffmpeg)
        require_encoder(ffmpeg, self.settings.now.output.encoder)
        make_folders(self.folders)
        lock = InstanceLock(self.folders.state)
        lock.acquire(command="lipsyncd run")
        try:
            locks = lock_inboxes(self.folders)
            order_rules.record(self.settings.now)
            expect_lease_signals()
            self._expect_signals()
            with closing(Wakeup()) as self._wakeup, closing(open_ledger(self.folders.state / "ledger.db")) as ledger:
                self._wakeup.expect_signals()
                parts = Parts(
                    self.settings, self.folders, ledger, locks, ffmpeg, stop=self._stop, cut_off=self._cut_off
                )
                recover(parts.inboxes.register, parts.stores, parts.finisher)
                ledger.commit_listeners.append(self._changed)
                parts.inboxes.scanned = parts.monitor.changed = parts.stores.running.changed = self._changed
                if parts.slots is not None:
                    parts.slots.changed = self._changed
                threads = self._start(parts)
                gc.freeze()  # imports stay: otherwise the collector scans all of them every few requests
                took_s, paths = time.monotonic() - started_s, self.settings.now.paths
                log.info("lipsyncd %s ready in %.2f s, inbox %s", __version__, took_s, paths.inbox)
                self._systemd.started(parts.monitor.facts)
                pointer = leave_pointer(self.settings.now)
                self._loop(parts)
                if pointer is not None:
                    pointer.remove()
                self._end(parts, threads)
            (self.folders.state / STATUS_FILE).unlink(missing_ok=True)
            log.info("stopped")
            return 1 if self._unexpected else 0
        finally:
            lock.release()
            self._systemd.end()

    def stop(self) -> None:
        self._stop.set()
        if self._wakeup is not None:
            self._wakeup.set()

    def _changed(self) -> None:
        """Have the status written soon. Any thread may call this, however often."""
        if not self._news:
            self._news = True
            if self._wakeup is not None:
                self._wakeup.set()

    def _expect_signals(self) -> None:
        """Have signals noted, for `_obey`. SIGHUP means to read the settings, or, when our terminal is gone, to stop.

        The handlers take no lock, so they set no event: they interrupt the main thread anywhere, also where it holds
        that event's own lock, and would then wait for it forever.
        """
        had_terminal = _has_terminal() and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN  # nohup ignores it

        def on_hangup(number: int, frame: FrameType | None) -> None:
            gone = had_terminal and not _has_terminal()
            self._on_signal(signal.SIGTERM if gone else number, frame)

        signal.signal(signal.SIGHUP, on_hangup)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._signals.append(number)

    def _obey(self) -> None:
        """Act on signals. The first one to stop lets the running job finish, the second one does not wait."""
        received, self._signals = self._signals, []
        for number in received:
            if number == signal.SIGHUP:
                continue
            if self._stop.is_set():
                self._cut_off.set()
            self._stop.set()
        if signal.SIGHUP in received and not self._stop.is_set():
            self._guarded(self._reload)

    def _start(self, parts: Parts) -> _Threads:
        intake = partial(parts.inboxes.run, self._stop.is_set, self._guarded)
        threads = _Threads(
            jobs=[
                threading.Thread(target=intake, name="intake"),
                threading.Thread(target=self._prepare_loop, args=(parts,), name="prepare"),
                *parts.worker_threads(),
            ],
            webhooks=threading.Thread(target=parts.webhooks.run, name="webhooks"),
            keeper=threading.Thread(target=parts.housekeeper.run, name="keeper", daemon=True),  # may hang, too
            monitor=threading.Thread(target=parts.monitor.run, name="monitor", daemon=True),  # may hang on a dead share
            slots=None if parts.slots is None else self._slots_thread(parts.slots),
        )
        for thread in (*threads.jobs, threads.webhooks, threads.keeper, threads.monitor):
            thread.start()
        if threads.slots is not None:
            threads.slots.start()
        if parts.web is not None:
            parts.web.start()
        return threads

    def _slots_thread(self, slots: Slots) -> threading.Thread:
        arguments = (self._stop.is_set, self._stop.wait)
        return threading.Thread(target=slots.run, args=arguments, name="slots", daemon=True)  # may hang with Ray

    def _end(self, parts: Parts, threads: _Threads) -> None:
        """Let the running job finish, or put it back; then end everything in order."""
        grace_s = self.settings.now.render.stop_grace_s
        log.info("stopping: a running job has %g s to finish", grace_s)
        deadline = time.monotonic() + grace_s
        parts.monitor.drain()
        self._systemd.stopping(grace_s)
        parts.inboxes.wake.set()
        parts.weights.stop(0)
        parts.stores.wake()
        parts.fetcher.close()
        while any(thread.is_alive() for thread in (*threads.jobs, *parts.worker_threads())):
            self._obey()
            if time.monotonic() > deadline:
                self._cut_off.set()
            parts.monitor.tick()
            self._guarded(partial(self._serve_control, parts))
            time.sleep(_TICK_S)
        if parts.slots is not None and threads.slots is not None:
            threads.slots.join(_KEEPER_S)
            if not threads.slots.is_alive():
                self._guarded(parts.slots.close)
        if parts.web is not None:
            parts.web.stop()
        parts.webhooks.stop()  # last, since jobs have ended until now
        threads.webhooks.join()
        parts.monitor.stop()
        parts.housekeeper.stop()
        threads.keeper.join(_KEEPER_S)

    # -- the main thread -----------------------------------------------------------------------------------------------

    def _loop(self, parts: Parts) -> None:
        """Work when something has come or is due, until the daemon is to stop."""
        assert self._wakeup is not None
        tidied_s, reported_s = time.monotonic(), float("-inf")
        with control_files.opened(self.folders.control) as control:
            requests = FolderEvents(control, self._wakeup.set)
        with closing(requests):
            while not self._stop.is_set():
                parts.monitor.tick()
                self._obey()
                self._guarded(partial(self._serve_control, parts))
                now_s = time.monotonic()
                if now_s - reported_s >= self._status_every_s(parts):
                    reported_s = now_s
                    self._guarded(partial(self._write_status, parts))
                if now_s - tidied_s >= _TIDY_EVERY_S:
                    tidied_s = now_s
                    self._guarded(partial(self._tidy, parts))
                due_s = min(reported_s + self._status_every_s(parts), tidied_s + _TIDY_EVERY_S)
                look_s = _LOOK_EVERY_S if requests.heard else _TICK_S
                if not self._stop.is_set():
                    self._wakeup.wait(min(due_s - time.monotonic(), look_s))

    def _status_every_s(self, parts: Parts) -> float:
        return _STATUS_EVERY_S if self._news or parts.stores.running.progress() else _LOOK_EVERY_S

    def _reload(self) -> None:
        begun_ns = time.monotonic_ns()
        self._systemd.reloading()
        outcome = reload_request.Outcome(1, ["the settings could not be read again; see the daemon's log"])
        try:
            outcome = reload(self.settings, self._read_again)
            order_rules.record(self.settings.now)
        finally:
            self._systemd.ready()
            reload_request.answer(self.folders.state, outcome, begun_ns=begun_ns)

    def _tidy(self, parts: Parts) -> None:
        with parts.stores.steps.at("main", "has moved files of ended jobs", limit_s=_TIDY_LIMIT_S, on_share=True):
            parts.finisher.tidy()
        control_files.sweep(self.folders.control)

    def _serve_control(self, parts: Parts) -> None:
        for name, request in control_files.pending(self.folders.control, self._left_out):
            if request is not None and request.action == control_files.PRUNE:
                parts.housekeeper.take(name)
                continue
            reply = carry_out(request, parts.stores, parts.finisher)
            if not control_files.answer(self.folders.control, name, reply):
                self._left_out.add(name)
            parts.stores.wake()

    def _write_status(self, parts: Parts) -> None:
        """What `lipsyncd status` shows besides the ledger: the inbox, and that the daemon lives."""
        news, self._news = self._news, False
        content = {
            "pid": os.getpid(),
            "at_ms": now_ms(),
            "version": __version__,
            **parts.inboxes.status(),
            "outbox_available": not parts.monitor.fault("outbox"),
            "free_mb": round(free_mb(self.folders.spool)),
            "progress": parts.stores.running.progress(),
            **({} if parts.slots is None else {"slots": parts.slots.facts(), "cluster_fault": parts.slots.fault}),
            "web_port": None if parts.web is None else parts.web.port,
            "web_keys": 0 if parts.web is None else len(parts.web.access.keys),
            "web_admin": parts.web is not None and any(key.admin for key in parts.web.access.keys),
        }
        write_json(self.folders.state / STATUS_FILE, content, mode=0o640)
        if news or content["progress"]:
            self._systemd.changed()
        shown = content["progress"], content.get("paused"), parts.slot_count()
        if shown != self._shown and parts.web is not None:
            parts.web.progressed()
        self._shown = shown

    # -- the other threads ---------------------------------------------------------------------------------------------

    def _prepare_loop(self, parts: Parts) -> None:
        while not self._stop.is_set():
            parts.prepare_due.clear()
            if self._guarded(parts.preparer.run_once):
                parts.stores.wake(besides=parts.prepare_due)
            elif not self._stop.is_set():  # the stop sets the event after this
                parts.prepare_due.wait(_until_due_s(parts))

    def _guarded(self, work: Callable[[], bool | None]) -> bool:
        """Do a piece of work that must never end its thread; gives its result, False when it failed."""
        try:
            return bool(work())
        except LedgerUnavailable as error:
            log.warning("%s", error)
            self._stop.wait(_LEDGER_AGAIN_S)
        except (LipsyncdError, OSError) as error:
            log.warning("%s", error)
        except Exception:
            self._unexpected += 1
            log.exception("unexpected failure")
        self._stop.wait(_TICK_S)
        return False


def _until_due_s(parts: Parts) -> float:
    try:
        return parts.stores.seconds_until_due()
    except LedgerUnavailable:
        return _LEDGER_AGAIN_S


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
