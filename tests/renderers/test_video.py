"""Squares, even pictures and the encoder: what goes in comes out, and trouble with ffmpeg shows at once."""

from __future__ import annotations

import os
import signal
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipsyncd.errors import ConfigError, EncodeFailed, JailFailed
from lipsyncd.media import ffmpeg, mp4
from lipsyncd.renderers.video import Box, Encoder, SquareView, crop_square, make_even, square_around
from lipsyncd.worker.check_result import validate
from tests.kits.media.video_kit import (
    FFMPEG,
    RATES,
    chirp,
    decoded_frames,
    decoded_sound,
    drifting,
    encoding,
    make,
    run_ffmpeg,
)


@pytest.fixture
def rng():
    return np.random.default_rng(3)


# -- geometry ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("face", "picture", "square"),
    [
        (Box(200, 200, 100, 120), (600, 600), Box(160, 170, 180, 180)),  # 1.5 x 120, centred
        (Box(10, 200, 100, 120), (600, 600), Box(0, 170, 180, 180)),  # shifted right
        (Box(490, 470, 100, 120), (600, 600), Box(420, 420, 180, 180)),  # shifted left and up
        (Box(20, 20, 101, 90), (152, 152), Box(0, 0, 152, 152)),  # an odd side is rounded up
        (Box(10, 10, 100, 120), (110, 300), Box(-30, 0, 180, 180)),  # wider than the picture, which stays inside whole
        (Box(0, 0, 100, 100), (100, 100), Box(-25, -25, 150, 150)),
    ],
)
def test_the_square_is_half_again_as_long_as_the_face_and_shifted_into_the_picture(face, picture, square):
    assert square_around(face, *picture) == square


@given(st.data())
def test_the_square_holds_the_face_and_leaves_the_picture_only_when_it_is_larger(data):
    width, height = data.draw(st.integers(1, 3000)), data.draw(st.integers(1, 3000))
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    face = Box(x, y, data.draw(st.integers(1, width - x)), data.draw(st.integers(1, height - y)))

    square = square_around(face, width, height)

    assert square.width == square.height
    assert 0 <= 2 * square.width - 3 * max(face.width, face.height) <= 1
    for start, end, face_start, face_end, size in (
        (square.x, square.right, face.x, face.right, width),
        (square.y, square.bottom, face.y, face.bottom, height),
    ):
        assert start <= face_start and face_end <= end
        inside, around = start >= 0 and end <= size, start <= 0 and end >= size
        assert inside if square.width <= size else around


def test_a_crop_at_its_own_size_is_the_pixels_themselves_and_no_view_of_them(rng):
    picture = rng.integers(0, 256, (60, 80, 3), np.uint8)

    cut = crop_square(picture, Box(10, 20, 32, 32), 32)

    assert np.array_equal(cut, picture[20:52, 10:42])
    assert not np.shares_memory(cut, picture)


def test_a_square_beyond_the_picture_repeats_its_edges(rng):
    picture = rng.integers(0, 256, (20, 10, 3), np.uint8)

    cut = crop_square(picture, Box(-8, 0, 26, 26), 26)

    assert np.array_equal(cut[:20, 8:18], picture)
    assert np.array_equal(cut[:20, :8], np.repeat(picture[:, :1], 8, axis=1))
    assert np.array_equal(cut[20:, 8:18], np.repeat(picture[-1:], 6, axis=0))


def test_shrinking_averages_every_pixel_and_so_does_not_alias(rng):
    noise = rng.integers(0, 256, (256, 256, 3), np.uint8)

    small = crop_square(noise, Box(0, 0, 256, 256), 64)

    averages = noise.reshape(64, 4, 64, 4, 3).mean((1, 3))
    assert np.abs(small - averages).max() <= 1


def test_growing_keeps_the_position_of_an_edge():
    step = np.zeros((32, 32, 3), np.uint8)
    step[:, 16:] = 200

    large = crop_square(step, Box(0, 0, 32, 32), 128)

    assert large.shape == (128, 128, 3)
    assert np.all(large[:, :58] <= 1) and np.all(large[:, 70:] >= 199)


@pytest.mark.parametrize("resolution", [32, 64, 100])
def test_one_view_cuts_each_frame_as_a_single_crop_does(rng, resolution):
    square = Box(-3, 5, 64, 64)
    view = SquareView(50, 70, square, resolution)

    for _ in range(3):
        picture = rng.integers(0, 256, (70, 50, 3), np.uint8)
        assert np.array_equal(view.of(picture), crop_square(picture, square, resolution))


