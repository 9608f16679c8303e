"""`av_offset_ms`: the lips of the finished video are later or earlier, and its sound is the same."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from lipsyncd.jobs.job import idempotency_key
from lipsyncd.jobs.prepared import Picture, Sound
from lipsyncd.media import ffmpeg
from lipsyncd.renderers.audio import shifted
from lipsyncd.worker.child_process import LocalChild, Timeouts
from lipsyncd.worker.protocol import Render
from tests.kits.core_kit import spec_of
from tests.kits.media.preview_kit import astronaut, best_lag, voice
from tests.kits.media.video_kit import decoded_frames, decoded_sound

SIDE = 128


@pytest.mark.parametrize(
    ("later_ms", "expected"),
    [(0, [1, 2, 3, 4]), (1, [0] * 4), (-1, [0] * 4), (200, [0] * 4), (-200, [0] * 4)],
)
def test_a_shift_longer_than_the_voice_leaves_silence(later_ms, expected):
    assert shifted(np.array([1, 2, 3, 4], np.int16), later_ms).tolist() == expected


def test_a_shifted_voice_keeps_its_length_and_is_filled_with_silence():
    speech = np.arange(1, 161, dtype=np.int16)

    assert shifted(speech, 5).tolist() == [0] * 80 + list(range(1, 81))
    assert shifted(speech, -5).tolist() == [*range(81, 161), *[0] * 80]
    assert shifted(speech, 0) is speech


def test_jobs_with_another_offset_are_not_equal():
    spec = spec_of()
    keys = {idempotency_key(replace(spec, av_offset_ms=offset)) for offset in (-40, 0, 40)}

    assert len(keys - {None}) == 3


def test_the_lips_of_a_finished_video_are_shifted_and_its_sound_is_not(tmp_path):
    child = LocalChild("cpu", lambda: Timeouts(start_s=60, deadline_s=120, silence_s=60))
    try:
        plain, late, early = (video_of(child, tmp_path / str(ms), ms) for ms in (0, 120, -120))
    finally:
        child.close()
    lips, sound = movement(plain), decoded_sound(plain, 1)

    assert best_lag(movement(late), lips, most=6) == 3  # frames of 40 ms
    assert best_lag(movement(early), lips, most=6) == -3
    assert np.array_equal(decoded_sound(late, 1), sound)
    assert np.array_equal(decoded_sound(early, 1), sound)


def video_of(child: LocalChild, folder: Path, av_offset_ms: int) -> Path:
    """A video of `preview` at 25 frames per second, without blinks."""
    folder.mkdir()
    speech = voice("Please call Stella, and ask her to come.")
    speech.astype("<i2").tofile(folder / "speech.s16")
    np.repeat(speech, 3).astype("<i2").tofile(folder / "sound.s16")
    picture = astronaut().picture
    picture.tofile(folder / "picture.rgb")
    request = Render(
        job_id=folder.name,
        renderer="preview",
        folder=str(folder),
        out_file="out.mp4",
        picture=Picture("picture.rgb", picture.shape[1], picture.shape[0]),
        sound=Sound("speech.s16", len(speech), "sound.s16", 3 * len(speech), 48_000, 1),
        fps="25",
        frames=int(-(-Fraction(len(speech) * 25, 16_000) // 1)),
        stitch=False,
        resolution=SIDE,
        av_offset_ms=av_offset_ms,
        options={"blink": False},
        encode={"ffmpeg": str(ffmpeg.find()), "crf": 18, "preset": "veryfast", "audio_kbps": 128},
    )
    child.render(request, progress=lambda report: None, stop=lambda: False)
    return folder / "out.mp4"


def movement(video: Path) -> np.ndarray:
    """How much each frame differs from the last three, in which the mouth is shut."""
    frames = decoded_frames(video, SIDE, SIDE).astype(np.int16)
    return np.abs(frames - np.median(frames[-3:], axis=0)).mean(axis=(1, 2, 3))
