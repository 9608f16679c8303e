"""The format of a file and whether it is whole, judged without decoding it."""

import base64
import gzip
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipsyncd.errors import ImageTooLarge, ImageTooSmall
from lipsyncd.media import AUDIO_SUFFIXES, IMAGE_SUFFIXES, Completeness, Kind, check_image_size, examine, sniff
from tests.kits.media.media_kit import bomb, converted, corners, encoded, tone, wav

COMPLETE, PLAUSIBLE = Completeness.COMPLETE, Completeness.PLAUSIBLE
TRUNCATED, INVALID = Completeness.TRUNCATED, Completeness.INVALID


def phone_jpeg() -> bytes:
    """A picture followed by a second one, as phones write depth maps."""
    return encoded(corners(), "MPO", save_all=True, append_images=[corners(48, 32)])


WHOLE_PICTURES = {
    "jpeg": (Kind.JPEG, lambda: encoded(corners(), "JPEG")),
    "jpeg, progressive": (Kind.JPEG, lambda: encoded(corners(), "JPEG", progressive=True)),
    "jpeg, grey": (Kind.JPEG, lambda: encoded(corners().convert("L"), "JPEG")),
    "jpeg, with a thumbnail": (Kind.JPEG, lambda: encoded(corners(), "JPEG", exif=b"Exif\0\0" + b"\xff\xd9" * 500)),
    "jpeg, from a phone": (Kind.JPEG, phone_jpeg),
    "png": (Kind.PNG, lambda: encoded(corners(), "PNG")),
    "png, transparent": (Kind.PNG, lambda: encoded(corners().convert("RGBA"), "PNG")),
    "webp": (Kind.WEBP, lambda: encoded(corners(), "WEBP")),
    "webp, lossless": (Kind.WEBP, lambda: encoded(corners(), "WEBP", lossless=True)),
    "heic": (Kind.HEIC, lambda: encoded(corners(), "HEIF")),
    "avif": (Kind.AVIF, lambda: encoded(corners(), "AVIF")),
    "bmp": (Kind.BMP, lambda: encoded(corners(), "BMP")),
    "bmp, palette": (Kind.BMP, lambda: encoded(corners().quantize(8), "BMP")),
    "tiff": (Kind.TIFF, lambda: encoded(corners(), "TIFF")),
    "tiff, compressed": (Kind.TIFF, lambda: encoded(corners(), "TIFF", compression="tiff_lzw")),
    "gif": (Kind.GIF, lambda: encoded(corners(), "GIF")),
    "webp, extended": (Kind.WEBP, lambda: encoded(corners(), "WEBP", icc_profile=b"\0" * 128)),
}
WHOLE_SOUNDS = {
    "wav": (Kind.WAV, lambda: wav(tone(1))),
    "wav, RF64": (Kind.WAV, lambda: converted(".wav", "-rf64", "always")),
    "mp3": (Kind.MP3, lambda: converted(".mp3")),
    "mp3, no tag": (Kind.MP3, lambda: converted(".mp3", "-id3v2_version", "0")),
    "m4a": (Kind.M4A, lambda: converted(".m4a")),
    "m4a, index first": (Kind.M4A, lambda: converted(".m4a", "-movflags", "+faststart")),
    "m4a, fragmented": (Kind.M4A, lambda: converted(".m4a", "-movflags", "frag_keyframe+empty_moov")),
    "ogg vorbis": (Kind.OGG, lambda: converted(".ogg", "-c:a", "libvorbis")),
    "ogg opus": (Kind.OGG, lambda: converted(".opus")),
    "flac": (Kind.FLAC, lambda: converted(".flac")),
    "flac, long": (Kind.FLAC, lambda: converted(".flac", seconds=20.0, channels=2)),
}
WHOLE = WHOLE_PICTURES | WHOLE_SOUNDS

OTHER_FORMATS = {
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "ffconcat": b"ffconcat version 1.0\nfile other.wav\n",
    "hls": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.wav\n",
    "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n",
    "html": b"<!doctype html><html><body>Not found</body></html>",
    "heif that holds a JPEG": struct.pack(">I", 24) + b"ftypjpeg\0\0\0\0mif1jpeg" + b"\0" * 32,
    "a Canon's raw picture": b"II*\0\x10\0\0\0CR\2\0" + b"\0" * 48,
    "bm of a text": b"BM is how this text begins, and it is no picture.",
    "avi": b"RIFF\xff\xff\xff\0AVI LIST" + b"\0" * 48,
    "frames that do not follow one another": b"\xff\xf1\x50\x80\x02\x1f\xfc" * 10,
    "utf-16 text": "\ufeffHello, this is a text.".encode("utf-16-le") * 4,
    "wav, big endian": b"RIFX\0\0\1\0WAVEfmt \0\0\0\x10\0\1\0\1"
    + b"\0" * 48,  # ffmpeg takes its samples for little endian
    "zip": b"PK\x03\x04" + b"\x14\0" * 30,
}


