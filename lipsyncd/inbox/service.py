"""Every inbox folder of one daemon, and the one thread that scans them.

    watch    notices changes
    lock     held while we serve the folder: two daemons on one share would both take every drop
    inbox    finds which files are finished and belong together
    intake   takes them into spool and ledger

A folder that cannot be served has a `fault` and is tried again at the next scan. While a disk is low no drop is taken.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from lipsyncd.errors import FolderNotOurs
from lipsyncd.inbox import first_seen
from lipsyncd.inbox.accept import Accepted, Intake
from lipsyncd.inbox.explain import Explainer
from lipsyncd.inbox.first_seen import FirstSeen
from lipsyncd.inbox.scan import Inbox, rules_of
from lipsyncd.inbox.shown import MOST, Shown, together
from lipsyncd.inbox.watch import Overflows, Watch
from lipsyncd.jobs import manifest_mac
from lipsyncd.jobs.job import JobSpec
from lipsyncd.ledger.ledger import Ledger
from lipsyncd.monitor.facts import InboxFacts
from lipsyncd.settings import CurrentSettings
from lipsyncd.storage.disk_space import shortage
from lipsyncd.storage.folders import Folders
from lipsyncd.storage.leases import sees_other_users_writers
from lipsyncd.storage.locks import FolderLock, already_served
from lipsyncd.storage.secret_file import secret_in
from lipsyncd.storage.shared_folders import keeps_accepted_files
from lipsyncd.storage.spool import Spool

log = logging.getLogger(__name__)


@dataclass
class ServedInbox:
    """One inbox folder. `fault` is the reason why it cannot be served at present, or ""."""

    kind: str
    inbox: Inbox
    intake: Intake
    watch: Watch
    lock: FolderLock
    explainer: Explainer
    fault: str = ""


class InboxService:
    """All inboxes of one daemon. `run` is the scanning thread's work; the rest may be read from any thread.

    locks      of the inboxes, by kind of folder (`lock_inboxes`)
    make_room  called when the disk is low: removes what may go, True when that was enough
    wake       set to scan at once
    scanned    called after each scan of all inboxes
    paused     why no drop is taken; "" when drops are taken
    """

    def __init__(
        self,
        settings: CurrentSettings,
        folders: Folders,
        spool: Spool,
        ledger: Ledger,
        locks: Mapping[str, FolderLock],
        *,
        make_room: Callable[[], bool] = lambda: False,
    ) -> None:
        self.settings = settings
        self.folders = folders
        self.make_room = make_room
        self.wake = threading.Event()
        self.scanned: Callable[[], None] = lambda: None
        self.paused = ""
        self._leases = sees_other_users_writers(folders.state)
        self.inboxes = [self._open(kind, lock, spool, ledger) for kind, lock in locks.items()]
        self._overflows = Overflows(self.wake.set)
        self._scanned_s = time.monotonic()

    def _open(self, kind: str, lock: FolderLock, spool: Spool, ledger: Ledger) -> ServedInbox:
        folder, queue = self.folders.shared[kind], queue_of(kind)
        settings = self.settings.now
        queues = () if queue else [preset.name for preset in settings.queues]
        secret = secret_in(self.folders.state / manifest_mac.SECRET_FILE)
        inbox = Inbox(folder, rules_of(settings), network=False, queues=queues, secret=secret)
        intake = Intake(self.settings, inbox, spool, ledger, queue)
        watch = Watch(folder, mode=settings.watch.mode, notify=self.wake.set)
        inbox.settling.modified = watch.modified
        inbox.settling.first_seen = FirstSeen(self.folders.state / first_seen.file_name(queue))
        return ServedInbox(kind, inbox, intake, watch, lock, Explainer(folder))

    def register(self, spec: JobSpec) -> Accepted | None:
        """Give a job that was accepted before a crash its row."""
        by_queue = {queue_of(served.kind): served for served in self.inboxes}
        return by_queue.get(spec.queue, self.inboxes[0]).intake.register(spec)

    # -- scanning ------------------------------------------------------------------------------------------------------

    def run(self, stop: Callable[[], bool], guarded: Callable[[Callable[[], None]], object]) -> None:
        """Scan until `stop`. `guarded` runs a scan and catches its errors."""
        while not stop():
            self.wake.clear()
            self.paused = self._why_paused()
            for served in self.inboxes:
                guarded(partial(self.scan, served, stop))
            self.scanned()
            if not stop():  # the stop sets the event after this
                self.wake.wait(self._until_next_scan_s())
        for served in self.inboxes:
            served.watch.stop()
        self._overflows.close()

    def scan(self, served: ServedInbox, stop: Callable[[], bool] = lambda: False) -> None:
        """Take what is ready in one inbox."""
        self._set_fault(served, self._why_unavailable(served))
        if served.fault:
            return
        with served.inbox.shared.opened() as root:
            if root is None:
                return
            answers = served.inbox.settling.answers
            served.watch.writes = (self._leases if answers is None else answers) is not True
            served.watch.check(root)
        served.inbox.settling.network = served.watch.network
        served.inbox.settling.rules = rules_of(self.settings.now)
        if self.paused:
            return
        try:
            served.intake.scan(stop)
        except OSError as error:
            self._set_fault(served, f"{served.inbox.shared.where} cannot be listed: {error.strerror}")
            return
        self._scanned_s = time.monotonic()
        if served.intake.cut_short:
            self.wake.set()
        else:
            self._explain(served)

    def _explain(self, served: ServedInbox) -> None:
        """Explain in the folder itself what is left there."""
        inbox, reasons = served.inbox, dict[str, str]()
        if self.settings.now.intake.explain:
            reasons = {**inbox.ignored, **inbox.settling.unreadable, **{w.name: w.why for w in inbox.waiting}}
        with inbox.shared.opened() as root:
            if root is not None:
                served.explainer.update(root, reasons)

    def _why_unavailable(self, served: ServedInbox) -> str:
        shared = served.inbox.shared
        try:
            with shared.opened() as root:
                if root is None:
                    return shared.absence
                if keeps_accepted_files(root):
                    return (
                        f"{shared.where} is sticky and belongs to another user, so that no accepted file could be "
                        "removed; let the daemon's user own it, or clear that bit (chmod -t)"
                    )
            return served.lock.hold()
        except (FolderNotOurs, OSError) as error:
            return str(error)

    @staticmethod
    def _set_fault(served: ServedInbox, fault: str) -> None:
        if fault and served.fault != fault:
            log.warning("inbox: %s", fault)
        served.fault = fault

    def _why_paused(self) -> str:
        spool = self.folders.spool
        try:
            why = shortage(spool, self.settings.now.paths.min_free_mb)
        except OSError as error:
            return f"the free space of {spool} cannot be read: {error.strerror}"
        if why and self.make_room():
            why = ""
        if why and not self.paused:
            log.warning("nothing is taken in or rendered: %s", why)
        elif self.paused and not why:
            log.info("%s has room again", spool)
        return why

    def _until_next_scan_s(self) -> float:
        """Seconds until the next scan, if no change is noticed before."""
        looks = [served.inbox.settling.next_scan_s for served in self.inboxes if not served.fault and not self.paused]
        soon = [seconds + 0.005 for seconds in looks if seconds is not None]
        return min([self.scan_due_s(), *soon])

    # -- for health checks and status ----------------------------------------------------------------------------------

    def scan_age_s(self) -> float:
        return time.monotonic() - self._scanned_s

    def scan_due_s(self) -> float:
        """Seconds between two scans when no change is noticed."""
        watch = self.settings.now.watch
        heard = all(served.watch.events and not served.fault for served in self.inboxes) and not self.paused
        return watch.rescan_s if heard else watch.poll_s

    @property
    def leases(self) -> bool | None:
        """Does the kernel tell whether files of other users are being written? As of the last such file in an inbox.

        Before the first one, as of the trial at the start; None when there was nothing to try.
        """
        answers = [answer for served in self.inboxes if (answer := served.inbox.settling.answers) is not None]
        return all(answers) if answers else self._leases

    def facts(self) -> InboxFacts:
        watches = [served.watch for served in self.inboxes]
        return InboxFacts(
            paused=self.paused,
            degraded="; ".join(watch.degraded for watch in watches if watch.degraded),
            stuck_files=self.stuck_files.total,
            overflows=self._overflows.count,
            restarts=sum(watch.restarts for watch in watches),
        )

    @property
    def stuck_files(self) -> Shown:
        """Files in the inboxes that cannot be taken, or not be removed after they were, and why."""
        return self._of_all(lambda served: together(served.inbox.settling.unreadable, served.intake.stuck))

    def status(self) -> dict[str, Any]:
        """What `lipsyncd status` shows of the inboxes. Long lists are cut, and `..._more` counts the rest."""
        first, blocked = self.inboxes[0], self.stuck_files
        ignored = self._of_all(lambda served: served.inbox.ignored)
        waiting = [
            {**asdict(file), "name": _in_queue(served, file.name)}
            for served in self.inboxes
            for file in served.inbox.waiting
        ]
        more_waiting = sum(served.inbox.more_waiting for served in self.inboxes)
        return {
            "inbox": first.inbox.shared.where,
            "inbox_available": not first.fault,
            "inbox_fault": first.fault,
            "watch": "events" if first.watch.events else "polling",
            "degraded": self.facts().degraded,
            "leases": self.leases,
            "paused": self.paused,
            "scan_age_s": round(self.scan_age_s(), 1),
            "waiting": waiting[:MOST],
            "waiting_more": len(waiting[MOST:]) + more_waiting,
            "blocked": blocked,
            "blocked_more": blocked.more,
            "queues": [self._queue(served) for served in self.inboxes[1:]],
            "ignored": ignored,
            "ignored_more": ignored.more,
        }

    def _queue(self, served: ServedInbox) -> dict[str, Any]:
        name = queue_of(served.kind)
        watch = "events" if served.watch.events else "polling"
        priority = self.settings.now.queue(name).priority
        return {"name": name, "priority": priority, "fault": served.fault, "watch": watch}

    def _of_all(self, read: Callable[[ServedInbox], Shown]) -> Shown:
        """What `read` gives for the files of each inbox, with the queue before the name."""
        found = Shown()
        for served in self.inboxes:
            shown = read(served)
            for name, why in shown.items():
                found.note(_in_queue(served, name), why)
            found.more += shown.more
        return found


def lock_inboxes(folders: Folders) -> dict[str, FolderLock]:
    """Lock the inboxes that are available. Raises `AnotherDaemonRuns` when another daemon serves one of them."""
    locks = {}
    for kind in folders.inboxes:
        lock = locks[kind] = FolderLock(folders.shared[kind])
        if folders.available(kind) and (fault := lock.hold()):
            raise already_served(fault)
    return locks


def _in_queue(served: ServedInbox, name: str) -> str:
    """The name of a file with the queue before it."""
    queue = queue_of(served.kind)
    return f"{queue}/{name}" if queue else name


def queue_of(kind: str) -> str:
    """The queue whose folder that kind is; "" for the inbox itself."""
    return kind.partition("/")[2]
