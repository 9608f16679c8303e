"""Small JPEGs of pictures: drawn by the real jailed child, upright, without metadata, and never more than a loss."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from lipsyncd import media
from lipsyncd.errors import ImageUndecodable
from lipsyncd.prepare.decode_picture import decode_picture, draw_thumbnail
from tests.kits.installation import picture
from tests.kits.media.media_kit import BLUE, GREEN, GREY, RED, corners, encoded
from tests.prepare.test_decode import alike, quarters, turned_by


def drawn(folder: Path, data: bytes) -> Path:
    (folder / "image").write_bytes(data)
    decode_picture(folder / "image", folder, background=(0, 0, 0), thumbnail=folder / "small.jpg")
    return folder / "small.jpg"


@pytest.mark.parametrize(
    ("data", "size", "shown"),
    [
        pytest.param(
            lambda: encoded(corners(960, 640), "JPEG", exif=turned_by(6), quality=95),
            (213, 320),
            [(BLUE, RED), (GREY, GREEN)],
            id="turned",
        ),
        pytest.param(
            lambda: encoded(corners(960, 640), "HEIF", quality=95), (320, 213), [(RED, GREEN), (BLUE, GREY)], id="heic"
        ),
        pytest.param(
            lambda: encoded(corners(6600, 4600), "JPEG", quality=60),
            (320, 223),
            [(RED, GREEN), (BLUE, GREY)],
            id="30 megapixels",
            marks=pytest.mark.slow,
        ),
        pytest.param(lambda: encoded(corners(96, 64), "PNG"), (96, 64), [(RED, GREEN), (BLUE, GREY)], id="small"),
    ],
)
def test_a_thumbnail_is_small_upright_and_without_metadata(tmp_path, data, size, shown) -> None:
    file = drawn(tmp_path, data())
    image = Image.open(file)
    assert (image.format, image.size) == ("JPEG", size)
    assert not image.getexif()
    assert set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
    assert alike(quarters(image), [colour for row in shown for colour in row], 16)
    assert file.stat().st_mode & 0o777 == 0o600


def test_the_most_colourful_picture_makes_a_thumbnail_of_bounded_size(tmp_path: Path) -> None:
    assert 10_000 < drawn(tmp_path, picture(1, 320, 320)).stat().st_size < 100_000


def test_a_picture_that_cannot_be_decoded_leaves_no_thumbnail(tmp_path: Path) -> None:
    damaged = bytearray(picture(2, 400, 300))
    damaged[5000:5100] = bytes(100)
    with pytest.raises(ImageUndecodable):
        drawn(tmp_path, bytes(damaged))
    assert not (tmp_path / "small.jpg").exists()


def test_a_thumbnail_that_cannot_be_drawn_is_only_missing(tmp_path: Path) -> None:
    """The child sees a picture that is shorter than it should be, and then one with a damaged size."""
    (tmp_path / "image").write_bytes(picture(3))
    found = decode_picture(tmp_path / "image", tmp_path, background=(0, 0, 0))
    for wrong in (replace(found, height=found.height * 2), replace(found, width=0)):
        draw_thumbnail(wrong, tmp_path, tmp_path / "small.jpg")
        assert not (tmp_path / "small.jpg").exists()
    draw_thumbnail(found, tmp_path, tmp_path / "small.jpg")
    data = (tmp_path / "small.jpg").read_bytes()
    assert Image.open(io.BytesIO(data)).size == (80, 72)
    with (tmp_path / "small.jpg").open("rb") as file:
        assert media.examine(file.fileno(), len(data)).completeness is media.Completeness.COMPLETE