def test_a_square_that_misses_the_picture_is_refused():
    with pytest.raises(ValueError, match="outside"):
        SquareView(50, 50, Box(50, 0, 10, 10), 10)


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 6), (4, 7), (5, 7), (1, 1)])
def test_odd_sides_grow_by_their_last_row_and_column(rng, height, width):
    picture = rng.integers(0, 256, (height, width, 3), np.uint8)

    even = make_even(picture)

    assert even.shape == (height + height % 2, width + width % 2, 3)
    assert np.array_equal(even[:height, :width], picture)
    assert np.array_equal(even[-1, :width], picture[-1]) and np.array_equal(even[:height, -1], picture[:, -1])


# -- length ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("samples", [9_600, 47_999, 48_001, 100_003])
@pytest.mark.parametrize("fps", [*RATES, Fraction(24000, 1001), Fraction(1), Fraction(100, 7), Fraction(120)], ids=str)
def test_video_has_every_frame_and_sound_has_every_sample(tmp_path, fps, samples, channels):
    made = make(tmp_path, fps=fps, samples=samples, channels=channels)

    facts = mp4.inspect(made.path)

    assert (facts.video.frames, facts.video.rate) == (made.frames, fps)
    assert facts.video.duration == made.frames / fps
    assert facts.audio.duration == made.duration
    assert facts.video.start_s == facts.audio.start_s == 0
    assert 0 <= facts.video.duration - facts.audio.duration < 1 / fps


@pytest.mark.parametrize("fps", RATES, ids=str)
def test_five_minutes_drift_by_less_than_a_frame(tmp_path, fps):
    made = make(tmp_path, fps=fps, samples=300 * 48_000 + 17, width=16, height=16)

    facts = mp4.inspect(made.path)

    assert facts.video.frames == made.frames
    assert 0 <= facts.video.duration - facts.audio.duration < 1 / fps
    validate(made.path, frames=made.frames, fps=fps, width=16, height=16, duration=made.duration, ffmpeg=FFMPEG)


@pytest.mark.parametrize("channels", [1, 2])
def test_the_sound_comes_out_in_step_and_whole(tmp_path, channels):
    made = make(tmp_path, samples=96_123, channels=channels)

    heard = decoded_sound(made.path, channels).astype(float)
    spoken = made.samples.astype(float)

    assert abs(len(heard) - len(spoken)) <= 1024  # a decoder gives whole packets
    for channel in range(channels):
        lags = range(-40, 41)
        middle = spoken[20_000:60_000, channel]
        match = [np.corrcoef(middle, heard[20_000 + lag : 60_000 + lag, channel])[0, 1] for lag in lags]
        assert lags[int(np.argmax(match))] == 0
        assert max(match) > 0.99


# -- pictures ----------------------------------------------------------------------------------------------------------


def patches() -> np.ndarray:
    """(128, 128, 3): 64 flat patches of 16 pixels, among them skin, primaries, black and white."""
    colours = np.random.default_rng(7).integers(0, 256, (8, 8, 3), np.uint8)
    colours[0] = [
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
        (0, 0, 0),
        (255,) * 3,
        (128,) * 3,
        (224, 172, 105),
        (141, 85, 36),
    ]
    return colours.repeat(16, axis=0).repeat(16, axis=1)


def encode_still(folder, picture, frames=10, **changes):
    height, width = picture.shape[:2]
    wanted = encoding(folder, Fraction(25), chirp(frames * 1920, 1), width, height)
    with Encoder(FFMPEG, wanted, folder / "still.mp4") as encoder:
        for _ in range(frames):
            encoder.write(picture)
        encoder.finish()
    return folder / "still.mp4"


def test_colours_survive_the_way_through_the_file(tmp_path):
    picture = patches()

    seen = decoded_frames(encode_still(tmp_path, picture), 128, 128)[5].astype(int)

    inner = np.s_[4:12]  # chroma has half the resolution: the rim of a patch mixes with its neighbour
    was = picture.reshape(8, 16, 8, 16, 3)[:, inner, :, inner].mean((1, 3))
    now = seen.reshape(8, 16, 8, 16, 3)[:, inner, :, inner].mean((1, 3))
    assert np.abs(now - was).max() <= 2.5
    assert np.abs(now - was).mean() <= 0.8


