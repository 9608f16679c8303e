"""Show a finished video in the outbox and take its job to `done`.

A series of steps that may be repeated after a crash: the spool shows how far an earlier try got. Leaves staging and
showing to `outbox`; decides which name a video gets and what the ledger records.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections import Counter
from collections.abc import Hashable

from lipsyncd.errors import BadResult, Blocked, IllegalTransition, LipsyncdError, NameTaken
from lipsyncd.jobs.blocked import ReadState
from lipsyncd.jobs.job import Job, JobState, now_ms
from lipsyncd.jobs.prepared import Output
from lipsyncd.jobs.retry import Action
from lipsyncd.results import sidecar
from lipsyncd.results.failures import PUBLISH, Failures
from lipsyncd.results.finish import Finisher
from lipsyncd.results.outbox import SIDECAR, VIDEO, Token
from lipsyncd.results.stores import Stores
from lipsyncd.storage.disk_space import lack
from lipsyncd.storage.failpoints import reach
from lipsyncd.storage.files import open_regular
from lipsyncd.storage.spool import JobUnderWay

log = logging.getLogger(__name__)

_LONGEST_S = 300.0  # a large video on a slow share


class Publisher:
    """Publishes the results of one daemon. Safe in several threads, under the lock that `Finisher` ends jobs with."""

    def __init__(self, stores: Stores, finisher: Finisher, failures: Failures) -> None:
        self._stores = stores
        self._finisher = finisher
        self._failures = failures
        self._tries: Counter[str] = Counter()  # of jobs whose publication failed unexpectedly

    def publish(self, work: JobUnderWay) -> Job:
        """Take a job in `publishing` to `done`, from the step that an earlier try reached.

        Raises `OutboxUnavailable`, OSError of the outbox's disk, `NameTaken`, `BadResult`: the job then stays as it is.
        Raises `IllegalTransition` when another thread has ended the job.
        """
        with self._finisher.lock:
            work.job = self._stores.ledger.get(work.id)
            if work.job.state is not JobState.PUBLISHING:
                raise IllegalTransition(f"job {work.id} is {work.job.state.value}, and no longer to be published")
            if work.job.staged and work.staged_as is None:
                work.staged_as = self._stores.spool.staged_name(work.id)  # by another thread
            output = self._output(work)
            out_name = work.staged_as or self._stage(work, output, work.job.out_name)
            out_name = self._show_first(work, output, out_name)
            self._show_sidecar(work, output, out_name)
            reach("publish-shown")
            shown = f"{out_name}.{_first(output)}"
            work.job = self._stores.ledger.to_done(work.id, note=f"published as {shown}")
            reach("publish-done")
            made = f"in {output.render_ms / 1e3:.1f} s" if output.duplicate_of is None else f"of {output.duplicate_of}"
            log.info("job %s done: %s, %d frames %s", work.id, shown, output.frames, made)
            self._finisher.clear_away(work.job, work)
            return work.job

    def publish_due(self) -> bool:
        """Publish the jobs that wait for it; False when there was none. Those that fail wait for a while."""
        due = [job for job in self._stores.ledger.in_state(JobState.PUBLISHING) if job.not_before_ms <= now_ms()]
        for job in due:
            self.try_publish(job)
        return bool(due)

    def try_publish(self, job: Job, work: JobUnderWay | None = None) -> None:
        """`publish`; on a failure, record in the ledger why the job waits or fails. Raises `LedgerUnavailable`."""
        try:
            with self._stores.steps.at("publish", f"has published job {job.id}", limit_s=_LONGEST_S, on_share=True):
                self.publish(work or self._stores.spool.open(job))
        except Exception as error:
            self._tries[job.id] += 1
            known = isinstance(error, LipsyncdError)  # another try would meet the same; the unexpected may pass
            attempt = job.max_attempts if known else self._tries[job.id]
            if self._failures.handle(job, error, PUBLISH, self._obstacle, attempt=attempt) is not Action.RETRY:
                del self._tries[job.id]
        else:
            self._tries.pop(job.id, None)
            self._stores.obstacles.clear(PUBLISH.name)

    def heal(self) -> bool:
        """Release the jobs whose obstacle has changed; returns whether there were any."""
        codes = self._stores.obstacles.changed()
        count = self._stores.ledger.release(*codes) if codes else 0
        self._stores.obstacles.forget(codes)
        if count:
            self._stores.wake()
            log.info("trying %d waiting jobs again: %s", count, ", ".join(codes))
        return count > 0

    def _obstacle(self, _blocked: Blocked) -> tuple[str, ReadState]:
        return PUBLISH.name, self._state_of_outbox

    def _state_of_outbox(self) -> Hashable:
        """Cheap to compare, and different once results may fit into the outbox again."""
        shared = self._stores.outbox.shared
        floor_mb = self._stores.settings.now.paths.min_free_mb
        return shared.fault() or bool(lack(shared.where, shared.free_mb(), floor_mb))

    # -- the steps -----------------------------------------------------------------------------------------------------

    def _output(self, work: JobUnderWay) -> Output:
        if work.output is None:
            raise BadResult(f"the finished video of job {work.id} is gone from the spool")
        return work.output

    def _stage(self, work: JobUnderWay, output: Output, out_name: str) -> str:
        stores = self._stores
        content = sidecar.of_video(work.job, work.spec, output, out_name)
        if output.shown_as is None:
            video = open_regular(stores.spool.video(work.id))
            try:
                made = stores.outbox.stage(work.id, video, output.sha256, content)
            finally:
                os.close(video)
        else:
            made = stores.outbox.stage_sidecar(work.id, content)
        stores.spool.set_staged(work.id, out_name, made)
        reach("publish-staged")
        stores.ledger.set_staged(work.id)
        work.staged_as = out_name
        return out_name

    def _show_first(self, work: JobUnderWay, output: Output, out_name: str) -> str:
        """Give the video, or the sidecar where there is no video, its name or the next free one; returns that name."""
        first, outbox = _first(output), self._stores.outbox.of_queue(work.spec.queue)
        while self._is_staged(work, output, out_name):
            if outbox.is_free(out_name):
                with contextlib.suppress(FileExistsError):
                    outbox.show(work.id, first, out_name)
                    return out_name
            if self._stores.settings.now.output.on_name_conflict == "fail":
                raise NameTaken(f"the outbox has a file named {out_name}.mp4 or {out_name}.json already")
            out_name = self._stores.ledger.rename_output(work.id, work.spec.out_name, out_name, outbox.is_free)
            job = self._stores.ledger.get(work.id)
            self._stores.outbox.stage_sidecar(work.id, sidecar.of_video(job, work.spec, output, out_name))
            # The video's copy may lie in another hidden folder than this one does by now: its id stays.
            self._stores.spool.set_staged(work.id, out_name, self._stores.spool.staged_in(work.id))
        self._stores.ledger.note(work.id, "the result was shown before")
        return out_name

    def _is_staged(self, work: JobUnderWay, output: Output, out_name: str) -> bool:
        """Does the result still have to be given its name? One that was lost with its hidden folder is staged again.

        Not when it lies in the outbox. If it was shown, and a consumer has taken it, it is published twice: that is
        better than never.
        """
        outbox = self._stores.outbox.of_queue(work.spec.queue)
        token = outbox.token(work.id, _first(output), self._stores.spool.staged_in(work.id))
        if token is not Token.LOST:
            return token is Token.STAGED
        if output.shown_as is None and outbox.has_video(out_name, output.size, output.sha256):
            return False
        if output.shown_as is not None and outbox.has_sidecar(work.id, out_name):
            return False
        log.warning("job %s: the hidden folder of the outbox was taken away; its result is staged again", work.id)
        self._stage(work, output, out_name)
        return True

    def _show_sidecar(self, work: JobUnderWay, output: Output, out_name: str) -> None:
        outbox = self._stores.outbox.of_queue(work.spec.queue)
        token = outbox.token(work.id, SIDECAR, self._stores.spool.staged_in(work.id))
        if token is Token.SHOWN or (token is Token.LOST and outbox.has_sidecar(work.id, out_name)):
            return
        if token is Token.LOST:
            made = outbox.stage_sidecar(work.id, sidecar.of_video(work.job, work.spec, output, out_name))
            self._stores.spool.set_staged(work.id, out_name, made)
        try:
            outbox.show(work.id, SIDECAR, out_name)
        except FileExistsError:
            # Another program has just written a file of that name. The video keeps its name; the sidecar names it.
            outbox.show(work.id, SIDECAR, f"{out_name} {work.id}")


def _first(output: Output) -> str:
    """The suffix of the file that is shown first: the sidecar's where the job has no video of its own."""
    return VIDEO if output.shown_as is None else SIDECAR
