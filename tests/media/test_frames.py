"""Sounds that are a row of frames: found wherever they begin, and not in files of other formats."""

import os
import time

import pytest

from lipsyncd.media import Completeness, Kind, examine, frames, recordings
from lipsyncd.media.content import Content
from lipsyncd.prepare.decode_sound import decode_sound
from tests.kits.media.media_kit import converted, ffmpeg

SECONDS = 1.0


def mp3(*options: str) -> bytes:
    return converted(".mp3", "-id3v2_version", "0", "-write_xing", "0", *options)


def first_frames(count: int) -> bytes:
    data, end = mp3(), 0
    for _ in range(count):
        end += frames.mpeg_frame_bytes(data[end : end + 4])
    return data[:end]


def id3(size_bytes: int) -> bytes:
    return b"ID3\x04\0\0" + bytes(size_bytes >> shift & 0x7F for shift in (21, 14, 7, 0)) + bytes(size_bytes)


FOUND = {
    "an mp3 that begins in the middle of a frame": (Kind.MP3, lambda: mp3()[300:]),
    "zeros before an mp3": (Kind.MP3, lambda: bytes(5000) + mp3()),
    "60,000 zeros before an mp3": (Kind.MP3, lambda: bytes(60_000) + mp3()),
    "junk before an mp3": (Kind.MP3, lambda: b"HTTP/1.1 200 OK\r\n\xff\xfb\x90" * 100 + mp3()),
    "junk between a tag and an mp3": (Kind.MP3, lambda: id3(200) + b"\xff\xfb junk" * 50 + mp3()),
    "an mp3 at 22050 Hz": (Kind.MP3, lambda: mp3("-ar", "22050")),
    "an mp3 at 8000 Hz, cut": (Kind.MP3, lambda: mp3("-ar", "8000")[30:]),
    "an mp3 of variable rate, cut": (Kind.MP3, lambda: mp3("-q:a", "5", "-ac", "2")[200:]),
    "mp2": (Kind.MP3, lambda: converted(".mp2")),
    "adts": (Kind.AAC, lambda: converted(".aac")),
    "adts behind a tag": (Kind.AAC, lambda: id3(100) + converted(".aac")),
    "adts that begins in the middle of a frame": (Kind.AAC, lambda: converted(".aac")[50:]),
    "zeros before adts": (Kind.AAC, lambda: bytes(3000) + converted(".aac")),
}
ELSEWHERE = {
    "an avi": (lambda: converted(".avi", "-c:a", "mp3")),
    "a transport stream": (lambda: converted(".ts", "-c:a", "mp3")),
    "a program stream": (lambda: converted(".mpg", "-c:a", "mp2", "-f", "vob")),
    "flash": (lambda: converted(".flv", "-c:a", "mp3")),
    "asf": (lambda: converted(".asf", "-c:a", "mp3")),
    "a zip": (lambda: b"PK\3\4" + b"\x14\0" * 30 + mp3()),
    "a tar": (lambda: b"a.mp3".ljust(257, b"\0") + b"ustar\0" + bytes(249) + mp3()),
    "an mp4 of an unknown brand": (lambda: b"\0\0\0\x20ftypWXYZ" + bytes(20) + mp3()),
    "two frames in a text": (lambda: b"text" * 20 + first_frames(2) + b"text" * 20),
    "frames behind 64 KiB": (lambda: b"text" * 17_000 + mp3()),
    "syncs without frames": (lambda: b"x" + b"\xff" * 80_000),
}


def examined(data: bytes):
    descriptor = os.memfd_create("examined")
    try:
        os.write(descriptor, data)
        return examine(descriptor, len(data))
    finally:
        os.close(descriptor)


def ranges(data: bytes, find=frames.without_tags) -> list[tuple[int, int]]:
    descriptor = os.memfd_create("joined")
    try:
        os.write(descriptor, data)
        return find(Content(descriptor, len(data)))
    finally:
        os.close(descriptor)


def test_a_tag_inside_is_what_frames_or_another_tag_follow():
    one, fake = mp3(), b"TAG" + bytes(90) + b"ID3\4\0\0\0\0\0\x20" + bytes(60)
    first, second = b"TAG" + bytes(125), id3(300)
    assert ranges(one) == ranges(one + fake + one) == ranges(one + first) == ranges(second + one) == []
    data = id3(50) + one + first + second + one + second + one
    assert b"".join(data[start:end] for start, end in ranges(data)) == id3(50) + one * 3


def test_many_tags_and_headers_cost_a_bounded_time():
    began_s = time.process_time()
    assert ranges(b"TAG" * 4_000_000) == []
    assert len(ranges(b"-" + id3(0) * 1_000_000)) <= 1 << 15
    assert len(ranges(b"#!AMR\n" * 1_000_000, recordings.without_headers)) <= 1 << 13
    assert time.process_time() - began_s < 5


@pytest.mark.parametrize("name", FOUND)
def test_a_row_of_frames_is_a_sound_wherever_it_begins(tmp_path, name):
    kind, make = FOUND[name]
    data = make()

    found = examined(data)

    assert (found.kind, found.completeness) == (kind, Completeness.PLAUSIBLE), found.note
    (tmp_path / "input").write_bytes(data)
    sound = decode_sound(tmp_path / "input", kind, tmp_path, ffmpeg=ffmpeg())
    # An encoder adds up to two frames of 1152 samples (of 2304 at 8000 Hz); a cut takes away one.
    assert SECONDS - 0.1 < float(sound.duration) < SECONDS + 0.3


@pytest.mark.parametrize("name", ELSEWHERE)
def test_frames_in_another_format_are_no_sound(name):
    found = examined(ELSEWHERE[name]())
    assert (found.kind, found.completeness) == (None, Completeness.INVALID)


def test_zeros_alone_are_waited_for():
    assert examined(bytes(100_000)).completeness is Completeness.TRUNCATED


@pytest.mark.parametrize("whole", [0, 1, 2])
def test_a_file_that_ends_before_its_fourth_frame_is_a_row_when_it_starts_with_one(whole):
    data = first_frames(whole) + mp3()[len(first_frames(whole)) :][:100]
    assert frames.find(data, ends=True) == ("mp3", 0)
    assert examined(data).kind is Kind.MP3
