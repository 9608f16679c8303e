"""Which job a text means: ids, their ends, names; and which ends are short and yet unique."""

from __future__ import annotations

from contextlib import closing

import pytest

from lipsyncd.errors import AmbiguousJob, UnknownJob
from lipsyncd.jobs.job import JobState
from lipsyncd.ledger.find_job import find_job, short_ids
from lipsyncd.ledger.ledger import Ledger
from lipsyncd.ledger.view import LedgerView
from tests.kits.core_kit import claimed, connected, queued

START = "11110000-0000-7000-8000-"


@pytest.fixture
def view(ledger: Ledger) -> LedgerView:
    return LedgerView(ledger.path)


def test_a_job_is_found_by_either_end_of_its_id_when_only_one_has_it(ledger: Ledger, view: LedgerView) -> None:
    one = queued(ledger, "one", id=f"{START}0000000000aa")
    assert find_job(view, "1111").id == one
    two = queued(ledger, "two", id=f"{START}0000000000bb")
    for text in (one, one.upper(), f"tlk_{one.replace('-', '')}", "00aa", "0000000000aa"):
        assert find_job(view, text).id == one
    assert find_job(view, two).id == two
    with pytest.raises(AmbiguousJob, match=r"2 jobs fit '1111': 0000bb \(queued\), 0000aa \(queued\)"):
        find_job(view, "1111")
    for text in ("0aa", "%", "____", "", "00cc", "2222", f"{START}0000000000cc", "one%"):
        with pytest.raises(UnknownJob, match=r"no job in .*ledger\.db has the id or the name"):
            find_job(view, text)


def test_a_name_stands_for_the_unfinished_job_else_for_the_only_one(ledger: Ledger, view: LedgerView) -> None:
    done, failed = queued(ledger, "anna"), queued(ledger, "anna", out_name="anna (2)")
    ledger.to_cancelled(done)
    assert find_job(view, "anna").id == failed
    ledger.to_cancelled(failed)
    with pytest.raises(AmbiguousJob, match="2 jobs fit 'anna'") as refusal:
        find_job(view, "anna")
    assert refusal.value.exit_status == 2
    assert all(f"{job_id[-6:]} (cancelled)" in refusal.value.message for job_id in (done, failed))
    assert find_job(view, "anna (2)").id == failed
    assert find_job(view, done[-6:]).id == done


def test_the_states_that_are_preferred_decide_among_several(ledger: Ledger, view: LedgerView) -> None:
    ended = queued(ledger, "anna")
    ledger.to_cancelled(ended)
    waits = queued(ledger, "anna")
    assert find_job(view, "anna").id == waits
    assert find_job(view, "anna", preferred=[JobState.FAILED, JobState.CANCELLED]).id == ended
    queued(ledger, "anna", out_name="anna (2)")
    with pytest.raises(AmbiguousJob, match=r"2 jobs fit 'anna'.*queued.*queued"):
        find_job(view, "anna")


def test_a_job_of_a_queue_has_the_queue_before_its_name(ledger: Ledger, view: LedgerView) -> None:
    night, plain = queued(ledger, "anna", queue="night"), queued(ledger, "bert")
    assert find_job(view, "night/anna").id == find_job(view, "anna").id == night
    with pytest.raises(UnknownJob):
        find_job(view, "/bert")
    assert find_job(view, "bert").id == plain


def test_an_end_goes_before_a_beginning_and_an_id_before_a_name(ledger: Ledger, view: LedgerView) -> None:
    begins = queued(ledger, "one", id="abcdef00-0000-7000-8000-000000000001")
    ends = queued(ledger, "two", id="11110000-0000-7000-8000-000000abcdef")
    assert find_job(view, "abcdef").id == ends
    assert find_job(view, "abcdef00").id == begins
    queued(ledger, ends)  # a job that is called like another one's id
    assert find_job(view, ends).id == ends
    queued(ledger, "abcdef")
    with pytest.raises(AmbiguousJob):
        find_job(view, "abcdef")


def test_short_ids_are_as_long_as_they_must_be_to_be_unique_in_the_whole_ledger(
    ledger: Ledger, view: LedgerView
) -> None:
    assert short_ids(view, []) == {}
    ids = [queued(ledger, f"n{n}", id=f"{START}00000000{n:04x}") for n in (1, 2)]
    assert short_ids(view, view.jobs()) == {job_id: job_id[-6:] for job_id in ids}
    queued(ledger, "shadow", id="22220000-0000-7000-8000-000001000001")  # the same six at its end
    shown = [job for job in view.jobs() if job.name != "shadow"]
    assert short_ids(view, shown) == {job_id: job_id[-7:] for job_id in ids}
    queued(ledger, "twin", id="33330000-0000-7000-8000-000000000001")
    assert short_ids(view, shown) == {job_id: job_id for job_id in ids}
    for job_id, short in short_ids(view, view.jobs()).items():
        assert find_job(view, short).id == job_id


def test_many_candidates_are_counted_and_few_are_named(ledger: Ledger, view: LedgerView) -> None:
    for number in range(7):
        ledger.to_cancelled(queued(ledger, "anna", out_name=f"anna {number}"))
    with pytest.raises(AmbiguousJob) as refusal:
        find_job(view, "anna")
    assert refusal.value.message.startswith("7 jobs fit 'anna': ")
    assert refusal.value.message.endswith(" and 2 more")


def test_a_job_that_was_published_as_a_sidecar_is_known(ledger: Ledger, view: LedgerView) -> None:
    ids = []
    for name, shown in (("first", "first.json.mp4"), ("linked", "linked.mp4"), ("skipped", "skipped.json")):
        ids.append(claimed(ledger, name))
        ledger.to_publishing(ids[-1], token="t", sha256="0" * 64, size=1, frames=25, render_ms=40)
        ledger.to_done(ids[-1], note=f"published as {shown}")
    with closing(connected(ledger)) as other:
        other.execute("UPDATE job SET duplicate_of=? WHERE id<>?", (ids[0], ids[0]))
    assert view.published_without_video(view.jobs()) == {ids[2]}