@pytest.fixture
def judged(tmp_path):
    """Writes bytes to a file and examines them."""

    def judge(data: bytes):
        path = tmp_path / "file"
        path.write_bytes(data)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            return examine(descriptor, len(data))
        finally:
            os.close(descriptor)

    return judge


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_file_is_recognised_by_its_bytes_and_proven_complete(judged, name):
    kind, make = WHOLE[name]
    data = make()

    found = judged(data)

    assert sniff(data[:64]) is kind
    assert (found.kind, found.completeness) == (kind, COMPLETE), found.note
    assert (found.width, found.height) == ((96, 64) if kind.is_image else (0, 0))
    assert kind.is_audio is not kind.is_image


@pytest.mark.parametrize("name", WHOLE)
def test_no_beginning_of_a_file_counts_as_complete(judged, name):
    data = WHOLE[name][1]()
    # A phone's file is complete once its first picture is; the data after it is optional.
    whole_bytes = data.index(b"\xff\xd9", 600) + 2 if name == "jpeg, from a phone" else len(data)
    cuts = {0, 1, 3, 7, 11, 12, 20, 40, whole_bytes - 2, whole_bytes - 1} | {whole_bytes * n // 40 for n in range(40)}

    verdicts = [judged(data[:cut]).completeness for cut in sorted(cuts)]

    assert COMPLETE not in verdicts
    assert INVALID not in verdicts
    assert verdicts.count(TRUNCATED) >= 0.9 * len(verdicts)


# The other formats declare a length and mark no end: a file of the final size looks complete.
WITH_AN_END = ["jpeg", "jpeg, progressive", "png", "m4a", "ogg vorbis", "ogg opus", "flac", "flac, long"]


@pytest.mark.parametrize("name", WITH_AN_END)
def test_a_preallocated_file_that_is_still_being_filled_is_not_complete(judged, name):
    data = WHOLE[name][1]()
    for filled in (0.0, 0.3, 0.7, 0.9):
        count = int(len(data) * filled)
        assert judged(data[:count] + b"\0" * (len(data) - count)).completeness is not COMPLETE


@pytest.mark.parametrize("name", [name for name in WHOLE if not name.startswith(("flac", "ogg"))])
@pytest.mark.parametrize("garbage", [b"\0" * 5000, b"garbage after the end " * 300])
def test_data_after_the_end_does_no_harm(judged, name, garbage):
    kind, make = WHOLE[name]
    found = judged(make() + garbage)
    assert (found.kind, found.completeness) == (kind, COMPLETE), found.note


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"8BPS\0\1" + bytes(60), "a Photoshop document (PSD)"),
        (b"%PDF-1.7\n" + bytes(60), "a PDF document"),
        (b'\n<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        (OTHER_FORMATS["svg"], "an SVG drawing"),
        (OTHER_FORMATS["html"], "a web page"),
        (OTHER_FORMATS["heif that holds a JPEG"], "a HEIF with a JPEG in it"),
        (OTHER_FORMATS["a Canon's raw picture"], "a camera's raw picture"),
        (b"\xff\x0a" + bytes(range(60)), "a JPEG XL picture"),
        (OTHER_FORMATS["avi"], "an AVI video"),
        (b"some text that nobody knows" * 4, "a text"),
        ("Grüße".encode() * 200, "a text"),
        (b'{"error": {"message": "quota exceeded"}}', "a JSON text"),
        (base64.b64encode(wav(tone(0.5))), "a base64 text"),
        (b"data:image/png;base64," + base64.b64encode(bytes(90)), "a base64 text"),
        (gzip.compress(wav(tone(0.5))), "a gzip archive"),
        (encoded(corners(), "PPM"), "a PNM picture"),
        (encoded(corners(), "TIFF", big_tiff=True), "a BigTIFF picture"),
        (b"G".ljust(188, b"\0") * 4, "an MPEG transport stream"),
        (b"\r\n" + wav(tone(0.5)), "a WAV with 2 bytes of text in front"),
        (b"\xef\xbb\xbf" + encoded(corners(), "PNG"), "a PNG with 3 bytes of text in front"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + encoded(corners(), "JPEG"), "a JPEG with 19 bytes of text in front"),
        (b"\n" + encoded(corners(), "JPEG"), "a JPEG with 1 byte of text in front"),
        (encoded(corners(), "PNG").replace(b"\r\n", b"\n"), "a PNG whose line breaks a transfer as text has changed"),
        (bytes(range(128, 228)), ""),
        (bytes(range(128, 168)) + wav(tone(0.5)), ""),
    ],
)
def test_what_is_not_taken_is_named(judged, data, name):
    found = judged(data)
    assert (found.kind, found.other) == (None, name)


def test_the_thumbnail_of_a_cameras_raw_picture_is_not_taken_for_it(judged):
    thumbnail = encoded(corners(), "TIFF", tiffinfo={254: 1})
    assert judged(thumbnail).completeness is INVALID
    assert "raw picture" in judged(thumbnail).note