def test_luma_follows_the_bt709_matrix_in_the_limited_range(tmp_path):
    picture = patches()
    path = encode_still(tmp_path, picture)

    grey = run_ffmpeg("-i", str(path), "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "yuv420p", "-")
    luma = np.frombuffer(grey.stdout, np.uint8)[: 128 * 128].reshape(8, 16, 8, 16)[:, 4:12, :, 4:12].mean((1, 3))

    red, green, blue = np.moveaxis(picture[::16, ::16] / 255, -1, 0)
    bt709 = 16 + 219 * (0.2126 * red + 0.7152 * green + 0.0722 * blue)
    assert np.abs(luma - bt709).max() <= 1.5


def test_stream_and_container_both_say_bt709(tmp_path):
    path = encode_still(tmp_path, patches())

    bare = tmp_path / "bare.h264"
    assert run_ffmpeg("-i", str(path), "-c", "copy", "-an", "-f", "h264", str(bare)).returncode == 0

    assert mp4.inspect(path).video.colour == mp4.BT709
    assert b"h264 (High), yuv420p(tv, bt709, progressive), 128x128" in run_ffmpeg("-i", str(bare)).stderr


def test_frames_come_out_in_order_although_the_renderer_reuses_its_buffer(tmp_path):
    made = make(tmp_path, samples=60_000, width=64, height=32)

    edges = (decoded_frames(made.path, 64, 32)[:, 16, :, 1] > 120).sum(axis=1)

    assert np.abs(edges - (1 + np.arange(made.frames) % 64)).max() <= 1


def test_a_player_that_reads_from_the_start_needs_no_seeking(tmp_path):
    made = make(tmp_path, samples=240_000)
    whole = made.path.read_bytes()

    piped = ("-loglevel", "error", "-f", "mov", "-i", "pipe:0", "-map", "0", "-f", "framecrc", "-")

    all_of_it = run_ffmpeg(*piped, data=whole)
    start_of_it = run_ffmpeg(*piped, data=whole[: len(whole) * 6 // 10])

    assert all_of_it.returncode == 0 and all_of_it.stderr == b""
    assert sum(line.startswith(b"0,") for line in all_of_it.stdout.splitlines()) == made.frames
    assert sum(line.startswith(b"0,") for line in start_of_it.stdout.splitlines()) > made.frames // 3


def test_a_jump_lands_at_most_two_seconds_before_its_place(tmp_path):
    path = encode_still(tmp_path, patches(), frames=140)  # nothing moves: no scene change makes a keyframe

    shown_as_stored = ("-map", "0:v", "-fps_mode", "passthrough", "-f", "framecrc", "-")
    keys = run_ffmpeg("-skip_frame", "nokey", "-i", str(path), *shown_as_stored)

    assert [int(line.split(b",")[2]) for line in keys.stdout.splitlines() if line.startswith(b"0,")] == [0, 50, 100]


def test_equal_input_gives_equal_bytes_without_a_date_or_a_version_of_a_library(tmp_path):
    first = make(tmp_path, channels=2, name="first.mp4").path.read_bytes()
    time.sleep(1.1)  # a date in the file would differ now
    second = make(tmp_path, channels=2, name="second.mp4").path.read_bytes()

    assert first == second
    assert b"Lavf" not in first and b"Lavc6" not in first


# -- trouble -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def wanted(tmp_path):
    return encoding(tmp_path, Fraction(25), chirp(480_000, 1), 256, 256)


def feed(encoder, frames=2000):
    for picture in drifting(frames, 256, 256):
        encoder.write(picture)


def test_a_killed_ffmpeg_shows_within_a_few_frames(tmp_path, wanted):
    with Encoder(FFMPEG, wanted, tmp_path / "o.mp4") as encoder:
        feed(encoder, 5)
        os.kill(encoder.pid, signal.SIGKILL)
        with pytest.raises(EncodeFailed, match="was killed by SIGKILL"):
            feed(encoder, 40)


def test_a_killed_ffmpeg_shows_at_the_end_too(tmp_path, wanted):
    with Encoder(FFMPEG, wanted, tmp_path / "o.mp4") as encoder:
        feed(encoder, 3)
        os.kill(encoder.pid, signal.SIGKILL)
        with pytest.raises(EncodeFailed, match="was killed by SIGKILL"):
            encoder.finish()


@pytest.mark.parametrize("frames", [3, 400])
def test_a_hung_ffmpeg_is_given_up_and_killed(tmp_path, wanted, frames):
    with Encoder(FFMPEG, wanted, tmp_path / "o.mp4", stall_s=0.5) as encoder:
        os.kill(encoder.pid, signal.SIGSTOP)
        with pytest.raises(EncodeFailed, match=r"0\.5 s"):
            feed(encoder, frames)
            encoder.finish()
        assert gone(encoder.pid)


def test_a_full_disk_is_named(wanted):
    with Encoder(FFMPEG, wanted, Path("/dev/full")) as encoder, pytest.raises(EncodeFailed, match="No space left"):
        feed(encoder, 400)
        encoder.finish()


def test_sound_that_is_missing_is_named(tmp_path, wanted):
    wanted.sound.unlink()
    with pytest.raises(JailFailed, match=r"sound\.s16"):
        Encoder(FFMPEG, wanted, tmp_path / "o.mp4")


def test_an_ffmpeg_that_does_not_start_is_named(tmp_path, wanted):
    with pytest.raises(JailFailed, match="nothing-here"):
        Encoder(tmp_path / "nothing-here", wanted, tmp_path / "o.mp4")


def test_a_folder_that_takes_no_file_is_named(tmp_path, wanted):
    (tmp_path / "o.mp4").mkdir()
    with Encoder(FFMPEG, wanted, tmp_path / "o.mp4") as encoder, pytest.raises(EncodeFailed, match="directory"):
        feed(encoder, 400)


def test_a_failed_encoder_stays_failed(tmp_path, wanted):
    with Encoder(FFMPEG, wanted, tmp_path / "o.mp4") as encoder:
        feed(encoder, 3)
        encoder.abort()
        for _ in range(2):
            with pytest.raises(EncodeFailed, match="stopped before"):
                feed(encoder, 1)
        with pytest.raises(EncodeFailed):
            encoder.finish()


def test_a_finished_encoder_takes_no_more(tmp_path, wanted):
    with Encoder(FFMPEG, wanted, tmp_path / "o.mp4") as encoder:
        feed(encoder, 250)
        encoder.finish()
        encoder.finish()
        with pytest.raises(ValueError, match="after"):
            feed(encoder, 1)


def test_leaving_the_block_early_leaves_no_ffmpeg_behind(tmp_path, wanted):
    with pytest.raises(ZeroDivisionError), Encoder(FFMPEG, wanted, tmp_path / "o.mp4") as encoder:
        feed(encoder, 20)
        raise ZeroDivisionError
    assert gone(encoder.pid)


@pytest.mark.parametrize("shape", [(256, 256), (256, 255, 3), (128, 256, 3), (256, 256, 4)])
def test_a_frame_of_another_shape_is_refused(tmp_path, wanted, shape):
    with Encoder(FFMPEG, wanted, tmp_path / "o.mp4") as encoder, pytest.raises(ValueError, match="frame of"):
        encoder.write(np.zeros(shape, np.uint8))


def test_frames_of_any_memory_layout_are_taken(tmp_path):
    wide = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    plain, mirrored = tmp_path / "plain", tmp_path / "mirrored"
    plain.mkdir(), mirrored.mkdir()

    straight = encode_still(plain, np.ascontiguousarray(wide[:, ::-1]))
    sliced = encode_still(mirrored, wide[:, ::-1])

    assert straight.read_bytes() == sliced.read_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 255},
        {"height": 0},
        {"channels": 3},
        {"channels": 0},
        {"fps": Fraction(0)},
        {"fps": Fraction(1, 2_000_000)},
    ],
)
def test_an_encoding_that_ffmpeg_would_bend_is_refused(tmp_path, changes):
    plain = {"width": 256, "height": 256, "fps": Fraction(25), "sound": tmp_path / "s", "channels": 1}
    with pytest.raises(ValueError):
        ffmpeg.Encoding(**plain | changes)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


