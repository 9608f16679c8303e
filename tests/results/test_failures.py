"""What no code foresees: it concerns one job, is tried again, and ends that job alone; a busy machine ends none."""

from __future__ import annotations

import errno
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from lipsyncd.errors import Blocked, tree
from lipsyncd.jobs.job import JobState
from lipsyncd.results.failures import PREPARE, PUBLISH, Failures
from tests.kits.jobs_by_hand import JobsByHand


@pytest.fixture
def by_hand(tmp_path: Path) -> Iterator[JobsByHand]:
    by_hand = JobsByHand(tmp_path)
    yield by_hand
    by_hand.close()


def due_now(by_hand: JobsByHand) -> None:
    by_hand.ledger.release(*(kind.code for kind in tree(Blocked)), "internal-error")


def test_a_video_that_is_a_link_is_tried_three_times_and_its_neighbour_is_published(by_hand: JobsByHand) -> None:
    bad, good = by_hand.rendered("bad"), by_hand.rendered("good")
    video = by_hand.spool.video(bad)
    video.rename(video.with_name("elsewhere"))
    video.symlink_to("elsewhere")
    states = []
    for _ in range(3):
        by_hand.publisher.publish_due()
        states.append(by_hand.job(bad).state)
        due_now(by_hand)
    assert by_hand.job(good).state is JobState.DONE
    assert states == [JobState.PUBLISHING, JobState.PUBLISHING, JobState.FAILED]
    assert "not a regular file" in (by_hand.job(bad).reason or "")


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN])
@pytest.mark.parametrize("stage", [PREPARE, PUBLISH], ids=["prepare", "publish"])
def test_a_busy_machine_is_no_fault_of_the_job(by_hand: JobsByHand, code: int, stage: object) -> None:
    job = by_hand.job(by_hand.queued())
    error = Failures._as_ours(job, OSError(code, "busy"), stage)  # type: ignore[arg-type]
    assert (error.code, isinstance(error, Blocked)) == ("system-busy", True)


def test_without_a_free_descriptor_a_job_waits_and_is_published_afterwards(by_hand: JobsByHand) -> None:
    job_id = by_hand.rendered()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    by_hand.ledger.get(job_id)
    lowest_free = len(list(Path("/proc/self/fd").iterdir()))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free - 1, hard))
        for _ in range(5):
            by_hand.publisher.publish_due()
            by_hand.ledger.release("system-busy", "outbox-unavailable")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert by_hand.job(job_id).state is JobState.PUBLISHING
    due_now(by_hand)
    by_hand.publisher.publish_due()
    assert by_hand.job(job_id).state is JobState.DONE


def test_an_ended_job_whose_record_is_nonsense_keeps_no_other_from_being_cleared_away(
    by_hand: JobsByHand, caplog: pytest.LogCaptureFixture
) -> None:
    (by_hand.folders.state.parent / "archive").rename(by_hand.folders.state.parent / "away")
    bad, good = by_hand.published("bad"), by_hand.published("good")
    assert by_hand.spool.ids() == sorted([bad, good])
    (by_hand.folders.state.parent / "away").rename(by_hand.folders.state.parent / "archive")
    (by_hand.spool.folder(bad) / "out.json").write_text('{"sha256": 1, "size": [], "frames": {}}')
    for _ in range(5):
        by_hand.finisher.tidy()
    assert by_hand.spool.ids() == [bad] or by_hand.spool.ids() == []
    assert good not in by_hand.spool.ids()
    assert caplog.text.count("unexpected failure") <= 3
