"""The frames of a video as a renderer reads them: at the job's rate, in any range, in bounded memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lipsyncd.errors import RenderCrashed
from lipsyncd.jobs.prepared import Video
from lipsyncd.media import Kind
from lipsyncd.media.video_frames import BOUNCE, LOOP, source_index
from lipsyncd.renderers.video_source import VideoSource
from tests.kits.media.footage_kit import H264, HEIGHT, VP8, WIDTH, film, film_with_voice, number_of, screened
from tests.kits.media.media_kit import ffmpeg


def source_of(folder: Path, data: bytes, *, fps: str = "25", mode: str = BOUNCE, **options: Any) -> VideoSource:
    found = screened(folder, data, fps=fps)
    kind = Kind.WEBM if data.startswith(b"\x1a\x45") else Kind.MP4
    video = Video("image", kind.value, found.picture.width, found.picture.height, fps, found.frames, mode)
    return VideoSource(video, folder, ffmpeg(), **options)


def gappy() -> bytes:
    """Frames 20 to 34 of 60 are missing, the others keep their times, and the first one is at 0.4 s."""
    gap = "select='not(between(n,20,34))',setpts=PTS+0.4/TB"
    return film(".mov", 60, *H264, "-vf", gap, "-fps_mode", "vfr")


READ = {
    "mp4": (lambda: film(".mp4", 60, *H264), "25"),
    "mp4, 25 to 29.97": (lambda: film(".mp4", 60, *H264), "30000/1001"),
    "mp4, 60 to 24": (lambda: film(".mp4", 90, *H264, rate="60"), "24"),
    "mov, frames missing": (gappy, "25"),
    "webm": (lambda: film(".webm", 60, *VP8, rate="30"), "25"),
}


@pytest.mark.parametrize("name", READ)
def test_any_range_gives_the_same_frames_as_one_pass(tmp_path: Path, name: str) -> None:
    """Playing backwards reads ranges: a shifted frame would be animated with the face of another frame."""
    make, fps = READ[name]
    source = source_of(tmp_path, make(), fps=fps)
    whole = list(source.read())
    assert len(whole) == source.frames
    numbers = [number_of(picture) for picture in whole]
    assert numbers == sorted(numbers)
    for start in range(0, source.frames, 11):
        count = min(7, source.frames - start)
        for picture, expected in zip(source.read(start, count), whole[start:], strict=False):
            np.testing.assert_array_equal(picture, expected)


@pytest.mark.parametrize(("suffix", "codecs"), [(".mp4", (*H264, "-c:a", "aac")), (".webm", (*VP8, "-c:a", "libopus"))])
def test_a_film_with_sound_is_read_like_one_without(tmp_path: Path, suffix: str, codecs: tuple[str, ...]) -> None:
    """ffmpeg complains about the sound, whose decoder is on no list here, and its complaints go into a file."""
    source = source_of(tmp_path, film_with_voice(suffix, *codecs))
    assert len(list(source.read())) == source.frames > 30


def test_the_picture_equals_the_first_frame(tmp_path: Path) -> None:
    for data in (film(".mp4", 3, *H264), film(".mp4", 3, *H264, "-vf", "setsar=4/3"), film(".webm", 3, *VP8)):
        source = source_of(tmp_path, data)
        first = next(source.read())
        np.testing.assert_array_equal(first.ravel(), np.fromfile(tmp_path / "picture.rgb", np.uint8))


def test_each_frame_is_shown_at_its_own_time(tmp_path: Path) -> None:
    """At the same rate each frame is shown once; where frames are missing, the one before them is repeated."""
    assert [number_of(picture) for picture in source_of(tmp_path, film(".mp4", 60, *H264)).read()] == list(range(60))
    held = [number_of(picture) for picture in source_of(tmp_path, gappy()).read()]
    assert held == [*range(20), *[19] * 15, *range(35, 60)]


@pytest.mark.parametrize("held", [1 << 30, 5 * WIDTH * HEIGHT * 3])
@pytest.mark.parametrize("mode", [BOUNCE, LOOP])
def test_a_longer_sound_repeats_the_same_frames(tmp_path: Path, mode: str, held: int) -> None:
    """Whether the video is held in memory or read again five frames at a time, the result is the same."""
    source = source_of(tmp_path, film(".mp4", 12, *H264), mode=mode, held_bytes=held)
    shown = [(number, number_of(picture)) for number, picture in source.play(40)]
    assert shown == [(n, n) for n in (source_index(number, 12, mode) for number in range(40))]


def test_memory_does_not_grow_with_a_video_that_is_too_long_to_hold(tmp_path: Path) -> None:
    source = source_of(tmp_path, film(".mp4", 100, *H264), held_bytes=WIDTH * HEIGHT * 3 * 10)
    pictures = [picture for _, picture in zip(range(130), (p for _, p in source.play(200)), strict=False)]
    assert len({id(picture) for picture in pictures}) == 130  # the source holds none of them
    assert number_of(pictures[129]) == source_index(129, 100, BOUNCE)


def test_closing_the_iterator_kills_the_decoder(tmp_path: Path) -> None:
    source = source_of(tmp_path, film(".mp4", 100, *H264))
    before = _children()
    frames = source.read()
    next(frames)
    assert len(_children() - before) == 1
    frames.close()  # type: ignore[attr-defined]
    assert _children() - before == set()


def _children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_a_video_that_has_lost_frames_since_the_scan_is_a_failure_with_numbers(tmp_path: Path) -> None:
    source = source_of(tmp_path, film(".mp4", 60, *H264))
    (tmp_path / "image").write_bytes(film(".mp4", 20, *H264))
    with pytest.raises(RenderCrashed, match="gave 20 of 60 frames, from number 0 on"):
        list(source.read())


def test_each_frame_that_is_read_is_reported_and_the_report_may_stop_the_reading(tmp_path: Path) -> None:
    read = []

    def on_frame() -> None:
        read.append(len(read))
        if len(read) == 5:
            raise KeyboardInterrupt

    before = _children()
    with pytest.raises(KeyboardInterrupt):
        list(source_of(tmp_path, film(".mp4", 12, *H264), on_frame=on_frame).read())
    assert read == [0, 1, 2, 3, 4]
    assert _children() == before


def test_frames_outside_the_video_are_an_error_of_the_renderer(tmp_path: Path) -> None:
    source = source_of(tmp_path, film(".mp4", 12, *H264))
    for start, count in ((0, 13), (-1, 2), (12, 1), (3, -1)):
        with pytest.raises(ValueError, match="of a source of 12"):
            source.read(start, count)
    assert list(source.read(12, 0)) == []
