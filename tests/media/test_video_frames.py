"""Videos in place of a picture: sniffed, screened, read frame by frame on the job's clock, played through a daemon."""

from __future__ import annotations

import json
import math
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lipsyncd.errors import (
    BadOption,
    ImageNotRecognised,
    ImageTooLarge,
    ImageTooSmall,
    ImageUndecodable,
    InputError,
    RenderCrashed,
)
from lipsyncd.inbox.pairing import AUDIO, IMAGE, MANIFEST
from lipsyncd.inbox.scan import VIDEO, Inbox, Rules
from lipsyncd.jobs.job import JobState
from lipsyncd.jobs.prepared import Video
from lipsyncd.media import Completeness, Kind, Structure, examine, video_frames, videos
from lipsyncd.media.content import Content
from lipsyncd.media.video_frames import BOUNCE, CUT, LOOP, MODES, source_index, stretches
from lipsyncd.prepare.decode_video import Footage, screen
from lipsyncd.renderers.video_source import VideoSource
from tests.kits.installation import Installation, put, sound
from tests.kits.media.footage_kit import H264, HEIGHT, PONDER, REPLAY, VP8, WIDTH, changed, film, number_of
from tests.kits.media.media_kit import converted, ffmpeg

# -- which frame shows when --------------------------------------------------------------------------------------------


def test_a_source_that_bounces_turns_without_showing_a_frame_twice() -> None:
    shown = [source_index(number, 4, BOUNCE) for number in range(14)]
    assert shown == [0, 1, 2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1]


