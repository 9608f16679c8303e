"""The ledger compared with a model: any calls in any order, and both have the same state after each."""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from lipsyncd.errors import IllegalTransition, RenderCrashed
from lipsyncd.jobs.job import SOURCES, JobState
from lipsyncd.ledger.ledger import Ledger
from lipsyncd.ledger.view import LedgerView
from tests.kits.core_kit import spec_of

DEVICES = ("cuda:0", "cuda:1")
MAX_ATTEMPTS = 2
ENDED_EARLY = (JobState.FAILED, JobState.CANCELLED)


@dataclass
class Model:
    """The expected state of one job."""

    seq: int
    priority: int
    state: JobState = JobState.QUEUED
    prepared: bool = False
    attempt: int = 0
    device: str | None = None
    cancel_requested: bool = False
    out_name: str = ""

    @property
    def live(self) -> bool:
        return not self.state.ended


class LedgerMachine(RuleBasedStateMachine):
    jobs = Bundle("jobs")

    @initialize()
    def open(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "ledger.db"
        self.ledger = Ledger(self.path)
        self.models: dict[str, Model] = {}

    def teardown(self) -> None:
        self.ledger.close()
        self.folder.cleanup()

    def free_name(self, wanted: str) -> str:
        taken = {m.out_name for m in self.models.values() if m.live}
        names = [wanted, *(f"{wanted} ({n})" for n in range(2, 100))]
        return next(name for name in names if name not in taken)

    def refused(self, job_id: str, to: JobState, sources: tuple[JobState, ...] | None = None) -> bool:
        return self.models[job_id].state not in (SOURCES[to] if sources is None else sources)

    # -- calls ---------------------------------------------------------------------------------------------------------

    @rule(target=jobs, name=st.sampled_from(["anna", "bert"]), priority=st.integers(-2, 2))
    def insert(self, name: str, priority: int) -> str:
        spec = spec_of(name, priority=priority)
        out_name = self.free_name(name)
        self.ledger.insert(spec, max_attempts=MAX_ATTEMPTS)
        self.models[spec.id] = Model(len(self.models) + 1, priority, out_name=out_name)
        return spec.id

    @rule(job_id=jobs)
    def prepare(self, job_id: str) -> None:
        model = self.models[job_id]
        assert self.ledger.set_prepared(job_id, frames=1, duration_ms=40) is (model.state is JobState.QUEUED)
        model.prepared = model.prepared or model.state is JobState.QUEUED

    @rule(job_id=jobs, priority=st.integers(-2, 2))
    def set_priority(self, job_id: str, priority: int) -> None:
        model = self.models[job_id]
        waits = model.state is JobState.QUEUED
        assert self.ledger.set_priority(job_id, priority) is waits
        model.priority = priority if waits else model.priority

    @rule(device=st.sampled_from(DEVICES))
    def claim(self, device: str) -> None:
        if any(m.device == device for m in self.models.values()):
            return
        ready = [
            (job_id, m)
            for job_id, m in self.models.items()
            if m.state is JobState.QUEUED and m.prepared and m.attempt < MAX_ATTEMPTS and not m.cancel_requested
        ]
        expected = min(ready, key=lambda entry: (-entry[1].priority, entry[1].seq), default=None)
        job = self.ledger.claim(device, f"token of {device}")
        assert (None if job is None else job.id) == (None if expected is None else expected[0])
        if expected is not None:
            model = expected[1]
            model.state, model.device, model.attempt = JobState.RUNNING, device, model.attempt + 1

    @rule(job_id=jobs)
    def request_cancel(self, job_id: str) -> None:
        model = self.models[job_id]
        assert self.ledger.request_cancel(job_id) is (model.state is JobState.RUNNING)
        model.cancel_requested = model.cancel_requested or model.state is JobState.RUNNING

    @rule(job_id=jobs, right_token=st.booleans())
    def publish(self, job_id: str, right_token: bool) -> None:
        model = self.models[job_id]
        token = f"token of {model.device}" if right_token else "another"
        facts = {"sha256": "a" * 64, "size": 1, "frames": 1, "render_ms": 1}
        if model.state is not JobState.RUNNING or not right_token or model.cancel_requested:
            with pytest.raises(IllegalTransition):
                self.ledger.to_publishing(job_id, token=token, **facts)  # type: ignore[arg-type]
            return
        self.ledger.to_publishing(job_id, token=token, **facts)  # type: ignore[arg-type]
        model.state, model.device = JobState.PUBLISHING, None

    @rule(job_id=jobs, charge=st.booleans())
    def requeue(self, job_id: str, charge: bool) -> None:
        model = self.models[job_id]
        if model.state is not JobState.RUNNING:
            return
        self.ledger.requeue(job_id, note="", charge=charge)
        model.state, model.device, model.attempt = JobState.QUEUED, None, model.attempt - (not charge)

    @rule(job_id=jobs, to=st.sampled_from([JobState.DONE, JobState.FAILED, JobState.CANCELLED]))
    def end(self, job_id: str, to: JobState) -> None:
        model = self.models[job_id]
        act = {
            JobState.DONE: lambda: self.ledger.to_done(job_id, note=""),
            JobState.FAILED: lambda: self.ledger.to_failed(job_id, RenderCrashed("").reason()),
            JobState.CANCELLED: lambda: self.ledger.to_cancelled(job_id),
        }[to]
        if self.refused(job_id, to):
            with pytest.raises(IllegalTransition):
                act()
            return
        act()
        model.state, model.device = to, None
        model.cancel_requested = model.cancel_requested and to is not JobState.CANCELLED

    @rule(job_id=jobs)
    def retry(self, job_id: str) -> None:
        model = self.models[job_id]
        wanted = model.out_name.partition(" (")[0]
        if self.refused(job_id, JobState.QUEUED, ENDED_EARLY):
            with pytest.raises(IllegalTransition):
                self.ledger.retry(job_id, wanted)
            return
        name = self.free_name(wanted)
        self.ledger.retry(job_id, wanted)
        self.models[job_id] = Model(model.seq, model.priority, out_name=name)

    @rule()
    def close_and_open(self) -> None:
        self.ledger.close()
        self.ledger = Ledger(self.path)

    # -- invariants ----------------------------------------------------------------------------------------------------

    @invariant()
    def ledger_and_model_agree(self) -> None:
        for job_id, model in getattr(self, "models", {}).items():
            job = self.ledger.get(job_id)
            seen = Model(
                job.seq,
                job.priority,
                job.state,
                job.prepared,
                job.attempt,
                job.device,
                job.cancel_requested,
                job.out_name,
            )
            assert seen == model
            assert (job.run_token is not None) is (model.state is JobState.RUNNING)

    @precondition(lambda self: hasattr(self, "models"))
    @invariant()
    def a_reader_sees_what_the_writer_sees(self) -> None:
        counts = LedgerView(self.path).counts()
        assert counts == {state: sum(m.state is state for m in self.models.values()) for state in JobState}

    @precondition(lambda self: hasattr(self, "models"))
    @invariant()
    def each_move_has_its_line_of_history(self) -> None:
        with closing(sqlite3.connect(self.path)) as connection:
            last = "SELECT job_id, state FROM job_event WHERE id IN (SELECT max(id) FROM job_event GROUP BY job_id)"
            assert dict(connection.execute(last)) == {i: m.state.value for i, m in self.models.items()}


LedgerMachine.TestCase.settings = settings(max_examples=20, stateful_step_count=30, deadline=None)
TestLedger = LedgerMachine.TestCase
