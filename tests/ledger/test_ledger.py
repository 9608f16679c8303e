"""The ledger with real SQLite: legal moves, claims by two workers, output names, and accepted jobs."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing

import pytest
from sqlalchemy.exc import IntegrityError

from lipsyncd.errors import IllegalTransition, RenderCrashed, UnknownJob
from lipsyncd.jobs.job import SOURCES, Identity, JobState, SourceFile, new_id, now_ms
from lipsyncd.ledger.ledger import AlreadyAccepted, Ledger
from tests.kits.core_kit import claimed, connected, queued, spec_of

CRASHED = RenderCrashed("as asked").reason()
SHA = "a" * 64


def publish(ledger: Ledger, job_id: str, token: str | None = None) -> None:
    ledger.to_publishing(job_id, token=token, sha256=SHA, size=10, frames=25, render_ms=500)


def in_state(ledger: Ledger, state: JobState, name: str = "anna") -> str:
    """A job that was brought to that state by legal moves."""
    job_id = queued(ledger, name)
    if state is JobState.QUEUED:
        return job_id
    if state is JobState.CANCELLED:
        ledger.to_cancelled(job_id)
        return job_id
    assert ledger.claim("cpu", "t") is not None
    if state is JobState.FAILED:
        ledger.to_failed(job_id, CRASHED)
    elif state is not JobState.RUNNING:
        publish(ledger, job_id, "t")
    if state is JobState.DONE:
        ledger.to_done(job_id, note="published")
    return job_id


def move(ledger: Ledger, job_id: str, to: JobState) -> None:
    if to is JobState.QUEUED:
        ended = ledger.get(job_id).state in (JobState.FAILED, JobState.CANCELLED)
        ledger.retry(job_id, "anna") if ended else ledger.requeue(job_id, note="", charge=True)
    elif to is JobState.PUBLISHING:
        publish(ledger, job_id)
    elif to is JobState.DONE:
        ledger.to_done(job_id, note="")
    elif to is JobState.FAILED:
        ledger.to_failed(job_id, CRASHED)
    else:
        ledger.to_cancelled(job_id)


PAIRS = [(source, to) for source in JobState for to in JobState if source is not to]


# -- moves -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "to"), [p for p in PAIRS if p[1] is not JobState.RUNNING])
def test_a_job_moves_only_where_the_table_says(ledger: Ledger, source: JobState, to: JobState) -> None:
    job_id = in_state(ledger, source)
    if source in SOURCES[to]:
        move(ledger, job_id, to)
        assert ledger.get(job_id).state is to
        return
    before = ledger.get(job_id)
    with pytest.raises(IllegalTransition, match=f"{job_id} is {source} and cannot become {to}"):
        move(ledger, job_id, to)
    assert ledger.get(job_id) == before


@pytest.mark.parametrize(("source", "to"), PAIRS)
def test_the_database_itself_refuses_moves_that_the_table_does_not_know(
    ledger: Ledger, source: JobState, to: JobState
) -> None:
    """A trigger refuses an illegal move that another program such as `sqlite3` makes."""
    job_id = in_state(ledger, source)
    whole = "run_token=iif(:to='running','t',NULL), device=iif(:to='running','cpu',NULL), reason_code='x'"
    change = f"UPDATE job SET state=:to, out_sha256='{SHA}', {whole} WHERE id=:id"
    with closing(connected(ledger)) as connection:
        if source in SOURCES[to]:
            assert connection.execute(change, {"to": to.value, "id": job_id}).rowcount == 1
        else:
            with pytest.raises(sqlite3.IntegrityError, match="illegal move"):
                connection.execute(change, {"to": to.value, "id": job_id})


def test_every_move_leaves_one_line_of_history(ledger: Ledger) -> None:
    job_id = in_state(ledger, JobState.DONE)
    with closing(connected(ledger)) as connection:
        events = [tuple(row) for row in connection.execute("SELECT state, note FROM job_event ORDER BY id")]
    assert events == [
        ("queued", "accepted"),
        ("queued", "prepared"),
        ("running", "attempt 1 of 3 on cpu"),
        ("publishing", "rendered"),
        ("done", "published"),
    ]
    assert ledger.get(job_id).finished_ms is not None


def test_an_unknown_id_is_another_error_than_an_illegal_move(ledger: Ledger) -> None:
    unknown = new_id()
    for act in (
        lambda: ledger.get(unknown),
        lambda: ledger.to_cancelled(unknown),
        lambda: ledger.retry(unknown, "anna"),
        lambda: ledger.requeue(unknown, note="", charge=True),
    ):
        with pytest.raises(UnknownJob, match=unknown):
            act()
    assert ledger.find(unknown) is None
    assert not ledger.set_priority(unknown, 5)
    ledger.note(unknown, "never stored")
    assert ledger.source_hashes(unknown) == {}


# -- claiming ----------------------------------------------------------------------------------------------------------


def test_one_of_two_simultaneous_claims_gets_the_job(ledger: Ledger) -> None:
    """Two workers of two devices, one job each round: never both, never neither."""
    won: list[list[str]] = []
    for round_number in range(20):
        queued(ledger, f"job{round_number}")
        gate, found = threading.Barrier(2), []

        def take(device: str, gate: threading.Barrier = gate, found: list[str] = found) -> None:
            gate.wait()
            job = ledger.claim(device, f"token-{device}")
            if job is not None:
                found.append(job.id)

        threads = [threading.Thread(target=take, args=(device,)) for device in ("cuda:0", "cuda:1")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        won.append(found)
        ledger.to_cancelled(found[0])
    assert [len(found) for found in won] == [1] * 20


def test_one_device_never_runs_two_jobs(ledger: Ledger) -> None:
    claimed(ledger, "first", device="cpu")
    queued(ledger, "second")
    with pytest.raises(IntegrityError):
        ledger.claim("cpu", "t2")
    other = ledger.claim("cuda:0", "t2")
    assert other is not None
    assert other.name == "second"


def test_higher_priority_comes_first_then_the_older(ledger: Ledger) -> None:
    for name, priority in (("low", -5), ("old", 0), ("new", 0), ("high", 7), ("old high", 0)):
        queued(ledger, name, priority=priority)
    raised = next(job for job in ledger.in_state(JobState.QUEUED) if job.name == "old high")
    assert ledger.set_priority(raised.id, 7)
    order = []
    while (job := ledger.claim("cpu", "t")) is not None:
        order.append(job.name)
        ledger.to_cancelled(job.id)
    assert order == ["high", "old high", "old", "new", "low"]


def test_the_next_job_is_the_one_that_a_claim_gives_and_stays_in_the_queue(ledger: Ledger) -> None:
    assert ledger.next_job() is None
    for name, priority in (("first", 0), ("urgent", 5), ("last", 0)):
        queued(ledger, name, priority=priority)

    for name in ("urgent", "first", "last"):
        expected = ledger.next_job()
        claimed = ledger.claim(f"cpu:{name}", name)
        assert expected is not None
        assert claimed is not None
        assert (expected.id, expected.name) == (claimed.id, name)
    assert ledger.next_job() is None


def test_a_claim_reads_the_queue_by_its_index(ledger: Ledger) -> None:
    """A plan that sorts would read every finished job of the last 90 days for each claim."""
    wanted = """SELECT id FROM job WHERE state='queued' AND prepared=1 AND not_before_ms<=0 AND cancel_requested=0
                AND attempt<max_attempts ORDER BY priority DESC, seq LIMIT 1"""
    with closing(connected(ledger)) as connection:
        plan = [row["detail"] for row in connection.execute(f"EXPLAIN QUERY PLAN {wanted}")]
    assert plan == ["SCAN job USING INDEX job_prepared"]


def test_a_job_that_is_not_prepared_is_not_claimed(ledger: Ledger) -> None:
    spec = spec_of()
    ledger.insert(spec, max_attempts=3)
    assert ledger.claim("cpu", "t") is None
    waiting = ledger.next_to_prepare()
    assert waiting is not None
    assert waiting.id == spec.id
    ledger.set_prepared(spec.id, frames=25, duration_ms=1000)
    assert ledger.next_to_prepare() is None
    assert ledger.claim("cpu", "t") is not None


def test_a_delayed_job_is_neither_claimed_nor_prepared_before_it_is_due(ledger: Ledger) -> None:
    job_id = claimed(ledger)
    ledger.requeue(job_id, note="later", delay_ms=60_000, charge=True)
    assert ledger.claim("cpu", "t") is None
    assert ledger.get(job_id).not_before_ms > now_ms() + 50_000
    ledger.set_unprepared(job_id)
    assert ledger.next_to_prepare() is None


def test_the_attempt_is_counted_before_the_run_and_ends_at_the_maximum(ledger: Ledger) -> None:
    job_id = queued(ledger, max_attempts=2)
    for attempt in (1, 2):
        job = ledger.claim("cpu", "t")
        assert job is not None
        assert job.attempt == attempt
        ledger.requeue(job_id, note="crashed", charge=True)
    assert ledger.claim("cpu", "t") is None


def test_a_requeue_without_charge_gives_the_attempt_back(ledger: Ledger) -> None:
    job_id = claimed(ledger)
    back = ledger.requeue(job_id, note="the daemon stops", charge=False)
    assert (back.state, back.attempt, back.run_token, back.device) == (JobState.QUEUED, 0, None, None)
    ledger.claim("cpu", "t")
    back = ledger.requeue(job_id, note="crashed", charge=True, error=CRASHED)
    assert (back.attempt, back.reason_code) == (1, "render-crashed")
    again = ledger.claim("cpu", "t")
    assert again is not None
    assert (again.attempt, again.reason_code) == (2, None)


def test_only_the_run_that_rendered_a_video_may_publish_it(ledger: Ledger) -> None:
    job_id = claimed(ledger, token="first")
    with pytest.raises(IllegalTransition):
        publish(ledger, job_id, "second")
    publish(ledger, job_id, "first")
    job = ledger.get(job_id)
    assert (job.state, job.out_sha256, job.out_size, job.run_token) == (JobState.PUBLISHING, SHA, 10, None)
    assert (job.frames, job.render_fps) == (25, 50.0)


def test_a_video_is_refused_after_a_cancel_request(ledger: Ledger) -> None:
    job_id = claimed(ledger)
    assert ledger.request_cancel(job_id)
    with pytest.raises(IllegalTransition):
        publish(ledger, job_id, "t")
    assert ledger.to_cancelled(job_id).cancel_requested is False


def test_a_job_with_a_cancel_request_is_not_claimed_again(ledger: Ledger) -> None:
    job_id = claimed(ledger)
    ledger.request_cancel(job_id)
    assert ledger.requeue(job_id, note="crashed", charge=True).cancel_requested
    assert ledger.claim("cpu", "t") is None


@pytest.mark.parametrize("state", JobState)
def test_only_a_running_job_takes_a_cancel_request(ledger: Ledger, state: JobState) -> None:
    assert ledger.request_cancel(in_state(ledger, state)) is (state is JobState.RUNNING)


def test_progress_needs_the_token_of_the_run_and_is_limited_to_a_fraction(ledger: Ledger) -> None:
    job_id = claimed(ledger, token="mine")
    ledger.set_progress(job_id, "another", "rendering", 0.9)
    assert ledger.get(job_id).fraction == 0
    for reported, kept in ((0.5, 0.5), (7.0, 1.0), (-1.0, 0.0)):
        ledger.set_progress(job_id, "mine", "rendering", reported)
        assert (ledger.get(job_id).stage, ledger.get(job_id).fraction) == ("rendering", kept)


def test_a_repeated_reason_to_wait_is_one_line_of_history(ledger: Ledger) -> None:
    job_id = queued(ledger)
    for _ in range(3):
        assert ledger.set_blocked(job_id, CRASHED, delay_ms=10)
    assert ledger.get(job_id).blocked
    with closing(connected(ledger)) as connection:
        [count] = connection.execute("SELECT count(*) FROM job_event WHERE note LIKE 'waits:%'").fetchone()
    assert count == 1


# -- names -------------------------------------------------------------------------------------------------------------


def test_live_jobs_never_share_an_output_name(ledger: Ledger) -> None:
    names = ["anna", "anna", "ANNA", "a\u0301nna", "\u00e1nna", "anna (2)"]
    jobs = [ledger.insert(spec_of(name), max_attempts=3) for name in names]
    taken = [job.out_name for job in jobs if job is not None]
    assert taken == ["anna", "anna (2)", "ANNA (3)", "a\u0301nna", "\u00e1nna (2)", "anna (2) (2)"]


def test_the_name_of_an_ended_job_is_free_again(ledger: Ledger) -> None:
    for state in (JobState.DONE, JobState.FAILED, JobState.CANCELLED):
        assert ledger.get(in_state(ledger, state)).out_name == "anna"


def test_a_retry_gets_the_next_free_name_when_its_own_is_taken(ledger: Ledger) -> None:
    failed = in_state(ledger, JobState.FAILED)
    second = queued(ledger, "anna")
    assert ledger.retry(failed, "anna").out_name == "anna (2)"
    ledger.to_failed(failed, CRASHED)
    ledger.to_cancelled(second)
    assert ledger.retry(failed, "anna").out_name == "anna"


def test_a_retry_clears_the_columns_of_the_first_run(ledger: Ledger) -> None:
    job_id = in_state(ledger, JobState.RUNNING)
    publish(ledger, job_id, "t")
    assert ledger.set_staged(job_id)
    ledger.to_failed(job_id, CRASHED)
    ledger.set_kept(job_id, "/kept")
    job = ledger.retry(job_id, "anna")
    assert (job.state, job.attempt, job.prepared, job.kept) == (JobState.QUEUED, 0, False, None)
    assert (job.out_sha256, job.staged, job.reason_code, job.finished_ms) == (None, False, None, None)


def test_a_running_job_is_not_retried(ledger: Ledger) -> None:
    with pytest.raises(IllegalTransition):
        ledger.retry(claimed(ledger), "anna")


@pytest.mark.parametrize(
    ("wanted", "steps"),
    [
        ("anna", ["anna (2)", "anna (3)", "anna (5)"]),
        ("Report (2024)", ["Report (2024) (2)", "Report (2024) (3)", "Report (2024) (5)"]),
        ("5", ["5 (2)", "5 (3)", "5 (5)"]),
    ],
)
def test_renaming_continues_after_the_taken_name(ledger: Ledger, wanted: str, steps: list[str]) -> None:
    job_id = in_state(ledger, JobState.PUBLISHING, wanted)
    queued(ledger, f"{wanted} (4)")
    found, taken = [], wanted
    for _ in steps:
        taken = ledger.rename_output(job_id, wanted, taken)
        found.append(taken)
    assert found == steps
    assert ledger.get(job_id).out_name == steps[-1]


# -- accepting ---------------------------------------------------------------------------------------------------------


def source(role: str, number: int) -> SourceFile:
    return SourceFile(role, f"anna.{role}", Identity(1, number, 10, 20, 30), f"{number:064x}")


def test_the_same_drop_is_accepted_once_while_its_files_are_in_the_inbox(ledger: Ledger) -> None:
    files = (source("image", 1), source("audio", 2))
    first = spec_of(sources=files)
    ledger.insert(first, max_attempts=3)
    with pytest.raises(AlreadyAccepted):
        ledger.insert(spec_of(sources=files), max_attempts=3)
    assert ledger.unreleased() == [first.id]
    ledger.set_released([first.id])
    assert ledger.unreleased() == []
    assert ledger.insert(spec_of(sources=files), max_attempts=3) is not None


def test_inserting_an_id_again_changes_nothing(ledger: Ledger) -> None:
    spec = spec_of()
    ledger.insert(spec, max_attempts=3)
    before = ledger.get(spec.id)
    assert ledger.insert(spec, max_attempts=9) is None
    assert ledger.get(spec.id) == before


def test_the_newest_job_that_took_a_name_is_found_by_its_bytes(ledger: Ledger) -> None:
    name = b"bad\xff.png"
    for number in (1, 2):
        taken = SourceFile("image", name.decode(errors="surrogateescape"), Identity(1, number, 0, 0, 0), SHA)
        latest = spec_of(sources=(taken,))
        ledger.insert(latest, max_attempts=3)
    found = ledger.latest_with_source(name)
    assert found is not None
    assert found.id == latest.id
    assert ledger.source_hashes(latest.id) == {"image": SHA}
    assert ledger.latest_with_source(b"other.png") is None


def test_options_are_replaced_only_while_a_job_waits(ledger: Ledger) -> None:
    spec = spec_of()
    ledger.insert(spec, max_attempts=3, idem_key="old")
    ledger.set_prepared(spec.id, frames=25, duration_ms=1000)
    queued(ledger, "hello")
    other = spec_of(id=spec.id, out_name="hello", resolution=128, stitch=True, priority=9, user_data={"a": 1})
    assert ledger.set_options(other, idem_key="new")
    job = ledger.get(spec.id)
    assert (job.out_name, job.resolution, job.stitch, job.priority) == ("hello (2)", 128, True, 9)
    assert (job.user_data, ledger.idem_key(spec.id), job.prepared) == ('{"a": 1}', "new", False)
    ledger.to_cancelled(spec.id)
    assert not ledger.set_options(spec)
    assert ledger.get(spec.id).resolution == 128