def test_a_source_that_loops_starts_again_and_one_that_is_cut_ends() -> None:
    assert [source_index(number, 3, LOOP) for number in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert [source_index(number, 3, CUT) for number in range(5)] == [0, 1, 2, 2, 2]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("frames", [1, 2, 3, 8])
def test_stretches_give_the_same_order_in_few_pieces(mode: str, frames: int) -> None:
    for count in range(1, 40):
        pieces = list(stretches(count, frames, mode))
        assert [n for piece in pieces for n in piece] == [source_index(n, frames, mode) for n in range(count)]
        if frames == 8 and mode != CUT:
            assert len(pieces) <= count / 7 + 2


@pytest.mark.parametrize("said", ["pingpong", "", 1, True, None, ["loop"]])
def test_an_unknown_duration_mode_is_refused(said: object) -> None:
    with pytest.raises(BadOption, match="option duration_mode is") as caught:
        video_frames.read_mode({"duration_mode": said})
    assert "bounce, loop, cut" in caught.value.remedy
    assert video_frames.read_mode({}) == BOUNCE


# -- what a file is ----------------------------------------------------------------------------------------------------


def seen(folder: Path, data: bytes) -> Structure:
    file = folder / "dropped"
    file.write_bytes(data)
    with file.open("rb") as opened:
        return examine(opened.fileno(), len(data))


FILMS = {
    "mp4": (Kind.MP4, lambda: film(".mp4", 30, *H264)),
    "mp4, index first": (Kind.MP4, lambda: film(".mp4", 30, *H264, "-movflags", "+faststart")),
    "mov": (Kind.MP4, lambda: film(".mov", 30, *H264)),
    "m4v": (Kind.MP4, lambda: changed(film(".mp4", 30, *H264), ".mp4", after=("-brand", "M4V "))),
    "webm": (Kind.WEBM, lambda: film(".webm", 30, *VP8)),
}


@pytest.mark.parametrize("name", FILMS)
def test_films_are_recognised_and_known_to_be_whole(tmp_path: Path, name: str) -> None:
    kind, make = FILMS[name]
    found = seen(tmp_path, make())
    assert (found.kind, found.completeness) == (kind, Completeness.COMPLETE)
    assert found.kind is not None
    assert found.kind.is_video
    assert not found.kind.is_image
    assert (found.width, found.height) == ((WIDTH, HEIGHT) if kind is Kind.MP4 else (0, 0))


@pytest.mark.parametrize("name", ["mp4", "mov", "webm"])
def test_films_that_are_cut_short_are_waited_for(tmp_path: Path, name: str) -> None:
    data = FILMS[name][1]()
    for part in (len(data) - 1, len(data) // 2, 200):
        assert seen(tmp_path, data[:part]).completeness is Completeness.TRUNCATED


def test_a_song_in_the_same_container_is_no_film(tmp_path: Path) -> None:
    found = seen(tmp_path, converted(".m4a"))
    assert found.kind is Kind.M4A
    assert found.kind.is_audio
    assert not found.kind.is_video
    assert Kind.MP4.is_audio  # the sound of a film may be a voice
    assert not Kind.WEBM.is_audio


def test_matroska_that_is_no_webm_is_left_alone(tmp_path: Path) -> None:
    assert seen(tmp_path, film(".mkv", 10, *H264)).kind is None


def test_a_live_webm_has_no_known_end(tmp_path: Path) -> None:
    assert seen(tmp_path, film(".webm", 10, *VP8, "-live", "1")).completeness is Completeness.PLAUSIBLE


def test_boxes_within_boxes_cost_a_bounded_number_of_steps(tmp_path: Path) -> None:
    """4000 tracks of 4000 empty boxes each would be sixteen million reads at every look into the inbox."""
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


# -- screening ---------------------------------------------------------------------------------------------------------


def screened(folder: Path, data: bytes, *, fps: str = "25", frames: int = 1000, **options: float) -> Footage:
    file = folder / "image"
    file.write_bytes(data)
    kind = Kind.WEBM if data.startswith(b"\x1a\x45") else Kind.MP4
    return screen(file, kind, folder, ffmpeg=ffmpeg(), fps=Fraction(fps), frames=frames, **options)


@pytest.mark.parametrize(("fps", "frames"), [("25", 50), ("30000/1001", 60), ("24", 48), ("12", 24), ("60", 120)])
def test_frames_are_counted_on_the_jobs_clock(tmp_path: Path, fps: str, frames: int) -> None:
    assert screened(tmp_path, film(".mp4", 50, *H264), fps=fps).frames == frames


def test_no_more_is_decoded_than_the_job_needs(tmp_path: Path) -> None:
    found = screened(tmp_path, film(".mp4", 50, *H264), frames=7)
    assert found.frames == 7
    assert {entry.name for entry in tmp_path.iterdir()} == {"image", "picture.rgb"}


def test_the_first_frame_is_kept_as_the_picture(tmp_path: Path) -> None:
    picture = screened(tmp_path, film(".webm", 20, *VP8)).picture
    pixels = np.fromfile(tmp_path / picture.file, np.uint8).reshape(picture.height, picture.width, 3)
    assert number_of(pixels) == 0
    assert np.abs(pixels[HEIGHT // 2, 2].astype(int) - (220, 30, 30)).max() < 25


def test_a_film_comes_upright_and_in_square_pixels(tmp_path: Path) -> None:
    lying = changed(film(".mp4", 10, *H264), ".mp4", before=("-display_rotation", "90"))
    picture = screened(tmp_path, lying).picture
    assert (picture.width, picture.height) == (HEIGHT, WIDTH)
    wide = film(".mp4", 10, *H264, "-vf", "setsar=2")
    picture = screened(tmp_path, wide).picture
    assert (picture.width, picture.height) == (2 * WIDTH, HEIGHT)


def test_odd_sides_stay_as_they_are(tmp_path: Path) -> None:
    odd = film(".mp4", 10, "-c:v", "libx264", "-pix_fmt", "yuv444p", width=161, height=97)
    picture = screened(tmp_path, odd).picture
    assert (picture.width, picture.height) == (161, 97)
    assert (tmp_path / picture.file).stat().st_size == 161 * 97 * 3


def tagged(matrix: str, *tags: str) -> bytes:
    vf = ("-vf", f"scale=out_color_matrix={matrix}:flags=accurate_rnd+full_chroma_int,format=yuv420p")
    return film(".mp4", 3, "-c:v", "libx264", "-qp", "8", *vf, *tags)


@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
def test_colours_are_read_by_the_matrix_that_the_film_names(tmp_path: Path, matrix: str) -> None:
    tag = {"bt601": "smpte170m", "bt709": "bt709"}[matrix]
    picture = screened(tmp_path, tagged(matrix, "-colorspace", tag)).picture
    pixels = np.fromfile(tmp_path / picture.file, np.uint8).reshape(picture.height, picture.width, 3)
    assert np.abs(pixels[10, 2].astype(int) - (220, 30, 30)).max() < 8


@pytest.mark.parametrize(("transfer", "told"), [("arib-std-b67", True), ("smpte2084", True), ("bt709", False)])
def test_a_film_in_hdr_comes_with_a_warning(tmp_path: Path, transfer: str, told: bool) -> None:
    tags = f"format=yuv420p,setparams=colorspace=bt2020nc:color_primaries=bt2020:color_trc={transfer}"
    notes = screened(tmp_path, film(".mp4", 3, *H264, "-vf", tags)).picture.notes
    assert any("HDR" in note for note in notes) is told


def damaged(data: bytes) -> bytes:
    """Zeros in the second half of the samples."""
    start, end = data.index(b"mdat"), data.index(b"moov")
    start += (end - start) * 6 // 10
    return data[:start] + bytes(200) + data[start + 200 :]


NOT_FILMS = {
    "a song": (lambda: converted(".m4a"), ImageNotRecognised, "no MP4, MOV or WebM"),
    "tiny": (lambda: film(".mp4", 10, *H264, width=48, height=96), ImageTooSmall, "48 x 96"),
    "tiny, webm": (lambda: film(".webm", 10, *VP8, width=48, height=96), ImageTooSmall, "48 x 96"),
    "a codec that is not taken": (lambda: film(".mov", 10, "-c:v", "qtrle"), ImageUndecodable, "cannot be decoded"),
    "no samples": (lambda: film(".mp4", 10, *H264).replace(b"avc1", b"xxxx"), ImageUndecodable, "cannot be decoded"),
}


@pytest.mark.parametrize("name", NOT_FILMS)
def test_what_is_no_usable_film_is_refused_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    make, error, said = NOT_FILMS[name]
    with pytest.raises(error, match=said):
        screened(tmp_path, make())
    assert [entry.name for entry in tmp_path.iterdir()] == ["image"]


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_a_film_of_too_many_pixels_is_refused(tmp_path: Path, suffix: str) -> None:
    """Whether its header says so or only its decoder finds out."""
    options = H264 if suffix == ".mp4" else (*VP8, "-deadline", "realtime", "-cpu-used", "8")
    with pytest.raises(InputError) as caught:
        screened(tmp_path, film(suffix, 1, *options, width=4096, height=2400))
    if suffix == ".mp4":
        assert isinstance(caught.value, ImageTooLarge)
        assert "9.8 megapixels" in caught.value.message
        assert "at most 9 megapixels" in caught.value.remedy
    else:
        assert isinstance(caught.value, ImageUndecodable)


def test_a_damaged_film_is_used_as_far_as_it_goes_and_says_so(tmp_path: Path) -> None:
    found = screened(tmp_path, damaged(film(".mp4", 60, *H264)))
    assert found.frames > 30
    assert any("damaged parts of the video" in note for note in found.picture.notes)


def test_a_decoder_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with pytest.raises(ImageUndecodable, match=r"not decoded within 0\.01 s"):
        screened(tmp_path, film(".mp4", 50, *H264), timeout_s=0.01)


# -- reading -----------------------------------------------------------------------------------------------------------


def source_of(folder: Path, data: bytes, *, fps: str = "25", mode: str = BOUNCE, **options: Any) -> VideoSource:
    found = screened(folder, data, fps=fps)
    kind = Kind.WEBM if data.startswith(b"\x1a\x45") else Kind.MP4
    video = Video("image", kind.value, found.picture.width, found.picture.height, fps, found.frames, mode)
    return VideoSource(video, folder, ffmpeg(), **options)


def gappy() -> bytes:
    """Frames 20 to 34 of 60 are missing, the rest keep their times, and the first one comes at 0.4 s."""
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
def test_any_stretch_is_the_same_as_in_one_pass(tmp_path: Path, name: str) -> None:
    """A source that runs backwards is read so: a frame that shifted would be animated with another one's face."""
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


def test_the_picture_is_the_first_frame_to_the_last_bit(tmp_path: Path) -> None:
    for data in (film(".mp4", 3, *H264), film(".mp4", 3, *H264, "-vf", "setsar=4/3"), film(".webm", 3, *VP8)):
        source = source_of(tmp_path, data)
        first = next(source.read())
        np.testing.assert_array_equal(first.ravel(), np.fromfile(tmp_path / "picture.rgb", np.uint8))


def test_a_frame_shows_when_its_time_has_come(tmp_path: Path) -> None:
    """At the same rate each frame shows once; where frames are missing, the one before stays."""
    assert [number_of(picture) for picture in source_of(tmp_path, film(".mp4", 60, *H264)).read()] == list(range(60))
    held = [number_of(picture) for picture in source_of(tmp_path, gappy()).read()]
    assert held == [*range(20), *[19] * 15, *range(35, 60)]


@pytest.mark.parametrize("held", [1 << 30, 5 * WIDTH * HEIGHT * 3])
@pytest.mark.parametrize("mode", [BOUNCE, LOOP])
def test_a_longer_sound_goes_on_with_the_same_frames(tmp_path: Path, mode: str, held: int) -> None:
    """Kept in memory as a whole, or read again in stretches of five: what is shown is the same."""
    source = source_of(tmp_path, film(".mp4", 12, *H264), mode=mode, held_bytes=held)
    shown = [(number, number_of(picture)) for number, picture in source.play(40)]
    assert shown == [(n, n) for n in (source_index(number, 12, mode) for number in range(40))]


def test_memory_does_not_grow_with_a_film_that_is_too_long_to_hold(tmp_path: Path) -> None:
    source = source_of(tmp_path, film(".mp4", 100, *H264), held_bytes=WIDTH * HEIGHT * 3 * 10)
    pictures = [picture for _, picture in zip(range(130), (p for _, p in source.play(200)), strict=False)]
    assert len({id(picture) for picture in pictures}) == 130  # each in memory of its own: none is held by the source
    assert number_of(pictures[129]) == source_index(129, 100, BOUNCE)


def test_leaving_early_ends_the_decoder(tmp_path: Path) -> None:
    source = source_of(tmp_path, film(".mp4", 100, *H264))
    before = _children()
    frames = source.read()
    next(frames)
    assert len(_children() - before) == 1
    frames.close()  # type: ignore[attr-defined]
    assert _children() - before == set()


def _children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_a_film_that_lost_frames_since_is_a_failure_with_numbers(tmp_path: Path) -> None:
    source = source_of(tmp_path, film(".mp4", 60, *H264))
    (tmp_path / "image").write_bytes(film(".mp4", 20, *H264))
    with pytest.raises(RenderCrashed, match="gave 20 of 60 frames, from number 0 on"):
        list(source.read())


def test_each_frame_that_is_read_is_a_sign_of_life_and_may_be_the_last(tmp_path: Path) -> None:
    told = []

    def alive() -> None:
        told.append(len(told))
        if len(told) == 5:
            raise KeyboardInterrupt

    before = _children()
    with pytest.raises(KeyboardInterrupt):
        list(source_of(tmp_path, film(".mp4", 12, *H264), alive=alive).read())
    assert told == [0, 1, 2, 3, 4]
    assert _children() == before


def test_frames_outside_the_film_are_a_mistake_of_the_renderer(tmp_path: Path) -> None:
    source = source_of(tmp_path, film(".mp4", 12, *H264))
    for start, count in ((0, 13), (-1, 2), (12, 1), (3, -1)):
        with pytest.raises(ValueError, match="of a source of 12"):
            source.read(start, count)
    assert list(source.read(12, 0)) == []


# -- through the daemon ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    installation = Installation(tmp_path_factory.mktemp("busy"))
    installation.changes = {
        "watch": {"settle_s": 0.1, "manifest_grace_s": 5},
        "render": {"renderer": "replay", "renderers": [REPLAY, PONDER], "stall_timeout_s": 3},
        "output": {"stitch": True},
    }
    with installation.running():
        yield installation


def numbers_in(video: Path) -> list[int]:
    command = [str(ffmpeg()), "-nostdin", "-v", "error", "-i", str(video), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    frames = np.frombuffer(raw, np.uint8).reshape(-1, HEIGHT, WIDTH, 3)
    return [number_of(frame) for frame in frames]


@pytest.mark.parametrize(("suffix", "options"), [(".mp4", H264), (".mov", H264), (".webm", VP8)], ids=str)
def test_a_film_and_a_sound_of_one_stem_are_a_pair(busy: Installation, suffix: str, options: tuple[str, ...]) -> None:
    name = f"pair{suffix[1:]}"
    put(busy.path("inbox"), f"{name}{suffix}", film(suffix, 10, *options))
    put(busy.path("inbox"), f"{name}.wav", sound(1.0))
    busy.until_done(name)
    shown = numbers_in(busy.path("outbox") / f"{name}.mp4")
    assert shown == [source_index(number, 10, BOUNCE) for number in range(25)]
    assert "the video has 10 of 25 frames" in json.dumps(busy.sidecar(name))


@pytest.mark.parametrize(("mode", "frames"), [(LOOP, 25), (CUT, 10)])
def test_a_job_says_what_happens_when_its_sound_is_longer(busy: Installation, mode: str, frames: int) -> None:
    name = f"mode{mode}"
    put(busy.path("inbox"), f"{name}-film.mp4", film(".mp4", 10, *H264))
    put(busy.path("inbox"), f"{name}-voice.wav", sound(1.0))
    busy.drop_manifest(
        name, image=f"{name}-film.mp4", audio=f"{name}-voice.wav", lipsyncd={"duration_mode": mode}, out_name=name
    )
    job = busy.until_done(name)
    assert job.frames == frames
    assert job.duration_ms == frames * 40
    assert numbers_in(busy.path("outbox") / f"{name}.mp4") == [source_index(n, 10, mode) for n in range(frames)]
    told = json.dumps(busy.sidecar(name))
    assert ("the sound was cut from 1.00 to 0.40 s" if mode == CUT else "it goes on by duration_mode = loop") in told


def test_a_film_is_submitted_like_a_picture(busy: Installation, tmp_path: Path) -> None:
    for name, data in (("ada.webm", film(".webm", 10, *VP8)), ("ada.wav", sound(0.4)), ("song.mp4", converted(".m4a"))):
        (tmp_path / name).write_bytes(data)
    done = busy.cli("submit", tmp_path / "ada.webm", tmp_path / "ada.wav", "--wait", "--out", tmp_path / "out.mp4")
    assert done.returncode == 0, done.stderr
    assert numbers_in(tmp_path / "out.mp4") == list(range(10))
    refused = busy.cli("submit", tmp_path / "song.mp4", tmp_path / "ada.wav")
    assert refused.returncode != 0
    assert "is m4a" in refused.stderr


def test_a_film_may_be_larger_than_a_picture(tmp_path: Path) -> None:
    film_bytes, limits = film(".mp4", 30, *H264), {IMAGE: 1000, VIDEO: 100_000, AUDIO: 1000, MANIFEST: 1000}
    rules = Rules(0, 0, 0, incomplete_timeout_s=9, pair_timeout_s=9, max_bytes=limits)
    (tmp_path / "film.MP4").write_bytes(film_bytes)
    (tmp_path / "picture.png").write_bytes(bytes(1001))
    inbox = Inbox(tmp_path, rules, network=False)
    inbox.ready({})
    assert set(inbox.ignored) == {"picture.png"}
    inbox = Inbox(tmp_path, replace(rules, max_bytes={**limits, VIDEO: 1000}), network=False)
    inbox.ready({})
    assert set(inbox.ignored) == {"film.MP4", "picture.png"}


def test_a_longer_film_ends_with_the_sound(busy: Installation) -> None:
    put(busy.path("inbox"), "long.mp4", film(".mp4", 60, *H264))
    put(busy.path("inbox"), "long.wav", sound(1.0))
    assert busy.until_done("long").frames == 25
    assert numbers_in(busy.path("outbox") / "long.mp4") == list(range(25))


def test_the_preview_renderer_refuses_a_film_and_says_who_takes_it(busy: Installation) -> None:
    put(busy.path("inbox"), "still.mp4", film(".mp4", 10, *H264))
    put(busy.path("inbox"), "still.wav", sound(0.5))
    busy.drop_manifest("refused", image="still.mp4", audio="still.wav", renderer="preview", out_name="refused")
    job = busy.until_state("refused", JobState.FAILED)
    assert job.reason_code == "video-not-taken"
    assert "musetalk" in (job.remedy or "")


def test_a_wrong_duration_mode_fails_the_job(busy: Installation) -> None:
    put(busy.path("inbox"), "odd.mp4", film(".mp4", 10, *H264))
    put(busy.path("inbox"), "odd.wav", sound(0.5))
    busy.drop_manifest("odd2", image="odd.mp4", audio="odd.wav", lipsyncd={"duration_mode": "backwards"})
    assert busy.until_state("odd2", JobState.FAILED).reason_code == "bad-option"


def test_a_song_in_a_films_clothes_is_no_picture(busy: Installation) -> None:
    put(busy.path("inbox"), "song.mp4", converted(".m4a"))
    put(busy.path("inbox"), "song.wav", sound(0.5))
    job = busy.until_state("song", JobState.FAILED)
    assert job.reason_code == "image-not-recognised"
    assert "is m4a" in (job.reason or "")


def test_a_long_look_at_a_film_is_no_silence_and_can_be_cancelled(busy: Installation) -> None:
    for name in ("slow", "slower"):
        put(busy.path("inbox"), f"{name}-film.mp4", film(".mp4", 100, *H264))
        put(busy.path("inbox"), f"{name}-voice.wav", sound(2.0 if name == "slow" else 4.0))
        busy.drop_manifest(
            name, image=f"{name}-film.mp4", audio=f"{name}-voice.wav", renderer="ponder", out_name=name, stitch=True
        )
    assert busy.until_done("slow").frames == 50  # 5 s of looking, where 3 s of silence end a render
    job = busy.until_state("slower", JobState.RUNNING)
    assert busy.cli("cancel", job.id).returncode == 0
    asked = time.monotonic()
    busy.until_state("slower", JobState.CANCELLED)
    assert time.monotonic() - asked < 3


def test_the_length_of_a_film_is_exact_at_broken_rates(busy: Installation) -> None:
    put(busy.path("inbox"), "ntsc.mov", film(".mov", 20, *H264, rate="30000/1001"))
    put(busy.path("inbox"), "ntsc.wav", sound(1.0))
    busy.drop_manifest("ntsc2", image="ntsc.mov", audio="ntsc.wav", fps=29.97, out_name="ntsc2")
    assert busy.until_done("ntsc2").frames == math.ceil(Fraction(30000, 1001))
    shown = numbers_in(busy.path("outbox") / "ntsc2.mp4")
    assert shown == [source_index(number, 20, BOUNCE) for number in range(30)]