@pytest.mark.parametrize("name", OTHER_FORMATS)
def test_other_formats_are_not_recognised(judged, name):
    assert sniff(OTHER_FORMATS[name]) is None
    found = judged(OTHER_FORMATS[name])
    assert (found.kind, found.completeness) == (None, INVALID)


@pytest.mark.parametrize(
    ("declared", "present", "verdict"),
    [
        (32_000, 32_000, COMPLETE),
        (32_000, 31_999, TRUNCATED),
        (16_000, 32_000, COMPLETE),
        (0, 32_000, PLAUSIBLE),
        (0xFFFFFFFF, 32_000, PLAUSIBLE),
        (0xFFFFFFFE, 32_000, PLAUSIBLE),
        (0x7FFFFFFF, 32_000, PLAUSIBLE),
        (0x7FFFF000, 32_000, PLAUSIBLE),
        (0xFFFFFFFF - 36, 32_000, PLAUSIBLE),
        (0x80000000, 32_000, PLAUSIBLE),
        (1_000_000_000, 32_000, PLAUSIBLE),
        (2_000_000_000, 32_000, PLAUSIBLE),
        (1_000_000_001, 32_000, TRUNCATED),
        (1_999_999_999, 32_000, TRUNCATED),
        (3_000_000_000, 32_000, TRUNCATED),
        (0x7000000, 32_000, TRUNCATED),
    ],
)
def test_a_wav_header_counts_only_as_far_as_it_can_be_true(judged, declared, present, verdict):
    assert judged(wav(b"\1\2" * 16_000, data_bytes=declared)[: 44 + present]).completeness is verdict


@pytest.mark.parametrize(
    ("lie", "note"),
    [({"channels": 0}, "0 channels"), ({"rate": 0}, "0 Hz"), ({"channels": 255}, "255 channels")],
)
def test_an_unplayable_wav_is_invalid_with_the_value_seen(judged, lie, note):
    found = judged(wav(tone(0.1), **lie))
    assert found.completeness is INVALID
    assert note in found.note


def test_an_mp3_without_a_count_is_plausible(judged):
    assert judged(converted(".mp3", "-write_xing", "0")).completeness is PLAUSIBLE


def test_a_copy_that_stops_inside_a_64_bit_box_length_is_truncated(judged):
    large = struct.pack(">I4sQ", 1, b"mdat", 1 << 20)
    for cut in (9, 12, 15):
        assert judged(WHOLE["m4a"][1]()[:28] + large[:cut]).completeness is TRUNCATED


def test_a_flac_after_an_id3_tag_is_a_flac(judged):
    found = judged(b"ID3\x04\0\0\0\0\0\x0a" + b"\0" * 10 + converted(".flac"))
    assert found.kind is Kind.FLAC


def test_the_size_of_a_bomb_is_read_from_its_header(judged):
    found = judged(bomb())
    assert (found.width, found.height, found.completeness) == (30_000, 30_000, COMPLETE)


@pytest.mark.parametrize("name", WHOLE)
def test_examining_reads_little_of_a_large_file(tmp_path, name):
    data = WHOLE[name][1]()
    path = tmp_path / "large"
    path.write_bytes(data)
    os.truncate(path, 8 << 30)  # sparse
    descriptor = os.open(path, os.O_RDONLY)
    before = _bytes_read()
    examine(descriptor, 8 << 30)
    read = _bytes_read() - before
    os.close(descriptor)
    # Only a JPEG without an end marker at its end is searched, up to a limit.
    assert read < (40 << 20 if name.startswith("jpeg") else 1 << 20)


def _bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


@given(st.sampled_from([b"", *(make()[:40] for _, make in WHOLE.values())]), st.binary(max_size=300))
def test_no_bytes_make_examine_raise(head, rest):
    assert _examined(head + rest).completeness in Completeness


@given(
    st.sampled_from(list(WHOLE)), st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), max_size=6)
)
def test_no_damage_makes_examine_raise(name, damages):
    data = bytearray(WHOLE[name][1]()[:60_000])
    for where, replacement in damages:
        at = int(where * len(data))
        data[at : at + len(replacement)] = replacement
    assert _examined(bytes(data)).completeness in Completeness


def _examined(data: bytes):
    descriptor = os.memfd_create("examined")
    try:
        os.write(descriptor, data)
        return examine(descriptor, len(data))
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("width", "height", "error"),
    [
        (64, 64, None),
        (63, 400, ImageTooSmall),
        (400, 1, ImageTooSmall),
        (8000, 5000, None),
        (8000, 5001, ImageTooLarge),
        (30_000, 30_000, ImageTooLarge),
    ],
)
def test_a_picture_of_a_refused_size_is_named_with_its_size(width, height, error):
    if error is None:
        check_image_size(width, height)
        return
    with pytest.raises(error, match=f"{width} x {height} pixels"):
        check_image_size(width, height)


def test_suffixes_are_lower_case_and_disjoint():
    assert not IMAGE_SUFFIXES & AUDIO_SUFFIXES
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in IMAGE_SUFFIXES | AUDIO_SUFFIXES)
