"""The lines between daemon and render child: both ways, and whatever else may come."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipsyncd.jobs.job import new_id
from lipsyncd.jobs.prepared import Picture, Sound
from lipsyncd.worker.protocol import (
    Batch,
    Cancel,
    Failure,
    Message,
    Progress,
    ProtocolError,
    Ready,
    Render,
    Result,
    from_line,
    to_line,
)

TEXT = st.text(max_size=20)
COUNT = st.integers(0, 10**9)
OPTIONS = st.dictionaries(TEXT, TEXT | COUNT, max_size=3)
PICTURES = st.builds(Picture, TEXT, COUNT, COUNT)
SOUNDS = st.builds(Sound, TEXT, COUNT, TEXT, COUNT, COUNT, COUNT)
MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(
        Render, *[TEXT] * 4, PICTURES, SOUNDS, TEXT, COUNT, st.booleans(), COUNT, TEXT, st.integers(), OPTIONS, OPTIONS
    ),
    st.builds(Cancel, TEXT),
    st.builds(Ready, COUNT),
    st.builds(Batch, TEXT, COUNT, COUNT),
    st.builds(Progress, TEXT, TEXT, COUNT, COUNT),
    st.builds(Result, TEXT, COUNT, COUNT, COUNT, st.floats(0, 1e6), OPTIONS),
    st.builds(Failure, TEXT, TEXT, TEXT, TEXT),
)


@given(message=MESSAGES)
def test_a_message_arrives_as_it_was_sent_on_one_line(message: Message) -> None:
    line = to_line(message)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert line.isascii()
    assert from_line(line) == message


@given(line=st.binary(max_size=200))
def test_garbage_is_refused_and_nothing_else_is_raised(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        from_line(line)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"null",
        b"[]",
        b'"ready"',
        b"{}",
        b'{"type":"hello"}',
        b'{"type":["ready"],"pid":1}',
        b'{"type":"ready"}',
        b'{"type":"ready","pid":"1"}',
        b'{"type":"ready","pid":true}',
        b'{"type":"ready","pid":1,"more":2}',
        b'{"type":"progress","job_id":"x","stage":"s","done":"7","total":9}',
        b'{"type":"progress","job_id":"x","stage":null,"done":7,"total":9}',
        b'{"type":"result","job_id":"x","frames":1,"width":1,"height":1,"took_s":"soon"}',
        b'{"type":"result","job_id":"x","frames":1,"width":1,"height":1,"took_s":1,"notes":[]}',
        b'{"type":"failure","job_id":"x","code":1,"message":"","remedy":""}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_what_only_looks_like_a_message_is_refused(line: bytes) -> None:
    with pytest.raises(ProtocolError, match="not a message"):
        from_line(line)


@given(message=MESSAGES, junk=st.none() | st.integers() | TEXT | st.lists(COUNT, max_size=2), data=st.data())
def test_no_field_can_be_of_another_type(message: Message, junk: Any, data: st.DataObject) -> None:
    body = json.loads(to_line(message))
    field = data.draw(st.sampled_from([name for name in body if name != "type"]))
    if type(junk) is type(body[field]) or {type(junk), type(body[field])} <= {int, float}:
        return
    with pytest.raises(ProtocolError):
        from_line(json.dumps({**body, field: junk}).encode())


@pytest.mark.parametrize("junk", [0, "", [], False])
def test_what_counts_as_false_is_no_missing_video(junk: object) -> None:
    request = Render("j", "flat", "/f", "o.mp4", Picture("p", 1, 1), Sound("s", 1, "m", 1, 1, 1), "25", 1, False, 64)
    body = json.loads(to_line(request))
    assert from_line(json.dumps(body).encode()) == request
    with pytest.raises(ProtocolError):
        from_line(json.dumps({**body, "video": junk}).encode())


def test_the_error_quotes_no_more_than_the_beginning() -> None:
    with pytest.raises(ProtocolError) as caught:
        from_line(new_id().encode() * 10_000)
    assert len(str(caught.value)) < 400
