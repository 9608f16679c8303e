"""How much memory a picture takes to decode: what would take more than its bound is refused before it is decoded."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from pathlib import Path

import pillow_heif
import pytest
from PIL import Image, ImageOps

from lipsyncd.errors import ImageTooLarge, ImageUndecodable
from lipsyncd.prepare.decode_picture import FILE, decode_picture
from tests.kits.media.media_kit import corners, encoded, ffmpeg

MOST_MB = 300  # up to 40 megapixels, and for a JPEG that is reduced


def decoded_in_mb(folder: Path, data: bytes, *, may_reduce: bool = False) -> int:
    """Decode a picture; gives the memory of its process at its peak, in MB."""
    (folder / "image").write_bytes(data)
    code = f"""
import resource
from pathlib import Path
from lipsyncd.prepare.decode_picture import decode_picture
folder = Path({str(folder)!r})
decode_picture(folder / "image", folder, background=(0, 0, 0), may_reduce={may_reduce})
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return int(ended.stdout)


def decoded(folder: Path, data: bytes, *, may_reduce: bool = False) -> Image.Image:
    (folder / "image").write_bytes(data)
    found = decode_picture(folder / "image", folder, background=(0, 0, 0), may_reduce=may_reduce)
    return Image.frombytes("RGB", (found.width, found.height), (folder / FILE).read_bytes())


def progressive(width: int, height: int, subsampling: str) -> bytes:
    return encoded(corners(width, height), "JPEG", progressive=True, subsampling=subsampling)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "height", "subsampling"), [(8000, 5000, "4:2:0"), (6900, 4000, "4:4:4"), (7800, 4500, "4:2:2")]
)
def test_the_largest_progressive_jpegs_that_are_taken_stay_within_the_bound(
    tmp_path: Path, width: int, height: int, subsampling: str
) -> None:
    assert decoded_in_mb(tmp_path, progressive(width, height, subsampling)) < MOST_MB


@pytest.mark.slow
def test_a_large_progressive_jpeg_that_is_reduced_stays_within_the_bound(tmp_path: Path) -> None:
    data = progressive(8192, 6144, "4:2:0")
    assert decoded_in_mb(tmp_path, data, may_reduce=True) < MOST_MB
    assert decoded_in_mb(tmp_path, data) < 8 * 50.3 + 100


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "height", "subsampling"), [(8000, 5000, "4:4:4"), (8000, 5000, "4:2:2"), (8192, 6144, "4:4:4")]
)
@pytest.mark.parametrize("may_reduce", [False, True])
def test_a_progressive_jpeg_beyond_the_bound_is_refused_whether_it_is_reduced_or_not(
    tmp_path: Path, width: int, height: int, subsampling: str, may_reduce: bool
) -> None:
    with pytest.raises(ImageTooLarge, match=f"progressive JPEG of {width} x {height} pixels: it takes .* MB") as caught:
        decoded(tmp_path, progressive(width, height, subsampling), may_reduce=may_reduce)
    assert "baseline JPEG" in caught.value.remedy


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_jpeg_with_too_few_bytes_for_its_size_is_refused(tmp_path: Path, options: dict[str, bool]) -> None:
    data = bytearray(encoded(corners(), "JPEG", **options))
    at = data.index(b"\xff\xc2" if options else b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 8000, 8000)
    with pytest.raises(ImageUndecodable, match=f"{len(data)} bytes are too few for a JPEG of 8000 x 8000 pixels"):
        decoded(tmp_path, bytes(data))


