"""Put a finished video into the outbox once more: exactly once for each order, also over a crash.

A plan in `state/again` records an order under way. It is written once the hidden copies are durable, so from then on
they are tokens as in `outbox`: gone means shown. A plan that was carried out stays until its order's file is gone from
`state/control`; without it, a restart would carry out the same order twice.

Owns `state/again`. Leaves the lock, and the choice of the job, to the finisher.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lipsyncd.errors import IllegalTransition, OutboxUnavailable, ResultGone
from lipsyncd.jobs.job import Job, JobState
from lipsyncd.ledger.ledger import Ledger
from lipsyncd.results import sidecar
from lipsyncd.results.outbox import SIDECAR, VIDEO, Outbox, Token
from lipsyncd.storage.control_files import is_pending
from lipsyncd.storage.failpoints import reach
from lipsyncd.storage.files import fsync_folder, open_regular, read_json, write_json
from lipsyncd.storage.folders import Folders

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """One order: the name that the job's video gets, and whether it has it. `order` is "" without an order file.

    made  the hidden folder that its copies are staged in (`Outbox.made`)
    """

    order: str
    out_name: str
    shown: bool = False
    made: str = ""


class Republisher:
    """Shows kept videos again. Used by one thread at a time."""

    def __init__(self, folders: Folders, ledger: Ledger, outbox: Outbox) -> None:
        self.ledger = ledger
        self.outbox = outbox
        self._folders = folders

    def republish(self, job: Job, order: str) -> str:
        """Show the job's kept video under the next free name and return that name; for a repeated order, the first one.

        Raises `IllegalTransition` for a job without a video of its own, `ResultGone`, `OutboxUnavailable`.
        """
        plan = self._plan(job.id)
        if plan is not None and not plan.shown:
            plan = self._carry_out(job, plan)  # an unmounted outbox interrupted it
        if plan is not None and plan.order == order != "":
            return plan.out_name
        return self._carry_out(job, self._begin(job, order)).out_name

    def resume(self) -> None:
        """Carry out the orders that were interrupted, and remove the plans whose order file is gone."""
        for job_id, plan in list(self.under_way()):
            job = self.ledger.find(job_id)
            if job is None:
                self.drop(job_id)
            elif not plan.shown:
                plan = self._tried(job, plan)
            if plan.shown and not is_pending(self._folders.control, plan.order):
                self._file(job_id).unlink(missing_ok=True)

    def _tried(self, job: Job, plan: Plan) -> Plan:
        try:
            return self._carry_out(job, plan)
        except (OutboxUnavailable, OSError) as error:
            log.warning("job %s: its video waits to be published again as %s.mp4: %s", job.id, plan.out_name, error)
            return plan

    def under_way(self) -> Iterator[tuple[str, Plan]]:
        """The plans, each with its job's id."""
        for path in self._folders.again.glob("*.json"):
            if (plan := self._plan(path.stem)) is not None:
                yield path.stem, plan

    def drop(self, job_id: str) -> None:
        """Remove the plan and the hidden files of a deleted job."""
        self.outbox.unstage(job_id)
        self._file(job_id).unlink(missing_ok=True)

    # -- one order -----------------------------------------------------------------------------------------------------

    def _begin(self, job: Job, order: str) -> Plan:
        """Stage the kept video, then write the plan; the next start removes staged files without a plan."""
        video = self._folders.results / f"{job.id}.{VIDEO}"
        if job.state is not JobState.DONE:
            raise IllegalTransition(f"job {job.id} is {job.state.value}; only finished ones are published again")
        if not video.exists() and job.duplicate_of is not None:
            raise ResultGone(
                f"job {job.id} has no video of its own: it has the inputs of job {job.duplicate_of}",
                remedy=f"lipsyncd republish {job.duplicate_of}",
            )
        if not video.exists() or job.out_sha256 is None:
            raise ResultGone(f"the video of job {job.id} is kept no longer")
        plan = Plan(order, self._free_name(job))
        try:
            plan = self._stage(job, plan)
            self._write(job.id, plan)
        except BaseException:
            with contextlib.suppress(OSError):
                self.outbox.unstage(job.id)
            raise
        reach("again-staged")
        return plan

    def _stage(self, job: Job, plan: Plan) -> Plan:
        descriptor = open_regular(self._folders.results / f"{job.id}.{VIDEO}")
        try:
            made = self.outbox.stage(job.id, descriptor, job.out_sha256 or "", self._facts(job, plan))
        finally:
            os.close(descriptor)
        return replace(plan, made=made)

    def _facts(self, job: Job, plan: Plan) -> bytes:
        """The kept sidecar, for the name that the video gets now."""
        return sidecar.renamed((self._folders.results / f"{job.id}.{SIDECAR}").read_bytes(), plan.out_name)

    def _carry_out(self, job: Job, plan: Plan) -> Plan:
        """Carry out the rest of a plan. Each step may be repeated."""
        plan = self._show_video(job, plan)
        reach("again-half-shown")
        outbox = self.outbox.of_queue(job.queue)
        token = outbox.token(job.id, SIDECAR, plan.made)
        if token is Token.LOST and not outbox.has_sidecar(job.id, plan.out_name):
            plan, token = self._sidecar_staged_anew(job, plan), Token.STAGED
        if token is Token.STAGED:
            try:
                outbox.show_again(job.id, SIDECAR, plan.out_name)
            except FileExistsError:
                # Another program has just written a file of that name. The sidecar names its video.
                outbox.show_again(job.id, SIDECAR, f"{plan.out_name} {job.id}")
        self.ledger.note(job.id, f"published again as {plan.out_name}.mp4")
        reach("again-shown")
        plan = replace(plan, shown=True)
        self._write(job.id, plan)
        return plan

    def _show_video(self, job: Job, plan: Plan) -> Plan:
        """Give the video the planned name, or the next free one when it was taken meanwhile."""
        outbox = self.outbox.of_queue(job.queue)
        while (token := outbox.token(job.id, VIDEO, plan.made)) is not Token.SHOWN:
            if token is Token.LOST:
                if outbox.has_video(plan.out_name, job.out_size or 0, job.out_sha256 or ""):
                    return plan
                plan = self._staged_anew(job, plan)
            if outbox.is_free(plan.out_name):
                with contextlib.suppress(FileExistsError):
                    outbox.show_again(job.id, VIDEO, plan.out_name)
                    return plan
            plan = replace(plan, out_name=self._free_name(job))
            self.outbox.stage_sidecar(job.id, sidecar.renamed(outbox.staged_sidecar(job.id), plan.out_name))
            self._write(job.id, plan)
        return plan

    def _staged_anew(self, job: Job, plan: Plan) -> Plan:
        """Stage copies again that are lost with their hidden folder."""
        plan = self._stage(job, plan)
        self._write(job.id, plan)
        return plan

    def _sidecar_staged_anew(self, job: Job, plan: Plan) -> Plan:
        """The same for a sidecar whose video was shown before."""
        plan = replace(plan, made=self.outbox.stage_sidecar(job.id, self._facts(job, plan)))
        self._write(job.id, plan)
        return plan

    def _free_name(self, job: Job) -> str:
        number, out_name, outbox = 1, job.out_name, self.outbox.of_queue(job.queue)
        while not outbox.is_free(out_name):
            number += 1
            out_name = f"{job.out_name} ({number})"
        return out_name

    # -- plans ---------------------------------------------------------------------------------------------------------

    def _file(self, job_id: str) -> Path:
        return self._folders.again / f"{job_id}.json"

    def _plan(self, job_id: str) -> Plan | None:
        record = read_json(self._file(job_id))
        return None if record is None else Plan(**record)

    def _write(self, job_id: str, plan: Plan) -> None:
        folder = self._folders.again
        if not folder.is_dir():
            folder.mkdir(0o750)
            fsync_folder(folder.parent)
        write_json(self._file(job_id), asdict(plan))
