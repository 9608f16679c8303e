"""Reach a daemon of this machine through its storage folder, as the commands do: inbox, ledger, control files."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

from lipsyncd.client.facts import JobFacts
from lipsyncd.errors import IllegalTransition, NoDaemon, ResultGone, UnknownJob, UsageError
from lipsyncd.inbox.order_rules import check_order, recorded
from lipsyncd.inbox.submit import drop
from lipsyncd.jobs.job import JobState, id_of_key
from lipsyncd.jobs.manifest import Manifest
from lipsyncd.ledger.view import LedgerView
from lipsyncd.monitor.held_lock import is_held
from lipsyncd.results.find_video import open_video
from lipsyncd.settings import Intake, Paths
from lipsyncd.storage import control_files
from lipsyncd.storage.control_files import WITHDRAW, Request
from lipsyncd.storage.files import copy_hashed, umask
from lipsyncd.storage.folders import folders_of

_POLL_S = 0.2
_ANSWER_TIMEOUT_S = 10.0
_OWNER = "storage"  # whose Idempotency-Keys these are; those of REST are its clients'


class OverStorage:
    """The daemon of a storage folder, whose inbox, outbox and state are the folders of these names in it."""

    def __init__(self, storage: Path) -> None:
        if not storage.is_dir():
            raise UsageError(f"there is no folder {str(storage)!r}", remedy="name the storage of a daemon")
        self._folders = folders_of(Paths(storage=storage))
        self._view = LedgerView(self._folders.state / "ledger.db")
        self._dropped: set[str] = set()

    def submit(self, manifest: Manifest, idempotency_key: str | None) -> str:
        if idempotency_key is not None:
            job_id = id_of_key(_OWNER, idempotency_key)
            if job_id in self._dropped or self._view.find(job_id) is not None:
                return job_id
            manifest = replace(manifest, id=job_id)
        rules = recorded(self._folders.state)
        if rules is not None:
            check_order(manifest, rules)
        submission = drop(self._folders, manifest, limits=Intake() if rules is None else rules.limits)
        self._dropped.add(submission.job_id)
        return submission.job_id

    def look(self, job_id: str, wait_s: float = 0.0) -> JobFacts:
        until_s = time.monotonic() + wait_s
        while True:
            facts = self._look(job_id)
            if facts.state.ended or time.monotonic() >= until_s:
                return facts
            if not is_held(self._folders.state):
                raise NoDaemon(f"no daemon runs for {self._folders.state.parent}; job {job_id} waits")
            time.sleep(_POLL_S)

    def _look(self, job_id: str) -> JobFacts:
        job = self._view.find(job_id)
        if job is not None:
            return JobFacts.from_row(job, self._view.waits_for(job))
        if job_id in self._dropped:  # its manifest still lies in the inbox
            return JobFacts(job_id, "", JobState.QUEUED, "", 0.0, "")
        raise UnknownJob(f"the ledger of {self._folders.state.parent} has no job {job_id!r}")

    def follow(self, job_id: str) -> None:
        """Nothing tells: the ledger has to be read again."""

    def jobs(self, state: JobState | None, limit: int) -> list[JobFacts]:
        found = self._view.jobs(states=() if state is None else (state,), limit=limit)
        return [JobFacts.from_row(job, self._view.waits_for(job)) for job in found]

    def cancel(self, job_id: str) -> None:
        facts = self._look(job_id)
        if facts.state is JobState.CANCELLED:
            return
        if facts.state in (JobState.QUEUED, JobState.RUNNING):
            answer = control_files.ask(self._folders.control, Request(WITHDRAW, facts.id), timeout_s=_ANSWER_TIMEOUT_S)
            if answer is None:
                raise NoDaemon(f"no daemon answered for {self._folders.state.parent}")
            if answer.ok:
                return
        raise IllegalTransition(f"job {facts.id} is {self._look(job_id).state.value}; it is left as it is")

    def fetch(self, facts: JobFacts, target: Path) -> None:
        job = self._view.find(facts.id)
        descriptor = None if job is None else open_video(self._folders, self._view, job)
        if descriptor is None:
            raise ResultGone(f"the video of job {facts.id} is kept no more")
        try:
            copy_hashed(descriptor, target, mode=0o666 & ~umask())
        finally:
            os.close(descriptor)
