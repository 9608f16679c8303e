"""Which frame of a video is shown when, and how MP4 and WebM are recognised."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lipsyncd.errors import BadOption
from lipsyncd.inbox.scan import VIDEO, Inbox
from lipsyncd.inbox.settle import InboxRules
from lipsyncd.jobs.job import AUDIO, IMAGE, MANIFEST
from lipsyncd.media import Completeness, Kind, Structure, examine, video_frames, videos
from lipsyncd.media.content import Content
from lipsyncd.media.video_frames import BOUNCE, CUT, LOOP, MODES, source_index, stretches
from tests.kits.media.footage_kit import H264, HEIGHT, VP8, WIDTH, changed, film
from tests.kits.media.media_kit import converted
from tests.kits.shared_kit import shared_folder

# -- which frame is shown when -----------------------------------------------------------------------------------------


def test_a_source_that_bounces_shows_no_frame_twice_in_a_row() -> None:
    shown = [source_index(number, 4, BOUNCE) for number in range(14)]
    assert shown == [0, 1, 2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1]


def test_a_source_that_loops_starts_again_and_one_that_is_cut_ends() -> None:
    assert [source_index(number, 3, LOOP) for number in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert [source_index(number, 3, CUT) for number in range(5)] == [0, 1, 2, 2, 2]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("frames", [1, 2, 3, 8])
def test_stretches_give_the_same_order_in_few_ranges(mode: str, frames: int) -> None:
    for count in range(1, 40):
        pieces = list(stretches(count, frames, mode))
        assert [n for piece in pieces for n in piece] == [source_index(n, frames, mode) for n in range(count)]
        if frames == 8 and mode != CUT:
            assert len(pieces) <= count / 7 + 2


@pytest.mark.parametrize("mode", ["pingpong", "", 1, True, None, ["loop"]])
def test_an_unknown_duration_mode_is_refused(mode: object) -> None:
    with pytest.raises(BadOption, match="option duration_mode is") as caught:
        video_frames.read_mode({"duration_mode": mode})
    assert "bounce, loop, cut" in caught.value.remedy
    assert video_frames.read_mode({}) == BOUNCE


# -- what a file is ----------------------------------------------------------------------------------------------------


def seen(folder: Path, data: bytes) -> Structure:
    file = folder / "dropped"
    file.write_bytes(data)
    with file.open("rb") as opened:
        return examine(opened.fileno(), len(data))


VIDEOS = {
    "mp4": (Kind.MP4, lambda: film(".mp4", 30, *H264)),
    "mp4, index first": (Kind.MP4, lambda: film(".mp4", 30, *H264, "-movflags", "+faststart")),
    "mov": (Kind.MP4, lambda: film(".mov", 30, *H264)),
    "m4v": (Kind.MP4, lambda: changed(film(".mp4", 30, *H264), ".mp4", after=("-brand", "M4V "))),
    "webm": (Kind.WEBM, lambda: film(".webm", 30, *VP8)),
}


@pytest.mark.parametrize("name", VIDEOS)
def test_videos_are_recognised_and_proven_complete(tmp_path: Path, name: str) -> None:
    kind, make = VIDEOS[name]
    found = seen(tmp_path, make())
    assert (found.kind, found.completeness) == (kind, Completeness.COMPLETE)
    assert found.kind is not None
    assert found.kind.is_video
    assert not found.kind.is_image
    assert (found.width, found.height) == ((WIDTH, HEIGHT) if kind is Kind.MP4 else (0, 0))


@pytest.mark.parametrize("name", ["mp4", "mov", "webm"])
def test_videos_that_are_cut_short_are_truncated(tmp_path: Path, name: str) -> None:
    data = VIDEOS[name][1]()
    for part in (len(data) - 1, len(data) // 2, 200):
        assert seen(tmp_path, data[:part]).completeness is Completeness.TRUNCATED


def test_music_in_the_same_container_is_no_video(tmp_path: Path) -> None:
    found = seen(tmp_path, converted(".m4a"))
    assert found.kind is Kind.M4A
    assert found.kind.is_audio
    assert not found.kind.is_video
    assert Kind.MP4.is_audio  # the sound of a video may be a voice
    assert Kind.WEBM.is_audio


@pytest.mark.parametrize("codec", ["libopus", "libvorbis"])
def test_a_webm_without_pictures_is_a_sound_as_soon_as_its_tracks_are_there(tmp_path: Path, codec: str) -> None:
    data = converted(".webm", "-c:a", codec)
    found = seen(tmp_path, data)
    assert (found.kind, found.completeness) == (Kind.WEBA, Completeness.COMPLETE)
    assert Kind.WEBA.is_audio
    assert not Kind.WEBA.is_video
    assert seen(tmp_path, film(".webm", 5, *VP8)).kind is Kind.WEBM
    for length in range(0, len(data), 37):
        assert seen(tmp_path, data[:length]).kind in (None, Kind.WEBM, Kind.WEBA)


def test_matroska_that_is_no_webm_is_a_sound_and_no_video(tmp_path: Path) -> None:
    kind = seen(tmp_path, film(".mkv", 10, *H264)).kind
    assert kind is Kind.MKA
    assert not (kind.is_image or kind.is_video)


def test_a_live_webm_has_no_known_end(tmp_path: Path) -> None:
    assert seen(tmp_path, film(".webm", 10, *VP8, "-live", "1")).completeness is Completeness.PLAUSIBLE


def test_nested_boxes_cost_a_bounded_number_of_steps(tmp_path: Path) -> None:
    """200 tracks of 4000 empty boxes would cost 800,000 reads at every scan of the inbox."""
    media_box = b"".join(b"\0\0\0\x08free" for _ in range(4000))
    track = _box(b"trak", _box(b"mdia", media_box))
    bomb = tmp_path / "bomb"
    bomb.write_bytes(_box(b"ftyp", b"isom\0\0\0\0") + _box(b"moov", track * 200))
    with bomb.open("rb") as opened:
        content = _Counting(opened.fileno(), bomb.stat().st_size)
        assert videos.picture_size(content) is None
    assert content.reads < 5000


def _box(name: bytes, payload: bytes) -> bytes:
    return (8 + len(payload)).to_bytes(4, "big") + name + payload


class _Counting(Content):
    reads = 0

    def at(self, offset: int, count: int) -> bytes:
        self.reads += 1
        return super().at(offset, count)


# -- in the inbox ------------------------------------------------------------------------------------------------------


def test_a_video_may_be_larger_than_a_picture(tmp_path: Path) -> None:
    film_bytes, limits = film(".mp4", 30, *H264), {IMAGE: 1000, VIDEO: 100_000, AUDIO: 1000, MANIFEST: 1000}
    rules = InboxRules(0, 0, 0, incomplete_timeout_s=9, pair_timeout_s=9, max_bytes=limits)
    (tmp_path / "film.MP4").write_bytes(film_bytes)
    (tmp_path / "picture.png").write_bytes(bytes(1001))
    inbox = Inbox(shared_folder(tmp_path), rules, network=False)
    with inbox.open():
        inbox.ready({})
    assert set(inbox.ignored) == {"picture.png"}
    inbox = Inbox(shared_folder(tmp_path), replace(rules, max_bytes={**limits, VIDEO: 1000}), network=False)
    with inbox.open():
        inbox.ready({})
    assert set(inbox.ignored) == {"film.MP4", "picture.png"}
