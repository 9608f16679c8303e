"""The daemon's housekeeper: copies the ledger and prunes every night, and makes room when a disk runs full.

    every ten minutes    prunes the videos in `state/results` and uploads, whose limits are hours; removes what a crash
                         has left of a copy of the ledger
    every night          copies the ledger; prunes all other kinds and the ledger's old rows
    below the floor      prunes what is due, then what has a limit, oldest first, before intake pauses
    on request           prunes for `lipsyncd prune`

It has a thread of its own and works in small steps: no render, no publishing and no scan waits for it. Nothing is
pruned by its age while the wall clock is not trusted (`clock`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import datetime, timedelta

from lipsyncd.daemon.clock import WallClock, steady_s
from lipsyncd.errors import LipsyncdError
from lipsyncd.jobs.blocked import LONGEST_WAIT_S
from lipsyncd.jobs.job import JobState
from lipsyncd.jobs.retry import BACK_OFF_S
from lipsyncd.ledger import backups
from lipsyncd.ledger.upkeep import BATCH_ROWS
from lipsyncd.ledger.view import LedgerView
from lipsyncd.network.webhooks import SCHEDULE_S
from lipsyncd.results import leftovers
from lipsyncd.results.finish import Finisher
from lipsyncd.results.leftovers import ARCHIVE, FAILED, KINDS, OUTBOX, RESULTS, UPLOADS, Piece
from lipsyncd.results.retention import LEDGER, Count, Retention, count_of
from lipsyncd.results.stores import Stores
from lipsyncd.settings.sections import Retention as Rules
from lipsyncd.storage import control_files
from lipsyncd.storage.disk_space import free_mb, shortage
from lipsyncd.storage.files import read_json, write_json
from lipsyncd.storage.open_folder import OpenFolder
from lipsyncd.storage.uploads import Uploads

log = logging.getLogger(__name__)

OFTEN = (RESULTS, UPLOADS)
NIGHTLY = (OUTBOX, ARCHIVE, FAILED, LEDGER)
_LOOK_EVERY_S = 5.0
_OFTEN_S = 600.0
_IDLE_S = 60.0
_PAUSE_S = 0.002  # between two removals: renders use the disk first
_NOTICED_S = 2.0  # more than the clock is ever slewed between two readings
_ROOM_AGAIN_S = 60.0
_SPARE = 1.1  # times the floor, so that the next job finds enough room
_MB = 1_000_000


class Housekeeper:
    """Keeps the folders and the ledger of one daemon small. `wall` and `steady` are as for `WallClock`."""

    def __init__(
        self,
        stores: Stores,
        finisher: Finisher,
        *,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = steady_s,
    ) -> None:
        self._stores, self._finisher = stores, finisher
        self.folders = stores.folders
        self._view = LedgerView(stores.ledger.path)
        self._wall, self._steady = wall, steady
        self._clock = WallClock(self.folders.state, wall=wall, steady=steady)
        self._offset_s: float | None = None  # of the wall clock to the steady one, when waits were last clamped
        self._often_s = self._idle_s = self._room_s = float("-inf")
        self._stop, self._wake = threading.Event(), threading.Event()
        self._requests: dict[str, None] = {}  # in order of arrival
        self._busy = threading.Lock()
        self._record = self.folders.state / "nights.json"

    @property
    def rules(self) -> Rules:
        return self._stores.settings.now.retention

    @property
    def retention(self) -> Retention:
        return Retention(self._stores.settings.now, self.folders, self._view)

    # -- the thread ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until `stop`. No error with a folder ends this thread."""
        while not self._stop.is_set():
            self._wake.clear()
            try:
                self.look()
            except (LipsyncdError, OSError) as error:
                log.warning("housekeeping: %s", error)
            except Exception:
                log.exception("housekeeping: unexpected failure")
            if not self._stop.is_set():  # the stop sets the event after this
                self._wake.wait(_LOOK_EVERY_S)

    def stop(self) -> None:
        self._stop.set()
        self._wake.set()

    def look(self) -> None:
        """Do what is due now."""
        self._clock.look()
        self._clamp_waits()
        self._serve()
        now_s = self._steady()
        if now_s - self._room_s >= _ROOM_AGAIN_S and any(self._low()):
            self.make_room()
        if now_s - self._often_s >= _OFTEN_S:
            self._often_s = now_s
            backups.sweep(self.folders.state / backups.FOLDER)
            if self._prune_if_trusted(OFTEN):
                Uploads(self.folders.state).sweep()
        self.nightly()
        if now_s - self._idle_s >= _IDLE_S and self._is_idle():
            self._idle_s = now_s
            self._stores.ledger.upkeep.checkpoint()

    def _prune_if_trusted(self, kinds: Collection[str]) -> bool:
        """`prune`, if the clock is trusted; True when it was."""
        if not self._clock.trusted:
            return False
        with self._busy:
            self.prune(kinds)
        return True

    # -- nights --------------------------------------------------------------------------------------------------------

    def _is_idle(self) -> bool:
        if self._stores.running.progress():
            return False
        return not self._stores.ledger.in_state(JobState.RUNNING, JobState.PUBLISHING)

    def _clamp_waits(self) -> None:
        """Shorten waits, at the start and after the clock was set: their ends may then lie far ahead."""
        offset_s = self._wall() - self._steady()
        if self._offset_s is not None and abs(offset_s - self._offset_s) <= _NOTICED_S:
            return
        self._offset_s = offset_s
        jobs_s, deliveries_s = max(LONGEST_WAIT_S, *BACK_OFF_S), max(SCHEDULE_S)
        upkeep = self._stores.ledger.upkeep
        moved = upkeep.clamp_waits(jobs_ms=round(jobs_s * 1000), deliveries_ms=round(deliveries_s * 1000))
        self._stores.wake()  # by the new time other jobs are due
        if moved:
            log.info("the clock was set back: %d jobs and webhooks that would have waited too long do not", moved)

    def nightly(self) -> None:
        """Copy the ledger and prune once each night, also when the daemon was down when the night began."""
        began_s = last_night(self._wall(), self.rules.night)
        if self._last("copied") < began_s:
            self._note("copied")  # before the copy: one that fails is not repeated all night
            self._copy_the_ledger()
        if self._last("pruned") < began_s and self._prune_if_trusted(NIGHTLY):
            self._note("pruned")
            self._stores.ledger.upkeep.optimize()

    def _last(self, work: str) -> float:
        """When that was last done, seconds since 1970. The very first start counts as done."""
        noted = (read_json(self._record) or {}).get(work)
        if not isinstance(noted, (int, float)) or noted > self._wall():  # later than now: the clock was wrong then
            self._note(work)
            return self._wall()
        return noted

    def _note(self, work: str) -> None:
        write_json(self._record, {**(read_json(self._record) or {}), work: self._wall()}, mode=0o640)

    def _copy_the_ledger(self) -> None:
        if not self.rules.backups:
            return
        try:
            copy = backups.make(self._stores.ledger.path, self.folders.state / backups.FOLDER)
        except LipsyncdError as error:
            log.warning("no copy of the ledger this night: %s", error)
            return
        backups.rotate(copy.parent, keep=self.rules.backups)
        log.info("ledger copied to %s, %.1f MB", copy.name, copy.stat().st_size / _MB)

    # -- pruning -------------------------------------------------------------------------------------------------------

    def prune(self, kinds: Collection[str] = (*KINDS, LEDGER)) -> list[Count]:
        """Remove what is due; gives what was removed and what there was."""
        counts = []
        for kind in KINDS:
            if kind in kinds:
                due, there = self.retention.due(kind, self._wall())
                counts.append(count_of(kind, self._remove(due), there))
        if LEDGER in kinds:
            rows = self.retention.rows()
            counts.append(Count(LEDGER, self._forget(self.retention.old_rows(self._wall())), 0, rows, 0))
            self._stores.thumbnails.sweep(self._view.known)
        if pruned := [_in_words(count) for count in counts if count.goes]:
            log.info("pruned: %s", ", ".join(pruned))
        return counts

    def _remove(self, doomed: Sequence[Piece]) -> list[Piece]:
        """Remove pieces one after another; gives those that were removed. The first error is logged."""
        gone: list[Piece] = []
        complained = False
        for piece in doomed:
            if self._stop.is_set():
                break
            try:
                if self._remove_one(piece):
                    gone.append(piece)
            except OSError as error:
                if not complained:
                    log.warning("cannot prune %s: %s", piece.where, error)
                complained = True
            self._stop.wait(_PAUSE_S)
        self._stores.ledger.upkeep.clear_kept([piece.id for piece in gone if piece.kind in (ARCHIVE, FAILED)])
        return gone

    def _remove_one(self, piece: Piece) -> bool:
        if piece.kind == OUTBOX:  # its video is hashed first, which takes a while; no other thread removes it
            return leftovers.remove(self.folders, piece)
        with self._finisher.lock:  # no retry and no `republish` is at work on these files
            return leftovers.remove(self.folders, piece)

    def _forget(self, job_ids: Sequence[str]) -> int:
        gone = 0
        for start in range(0, len(job_ids), BATCH_ROWS):
            if self._stop.is_set():
                break
            gone += self._stores.ledger.upkeep.delete_ended(job_ids[start : start + BATCH_ROWS])
            self._stop.wait(_PAUSE_S)
        return gone

    # -- a full disk ---------------------------------------------------------------------------------------------------

    def _low(self) -> Iterator[tuple[str, int, float]]:
        """The folders whose disk is below the floor: for messages, its device, and the bytes that are missing."""
        floor_mb = self._stores.settings.now.paths.min_free_mb
        with OpenFolder.at(self.folders.spool) as spool, self.folders.shared["outbox"].opened() as outbox:
            for folder in (spool, outbox):
                if folder is not None and (free := free_mb(folder.fileno())) < floor_mb:
                    yield folder.where, folder.stat().st_dev, (floor_mb * _SPARE - free) * _MB

    def make_room(self) -> bool:
        """Prune for a disk that is below its floor, at most once a minute; True when the spool has enough room now.

        Called by intake, in its own thread, before it pauses.
        """
        if self._steady() - self._room_s >= _ROOM_AGAIN_S and self._busy.acquire(blocking=False):
            try:
                self._room_s = self._steady()
                for where, device, missing in self._low():  # measured one by one: they may share a disk
                    self._make_room_for(where, device, missing)
            finally:
                self._busy.release()
        return not shortage(self.folders.spool, self._stores.settings.now.paths.min_free_mb)

    def _make_room_for(self, where: str, device: int, missing: float) -> None:
        now_s = self._wall()
        trusted = self._clock.trusted
        due = [p for kind in KINDS if trusted for p in self.retention.due(kind, now_s)[0] if p.device == device]
        gone = self._remove(due)
        missing -= sum(piece.size_bytes for piece in gone)
        if missing > 0 and self.rules.below_floor == "early":
            gone += self._remove(self.retention.early(device, missing, now_s))
        if gone:
            size_mb = sum(piece.size_bytes for piece in gone) / _MB
            log.warning("the disk of %s is nearly full: pruned %d pieces, %.1f MB", where, len(gone), size_mb)

    # -- requests ------------------------------------------------------------------------------------------------------

    def take(self, request: str) -> None:
        """Accept a request to prune, also when it is given again, and answer it soon."""
        self._requests.setdefault(request)
        self._wake.set()

    def _serve(self) -> None:
        for name in list(self._requests):
            try:
                with self._busy:
                    counts = self.prune()
                reply = control_files.Answer(True, "pruned", {"counts": [count.to_json() for count in counts]})
            except (LipsyncdError, OSError) as error:
                reply = control_files.Answer(False, str(error))
            control_files.answer(self.folders.control, name, reply)
            del self._requests[name]


def _in_words(count: Count) -> str:
    size = f" ({count.frees_bytes / _MB:.1f} MB)" if count.frees_bytes else ""
    return f"{count.goes} of {count.kind}{size}"


def last_night(now_s: float, night: str) -> float:
    """When the latest night began: the last time at which clocks here showed `night` ("HH:MM")."""
    hour, minute = map(int, night.split(":"))
    now = datetime.fromtimestamp(now_s)
    begun = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    return (begun if begun <= now else begun - timedelta(days=1)).timestamp()
