"""Joined parts: the frames of the parts, every packet one frame long, and the sound of a video encoded in one piece."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lipsyncd.errors import BadResult, EncodeFailed
from lipsyncd.media.ffmpeg import Encoding
from lipsyncd.media.mp4 import inspect
from lipsyncd.renderers.encoder import Encoder
from lipsyncd.worker.check_result import validate
from lipsyncd.worker.child_process import RenderCancelled
from lipsyncd.worker.split.join import Part, join
from tests.kits.media.video_kit import FFMPEG, chirp, decoded_frames, decoded_sound, encoding, packets

SIDE = 48


def pictures(frames: int) -> NDArray[np.uint8]:
    """(frames, SIDE, SIDE, 3): noise that drifts, so that no two frames are equal and B-frames are worth it."""
    noise = np.random.default_rng(1).integers(0, 255, (SIDE, SIDE + frames, 3), np.uint8)
    noise = (noise // 4 + 90).astype(np.uint8)
    return np.stack([noise[:, number : number + SIDE] for number in range(frames)])


def encoded(how: Encoding, shown: NDArray[np.uint8], target: Path) -> Path:
    with Encoder(FFMPEG, how, target) as encoder:
        for picture in shown:
            encoder.write(picture)
        encoder.finish()
    return target


def made(folder: Path, fps: Fraction, ends: Sequence[int], channels: int = 1) -> tuple[Encoding, list[Part]]:
    """Parts of a video between neighbouring `ends`, and how its sound is encoded."""
    samples = int((ends[-1] - 1) / fps * 48_000) + 17
    how = encoding(folder, fps, chirp(samples, channels), SIDE, SIDE)
    silent, shown = replace(how, sound=None, channels=0), pictures(ends[-1])
    return how, [
        Part(encoded(silent, shown[start:stop], folder / f".out.token.{number}.mp4"), stop - start)
        for number, (start, stop) in enumerate(pairwise(ends), 1)
    ]


@pytest.mark.parametrize(
    ("fps", "ends"),
    [
        (Fraction(25), (0, 50, 100, 113)),
        (Fraction(30000, 1001), (0, 60, 67, 120)),
        (Fraction(60000, 1001), (0, 7, 14, 131)),
        (Fraction(100, 7), (0, 29, 41)),
    ],
    ids=str,
)
def test_frames_are_those_of_the_parts_and_every_step_is_one_frame(
    tmp_path: Path, fps: Fraction, ends: Sequence[int]
) -> None:
    how, parts = made(tmp_path, fps, ends)
    target = tmp_path / "joined.mp4"
    join(parts, how, target, ffmpeg=FFMPEG)

    shown = decoded_frames(target, SIDE, SIDE)
    assert len(shown) == ends[-1]
    assert np.array_equal(shown, np.concatenate([decoded_frames(part.path, SIDE, SIDE) for part in parts]))
    assert packets(target, "0:v") == [(number / fps, 1 / fps) for number in range(ends[-1])]
    facts = inspect(target)
    assert (facts.video.frames, facts.video.rate, facts.video.start_s) == (ends[-1], fps, 0)
    duration = facts.audio.duration
    validate(target, frames=ends[-1], fps=fps, width=SIDE, height=SIDE, duration=duration, ffmpeg=FFMPEG)
    assert [path for path in tmp_path.iterdir() if path.name.endswith(".parts")] == []


@pytest.mark.parametrize("channels", [1, 2])
def test_the_sound_is_that_of_a_video_encoded_in_one_piece(tmp_path: Path, channels: int) -> None:
    how, parts = made(tmp_path, Fraction(25), (0, 50, 83), channels)
    joined, whole = tmp_path / "joined.mp4", tmp_path / "whole.mp4"
    join(parts, how, joined, ffmpeg=FFMPEG)
    encoded(how, pictures(83), whole)

    assert np.array_equal(decoded_sound(joined, channels), decoded_sound(whole, channels))
    assert packets(joined, "0:a") == packets(whole, "0:a")
    assert inspect(joined).audio == inspect(whole).audio


def test_parts_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    how, parts = made(tmp_path, Fraction(25), (0, 10, 20))
    silent = replace(how, sound=None, channels=0)
    target, other = tmp_path / "joined.mp4", tmp_path / ".out.token.3.mp4"

    def refused(part: Part, why: str) -> None:
        with pytest.raises(BadResult, match=why):
            join([parts[0], part], how, target, ffmpeg=FFMPEG)
        assert not target.exists()
        part.path.unlink(missing_ok=True)

    refused(Part(encoded(silent, pictures(10), other), 11), "10 frames")
    refused(Part(encoded(replace(silent, fps=Fraction(30)), pictures(10), other), 10), "at 30 a second")
    narrow = np.ascontiguousarray(pictures(10)[:, :, 2:])
    refused(Part(encoded(replace(silent, width=SIDE - 2), narrow, other), 10), f"{SIDE - 2}x{SIDE}")
    refused(Part(encoded(replace(silent, preset="ultrafast"), pictures(10), other), 10), "encoded differently")
    refused(Part(tmp_path / "absent.mp4", 10), "damaged")
    content = encoded(silent, pictures(10), other).read_bytes()
    other.write_bytes(content[:-100])
    refused(Part(other, 10), "damaged")


def test_a_join_can_be_stopped_and_names_its_failure(tmp_path: Path) -> None:
    how, parts = made(tmp_path, Fraction(25), (0, 10, 20))
    endless = replace(how, sound=Path("/dev/zero"))
    with pytest.raises(RenderCancelled):
        join(parts, endless, tmp_path / "endless.mp4", ffmpeg=FFMPEG, stop=lambda: True)
    with pytest.raises(EncodeFailed, match="did not join the 2 parts"):
        join(parts, how, tmp_path / "failed.mp4", ffmpeg=Path("/bin/false"))
