"""Orders that come again under a known id, and manifests that come after their files were taken."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lipsyncd.jobs.job import JobState, new_id
from lipsyncd.settings import Paths, Settings, Watch
from tests.kits.inbox_kit import InboxByHand, reason
from tests.kits.installation import picture

PICTURE = picture()


@pytest.fixture
def inbox_by_hand(tmp_path: Path) -> Iterator[InboxByHand]:
    inbox_by_hand = InboxByHand(tmp_path)
    yield inbox_by_hand
    inbox_by_hand.ledger.close()


# -- an id that comes again --------------------------------------------------------------------------------------------


def test_the_same_order_under_the_same_id_is_cleared_away(inbox_by_hand: InboxByHand) -> None:
    """A client that got no answer sent the request again: the same bytes, the fields in another order."""
    job_id = new_id()
    for fields in ({"priority": 1, "id": job_id}, {"id": job_id, "priority": 1}, {"id": job_id.upper(), "priority": 1}):
        inbox_by_hand.pair()
        inbox_by_hand.manifest(**fields)
        accepted = inbox_by_hand.take()
        assert len(accepted) <= 1
        assert inbox_by_hand.left == []
    assert [job.id for job in inbox_by_hand.ledger.in_state(*JobState)] == [job_id]


@pytest.mark.parametrize(
    "fields",
    [
        {"stitch": True},
        {"fps": 30},
        {"text": "something else", "audio": None},
        {"lipsyncd": {"mood": "calm"}},
        {"image": "https://example.com/other.png"},
    ],
)
def test_another_order_under_a_known_id_is_refused_and_names_the_job(
    inbox_by_hand: InboxByHand, fields: dict[str, Any]
) -> None:
    job_id = new_id()
    inbox_by_hand.pair()
    inbox_by_hand.manifest(id=job_id)
    assert inbox_by_hand.take_one().id == job_id
    inbox_by_hand.pair()
    inbox_by_hand.manifest(id=job_id, **fields)
    accepted = inbox_by_hand.take()
    [refused] = [a.job for a in accepted if a.refused]
    assert refused.id != job_id
    assert reason(refused, inbox_by_hand) == "inputs-already-taken"
    assert job_id in inbox_by_hand.spec(refused).refusal["message"]  # type: ignore[index]


def test_other_bytes_under_a_known_id_are_refused(inbox_by_hand: InboxByHand) -> None:
    job_id = new_id()
    inbox_by_hand.pair()
    inbox_by_hand.manifest(id=job_id)
    inbox_by_hand.take()
    inbox_by_hand.pair(seed=1)
    inbox_by_hand.manifest(id=job_id)
    assert reason(inbox_by_hand.take_one(), inbox_by_hand) == "inputs-already-taken"
    assert inbox_by_hand.left == []


def test_the_same_text_under_the_same_id_is_cleared_and_another_text_refused(inbox_by_hand: InboxByHand) -> None:
    job_id = new_id()
    for text, expected in (("hello", [False]), ("hello", []), ("good bye", [True])):
        inbox_by_hand.put("anna.png", PICTURE)
        inbox_by_hand.put("order.json", json.dumps({"image": "anna.png", "text": text, "id": job_id}).encode())
        assert [a.refused for a in inbox_by_hand.take()] == expected
        assert inbox_by_hand.left == []


# -- manifests that come late ------------------------------------------------------------------------------------------


def test_a_manifest_right_after_its_pair_replaces_the_options(inbox_by_hand: InboxByHand) -> None:
    inbox_by_hand.pair()
    job = inbox_by_hand.take_one()
    inbox_by_hand.manifest(resolution=128, stitch=True, out_name="hello", user_data=7)
    assert inbox_by_hand.take() == []
    spec, row = inbox_by_hand.spec(job), inbox_by_hand.ledger.get(job.id)
    assert (spec.resolution, spec.stitch, spec.out_name, spec.user_data) == (128, True, "hello", 7)
    assert (row.resolution, row.stitch, row.out_name, row.name, row.user_data) == (128, True, "hello", "hello", "7")
    assert [s.name for s in spec.sources] == ["anna.png", "anna.wav"]
    assert inbox_by_hand.left == []
    # The replaced order is the order: asking for it again under its id is a repetition.
    inbox_by_hand.pair()
    inbox_by_hand.manifest(id=job.id, resolution=128, stitch=True, out_name="hello", user_data=7)
    assert inbox_by_hand.take() == []
    assert inbox_by_hand.left == []


def test_a_late_manifest_finds_the_pair_although_it_writes_the_names_in_another_case(
    inbox_by_hand: InboxByHand,
) -> None:
    inbox_by_hand.pair("Anna")
    job = inbox_by_hand.take_one()
    inbox_by_hand.manifest(image="anna.PNG", audio="ANNA.wav", out_name="hello")
    assert inbox_by_hand.take() == []
    assert inbox_by_hand.spec(job).out_name == "hello"
    assert inbox_by_hand.left == []


def test_a_manifest_that_says_no_name_leaves_the_names_as_they_are(inbox_by_hand: InboxByHand) -> None:
    inbox_by_hand.pair()
    job = inbox_by_hand.take_one()
    inbox_by_hand.manifest("another stem", stitch=True)
    inbox_by_hand.take()
    assert (inbox_by_hand.ledger.get(job.id).name, inbox_by_hand.ledger.get(job.id).out_name) == ("anna", "anna")


@pytest.mark.parametrize("too_late", ["grace", "claimed", "id"])
def test_a_manifest_that_comes_too_late_is_refused_and_names_the_job(tmp_path: Path, too_late: str) -> None:
    settings = Settings(Paths(storage=tmp_path), Watch(manifest_grace_s=0.0 if too_late == "grace" else 60.0))
    inbox_by_hand = InboxByHand(tmp_path, settings)
    inbox_by_hand.pair()
    job = inbox_by_hand.take_one()
    if too_late == "claimed":
        inbox_by_hand.ledger.set_prepared(job.id, frames=1, duration_ms=40)
        inbox_by_hand.ledger.claim("cpu", "t")
    time.sleep(0.002)
    inbox_by_hand.manifest(stitch=True, **({"id": new_id()} if too_late == "id" else {}))
    inbox_by_hand.take()
    [refused] = [j for j in inbox_by_hand.ledger.in_state(JobState.QUEUED) if j.id != job.id]
    assert reason(refused, inbox_by_hand) == "inputs-already-taken"
    assert job.id in inbox_by_hand.spec(refused).refusal["message"]  # type: ignore[index]
    assert not inbox_by_hand.ledger.get(job.id).stitch
    assert inbox_by_hand.left == []
    inbox_by_hand.ledger.close()


def test_a_manifest_before_its_files_is_no_late_one_although_the_names_were_used_before(
    inbox_by_hand: InboxByHand,
) -> None:
    """The order of an hourly script: the manifest, then the files, under the same names as the last time."""
    for _ in range(2):
        inbox_by_hand.manifest()
        assert inbox_by_hand.take() == []
        assert inbox_by_hand.left == ["order.json"]
        inbox_by_hand.pair()
        assert not inbox_by_hand.take()[0].refused
        assert inbox_by_hand.left == []
    assert len(inbox_by_hand.ledger.in_state(JobState.QUEUED)) == 2
