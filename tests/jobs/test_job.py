"""A job: its id, its moves between states, and its file `job.json`."""

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


def test_every_state_can_be_reached_and_only_done_can_never_be_left() -> None:
    assert set(SOURCES) == set(JobState)
    reached, found = {JobState.QUEUED}, {JobState.QUEUED}
    while found:
        found = {to for to, sources in SOURCES.items() if set(sources) & reached} - reached
        reached |= found
    assert reached == set(JobState)
    assert {s for s in JobState if not any(s in sources for sources in SOURCES.values())} == {JobState.DONE}
    assert {s for s in JobState if s.ended} == {JobState.DONE, JobState.FAILED, JobState.CANCELLED}


def test_a_finished_video_is_never_rendered_again() -> None:
    """The render is finished in `publishing`: a job returns to the queue from there only after it has failed."""
    assert JobState.PUBLISHING not in SOURCES[JobState.QUEUED]
    assert JobState.PUBLISHING not in SOURCES[JobState.RUNNING]
    assert JobState.PUBLISHING not in SOURCES[JobState.CANCELLED]


NAMES = st.binary(min_size=1, max_size=40).filter(lambda name: not {0, 0x2F} & {*name} and name not in (b".", b".."))


@given(name=NAMES, user_data=JSON, options=st.dictionaries(st.text(), st.integers()))
def test_a_spec_is_unchanged_after_writing_and_reading(name: bytes, user_data: Any, options: dict[str, int]) -> None:
    """Written as real JSON text, with names that are not UTF-8."""
    source = SourceFile("image", name.decode("utf-8", "surrogateescape"), IDENTITY, "ab" * 32)
    spec = spec_of(sources=(source,), fps=Fraction(30000, 1001), user_data=user_data, options=options, text="hello")
    text = json.dumps(spec.to_json())
    back = JobSpec.from_json(json.loads(text))
    assert repr(back) == repr(spec)  # not ==: a NaN in user data differs from itself
    assert back.signature == spec.signature


@given(damage=JSON, field=st.sampled_from(["fps", "sources", "id"]), inside=st.booleans())
def test_a_damaged_spec_raises_only_the_documented_errors(damage: Any, field: str, inside: bool) -> None:
    data = spec_of(sources=(SourceFile("image", "a.png", IDENTITY, "ab"),)).to_json()
    data[field] = [damage] if inside else damage
    with contextlib.suppress(KeyError, TypeError, ValueError):
        JobSpec.from_json(data)


def forged(**changes: Any) -> dict[str, Any]:
    """The content of a `job.json` that a member has rewritten."""
    data: dict[str, Any] = json.loads(
        json.dumps(spec_of(sources=(SourceFile("image", "a.png", IDENTITY, "ab"),)).to_json())
    )
    source = data["sources"][0]
    for field, value in changes.items():
        place, _, name = field.rpartition("__")
        (source["identity"] if place == "identity" else source if place else data)[name] = value
    return data


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("source__role", role) for role in ("../../state/ledger.db", "job.json", "extra-", "image\n", "", None, 7)),
        *(("source__name", name) for name in ("../a.png", "a/b.png", "/etc/passwd", "..", ".", "", "a\0.png", None, 7)),
        *(("source__sha256", digest) for digest in (None, 7, ["ab"])),
        *(("identity__ino", number) for number in (None, "2", True, 2.5)),
        *(("id", job_id) for job_id in ("../x", "x", "", 7, None)),
        *(("out_name", name) for name in ("../x", "a/b", "..", "", None, 7)),
        *(("queue", name) for name in ("../x", "a/b", "..", None, 7)),
        *((name, value) for name in ("name", "renderer") for value in (None, 7, [])),
        *((name, value) for name in ("text", "voice", "webhook", "image_url") for value in (7, [], {})),
        *((name, value) for name in ("resolution", "accepted_ms", "priority") for value in ("1", 1.5, True, None)),
        *((name, value) for name in ("stitch", "ssml") for value in (0, "no", None)),
        *((name, value) for name in ("refusal", "rest", "options") for value in ([], "x", 7)),
        *(("refusal", value) for value in ({"code": 7}, {"code": ["a"]})),
        *(("pad_s", value) for value in ("1", None, True)),
        *(("sources", value) for value in (None, {}, [None], ["a.png"], [{}], [[]])),
    ],
)
def test_a_forged_spec_is_damage(field: str, value: object) -> None:
    assert JobSpec.from_json(forged()).sources[0].name == "a.png"
    with pytest.raises((KeyError, TypeError, ValueError)):
        JobSpec.from_json(forged(**{field: value}))


@pytest.mark.parametrize("fps", ["1/0", "nan", "", "fast", None, float("inf")])
def test_an_invalid_frame_rate_is_damage(fps: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        JobSpec.from_json({**spec_of().to_json(), "fps": fps})


def test_unknown_fields_of_a_later_version_are_ignored() -> None:
    spec = spec_of()
    assert JobSpec.from_json({**spec.to_json(), "mood": "new"}) == spec


def test_the_signature_of_a_drop_depends_on_its_files_and_not_on_their_order() -> None:
    image = SourceFile("image", "a.png", IDENTITY, "ab")
    audio = SourceFile("audio", "a.wav", replace(IDENTITY, ino=9), "cd")
    spec = spec_of(sources=(image, audio))
    assert spec.signature == spec_of(sources=(audio, image)).signature
    for change in ({"ino": 7}, {"mtime_ns": 7}, {"ctime_ns": 7}, {"size": 7}):
        again = replace(image, identity=replace(IDENTITY, **change))
        assert spec_of(sources=(again, audio)).signature != spec.signature
    renamed = replace(image, name="b.png")
    assert spec_of(sources=(renamed, audio)).signature != spec.signature


def test_two_jobs_without_files_have_different_signatures() -> None:
    assert spec_of().signature != spec_of().signature
