"""Bring jobs to their end: publish, fail, cancel, clear away; and back again: retry, republish.

Each path is a row of steps that may be repeated after a crash at any of them: the spool says how far it came. The
ledger's state follows the spool, never the other way round.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

from lipsyncd.errors import (
    BadResult,
    IllegalTransition,
    InputsLost,
    LedgerUnavailable,
    LipsyncdError,
    NameTaken,
    OutboxUnavailable,
)
from lipsyncd.jobs.blocked import Obstacles
from lipsyncd.jobs.job import SOURCES, Job, JobSpec, JobState, now_ms
from lipsyncd.jobs.prepared import Output
from lipsyncd.ledger.ledger import Ledger
from lipsyncd.results import archive, sidecar
from lipsyncd.results.outbox import SIDECAR, VIDEO, Outbox
from lipsyncd.results.republish import Republisher
from lipsyncd.settings import CurrentSettings
from lipsyncd.storage.disk_space import shortage
from lipsyncd.storage.failpoints import reach
from lipsyncd.storage.files import fsync_folder, remove_tree, replace_durably
from lipsyncd.storage.folders import Folders
from lipsyncd.storage.spool import Spool

log = logging.getLogger(__name__)


class Finisher:
    """Ends the jobs of one daemon. Safe to use from several threads: one job is ended by one of them at a time."""

    def __init__(
        self, settings: CurrentSettings, folders: Folders, spool: Spool, ledger: Ledger, outbox: Outbox
    ) -> None:
        self.settings = settings
        self.folders = folders
        self.spool = spool
        self.ledger = ledger
        self.outbox = outbox
        self.again = Republisher(folders, ledger, outbox)
        self.obstacles = Obstacles()
        self._lock = threading.RLock()

    @property
    def lock(self) -> AbstractContextManager[object]:
        """Held while the files of an ended job are moved."""
        return self._lock

    # -- a video -------------------------------------------------------------------------------------------------------

    def publish(self, job_id: str) -> Job:
        """Take a job in `publishing` to `done`, from wherever an earlier try came to.

        Raises `OutboxUnavailable`, or OSError for what the outbox's disk says; the job then stays as it is.
        """
        with self._lock:
            self._require_outbox()
            spec, output = self.spool.spec(job_id), self.spool.output(job_id)
            if spec is None or output is None:
                return self.fail(job_id, BadResult(f"the finished video of job {job_id} is gone from the spool"))
            try:
                out_name = self.spool.staged_name(job_id) or self._stage(job_id, spec, output)
                out_name = self._show_first(job_id, spec, output, out_name)
            except (NameTaken, BadResult) as error:
                return self.fail(job_id, error)
            self._show_sidecar(job_id, out_name, self.outbox.shelf(spec.queue))
            reach("publish-shown")
            shown = f"{out_name}.{VIDEO if output.shown_as is None else SIDECAR}"
            job = self.ledger.to_done(job_id, note=f"published as {shown}")
            reach("publish-done")
            made = f"in {output.render_ms / 1e3:.1f} s" if output.duplicate_of is None else f"of {output.duplicate_of}"
            log.info("job %s done: %s, %d frames %s", job_id, shown, output.frames, made)
            self.clear_away(job)
            return job

    def publish_due(self) -> bool:
        """Publish what waits for it; False when there was nothing to do. What cannot be published waits a while."""
        due = [job for job in self.ledger.in_state(JobState.PUBLISHING) if job.not_before_ms <= now_ms()]
        for job in due:
            self.try_publish(job)
        return bool(due)

    def try_publish(self, job: Job) -> None:
        """`publish`, or a note in the ledger why it has to wait."""
        try:
            self.publish(job.id)
        except (OutboxUnavailable, OSError) as error:
            blocked = error if isinstance(error, OutboxUnavailable) else OutboxUnavailable(f"cannot publish: {error}")
            wait_s = self.obstacles.met(blocked, "outbox", self._outbox_sight)
            self.ledger.set_blocked(job.id, blocked.reason(), delay_ms=round(wait_s * 1000))
            log.warning("job %s waits to be published, next try in %.0f s: %s", job.id, wait_s, blocked)
        except IllegalTransition:
            log.debug("job %s was ended by another thread", job.id)
        except LedgerUnavailable:
            raise  # no fault of the job: it is published when the ledger can be written
        except LipsyncdError as error:
            self.fail(job.id, error)
        else:
            self.obstacles.passed("outbox")

    def heal(self) -> bool:
        """Let jobs go on whose obstacle has moved; says whether there were any."""
        codes = self.obstacles.moved()
        count = self.ledger.release(*codes) if codes else 0
        self.obstacles.forget(codes)
        if count:
            log.info("looking again at %d jobs that wait: %s", count, ", ".join(codes))
        return count > 0

    def _outbox_sight(self) -> Hashable:
        """Cheap to look at, and different once results may fit into the outbox again."""
        there, root = self.folders.available("outbox"), self.outbox.root
        return there and (os.access(root, os.W_OK | os.X_OK), not shortage(root, self.settings.now.paths.min_free_mb))

    def _require_outbox(self) -> None:
        if not self.folders.available("outbox"):
            raise OutboxUnavailable(f"{self.outbox.root} is not mounted, or is another folder than before")

    def _stage(self, job_id: str, spec: JobSpec, output: Output) -> str:
        job = self.ledger.get(job_id)
        content = sidecar.of_video(job, spec, output, job.out_name)
        if output.shown_as is None:
            self.outbox.stage(job_id, self.spool.video(job_id), output.sha256, content)
        else:
            self.outbox.stage_sidecar(job_id, content)
        self.spool.set_staged(job_id, job.out_name)
        reach("publish-staged")
        self.ledger.set_staged(job_id)
        return job.out_name

    def _show_first(self, job_id: str, spec: JobSpec, output: Output, out_name: str) -> str:
        """Give the video, or the sidecar where there is no video, its name or the next free one; gives that name."""
        first, shelf = VIDEO if output.shown_as is None else SIDECAR, self.outbox.shelf(spec.queue)
        while shelf.is_staged(job_id, first):
            if shelf.is_free(out_name):
                with contextlib.suppress(FileExistsError):
                    shelf.show(job_id, first, out_name)
                    return out_name
            if self.settings.now.output.on_name_conflict == "fail":
                raise NameTaken(f"the outbox has a file named {out_name}.mp4 or {out_name}.json already")
            out_name = self.ledger.rename_output(job_id, spec.out_name, out_name)
            job = self.ledger.get(job_id)
            self.outbox.stage_sidecar(job_id, sidecar.of_video(job, spec, output, out_name))
            self.spool.set_staged(job_id, out_name)
        self._require_outbox()  # an unmounted outbox has no tokens either
        self.ledger.note(job_id, "the result was shown before")
        return out_name

    def _show_sidecar(self, job_id: str, out_name: str, shelf: Outbox) -> None:
        if not shelf.is_staged(job_id, SIDECAR):
            self._require_outbox()
            return
        try:
            shelf.show(job_id, SIDECAR, out_name)
        except FileExistsError:
            # Somebody wrote a file of that name in the last moment. The video keeps its name; the sidecar says which.
            shelf.show(job_id, SIDECAR, f"{out_name} {job_id}")

    # -- no video ------------------------------------------------------------------------------------------------------

    def fail(self, job_id: str, error: LipsyncdError) -> Job:
        """End a job without a video; its inputs and the reason go to failed/. Raises `IllegalTransition`."""
        reason, sources = error.reason(), SOURCES[JobState.FAILED]
        return self._end(job_id, JobState.FAILED, sources, reason, lambda: self.ledger.to_failed(job_id, reason))

    def cancel(self, job_id: str, *, sources: Sequence[JobState] = SOURCES[JobState.CANCELLED]) -> Job:
        """End a job that somebody no longer wants; its inputs go to the archive.

        sources  the states out of which it may be taken: whoever does not render it leaves `running` out, since a
                 worker may claim the job at any moment

        Raises `IllegalTransition` when it is in none of them.
        """
        reason = {"code": "cancelled", "message": "cancelled on request", "remedy": ""}
        move = partial(self.ledger.to_cancelled, job_id, sources=sources)
        return self._end(job_id, JobState.CANCELLED, sources, reason, move)

    def _end(
        self, job_id: str, to: JobState, sources: Sequence[JobState], reason: dict[str, str], move: Callable[[], Job]
    ) -> Job:
        """The reason into the spool, the state into the ledger, the inputs out of the spool: in this order."""
        with self._lock:
            before = self.ledger.get(job_id)
            if before.state not in sources:
                raise IllegalTransition(f"job {job_id} is {before.state.value} and cannot become {to.value}")
            if self.spool.folder(job_id).is_dir():
                self.spool.set_ending(job_id, {"state": to.value, **reason, "at_ms": now_ms()})
            reach("end-recorded")
            try:
                job = move()
            except IllegalTransition:  # a worker has claimed it in this very moment
                self.spool.clear_ending(job_id)
                raise
            reach("end-moved")
            log.info("job %s %s: %s", job_id, to.value, reason["message"])
            if before.staged:
                self._take_off_stage(job_id)
            self.clear_away(job)
            return job

    def _take_off_stage(self, job_id: str) -> None:
        """Remove what a job that failed on the last step has left in the outbox; else the next start sweeps it."""
        with contextlib.suppress(OSError):
            self.spool.drop_output(job_id)
            self.outbox.unstage(job_id)

    # -- afterwards ----------------------------------------------------------------------------------------------------

    def clear_away(self, job: Job) -> None:
        """Move an ended job's files out of the spool. What cannot be moved now is moved by a later `tidy`."""
        try:
            with self._lock:
                self._clear_away(job)
        except OSError as error:
            log.warning("job %s: its inputs stay in the spool for now: %s", job.id, error)

    def tidy(self) -> None:
        """Clear away what ended jobs have left in the spool, and publish again what waits for that."""
        for job_id in self.spool.ids():
            job = self.ledger.find(job_id)
            if job is not None and job.state.ended:
                self.clear_away(job)
        with self._lock:
            self.again.resume()

    def _clear_away(self, job: Job) -> None:
        spec = self.spool.spec(job.id)
        if spec is None:
            return
        folder = self.spool.folder(job.id)
        if job.state is JobState.DONE:
            self._keep_result(job, spec)
        if job.state is JobState.FAILED:
            self._require("failed")
            ending = self.spool.ending(job.id) or {"state": "failed", **_reason_of(job), "at_ms": job.finished_ms}
            name = archive.failed_name(spec, int(ending["at_ms"]))
            reason = sidecar.of_failure(job, spec, ending)
            self.ledger.set_kept(job.id, archive.put(self.folders.shared["failed"], name, spec, folder, reason=reason))
        elif job.state is JobState.CANCELLED or self.settings.now.archive.mode == "move":
            self._require("archive")
            why = self.spool.ending(job.id) if job.state is JobState.CANCELLED else None
            told = None if why is None else sidecar.of_failure(job, spec, why)
            name = archive.archived_name(spec)
            self.ledger.set_kept(job.id, archive.put(self.folders.shared["archive"], name, spec, folder, reason=told))
        reach("cleared")
        self.spool.remove(job.id)

    def _require(self, kind: str) -> None:
        if not self.folders.available(kind):
            raise OSError(f"{self.folders.shared[kind]} is not mounted, or is another folder than before")

    def _keep_result(self, job: Job, spec: JobSpec) -> None:
        """Keep the video beside the ledger for a while: whoever empties the outbox takes nothing from `republish`."""
        output = self.spool.output(job.id)
        if output is None or not self.spool.video(job.id).exists():
            return
        replace_durably(self.result(job.id, SIDECAR), sidecar.of_video(job, spec, output, job.out_name))
        reach("result-told")
        self.spool.video(job.id).rename(self.result(job.id, VIDEO))
        fsync_folder(self.folders.results)

    def result(self, job_id: str, suffix: str) -> Path:
        """Where the video of a finished job, or its sidecar, is kept for a while."""
        return self.folders.results / f"{job_id}.{suffix}"

    # -- once more -----------------------------------------------------------------------------------------------------

    def retry(self, job_id: str) -> Job:
        """Queue a failed or cancelled job again, from the inputs that were kept."""
        with self._lock:
            job = self.ledger.get(job_id)
            if job.state not in (JobState.FAILED, JobState.CANCELLED):
                raise IllegalTransition(
                    f"job {job_id} is {job.state.value}; only failed and cancelled ones are retried"
                )
            if not self.spool.folder(job_id).is_dir():
                self._take_back(job)
            else:
                self._start_over(job_id)
            reach("retry-accepted")
            return self.requeue_ended(job)

    def requeue_ended(self, job: Job) -> Job:
        """The second half of a retry, for an ended job whose inputs are back in the spool: only there, and queued."""
        if job.kept is not None:
            try:
                remove_tree(Path(job.kept))
            except OSError as error:
                log.warning("job %s: %s stays, although the job is tried again: %s", job.id, job.kept, error)
            reach("retry-cleared")
        spec = self.spool.spec(job.id)
        return self.ledger.retry(job.id, job.out_name if spec is None else spec.out_name)

    def _start_over(self, job_id: str) -> None:
        """For a job whose inputs never left the spool: only what was accepted stays of it."""
        spec = self.spool.spec(job_id)
        if spec is None:
            raise InputsLost(f"the spool folder of job {job_id} is damaged")
        self.spool.drop_output(job_id)
        self.spool.rewrite(replace(spec, refusal=None))
        self.spool.clear_ending(job_id)

    def _take_back(self, job: Job) -> None:
        kept = None if job.kept is None else Path(job.kept)
        spec = None if kept is None else archive.spec_of(kept)
        if kept is None or spec is None:
            raise InputsLost(f"the inputs of job {job.id} are no longer in {job.kept or 'any folder that we know'}")

        def fill(folder: Path) -> JobSpec:
            archive.take_back(kept, spec, folder)
            return replace(spec, refusal=None)

        self.spool.accept(job.id, fill)

    def republish(self, job_id: str, *, order: str = "") -> str:
        """Put the video of a finished job into the outbox once more, under the next free name; gives that name.

        order  whose wish it is: the same order asked again gets the first one's name, and no second video
        """
        with self._lock:
            return self.again.republish(self.ledger.get(job_id), order)

    def delete(self, job_id: str) -> None:
        """Forget an ended job: its row and the video that was kept, and for a job that came over REST all of its files.

        What somebody dropped into the inbox, and what came of it in the outbox, stays theirs. The row goes last, so
        that a crash in between leaves a job that can be deleted again. Raises `IllegalTransition`.
        """
        with self._lock:
            job = self.ledger.get(job_id)
            if not job.state.ended:
                raise IllegalTransition(f"job {job_id} is {job.state.value}; only ended ones are deleted")
            self.clear_away(job)
            if self.spool.folder(job_id).is_dir():
                raise IllegalTransition(f"job {job_id} has files in the spool that cannot be cleared away just now")
            job = self.ledger.get(job_id)
            if job.rest is not None:
                self.outbox.shelf(job.queue).withdraw(job_id, job.out_name)
                if job.kept is not None:
                    remove_tree(Path(job.kept))
            self.again.drop(job_id)
            for suffix in (VIDEO, SIDECAR):
                self.result(job_id, suffix).unlink(missing_ok=True)
            reach("delete-before-row")
            self.ledger.delete(job_id)
            log.info("job %s deleted", job_id)


def _reason_of(job: Job) -> dict[str, str]:
    return {"code": job.reason_code or "unknown", "message": job.reason or "", "remedy": job.remedy or ""}
