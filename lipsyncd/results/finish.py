"""End jobs without a video, move the files of ended jobs out of the spool, and retry, republish or delete them.

Each operation is a series of steps that may be repeated after a crash: the spool shows how far it got. The ledger's
state follows the spool, never the other way round. Publishing a video is `results.publish`.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

from lipsyncd.errors import IllegalTransition, InputsLost, LedgerUnavailable, LipsyncdError
from lipsyncd.jobs.job import SOURCES, Job, JobSpec, JobState, now_ms
from lipsyncd.jobs.manifest_mac import as_ordered
from lipsyncd.jobs.prepared import Output
from lipsyncd.results import archive, sidecar
from lipsyncd.results.outbox import SIDECAR, VIDEO
from lipsyncd.results.republish import Republisher
from lipsyncd.results.stores import Stores
from lipsyncd.storage.failpoints import reach
from lipsyncd.storage.files import NotRegular, fsync_folder, replace_durably
from lipsyncd.storage.open_folder import OpenFolder
from lipsyncd.storage.shared_folders import SharedFolder
from lipsyncd.storage.spool import JobUnderWay

log = logging.getLogger(__name__)


class Finisher:
    """Ends the jobs of one daemon. Safe in several threads: they end one job at a time."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores
        self.republisher = Republisher(stores.folders, stores.ledger, stores.outbox)
        self._lock = threading.RLock()
        self._unexpected: Counter[str] = Counter()  # failures to clear a job away that no code foresees

    @property
    def lock(self) -> AbstractContextManager[object]:
        """Held while the files of an ended job are moved."""
        return self._lock

    # -- without a video -----------------------------------------------------------------------------------------------

    def fail(self, job_id: str, error: LipsyncdError) -> Job:
        """End a job without a video; its inputs and the reason go to failed/. Raises `IllegalTransition`."""
        reason, sources = error.reason(), SOURCES[JobState.FAILED]
        return self._end(
            job_id, JobState.FAILED, sources, reason, lambda: self._stores.ledger.to_failed(job_id, reason)
        )

    def cancel(self, job_id: str, *, sources: Sequence[JobState] = SOURCES[JobState.CANCELLED]) -> Job:
        """End a job that is no longer wanted; its inputs go to the archive.

        sources  the states in which it may be cancelled. Callers that do not render it leave `running` out, since a
                 worker may claim the job at any moment

        Raises `IllegalTransition` when it is in none of them.
        """
        reason = {"code": "cancelled", "message": "cancelled on request", "remedy": ""}
        move = partial(self._stores.ledger.to_cancelled, job_id, sources=sources)
        return self._end(job_id, JobState.CANCELLED, sources, reason, move)

    def _end(
        self, job_id: str, to: JobState, sources: Sequence[JobState], reason: dict[str, str], move: Callable[[], Job]
    ) -> Job:
        """Write the reason to the spool, then the state to the ledger, then move the inputs out of the spool."""
        with self._lock:
            before = self._stores.ledger.get(job_id)
            if before.state not in sources:
                raise IllegalTransition(f"job {job_id} is {before.state.value} and cannot become {to.value}")
            if self._stores.spool.folder(job_id).is_dir():
                self._stores.spool.set_ending(job_id, {"state": to.value, **reason, "at_ms": now_ms()})
            reach("end-recorded")
            try:
                job = move()
            except IllegalTransition:  # a worker has claimed it in this very moment
                self._stores.spool.clear_ending(job_id)
                raise
            reach("end-moved")
            log.info("job %s %s: %s", job_id, to.value, reason["message"])
            if before.staged:
                self._drop_staged(job_id)
            self.clear_away(job)
            return job

    def _drop_staged(self, job_id: str) -> None:
        """Remove the hidden files of a job that failed while it was published; else the next start removes them."""
        with contextlib.suppress(OSError):
            self._stores.spool.drop_output(job_id)
            self._stores.outbox.unstage(job_id)

    # -- clearing away -------------------------------------------------------------------------------------------------

    def clear_away(self, job: Job, work: JobUnderWay | None = None) -> None:
        """Move an ended job's files out of the spool. Files that cannot be moved now are moved by a later `tidy`.

        work  its files and records; read from the spool when not given
        """
        try:
            with self._lock:
                self._clear_away(job, work)
        except OSError as error:
            log.warning("job %s: its inputs stay in the spool for now: %s", job.id, error)

    def tidy(self) -> None:
        """Move the files of ended jobs out of the spool, and show the videos that wait to be published again."""
        spooled = self._stores.spool.ids()
        under_way = self._stores.ledger.open_ids()  # read after the spool: a new job has a folder before it has a row
        for job_id in spooled:
            job = None if job_id in under_way else self._stores.ledger.find(job_id)
            if job is not None and job.state.ended:
                self._tidy_one(job)
        with self._lock:
            self.republisher.resume()

    def _tidy_one(self, job: Job) -> None:
        """`clear_away` for one of many: what is unexpected with one job keeps it here, and concerns no other."""
        if self._unexpected[job.id] >= job.max_attempts:
            return
        try:
            self.clear_away(job)
        except LedgerUnavailable:
            raise
        except Exception:
            self._unexpected[job.id] += 1
            log.exception("job %s: unexpected failure; its files stay in the spool", job.id)

    def _clear_away(self, job: Job, work: JobUnderWay | None) -> None:
        spec = self._stores.spool.spec(job.id) if work is None else work.spec
        if spec is None:
            return
        if job.state is JobState.DONE:
            self._keep_result(job, spec, self._stores.spool.output(job.id) if work is None else work.output)
        if job.state is JobState.FAILED:
            ending = self._stores.spool.ending(job.id) or {
                "state": "failed",
                **_reason_of(job),
                "at_ms": job.finished_ms,
            }
            name = archive.failed_name(spec, int(ending["at_ms"]))
            self._keep_inputs("failed", name, spec, sidecar.of_failure(job, spec, ending))
        elif job.state is JobState.CANCELLED or self._stores.settings.now.archive.mode == "move":
            why = self._stores.spool.ending(job.id) if job.state is JobState.CANCELLED else None
            reason = None if why is None else sidecar.of_failure(job, spec, why)
            self._keep_inputs("archive", archive.archived_name(spec), spec, reason)
        reach("cleared")
        self._stores.spool.remove(job.id)

    def _keep_inputs(self, kind: str, name: Sequence[str], spec: JobSpec, reason: bytes | None) -> None:
        stores = self._stores
        kept = archive.put(stores.folders.shared[kind], name, spec, stores.spool.folder(spec.id), reason=reason)
        stores.ledger.set_kept(spec.id, kept)

    def _keep_result(self, job: Job, spec: JobSpec, output: Output | None) -> None:
        """Keep the video beside the ledger for a while: `republish` works also after the outbox was emptied."""
        if output is None or not self._stores.spool.video(job.id).exists():
            return
        replace_durably(self.result(job.id, SIDECAR), sidecar.of_video(job, spec, output, job.out_name))
        reach("sidecar-written")
        self._stores.spool.video(job.id).rename(self.result(job.id, VIDEO))
        fsync_folder(self._stores.folders.results)

    def result(self, job_id: str, suffix: str) -> Path:
        """Where the video of a finished job, or its sidecar, is kept for a while."""
        return self._stores.folders.results / f"{job_id}.{suffix}"

    # -- retry, republish, delete --------------------------------------------------------------------------------------

    def retry(self, job_id: str) -> Job:
        """Queue a failed or cancelled job again, from the inputs that were kept."""
        with self._lock:
            job = self._stores.ledger.get(job_id)
            if job.state not in (JobState.FAILED, JobState.CANCELLED):
                raise IllegalTransition(
                    f"job {job_id} is {job.state.value}; only failed and cancelled ones are retried"
                )
            if not self._stores.spool.folder(job_id).is_dir():
                self._take_back(job)
            else:
                self._start_over(job_id)
            reach("retry-accepted")
            return self.requeue_ended(job)

    def requeue_ended(self, job: Job) -> Job:
        """The second half of a retry: the inputs are back in the spool; remove the other copy and queue the job."""
        if job.kept is not None:
            try:
                self._remove_kept(job)
            except OSError as error:
                log.warning("job %s: %s stays, although the job is tried again: %s", job.id, job.kept, error)
            reach("retry-cleared")
        spec = self._stores.spool.spec(job.id)
        return self._stores.ledger.retry(job.id, job.out_name if spec is None else spec.out_name)

    def _start_over(self, job_id: str) -> None:
        """Reset a job whose inputs never left the spool: only what was accepted stays."""
        spec = self._stores.spool.spec(job_id)
        if spec is None:
            raise InputsLost(f"the spool folder of job {job_id} is damaged")
        self._stores.spool.drop_output(job_id)
        self._stores.spool.rewrite(replace(spec, refusal=None))
        self._stores.spool.clear_ending(job_id)

    def _take_back(self, job: Job) -> None:
        lost = InputsLost(f"the inputs of job {job.id} are no longer in {job.kept or 'any folder that we know'}")
        place = self._place_of(job)
        if place is None:
            raise lost
        shared, parts = place
        with shared.opened() as root:
            if root is None:
                raise OSError(shared.absence)
            try:
                with root.walk(parts) as kept:  # one descriptor for the spec and for the files that it names
                    self._accept_again(job, kept, lost)
            except (FileNotFoundError, NotRegular) as error:
                raise lost from error

    def _accept_again(self, job: Job, kept: OpenFolder, lost: InputsLost) -> None:
        spec = archive.spec_of(kept)
        if spec is None or spec.id != job.id:
            raise lost
        # Members can write failed/: whose job it is, and what is called at its end, is taken from the ledger.
        ordered = replace(as_ordered(spec, job), refusal=None, webhook=job.webhook)

        def fill(folder: Path) -> JobSpec:
            archive.take_back(kept, ordered, folder)
            return ordered

        self._stores.spool.accept(job.id, fill)

    def _remove_kept(self, job: Job) -> None:
        place = self._place_of(job)
        if place is not None:
            archive.remove(*place, job.id)

    def _place_of(self, job: Job) -> tuple[SharedFolder, tuple[str, ...]] | None:
        """The folder with the inputs of an ended job: the shared one, and the names that lead to it."""
        return None if job.kept is None else self._stores.folders.place_of(job.kept, ("failed", "archive"))

    def republish(self, job_id: str, *, order: str = "") -> str:
        """Put the video of a finished job into the outbox once more, under the next free name; returns that name.

        order  the id of the request: a repeated request gets the first name again, and no second video
        """
        with self._lock:
            return self.republisher.republish(self._stores.ledger.get(job_id), order)

    def delete(self, job_id: str) -> None:
        """Delete an ended job: its row and the kept video; all of its files if it came over REST.

        The inputs and the video of a job from the inbox stay where its user finds them. The row is deleted last, so
        that the deletion can be repeated after a crash. Raises `IllegalTransition`.
        """
        with self._lock:
            job = self._stores.ledger.get(job_id)
            if not job.state.ended:
                raise IllegalTransition(f"job {job_id} is {job.state.value}; only ended ones are deleted")
            self.clear_away(job)
            if self._stores.spool.folder(job_id).is_dir():
                raise IllegalTransition(f"job {job_id} has files in the spool that cannot be cleared away just now")
            job = self._stores.ledger.get(job_id)
            if job.rest is not None:
                self._stores.outbox.of_queue(job.queue).withdraw(job_id, job.out_name)
                self._remove_kept(job)
            self.republisher.drop(job_id)
            for suffix in (VIDEO, SIDECAR):
                self.result(job_id, suffix).unlink(missing_ok=True)
            reach("delete-before-row")
            self._stores.ledger.delete(job_id)
            self._stores.thumbnails.drop(job_id)
            log.info("job %s deleted", job_id)


def _reason_of(job: Job) -> dict[str, str]:
    return {"code": job.reason_code or "unknown", "message": job.reason or "", "remedy": job.remedy or ""}
