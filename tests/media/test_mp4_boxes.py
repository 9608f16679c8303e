"""The walk over the boxes of an MP4."""

from __future__ import annotations

import struct

import pytest

from lipsyncd.media.mp4_boxes import Box, Mp4Damaged, boxes

FTYP = struct.pack(">I4s4s", 12, b"ftyp", b"isom")
LARGE = struct.pack(">I4sQ4s", 1, b"mdat", 20, b"data")
LAST = struct.pack(">I4s4s", 0, b"mdat", b"rest")


def walked(data: bytes, start: int = 0, end: int | None = None) -> list[Box]:
    return list(boxes(lambda offset, count: data[offset : offset + count], start, len(data) if end is None else end))


def test_boxes_come_in_order_with_short_and_long_lengths():
    assert walked(FTYP + LARGE + FTYP) == [
        Box(b"ftyp", 8, 12, sized=True),
        Box(b"mdat", 28, 32, sized=True),
        Box(b"ftyp", 40, 44, sized=True),
    ]


def test_a_box_without_a_length_reaches_to_the_end():
    assert walked(FTYP + LAST) == [Box(b"ftyp", 8, 12, sized=True), Box(b"mdat", 20, 24, sized=False)]


def test_a_claim_beyond_the_end_is_given_as_it_is():
    assert walked(FTYP[:-1]) == [Box(b"ftyp", 8, 12, sized=True)]


@pytest.mark.parametrize("cut", [1, 7, 8, 15])
def test_a_header_that_is_cut_off_ends_the_walk(cut):
    assert [box.kind for box in walked(FTYP + LARGE[:cut])] == [b"ftyp"]
    assert [box.kind for box in walked(FTYP + LARGE, end=len(FTYP) + cut)] == [b"ftyp"]


@pytest.mark.parametrize("header", [struct.pack(">I4s", 7, b"free"), struct.pack(">I4sQ", 1, b"free", 15)])
def test_a_box_that_is_shorter_than_its_header_is_damage(header):
    with pytest.raises(Mp4Damaged, match="free"):
        walked(FTYP + header)
