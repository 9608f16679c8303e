"""Videos scanned before a job is queued: they decode, their size and length are known, the first frame is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lipsyncd.errors import ImageNotRecognised, ImageTooLarge, ImageTooSmall, ImageUndecodable, InputError
from tests.kits.media.footage_kit import H264, HEIGHT, VP8, WIDTH, changed, film, number_of, screened
from tests.kits.media.media_kit import converted


@pytest.mark.parametrize(("fps", "frames"), [("25", 50), ("30000/1001", 60), ("24", 48), ("12", 24), ("60", 120)])
def test_frames_are_counted_at_the_jobs_rate(tmp_path: Path, fps: str, frames: int) -> None:
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


def test_a_video_is_turned_upright_and_gets_square_pixels(tmp_path: Path) -> None:
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
def test_colours_are_read_by_the_matrix_that_the_video_names(tmp_path: Path, matrix: str) -> None:
    tag = {"bt601": "smpte170m", "bt709": "bt709"}[matrix]
    picture = screened(tmp_path, tagged(matrix, "-colorspace", tag)).picture
    pixels = np.fromfile(tmp_path / picture.file, np.uint8).reshape(picture.height, picture.width, 3)
    assert np.abs(pixels[10, 2].astype(int) - (220, 30, 30)).max() < 8


@pytest.mark.parametrize(("transfer", "is_hdr"), [("arib-std-b67", True), ("smpte2084", True), ("bt709", False)])
def test_a_video_in_hdr_gets_a_warning(tmp_path: Path, transfer: str, is_hdr: bool) -> None:
    tags = f"format=yuv420p,setparams=colorspace=bt2020nc:color_primaries=bt2020:color_trc={transfer}"
    notes = screened(tmp_path, film(".mp4", 3, *H264, "-vf", tags)).picture.notes
    assert any("HDR" in note for note in notes) is is_hdr


def damaged(data: bytes) -> bytes:
    """The same file with 200 bytes of its samples zeroed."""
    start, end = data.index(b"mdat"), data.index(b"moov")
    start += (end - start) * 6 // 10
    return data[:start] + bytes(200) + data[start + 200 :]


UNUSABLE = {
    "music": (lambda: converted(".m4a"), ImageNotRecognised, "no MP4, MOV or WebM"),
    "tiny": (lambda: film(".mp4", 10, *H264, width=48, height=96), ImageTooSmall, "48 x 96"),
    "tiny, webm": (lambda: film(".webm", 10, *VP8, width=48, height=96), ImageTooSmall, "48 x 96"),
    "a codec that is not accepted": (lambda: film(".mov", 10, "-c:v", "qtrle"), ImageUndecodable, "cannot be decoded"),
    "no samples": (lambda: film(".mp4", 10, *H264).replace(b"avc1", b"xxxx"), ImageUndecodable, "cannot be decoded"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_unusable_video_is_refused_and_leaves_no_file(tmp_path: Path, name: str) -> None:
    make, error, message = UNUSABLE[name]
    with pytest.raises(error, match=message):
        screened(tmp_path, make())
    assert [entry.name for entry in tmp_path.iterdir()] == ["image"]


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_a_video_with_too_many_pixels_is_refused(tmp_path: Path, suffix: str) -> None:
    """Its size is in the header of an MP4; only the decoder finds out that of a WebM."""
    options = H264 if suffix == ".mp4" else (*VP8, "-deadline", "realtime", "-cpu-used", "8")
    with pytest.raises(InputError) as caught:
        screened(tmp_path, film(suffix, 1, *options, width=4096, height=2400))
    if suffix == ".mp4":
        assert isinstance(caught.value, ImageTooLarge)
        assert "9.8 megapixels" in caught.value.message
        assert "at most 9 megapixels" in caught.value.remedy
    else:
        assert isinstance(caught.value, ImageUndecodable)


def test_of_a_damaged_video_the_intact_frames_are_used_with_a_note(tmp_path: Path) -> None:
    found = screened(tmp_path, damaged(film(".mp4", 60, *H264)))
    assert found.frames > 30
    assert any("damaged parts of the video" in note for note in found.picture.notes)


def test_a_decoder_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    with pytest.raises(ImageUndecodable, match=r"not decoded within 0\.01 s"):
        screened(tmp_path, film(".mp4", 50, *H264), timeout_s=0.01)
