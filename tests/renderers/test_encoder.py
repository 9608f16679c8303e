"""The encoder: every frame and sample that goes in comes out, and trouble with ffmpeg shows at once."""

from __future__ import annotations

import os
import signal
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from lipsyncd.errors import EncodeFailed, JailFailed
from lipsyncd.media import mp4
from lipsyncd.media.ffmpeg import ChangingPart
from lipsyncd.renderers import Still
from lipsyncd.renderers.encoder import Encoder
from lipsyncd.renderers.framing import Box
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


# The rate that no whole number divides is the likeliest to drift; the others take as long: `make test-system` has them.
_DRIFT = [pytest.param(fps, marks=[] if fps.denominator > 1 else pytest.mark.slow) for fps in RATES]


@pytest.mark.parametrize("fps", _DRIFT, ids=str)
def test_five_minutes_drift_by_less_than_a_frame(tmp_path, fps):
    made = make(tmp_path, fps=fps, samples=300 * 48_000 + 17, width=16, height=16)

    facts = mp4.inspect(made.path)

    assert facts.video.frames == made.frames
    assert 0 <= facts.video.duration - facts.audio.duration < 1 / fps
    validate(made.path, frames=made.frames, fps=fps, width=16, height=16, duration=made.duration, ffmpeg=FFMPEG)


@pytest.mark.parametrize("channels", [1, 2])
def test_the_sound_is_complete_and_in_sync(tmp_path, channels):
    made = make(tmp_path, samples=96_123, channels=channels)

    decoded = decoded_sound(made.path, channels).astype(float)
    source = made.samples.astype(float)

    assert abs(len(decoded) - len(source)) <= 1024  # a decoder returns whole packets
    for channel in range(channels):
        lags = range(-40, 41)
        middle = source[20_000:60_000, channel]
        match = [np.corrcoef(middle, decoded[20_000 + lag : 60_000 + lag, channel])[0, 1] for lag in lags]
        assert lags[int(np.argmax(match))] == 0
        assert max(match) > 0.99


def test_the_noise_of_the_sound_lies_40_db_below_it(tmp_path):
    """A plucked string, twice a second; ffmpeg's slower coder reaches 34 dB."""
    seconds = np.arange(96_000) / 48_000
    string = sum(3_000 / part * np.sin(2 * np.pi * 220 * part * seconds) for part in range(1, 12))
    source = np.rint(string * np.exp(-4 * (seconds % 0.5)))
    wanted = encoding(tmp_path, Fraction(25), source.astype("<i2")[:, None], 32, 32)
    with Encoder(FFMPEG, wanted, tmp_path / "out.mp4") as encoder:
        for picture in drifting(50, 32, 32):
            encoder.write(picture)
        encoder.finish()
    noise = decoded_sound(tmp_path / "out.mp4", 1)[: len(source), 0] - source

    inner = slice(4_000, -4_000)
    assert 10 * np.log10(np.mean(source[inner] ** 2) / np.mean(noise[inner] ** 2)) > 40


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


CHANGES = {
    "middle": Box(61, 43, 30, 25),
    "upper left": Box(0, 0, 31, 17),
    "lower right": Box(131, 90, 29, 30),
    "a band": Box(0, 50, 160, 20),
    "none": Box(80, 60, 0, 0),
    "most of it": Box(5, 5, 150, 112),
}


def speckled(box, frames=12):
    """A noisy picture of 160x120, and `frames` of it that differ in the box."""
    chance = np.random.default_rng(5)
    still = chance.integers(0, 256, (120, 160, 3), np.uint8)
    pictures = [still.copy() for _ in range(frames)]
    for picture in pictures:
        picture[box.place] = chance.integers(0, 256, (box.height, box.width, 3), np.uint8)
    return still, pictures


@pytest.mark.parametrize(
    ("box", "fps"), list(zip(CHANGES.values(), [Fraction(24000, 1001), *RATES], strict=True)), ids=list(CHANGES)
)
def test_a_video_of_which_only_a_part_is_sent_has_the_same_bytes(tmp_path, box, fps):
    still, pictures = speckled(box)
    wanted = encoding(tmp_path, fps, chirp(int(12 / fps * 48_000), 1), 160, 120)
    for name, changes in (("whole", None), ("part", box)):
        with Encoder(FFMPEG, wanted, tmp_path / name, still=Still(still, changes=changes)) as encoder:
            for picture in pictures:
                encoder.write(picture)
            encoder.finish()

    assert (tmp_path / "part").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_part_is_sent_where_that_is_less_than_the_frame():
    assert ChangingPart.around((61, 43, 91, 68), 160, 120) == ChangingPart(60, 42, 92, 68)
    assert ChangingPart.around((0, 0, 31, 17), 160, 120) == ChangingPart(0, 0, 32, 18)
    assert ChangingPart.around((5, 5, 155, 117), 160, 120) is None


def encode_still(folder, picture, frames=10, **changes):
    height, width = picture.shape[:2]
    wanted = encoding(folder, Fraction(25), chirp(frames * 1920, 1), width, height)
    with Encoder(FFMPEG, wanted, folder / "still.mp4") as encoder:
        for _ in range(frames):
            encoder.write(picture)
        encoder.finish()
    return folder / "still.mp4"


def test_colours_survive_encoding(tmp_path):
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


def test_stream_and_container_are_both_tagged_bt709(tmp_path):
    path = encode_still(tmp_path, patches())

    bare = tmp_path / "bare.h264"
    assert run_ffmpeg("-i", str(path), "-c", "copy", "-an", "-f", "h264", str(bare)).returncode == 0

    assert mp4.inspect(path).video.colour == mp4.BT709
    assert b"h264 (High), yuv420p(tv, bt709, progressive), 128x128" in run_ffmpeg("-i", str(bare)).stderr


def test_frames_come_out_in_order_although_the_renderer_reuses_its_buffer(tmp_path):
    made = make(tmp_path, samples=60_000, width=64, height=32)

    edges = (decoded_frames(made.path, 64, 32)[:, 16, :, 1] > 120).sum(axis=1)

    assert np.abs(edges - (1 + np.arange(made.frames) % 64)).max() <= 1


def test_a_player_can_start_without_seeking(tmp_path):
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


def test_a_killed_ffmpeg_is_noticed_within_a_few_frames(tmp_path, wanted):
    with Encoder(FFMPEG, wanted, tmp_path / "o.mp4") as encoder:
        feed(encoder, 5)
        os.kill(encoder.pid, signal.SIGKILL)
        with pytest.raises(EncodeFailed, match="was killed by SIGKILL"):
            feed(encoder, 40)


def test_a_killed_ffmpeg_is_noticed_at_the_end_too(tmp_path, wanted):
    with Encoder(FFMPEG, wanted, tmp_path / "o.mp4") as encoder:
        feed(encoder, 3)
        os.kill(encoder.pid, signal.SIGKILL)
        with pytest.raises(EncodeFailed, match="was killed by SIGKILL"):
            encoder.finish()


@pytest.mark.parametrize("frames", [3, 400])
def test_a_hung_ffmpeg_is_killed_after_a_while(tmp_path, wanted, frames):
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
            with pytest.raises(EncodeFailed, match="stopped already"):
                feed(encoder, 1)
        with pytest.raises(EncodeFailed):
            encoder.finish()


def test_a_finished_encoder_takes_no_more_frames(tmp_path, wanted):
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


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False
