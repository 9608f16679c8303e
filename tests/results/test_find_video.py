"""The one search for a finished video: at each place that it passes, in a queue's folder, as a skipped duplicate."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lipsyncd.ledger.view import LedgerView
from lipsyncd.results.find_video import open_video
from tests.kits.jobs_by_hand import JobsByHand


@pytest.fixture
def by_hand(tmp_path: Path) -> Iterator[JobsByHand]:
    made = JobsByHand(tmp_path / "storage")
    yield made
    made.close()


def published(by_hand: JobsByHand, *, queue: str = "") -> str:
    """A finished job whose copy in `state/results` has expired."""
    job_id = by_hand.queued(queue=queue)
    assert by_hand.ledger.claim("cpu", "token") is not None
    by_hand.finish_render(job_id)
    by_hand.publish(job_id)
    (by_hand.folders.results / f"{job_id}.mp4").unlink()
    return job_id


def found(by_hand: JobsByHand, job_id: str, **changes: str) -> bytes | None:
    view = LedgerView(by_hand.folders.state / "ledger.db")
    descriptor = open_video(by_hand.folders, view, replace(by_hand.job(job_id), **changes))
    if descriptor is None:
        return None
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def test_a_video_is_found_in_the_spool_in_the_results_and_in_the_outbox(by_hand: JobsByHand) -> None:
    job_id = by_hand.rendered()
    assert found(by_hand, job_id) == b"a video"
    by_hand.publish(job_id)
    shown = by_hand.path("outbox") / "anna.mp4"
    shown.rename(shown.with_suffix(".taken"))
    assert found(by_hand, job_id) == b"a video"
    shown.with_suffix(".taken").rename(shown)
    (by_hand.folders.results / f"{job_id}.mp4").unlink()
    assert found(by_hand, job_id) == b"a video"
    shown.unlink()
    assert found(by_hand, job_id) is None


def test_the_video_of_a_queue_is_found_in_the_folder_of_that_queue(by_hand: JobsByHand) -> None:
    job_id = published(by_hand, queue="night")
    assert (by_hand.path("outbox") / "night" / "anna.mp4").exists()
    assert found(by_hand, job_id) == b"a video"


def test_a_job_without_a_video_of_its_own_has_that_of_the_job_that_it_repeats(by_hand: JobsByHand) -> None:
    first, second = published(by_hand, queue="night"), published(by_hand)
    (by_hand.path("outbox") / "anna.mp4").unlink()
    assert found(by_hand, second) is None
    assert found(by_hand, second, duplicate_of=first) == b"a video"


@pytest.mark.parametrize("sidecar", ['{"id": "another"}', "{", "[]", "gone", "fifo"])
def test_a_file_in_the_outbox_counts_only_with_the_sidecar_of_the_job(by_hand: JobsByHand, sidecar: str) -> None:
    job_id = published(by_hand)
    path = by_hand.path("outbox") / "anna.json"
    path.unlink()
    if sidecar == "fifo":
        os.mkfifo(path)
    elif sidecar != "gone":
        path.write_text(sidecar)
    assert found(by_hand, job_id) is None


def test_a_file_of_another_size_and_a_link_are_not_the_video(by_hand: JobsByHand) -> None:
    job_id = published(by_hand)
    shown = by_hand.path("outbox") / "anna.mp4"
    shown.write_bytes(b"another video")
    assert found(by_hand, job_id) is None
    shown.unlink()
    shown.symlink_to(shown.with_name("other.mp4"))
    shown.with_name("other.mp4").write_bytes(b"a video")
    assert found(by_hand, job_id) is None