# -- which ffmpeg ------------------------------------------------------------------------------------------------------


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_the_one_on_path_is_used_before_the_one_in_the_wheel(tmp_path, monkeypatch):
    found = script(tmp_path / "ffmpeg", f'exec "{FFMPEG}" "$@"')
    monkeypatch.setenv("PATH", str(tmp_path))

    assert ffmpeg.find() == found
    assert ffmpeg.version(found) == ffmpeg.version(FFMPEG)


def test_one_on_path_without_h264_is_passed_over_with_a_warning(tmp_path, monkeypatch, caplog):
    script(tmp_path / "ffmpeg", "echo ' V....D libvpx  VP8'; echo ' A....D aac  AAC'")
    monkeypatch.setenv("PATH", str(tmp_path))

    found = ffmpeg.find()

    assert found.parent != tmp_path
    assert "has no encoder libx264" in caplog.text


@pytest.mark.parametrize("setting", ["nowhere/ffmpeg", "no-such-program", "/etc/hostname", "/bin/false", "/bin/echo"])
def test_a_setting_that_does_not_work_is_never_overruled(setting):
    with pytest.raises(ConfigError, match=setting):
        ffmpeg.find(setting)


def test_a_setting_with_another_program_behind_it_has_no_version(tmp_path):
    with pytest.raises(ConfigError, match="does not answer as ffmpeg does"):
        ffmpeg.version(script(tmp_path / "ffmpeg", "echo mplayer 1.5"))
