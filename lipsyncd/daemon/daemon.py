"""The daemon: one process that holds the lock, puts right what a crash left, and runs its threads until told to stop.

    main      signals, control files, the status file, tidying up
    intake    scans the inbox when the doorbell rings and at least every `rescan_s`
    prepare   fetches, speaks, decodes what waits
    worker    one for each device: renders and publishes
    web       answers REST, in an event loop of its own
    systemd   reports to systemd
    keeper    prunes what has had its time, copies the ledger

Threads tell each other with events only; what is to be done stands in the ledger.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from lipsyncd import __version__
from lipsyncd.daemon import heap
from lipsyncd.daemon.commands import carry_out
from lipsyncd.daemon.housekeeping import Housekeeper
from lipsyncd.daemon.recovery import open_ledger, recover
from lipsyncd.daemon.reload import reload
from lipsyncd.errors import ConfigError, LedgerUnavailable, LipsyncdError
from lipsyncd.inbox.service import InboxService
from lipsyncd.jobs.did_talk import rest_of
from lipsyncd.jobs.job import Job, JobState, now_ms
from lipsyncd.ledger.live_progress import STATUS_FILE
from lipsyncd.ledger.view import LedgerView
from lipsyncd.media.ffmpeg import find as find_ffmpeg
from lipsyncd.monitor import facts, gpu
from lipsyncd.monitor.probe import HealthMonitor
from lipsyncd.monitor.systemd import Notifier, SystemdReporter
from lipsyncd.network import address_guard
from lipsyncd.network.webhooks import Webhooks, load_keys
from lipsyncd.prepare.preparer import Preparer
from lipsyncd.results.failures import Failures
from lipsyncd.results.finish import Finisher
from lipsyncd.results.publish import Publisher
from lipsyncd.results.stores import stores_of
from lipsyncd.sandbox.jail import landlock_abi
from lipsyncd.settings import CurrentSettings, Settings
from lipsyncd.storage import control_files
from lipsyncd.storage.disk_space import free_mb
from lipsyncd.storage.files import expect_lease_signals, write_json
from lipsyncd.storage.folders import folders_of
from lipsyncd.storage.locks import InstanceLock
from lipsyncd.storage.mounts import known_network
from lipsyncd.web.server import WebServer
from lipsyncd.weights import RENDERER, AutoPull, store_of
from lipsyncd.worker.attempt import Device
from lipsyncd.worker.batch_limits import FILE as CEILINGS_FILE
from lipsyncd.worker.batch_limits import Ceilings
from lipsyncd.worker.child_process import LocalChild, Timeouts
from lipsyncd.worker.loop import Worker

log = logging.getLogger(__name__)

_TICK_S = 0.1
_LEDGER_AGAIN_S = 1.0
_TIDY_EVERY_S = 30.0
_KEEPER_S = 5.0  # for the housekeeper's last step; a dead share may hold it for ever
_STATUS_EVERY_S = 1.0


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
        self._prepare = threading.Event()
        self._threads: list[threading.Thread] = []
        self._rendering: list[tuple[LocalChild, threading.Thread]] = []
        self._unexpected = 0
        self._arrivals = InboxService(self.settings, self.folders, make_room=lambda: self._housekeeper.make_room())
        view = LedgerView(self.folders.state / "ledger.db")
        self._systemd = SystemdReporter(Notifier(), facts=lambda: self._monitor.facts(), view=view)

    # -- start and stop ------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Work until SIGTERM or SIGINT. Raises `ConfigError` or `AnotherDaemonRuns` when it cannot begin."""
        started_s = time.monotonic()
        heap.share()
        self._systemd.starting()
        for note in self.settings.now.notes:
            log.info("%s", note)
        ffmpeg = find_ffmpeg(self.settings.now.render.ffmpeg)
        self._make_folders()
        lock = InstanceLock(self.folders.state)
        lock.acquire(command="lipsyncd run")
        try:
            self._arrivals.lock()
            expect_lease_signals()
            self._expect_signals()
            self._begin(ffmpeg)
            gc.freeze()  # imports stay: without this the collector looks through all of them every few requests
            log.info(
                "lipsyncd %s ready in %.2f s, inbox %s",
                __version__,
                time.monotonic() - started_s,
                self.settings.now.paths.inbox,
            )
            self._systemd.ready()
            self._loop()
            return self._end()
        finally:
            lock.release()
            self._systemd.end()

    def stop(self) -> None:
        self._stop.set()

    def _expect_signals(self) -> None:
        """Have signals noted, for `_obey`. SIGHUP asks for the settings, or, when our terminal has gone, to stop.

        The handlers take no lock, so they set no event: they interrupt the main thread anywhere, also where it holds
        that event's own lock, and then would wait for it for ever.
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
        """Do what signals ask for. The first one to stop lets the running job finish, the second one does not wait."""
        came, self._signals = self._signals, []
        for number in came:
            if number == signal.SIGHUP:
                continue
            if self._stop.is_set():
                self._cut_off.set()
            self._stop.set()
        if signal.SIGHUP in came and not self._stop.is_set():
            self._guarded(self._reload)

    def _make_folders(self) -> None:
        """Make the folders at the very first start; later only those that are ours alone."""
        paths = self.settings.now.paths
        if self.folders.known():
            paths.state.mkdir(parents=True, exist_ok=True)
            paths.spool.mkdir(parents=True, exist_ok=True)
        for kind, folder in (("state", paths.state), ("spool", paths.spool)):
            if found := known_network(folder):
                raise ConfigError(
                    f"paths.{kind} ({folder}) lies on {found}, where SQLite's locks do not hold",
                    remedy="put state and spool on a local disk; inbox, outbox, failed and archive may be shares",
                )
        for line in self.folders.initialise():
            log.info("%s", line)
        if paths.state.stat().st_dev != paths.spool.stat().st_dev:
            raise ConfigError(
                f"paths.state ({paths.state}) and paths.spool ({paths.spool}) lie on different file systems",
                remedy="put both on one local disk",
            )

    def _begin(self, ffmpeg: Path) -> None:
        settings = self.settings.now
        self._monitor = self._make_monitor()
        self._web = self._make_web(ffmpeg)
        self._ledger = open_ledger(self.folders.state / "ledger.db")
        self._stores = stores = stores_of(self.settings, self.folders, self._ledger)
        self.finisher = Finisher(stores)
        self._failures = Failures(stores, self.finisher)
        self._publisher = Publisher(stores, self.finisher, self._failures)
        self._arrivals.open(stores.spool, self._ledger)
        self._ledger.listeners += [self._monitor.job_metrics.record, self._on_move]
        recover(self._arrivals, stores, self.finisher)
        self._housekeeper = Housekeeper(stores, self.finisher)
        self._preparer = Preparer(stores, self.finisher, self._failures, self._publisher, ffmpeg)
        stores.waiting.append(self._prepare)
        self._webhooks = self._make_webhooks()
        self._weights = AutoPull(
            store_of(settings), allowed=settings.weights.auto_pull, min_free_mb=settings.paths.min_free_mb
        )
        self._ceilings = Ceilings(self.folders.state / CEILINGS_FILE)
        self._thread("intake", lambda: self._arrivals.run(self._stop.is_set, self._guarded, self._prepare))
        self._thread("prepare", self._prepare_loop)
        for device in settings.render.devices[: settings.render.max_concurrent_jobs]:
            self._begin_worker(device, ffmpeg)
        self._telling = threading.Thread(target=self._webhooks.run, name="webhooks")
        self._telling.start()
        self._keeping = threading.Thread(target=self._housekeeper.run, name="keeper", daemon=True)  # may hang too
        self._keeping.start()
        threading.Thread(target=self._monitor.run, name="monitor", daemon=True).start()  # may hang on a dead share
        if self._web is not None:
            self._web.start()

    def _make_web(self, ffmpeg: Path) -> WebServer | None:
        """The REST service, its port bound already; None when it is switched off."""
        if not self.settings.now.web.enabled:
            return None
        return WebServer(self.settings, self.folders, ffmpeg, self._is_loaded, self._monitor)

    def _is_loaded(self) -> bool:
        """Does a render child live? It keeps the renderer of its last job."""
        return any(child.pid is not None for child, _ in self._rendering)

    def _make_monitor(self) -> HealthMonitor:
        return HealthMonitor(
            self.settings,
            self.folders,
            touch=lambda: self._ledger.touch(),
            scan_age_s=lambda: self._arrivals.scan_age_s,
            scan_due_s=lambda: self._arrivals.scan_due_s,
            workers=lambda: [_worker_facts(*one) for one in self._rendering],
            webhooks=lambda: {state.value: n for state, n in self._webhooks.tries.items()},
            refused_connections=address_guard.refused_connections,
            vram=self._vram,
            weights=lambda: self._weights.fault() if self.settings.now.render.renderer == RENDERER else "",
            jailed=landlock_abi() > 0,
            inbox=lambda: self._arrivals.facts,
        )

    def _make_webhooks(self) -> Webhooks:
        web = self.settings.now.web
        keys = load_keys(self.folders.state, web.webhook_secret_file, os.environ)
        self.settings.before_change(self._prepare_webhook_keys)
        made = Webhooks(self._ledger.deliveries, keys=keys, allow=web.webhook_allow, result_url=self._result_url)
        self._ledger.listeners.append(lambda _step, job: made.wake() if job.webhook else None)
        return made

    def _result_url(self, job_id: str) -> str:
        """Where a receiver finds the video; an empty text when nothing serves it."""
        job = None if self._web is None else self._ledger.find(job_id)
        if job is None or self._web is None:
            return ""
        base = rest_of(job).get("base") or self._web.address  # the receiver reaches us where the client does
        return self._web.links.talk(job_id, job.out_name, base)

    def _vram(self) -> dict[str, int]:
        found = gpu.memory(self.settings.now.render.devices[0])
        return {} if found is None else {"used": round(found.used_gb * 1e9), "total": round(found.total_gb * 1e9)}

    def _prepare_webhook_keys(self, settings: Settings) -> Callable[[], None]:
        """Read the keys again. Raises `ConfigError`."""
        keys = load_keys(self.folders.state, settings.web.webhook_secret_file, os.environ)

        def take_over() -> None:
            self._webhooks.keys = keys

        return take_over

    def _render_timeouts(self) -> Timeouts:
        render = self.settings.now.render
        return Timeouts(render.start_timeout_s, render.job_timeout_s, render.stall_timeout_s)

    def _begin_worker(self, device: str, ffmpeg: Path) -> None:
        render = self.settings.now.render
        child = LocalChild(
            device,
            self._render_timeouts,
            renderers=render.renderers,
            preload="" if render.lazy_load else render.renderer,
            variables={
                "LIPSYNCD_WEIGHTS_DIR": str(self._weights.store.folder),
                "LIPSYNCD_RENDER_MAX_VRAM_GB": f"{render.max_vram_gb:g}",
                "LIPSYNCD_RENDER_CLEAR_CACHE": str(render.clear_cache).lower(),
            },
        )
        worker = Worker(
            Device(device, child, ffmpeg, self._weights, self._ceilings),
            self._stores,
            self.finisher,
            self._failures,
            self._publisher,
            stopping=self._stop.is_set,
            cut_off=self._cut_off.is_set,
        )
        self._stores.waiting.append(worker.wake)
        self._rendering.append((child, self._thread(f"worker-{device}", worker.run)))

    def _thread(self, name: str, work: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=work, name=name)
        self._threads.append(thread)
        thread.start()
        return thread

    def _end(self) -> int:
        """Let the running job finish, or put it back; then close everything in order."""
        grace_s = self.settings.now.render.stop_grace_s
        log.info("stopping: a running job has %g s to finish", grace_s)
        deadline = time.monotonic() + grace_s
        self._monitor.drain()
        self._systemd.stopping(grace_s)
        self._arrivals.ring.set()
        self._weights.stop(0)
        self._stores.wake()
        while any(thread.is_alive() for thread in self._threads):
            self._obey()
            if time.monotonic() > deadline:
                self._cut_off.set()
            self._monitor.tick()
            self._guarded(self._serve_control)
            time.sleep(_TICK_S)
        if self._web is not None:
            self._web.stop()
        self._webhooks.stop()  # last of all: jobs have ended until now
        self._telling.join()
        self._monitor.stop()
        self._housekeeper.stop()
        self._keeping.join(_KEEPER_S)
        self._ledger.close()
        (self.folders.state / STATUS_FILE).unlink(missing_ok=True)
        log.info("stopped")
        return 1 if self._unexpected else 0

    # -- the main thread -----------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        tidied_s = told_s = time.monotonic()
        self._guarded(self._write_status)
        while not self._stop.is_set():
            self._monitor.tick()
            self._obey()
            self._guarded(self._serve_control)
            now_s = time.monotonic()
            if now_s - told_s >= _STATUS_EVERY_S:
                told_s = now_s
                self._guarded(self._write_status)
            if now_s - tidied_s >= _TIDY_EVERY_S:
                tidied_s = now_s
                self._guarded(self._tidy)
            self._stop.wait(_TICK_S)

    def _reload(self) -> None:
        self._systemd.reloading()
        try:
            reload(self.settings, self._read_again)
        finally:
            self._systemd.ready()

    def _tidy(self) -> None:
        self.finisher.tidy()
        control_files.sweep(self.folders.control)

    def _serve_control(self) -> None:
        for path, request in control_files.pending(self.folders.control):
            if request is not None and request.action == control_files.PRUNE:
                self._housekeeper.take(path)
                continue
            control_files.answer(path, carry_out(request, self._stores, self.finisher))
            self._stores.wake()

    def _on_move(self, step: str, job: Job) -> None:
        """A job that is queued anew is prepared; the end of one serves the jobs that wait for the same work."""
        if job.state.ended or step == JobState.QUEUED:
            self._prepare.set()

    def _write_status(self) -> None:
        """What `lipsyncd status` shows besides the ledger: the inbox, and that we live."""
        content = {
            "pid": os.getpid(),
            "at_ms": now_ms(),
            "version": __version__,
            **self._arrivals.status(),
            "outbox_available": not self._monitor.fault("outbox"),
            "free_mb": round(free_mb(self.folders.spool)),
            "progress": self._stores.running.progress(),
            "web_port": None if self._web is None else self._web.port,
        }
        write_json(self.folders.state / STATUS_FILE, content, mode=0o640)

    # -- the other threads ---------------------------------------------------------------------------------------------

    def _prepare_loop(self) -> None:
        while not self._stop.is_set():
            self._prepare.clear()
            if self._guarded(self._preparer.run_once):
                self._stores.wake(besides=self._prepare)
            else:
                self._prepare.wait(self._until_due_s())

    def _until_due_s(self) -> float:
        try:
            return self._stores.seconds_until_due()
        except LedgerUnavailable:
            return _LEDGER_AGAIN_S

    def _guarded(self, work: Callable[[], bool | None]) -> bool:
        """Do a piece of work that must never end its thread; gives its answer, False when it failed."""
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


def _worker_facts(child: LocalChild, thread: threading.Thread) -> facts.WorkerFacts:
    return facts.WorkerFacts(child.device, thread.is_alive(), child.starts, child.unwatched_s())


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
