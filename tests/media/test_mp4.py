"""What the boxes of an MP4 tell against what ffmpeg tells, results to refuse, and hostile bytes."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lipsyncd.errors import BadResult
from lipsyncd.media.mp4 import BT709, Colour, inspect
from lipsyncd.media.mp4_boxes import Mp4Damaged
from lipsyncd.renderers.encoder import Encoder
from lipsyncd.worker.check_result import validate
from tests.kits.media.video_kit import FFMPEG, chirp, drifting, encoding, make, run_ffmpeg


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.mktemp("made"), fps=Fraction(30000, 1001), samples=100_000, channels=2, width=48)


def requested(made, **changes):
    return {
        "frames": made.frames,
        "fps": made.fps,
        "width": 48,
        "height": 32,
        "duration": made.duration,
        "ffmpeg": FFMPEG,
    } | changes


# -- facts -------------------------------------------------------------------------------------------------------------


def test_every_fact_of_our_own_file_is_exact(made):
    facts = inspect(made.path)

    assert (facts.moov_first, facts.truncated) == (True, False)
    video, audio = facts.video, facts.audio
    assert (video.codec, video.width, video.height, video.frames) == ("avc1", 48, 32, 63)
    assert (video.rate, video.start_s, video.duration) == (Fraction(30000, 1001), 0, Fraction(63 * 1001, 30000))
    assert video.colour == BT709
    assert (audio.codec, audio.rate, audio.start_s, audio.duration) == ("mp4a", 48_000, 0, Fraction(100_000, 48_000))


def test_reordered_frames_count_by_the_time_when_they_are_shown(made, tmp_path):
    """With B-frames the last frame in the file is not the last one shown."""
    plain = tmp_path / "plain.mp4"
    assert run_ffmpeg("-i", str(made.path), "-c:a", "copy", "-c:v", "libx264", "-bf", "0", str(plain)).returncode == 0

    assert inspect(plain).video.duration == inspect(made.path).video.duration


def test_a_late_start_and_a_cut_are_seen(made, tmp_path):
    late, cut, path = tmp_path / "late.mp4", tmp_path / "cut.mp4", str(made.path)
    delayed = ("-i", path, "-itsoffset", "0.5", "-i", path, "-map", "0:v", "-map", "1:a")
    assert run_ffmpeg(*delayed, "-c", "copy", str(late)).returncode == 0
    assert run_ffmpeg("-ss", "1", "-i", path, "-c", "copy", str(cut)).returncode == 0

    assert inspect(late).audio.start_s == pytest.approx(0.5, abs=0.022)  # less the encoder's priming
    assert inspect(cut).video.duration == pytest.approx(float(made.frames / made.fps) - 1, abs=0.04)


def test_uneven_frames_have_no_rate(made, tmp_path):
    uneven = tmp_path / "uneven.mp4"
    filters = ("-vf", "setpts=if(gt(N\\,20)\\,PTS+0.1/TB\\,PTS)", "-fps_mode", "passthrough")
    assert run_ffmpeg("-i", str(made.path), *filters, "-c:a", "copy", str(uneven)).returncode == 0

    assert inspect(uneven).video.rate is None


def test_colour_tags_are_read_unchanged(made, tmp_path):
    other = tmp_path / "bt601.mp4"
    tags = "setparams=range=pc:color_primaries=smpte170m:color_trc=smpte170m:colorspace=smpte170m"
    assert run_ffmpeg("-i", str(made.path), "-vf", tags, "-c:a", "copy", str(other)).returncode == 0

    assert inspect(other).video.colour == Colour(primaries=6, transfer=6, matrix=6, full_range=True)


@pytest.mark.parametrize("codec", ["ffv1", "mpeg4"])
def test_another_codec_is_named(made, tmp_path, codec):
    other = tmp_path / "other.mp4"
    assert run_ffmpeg("-i", str(made.path), "-c:v", codec, "-c:a", "copy", "-strict", "-2", str(other)).returncode == 0

    assert inspect(other).video.codec != "avc1"
    with pytest.raises(BadResult, match="not avc1"):
        validate(faststart(other, tmp_path), **requested(made))


# -- results to refuse -------------------------------------------------------------------------------------------------


def test_a_result_as_requested_passes(made):
    validate(made.path, **requested(made))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"frames": 62}, "63 frames, not 62"),
        ({"frames": 64}, "63 frames, not 64"),
        ({"fps": Fraction(30)}, "not 30"),
        ({"fps": Fraction(29)}, "not 29"),
        ({"width": 46}, "48x32, not 46x32"),
        ({"height": 34}, "48x32, not 48x34"),
        ({"duration": Fraction(98_000, 48_000)}, "sound lasts"),
        ({"duration": Fraction(102_000, 48_000)}, "sound lasts"),
    ],
)
def test_a_result_that_differs_from_the_request_is_refused(made, changes, fault):
    with pytest.raises(BadResult, match=fault):
        validate(made.path, **requested(made, **changes))


@pytest.mark.parametrize("missing", [2, 10])
def test_missing_frames_are_noticed(tmp_path, missing):
    samples = chirp(96_000, 1)
    with Encoder(FFMPEG, encoding(tmp_path, Fraction(25), samples, 32, 32), tmp_path / "o.mp4") as encoder:
        for picture in drifting(50 - missing, 32, 32):
            encoder.write(picture)
        encoder.finish()
    wanted = {"fps": Fraction(25), "width": 32, "height": 32, "duration": Fraction(2), "ffmpeg": FFMPEG}

    with pytest.raises(BadResult, match=f"{50 - missing} frames, not 50"):
        validate(tmp_path / "o.mp4", frames=50, **wanted)
    with pytest.raises(BadResult, match="its picture lasts"):
        validate(tmp_path / "o.mp4", frames=50 - missing, **wanted)


def test_frames_of_unequal_duration_are_refused(made, tmp_path):
    shaken = tmp_path / "shaken.mp4"
    filters = ("-vf", "settb=1/30000,setpts=if(eq(N\\,20)\\,PTS+300\\,PTS)", "-enc_time_base", "1:30000", "-bf", "0")
    done = run_ffmpeg("-i", str(made.path), *filters, "-c:a", "copy", "-movflags", "+faststart", str(shaken))
    assert done.returncode == 0

    assert inspect(shaken).video.duration == inspect(made.path).video.duration
    with pytest.raises(BadResult, match="at None a second"):
        validate(shaken, **requested(made))


def test_an_index_after_the_media_is_refused(made, tmp_path):
    late = tmp_path / "late.mp4"
    keep = ("-map", "0", "-c", "copy", "-fflags", "+bitexact")
    assert run_ffmpeg("-i", str(made.path), *keep, str(late)).returncode == 0

    assert not inspect(late).moov_first
    with pytest.raises(BadResult, match="first byte"):
        validate(late, **requested(made))


def test_a_late_sound_is_refused(made, tmp_path):
    late = tmp_path / "late.mp4"
    inputs = ("-i", str(made.path), "-itsoffset", "0.05", "-i", str(made.path), "-map", "0:v", "-map", "1:a")
    assert run_ffmpeg(*inputs, "-c", "copy", "-movflags", "+faststart", str(late)).returncode == 0

    with pytest.raises(BadResult, match="starts at"):
        validate(late, **requested(made))


@pytest.mark.parametrize("kept", [0, 4, 100, 2000, -1, -40, -2000])
def test_a_truncated_file_is_refused(made, tmp_path, kept):
    torn = tmp_path / "torn.mp4"
    torn.write_bytes(made.path.read_bytes()[:kept])

    with pytest.raises(BadResult, match=r"damaged|ends before"):
        validate(torn, **requested(made))


@pytest.mark.parametrize("size", [400, 4000])
def test_an_overwritten_end_is_noticed_although_the_boxes_are_whole(made, tmp_path, size):
    holed = tmp_path / "holed.mp4"
    holed.write_bytes(made.path.read_bytes()[:-size] + bytes(size))

    assert inspect(holed) == inspect(made.path)
    with pytest.raises(BadResult, match="does not decode to its end"):
        validate(holed, **requested(made))


def test_an_encode_that_was_killed_leaves_nothing_that_passes(tmp_path):
    wanted = encoding(tmp_path, Fraction(25), chirp(480_000, 1), 64, 64)
    with Encoder(FFMPEG, wanted, tmp_path / "o.mp4") as encoder:
        for picture in drifting(200, 64, 64):
            encoder.write(picture)

    with pytest.raises(BadResult):
        validate(
            tmp_path / "o.mp4", frames=250, fps=Fraction(25), width=64, height=64, duration=Fraction(10), ffmpeg=FFMPEG
        )


def test_a_missing_file_is_a_bad_result_and_no_crash(made, tmp_path):
    with pytest.raises(BadResult, match="cannot be read"):
        validate(tmp_path / "nothing.mp4", **requested(made))


# -- hostile bytes -----------------------------------------------------------------------------------------------------


def box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I", 8 + len(body)) + kind + body


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"RIFF\x00\x00\x00\x00WAVEfmt ", id="a WAV"),
        pytest.param(box(b"ftyp", b"isom"), id="no moov"),
        pytest.param(box(b"ftyp") + box(b"moov"), id="an empty moov"),
        pytest.param(box(b"ftyp") + b"\x00\x00\x00\x04moov", id="a size below its header"),
        pytest.param(box(b"ftyp") + b"\x00\x00\x00\x01moov" + b"\xff" * 8, id="a size of 16 exabytes"),
        pytest.param(box(b"ftyp") + struct.pack(">I", 33 << 20) + b"moov", id="a moov of 33 MiB"),
        pytest.param(box(b"ftyp") + box(b"free") * 1001 + box(b"moov"), id="a thousand boxes"),
        pytest.param(box(b"ftyp") + box(b"moov", b"\xff\xff\xff\xffmvhd"), id="a child larger than its parent"),
        pytest.param(box(b"ftyp") + box(b"moov", box(b"mvhd", bytes(100))), id="a clock without ticks"),
        pytest.param(box(b"ftyp") + box(b"moov", box(b"mvhd", b"\x01")), id="half a clock"),
    ],
)
def test_bytes_that_are_no_mp4_are_damaged(tmp_path, data):
    (tmp_path / "x").write_bytes(data)

    with pytest.raises(Mp4Damaged):
        inspect(tmp_path / "x")


def patched(made, kind: bytes, offset: int, value: bytes) -> bytes:
    """The file with `value` written `offset` bytes after the name of its first box `kind`."""
    data = bytearray(made.path.read_bytes())
    at = data.index(kind) + 4 + offset
    data[at : at + len(value)] = value
    return bytes(data)


@pytest.mark.parametrize(
    ("kind", "offset", "value"),
    [
        (b"stts", 4, b"\xff\xff\xff\xff"),  # four billion entries
        (b"stts", 8, b"\xff\xff\xff\xff"),  # four billion samples in one
        (b"stsz", 8, b"\xff\xff\xff\xff"),
        (b"ctts", 4, b"\xff\xff\xff\xff"),
        (b"elst", 4, b"\xff\xff\xff\xff"),
        (b"mdhd", 12, b"\x00\x00\x00\x00"),
        (b"hdlr", 8, b"soun"),  # two sounds and no picture
    ],
)
def test_tables_that_claim_more_than_the_file_holds_are_damage(made, tmp_path, kind, offset, value):
    (tmp_path / "x").write_bytes(patched(made, kind, offset, value))

    with pytest.raises(Mp4Damaged):
        inspect(tmp_path / "x")


def test_a_claim_of_four_billion_samples_costs_no_time(made, tmp_path):
    """stts and stsz make the same false claim; reading it sample by sample would take minutes."""
    data = bytearray(patched(made, b"stts", 8, b"\xff\xff\xff\xff"))
    at = data.index(b"stsz") + 4
    data[at + 8 : at + 12] = b"\xff\xff\xff\xff"
    (tmp_path / "x").write_bytes(bytes(data))

    assert inspect(tmp_path / "x").video.frames == 0xFFFFFFFF


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_change_to_the_bytes_ever_crashes_the_reader(made, tmp_path, data):
    original = made.path.read_bytes()
    header_bytes = original.index(b"mdat")
    torn = bytearray(original[: data.draw(st.integers(0, header_bytes + 100))])
    changes = data.draw(
        st.lists(st.tuples(st.integers(0, header_bytes), st.sampled_from([0, 1, 8, 127, 128, 255])), max_size=5)
    )
    for at, value in changes:
        if at < len(torn):
            torn[at] = value
    (tmp_path / "x").write_bytes(torn)

    try:
        facts = inspect(tmp_path / "x")
    except Mp4Damaged:
        return
    assert facts.video.frames >= 0


@given(data=st.binary(max_size=400))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_at_all_crash_the_reader(tmp_path, data):
    (tmp_path / "x").write_bytes(
        box(b"ftyp", b"isom") + box(b"moov", box(b"mvhd", bytes(12), b"\0\0\3\xe8", bytes(84)), data)
    )

    with pytest.raises(Mp4Damaged):
        inspect(tmp_path / "x")


def faststart(path: Path, folder: Path) -> Path:
    moved = folder / "moved.mp4"
    assert run_ffmpeg("-i", str(path), "-c", "copy", "-movflags", "+faststart", str(moved)).returncode == 0
    return moved
