"""What a job is: its ids, its moves, and the file that tells everything about it."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipsyncd.jobs.job import SOURCES, Identity, JobSpec, JobState, SourceFile, new_id
from tests.kits.core_kit import spec_of

IDENTITY = Identity(dev=1, ino=2, size=3, mtime_ns=4, ctime_ns=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def test_ids_are_canonical_uuids_of_version_7_in_the_order_of_time() -> None:
    before_ms = time.time_ns() // 1_000_000
    ids = []
    for _ in range(5):
        ids.append(new_id())
        time.sleep(0.002)
    assert ids == sorted(set(ids))
    for text in ids:
        value = uuid.UUID(text)
        assert (str(value), value.version, value.variant) == (text, 7, uuid.RFC_4122)
        assert before_ms <= value.int >> 80 <= before_ms + 60_000
    assert len({new_id() for _ in range(10_000)}) == 10_000


def test_every_state_can_be_reached_and_every_ended_one_but_done_can_be_left() -> None:
    assert set(SOURCES) == set(JobState)
    reached, found = {JobState.QUEUED}, {JobState.QUEUED}
    while found:
        found = {to for to, sources in SOURCES.items() if set(sources) & reached} - reached
        reached |= found
    assert reached == set(JobState)
    assert {s for s in JobState if not any(s in sources for sources in SOURCES.values())} == {JobState.DONE}
    assert {s for s in JobState if s.ended} == {JobState.DONE, JobState.FAILED, JobState.CANCELLED}


def test_a_finished_video_is_never_rendered_again() -> None:
    """GPU work is done once `publishing` is reached: there is no way back to the queue but through failure."""
    assert JobState.PUBLISHING not in SOURCES[JobState.QUEUED]
    assert JobState.PUBLISHING not in SOURCES[JobState.RUNNING]
    assert JobState.PUBLISHING not in SOURCES[JobState.CANCELLED]


@given(name=st.binary(min_size=1, max_size=40), user_data=JSON, options=st.dictionaries(st.text(), st.integers()))
def test_a_spec_comes_back_from_its_file_as_it_was(name: bytes, user_data: Any, options: dict[str, int]) -> None:
    """Through real JSON text, with names that are no UTF-8."""
    source = SourceFile("image", name.decode("utf-8", "surrogateescape"), IDENTITY, "ab" * 32)
    spec = spec_of(sources=(source,), fps=Fraction(30000, 1001), user_data=user_data, options=options, text="hello")
    text = json.dumps(spec.to_json())
    back = JobSpec.from_json(json.loads(text))
    assert repr(back) == repr(spec)  # not ==: a NaN in user data differs from itself
    assert back.signature == spec.signature


@given(damage=JSON, field=st.sampled_from(["fps", "sources", "id"]), inside=st.booleans())
def test_a_damaged_spec_raises_only_what_it_says(damage: Any, field: str, inside: bool) -> None:
    said = spec_of(sources=(SourceFile("image", "a.png", IDENTITY, "ab"),)).to_json()
    said[field] = [damage] if inside else damage
    with contextlib.suppress(KeyError, TypeError, ValueError):
        JobSpec.from_json(said)


@pytest.mark.parametrize("fps", ["1/0", "nan", "", "fast", None, float("inf")])
def test_a_frame_rate_that_is_none_is_damage(fps: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        JobSpec.from_json({**spec_of().to_json(), "fps": fps})


def test_a_spec_of_a_later_version_is_read_as_far_as_it_is_known() -> None:
    spec = spec_of()
    assert JobSpec.from_json({**spec.to_json(), "mood": "new"}) == spec


def test_a_drop_is_known_by_its_files_whatever_their_order() -> None:
    image = SourceFile("image", "a.png", IDENTITY, "ab")
    audio = SourceFile("audio", "a.wav", replace(IDENTITY, ino=9), "cd")
    spec = spec_of(sources=(image, audio))
    assert spec.signature == spec_of(sources=(audio, image)).signature
    for change in ({"ino": 7}, {"mtime_ns": 7}, {"ctime_ns": 7}, {"size": 7}):
        again = replace(image, identity=replace(IDENTITY, **change))
        assert spec_of(sources=(again, audio)).signature != spec.signature
    renamed = replace(image, name="b.png")
    assert spec_of(sources=(renamed, audio)).signature != spec.signature


def test_two_jobs_without_files_are_two_drops() -> None:
    assert spec_of().signature != spec_of().signature
