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
from tests.kits.inbox_kit import Desk, reason
from tests.kits.installation import picture

PICTURE = picture()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.ledger.close()


# -- an id that comes again --------------------------------------------------------------------------------------------


def test_the_same_order_under_the_same_id_is_cleared_away(desk: Desk) -> None:
    """Somebody who got no answer asked again: with the same bytes, the same words in another order."""
    job_id = new_id()
    for said in ({"priority": 1, "id": job_id}, {"id": job_id, "priority": 1}, {"id": job_id.upper(), "priority": 1}):
        desk.pair()
        desk.manifest(**said)
        accepted = desk.take()
        assert len(accepted) <= 1
        assert desk.left == []
    assert [job.id for job in desk.ledger.in_state(*JobState)] == [job_id]


@pytest.mark.parametrize(
    "said",
    [
        {"stitch": True},
        {"fps": 30},
        {"text": "something else", "audio": None},
        {"lipsyncd": {"mood": "calm"}},
        {"image": "https://example.com/other.png"},
    ],
)
def test_another_order_under_a_known_id_is_refused_and_names_the_job(desk: Desk, said: dict[str, Any]) -> None:
    job_id = new_id()
    desk.pair()
    desk.manifest(id=job_id)
    assert desk.take_one().id == job_id
    desk.pair()
    desk.manifest(id=job_id, **said)
    accepted = desk.take()
    [refused] = [a.job for a in accepted if a.refused]
    assert refused.id != job_id
    assert reason(refused, desk) == "inputs-already-taken"
    assert job_id in desk.spec(refused).refusal["message"]  # type: ignore[index]


def test_other_bytes_under_a_known_id_are_refused(desk: Desk) -> None:
    job_id = new_id()
    desk.pair()
    desk.manifest(id=job_id)
    desk.take()
    desk.pair(seed=1)
    desk.manifest(id=job_id)
    assert reason(desk.take_one(), desk) == "inputs-already-taken"
    assert desk.left == []


def test_the_same_text_under_the_same_id_is_cleared_and_another_text_refused(desk: Desk) -> None:
    job_id = new_id()
    for text, expected in (("hello", [False]), ("hello", []), ("good bye", [True])):
        desk.put("anna.png", PICTURE)
        desk.put("order.json", json.dumps({"image": "anna.png", "text": text, "id": job_id}).encode())
        assert [a.refused for a in desk.take()] == expected
        assert desk.left == []


# -- manifests that come late ------------------------------------------------------------------------------------------


def test_a_manifest_right_after_its_pair_replaces_the_options(desk: Desk) -> None:
    desk.pair()
    job = desk.take_one()
    desk.manifest(resolution=128, stitch=True, out_name="hello", user_data=7)
    assert desk.take() == []
    spec, row = desk.spec(job), desk.ledger.get(job.id)
    assert (spec.resolution, spec.stitch, spec.out_name, spec.user_data) == (128, True, "hello", 7)
    assert (row.resolution, row.stitch, row.out_name, row.name, row.user_data) == (128, True, "hello", "hello", "7")
    assert [s.name for s in spec.sources] == ["anna.png", "anna.wav"]
    assert desk.left == []
    # The replaced order is the order: asking for it again under its id is a repetition.
    desk.pair()
    desk.manifest(id=job.id, resolution=128, stitch=True, out_name="hello", user_data=7)
    assert desk.take() == []
    assert desk.left == []


def test_a_manifest_that_says_no_name_leaves_the_names_as_they_are(desk: Desk) -> None:
    desk.pair()
    job = desk.take_one()
    desk.manifest("another stem", stitch=True)
    desk.take()
    assert (desk.ledger.get(job.id).name, desk.ledger.get(job.id).out_name) == ("anna", "anna")


@pytest.mark.parametrize("too_late", ["grace", "claimed", "id"])
def test_a_manifest_that_comes_too_late_is_refused_and_names_the_job(tmp_path: Path, too_late: str) -> None:
    settings = Settings(Paths(storage=tmp_path), Watch(manifest_grace_s=0.0 if too_late == "grace" else 60.0))
    desk = Desk(tmp_path, settings)
    desk.pair()
    job = desk.take_one()
    if too_late == "claimed":
        desk.ledger.set_prepared(job.id, frames=1, duration_ms=40)
        desk.ledger.claim("cpu", "t")
    time.sleep(0.002)
    desk.manifest(stitch=True, **({"id": new_id()} if too_late == "id" else {}))
    desk.take()
    [refused] = [j for j in desk.ledger.in_state(JobState.QUEUED) if j.id != job.id]
    assert reason(refused, desk) == "inputs-already-taken"
    assert job.id in desk.spec(refused).refusal["message"]  # type: ignore[index]
    assert not desk.ledger.get(job.id).stitch
    assert desk.left == []
    desk.ledger.close()


def test_a_manifest_before_its_files_is_no_late_one_although_the_names_were_used_before(desk: Desk) -> None:
    """The order of an hourly script: the manifest, then the files, under the same names as the last time."""
    for _ in range(2):
        desk.manifest()
        assert desk.take() == []
        assert desk.left == ["order.json"]
        desk.pair()
        assert not desk.take()[0].refused
        assert desk.left == []
    assert len(desk.ledger.in_state(JobState.QUEUED)) == 2