@pytest.mark.parametrize("options", [{"quality": 1}, {"progressive": True, "quality": 1}, {"optimize": True}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_the_smallest_jpegs_have_enough_bytes(tmp_path: Path, options: dict[str, int], mode: str) -> None:
    plain = Image.new("RGB", (1600, 1200), (90, 90, 90)).convert(mode)
    assert decoded(tmp_path, encoded(plain, "JPEG", **options)).size == (1600, 1200)


# -- WebP --------------------------------------------------------------------------------------------------------------


def gradients(width: int, height: int) -> Image.Image:
    """A picture with every value of red, green and blue, and of alpha."""
    grey = Image.radial_gradient("L").resize((width, height))
    turns = Image.Transpose
    return Image.merge("RGBA", [grey, *(grey.transpose(t) for t in (turns.ROTATE_180, turns.FLIP_LEFT_RIGHT)), grey])


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("options", [{"quality": 60}, {"lossless": True}, {"lossless": True, "exact": True}])
def test_a_webp_has_the_pixels_that_pillow_shows(tmp_path: Path, mode: str, options: dict[str, int]) -> None:
    data = encoded(gradients(301, 303).convert(mode), "WEBP", **options)
    shown = Image.open(io.BytesIO(data)).convert("RGBA")
    expected = Image.new("RGB", shown.size)
    expected.paste(shown, mask=shown.getchannel("A"))
    assert decoded(tmp_path, data).tobytes() == expected.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_the_largest_webp_stays_within_the_bound(tmp_path: Path, mode: str) -> None:
    assert decoded_in_mb(tmp_path, encoded(corners(8000, 5000).convert(mode), "WEBP", method=0)) < MOST_MB


@pytest.mark.slow
def test_a_lossless_webp_is_refused_where_it_would_not(tmp_path: Path) -> None:
    taken = encoded(gradients(7000, 4500), "WEBP", lossless=True, method=0)
    assert decoded_in_mb(tmp_path, taken) < MOST_MB
    (tmp_path / FILE).unlink()
    with pytest.raises(ImageTooLarge, match="a WebP of 8000 x 5000 pixels that is lossless") as caught:
        decoded(tmp_path, encoded(corners(8000, 5000), "WEBP", lossless=True, method=0))
    assert "PNG" in caught.value.remedy


def test_a_webp_of_a_small_picture_on_a_huge_canvas_is_refused(tmp_path: Path) -> None:
    data = bytearray(encoded(corners().convert("RGBA"), "WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"))
    data[24:30] = (6299).to_bytes(3, "little") * 2
    with pytest.raises(ImageUndecodable, match="shows 96 x 64 pixels on a canvas of 6300 x 6300"):
        decoded(tmp_path, bytes(data))


def test_a_webp_animation_of_one_frame_is_a_still(tmp_path: Path) -> None:
    """As programs write that turn a GIF into a WebP."""
    whole = encoded(corners(), "WEBP")
    frame = bytes(6) + (95).to_bytes(3, "little") + (63).to_bytes(3, "little") + bytes(4) + whole[12:]
    canvas = b"\2\0\0\0" + (95).to_bytes(3, "little") + (63).to_bytes(3, "little")
    chunks = ((b"VP8X", canvas), (b"ANIM", bytes(6)), (b"ANMF", frame))
    body = b"WEBP" + b"".join(name + struct.pack("<I", len(data)) + data for name, data in chunks)
    assert decoded(tmp_path, b"RIFF" + struct.pack("<I", len(body)) + body).size == (96, 64)


# -- AVIF and HEIC -----------------------------------------------------------------------------------------------------

COARSE, MIXED, FINE = "4:2:0", "4:2:2", "4:4:4"


def coded(image: Image.Image, form: str, subsampling: str, **options: object) -> bytes:
    quick = {"speed": 10} if form == "AVIF" else {"enc_params": {"preset": "ultrafast"}}
    return encoded(image, form, subsampling=subsampling, **quick, **options)


def as_pillow_shows(data: bytes, mode: str) -> bytes:
    """RGB on black, by Pillow's own reading of the whole picture."""
    shown = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if mode != "RGBA":
        return shown.convert("RGB").tobytes()
    expected = Image.new("RGB", shown.size)
    expected.paste(shown.convert("RGB"), mask=shown.getchannel("A"))
    return expected.tobytes()


@pytest.mark.parametrize(
    ("mode", "subsampling", "turn"),
    [("RGB", COARSE, 1), ("RGBA", COARSE, 8), ("RGB", MIXED, 5), ("RGBA", FINE, 3), ("L", COARSE, 6)],
)
def test_an_avif_has_the_pixels_that_pillow_shows(tmp_path: Path, mode: str, subsampling: str, turn: int) -> None:
    """Cut in many parts: 1301 x 903 pixels are more than one part, and no edge of one is at an even place."""
    exif = Image.Exif()
    exif[0x0112] = turn
    data = coded(gradients(1301, 903).convert(mode), "AVIF", subsampling, exif=exif.tobytes())
    assert decoded(tmp_path, data).tobytes() == as_pillow_shows(data, mode)


@pytest.mark.parametrize("planes", ["yuv420p10le", "yuv444p10le", "gray10le"])
def test_an_avif_of_10_bits_has_the_pixels_that_pillow_shows(tmp_path: Path, planes: str) -> None:
    file = tmp_path / "drawn.avif"
    drawn = ("-f", "lavfi", "-i", "testsrc2=s=1302x902", "-frames:v", "1", "-pix_fmt", planes)
    coder = ("-c:v", "libaom-av1", "-cpu-used", "8", "-still-picture", "1")
    subprocess.run([ffmpeg(), "-v", "error", *drawn, *coder, file], check=True)
    assert decoded(tmp_path, file.read_bytes()).tobytes() == as_pillow_shows(file.read_bytes(), "RGB")


@pytest.mark.parametrize(
    ("mode", "subsampling"), [("RGB", COARSE), ("RGBA", COARSE), ("RGB", MIXED), ("RGBA", FINE), ("L", COARSE)]
)
def test_a_heic_has_the_pixels_that_pi_heif_shows(tmp_path: Path, mode: str, subsampling: str) -> None:
    data = coded(gradients(1301, 903).convert(mode), "HEIF", subsampling)
    assert decoded(tmp_path, data).tobytes() == as_pillow_shows(data, mode)


@pytest.mark.parametrize("mode", ["RGB;16", "RGBA;16"])
@pytest.mark.parametrize("chroma", [420, 444])
def test_a_heic_of_10_bits_has_the_pixels_that_pi_heif_shows(tmp_path: Path, mode: str, chroma: int) -> None:
    samples = gradients(301, 303).convert(mode[:-3]).resize((602, 303)).tobytes()  # two bytes make one of 16 bits
    file = io.BytesIO()
    pillow_heif.from_bytes(mode, (301, 303), samples).save(file, chroma=chroma)
    data = file.getvalue()
    assert pillow_heif.open_heif(data, convert_hdr_to_8bit=False).info["bit_depth"] == 10
    assert decoded(tmp_path, data).tobytes() == as_pillow_shows(data, mode[:-3])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "mode", "subsampling"),
    [
        ("AVIF", "RGB", COARSE),
        ("AVIF", "RGB", FINE),
        ("AVIF", "RGBA", FINE),
        ("HEIF", "RGB", COARSE),
        ("HEIF", "RGB", FINE),
        ("HEIF", "RGBA", COARSE),
    ],
)
def test_the_largest_avif_and_heic_stay_within_the_bound(
    tmp_path: Path, form: str, mode: str, subsampling: str
) -> None:
    assert decoded_in_mb(tmp_path, coded(corners(8000, 5000).convert(mode), form, subsampling)) < MOST_MB


@pytest.mark.slow
@pytest.mark.parametrize("form", ["AVIF", "HEIF"])
@pytest.mark.parametrize(("mode", "subsampling"), [("RGB", COARSE), ("RGBA", FINE)])
def test_an_avif_or_heic_of_64_megapixels_stays_within_its_bound(
    tmp_path: Path, form: str, mode: str, subsampling: str
) -> None:
    assert decoded_in_mb(tmp_path, coded(corners(8000, 8000).convert(mode), form, subsampling)) < 8 * 64 + 100


@pytest.mark.slow
def test_a_fine_heic_with_alpha_is_refused_where_it_would_not(tmp_path: Path) -> None:
    assert decoded_in_mb(tmp_path, coded(corners(8000, 4100).convert("RGBA"), "HEIF", FINE)) < MOST_MB
    (tmp_path / FILE).unlink()
    with pytest.raises(ImageTooLarge, match="a HEIC of 8000 x 5000 pixels with 8 bits a colour: it takes") as caught:
        decoded(tmp_path, coded(corners(8000, 5000).convert("RGBA"), "HEIF", FINE))
    assert "JPEG" in caught.value.remedy
