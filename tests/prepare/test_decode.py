"""Pictures and sounds that are in order come out right, whatever they are stored as."""

import itertools
import math
import os
import re
import signal
import subprocess
import sys
from array import array
from fractions import Fraction
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageCms

from lipsyncd.errors import AudioTooLong, AudioTooShort, AudioUndecodable, ImageUndecodable, JailFailed
from lipsyncd.jobs.prepared import Picture, Sound
from lipsyncd.media import Kind, sniff
from lipsyncd.prepare import decoder_process
from lipsyncd.prepare.decode_picture import decode_picture
from lipsyncd.prepare.decode_sound import decode_sound
from lipsyncd.sandbox.jail import Completed
from tests.kits.media.media_kit import (
    BLUE,
    GREEN,
    GREY,
    RED,
    converted,
    corners,
    encoded,
    ffmpeg,
    linear_grey_profile,
    png_chunk,
    png_of,
    stereo,
    swapping_profile,
    tone,
    wav,
    with_cover,
)

PAPER = (10, 200, 90)  # the background in these tests


@pytest.fixture
def decoded_picture(tmp_path):
    """Writes bytes to a file and decodes it: the result, and the pixels as an image."""

    def decode_one(data: bytes, **options) -> tuple[Picture, Image.Image]:
        source = tmp_path / "image"
        source.write_bytes(data)
        picture = decode_picture(source, tmp_path, background=PAPER, **options)
        return picture, Image.frombytes("RGB", (picture.width, picture.height), (tmp_path / picture.file).read_bytes())

    return decode_one


@pytest.fixture
def decoded_sound(tmp_path):
    def decode_one(data: bytes, **options) -> Sound:
        source = tmp_path / "audio"
        source.write_bytes(data)
        kind = sniff(data[:64])
        assert kind is not None
        return decode_sound(source, kind, tmp_path, ffmpeg=ffmpeg(), **options)

    return decode_one


def quarters(image: Image.Image) -> list[tuple[int, ...]]:
    """The colours in the middle of the four quarters: upper left, upper right, lower left, lower right."""
    columns, rows = (image.width // 4, image.width * 3 // 4), (image.height // 4, image.height * 3 // 4)
    return [image.getpixel((x, y)) for y in rows for x in columns]


def alike(found, wanted, tolerance: int) -> bool:
    pairs = zip(sum(found, ()), sum(wanted, ()), strict=True)
    return all(abs(a - b) <= tolerance for a, b in pairs)


# -- pictures ----------------------------------------------------------------------------------------------------------

AS_DRAWN = (RED, GREEN, BLUE, GREY)
IN_GREY = tuple((level,) * 3 for level in (round(0.299 * r + 0.587 * g + 0.114 * b) for r, g, b in AS_DRAWN))
ON_PAPER = (PAPER, GREEN, BLUE, GREY)


def hole() -> Image.Image:
    """The picture with its upper left quarter transparent; its colour there is still red."""
    image = corners().convert("RGBA")
    image.paste((*RED, 0), (0, 0, 48, 32))
    return image


def deep_png(colour: int, extra: bytes = b"") -> bytes:
    """16 bits for each channel, by hand: Pillow writes none of colour."""
    image = corners().convert("L") if colour == 0 else hole() if colour == 6 else corners()
    width, height, channels = 96, 64, {0: 1, 2: 3, 6: 4}[colour]
    raw = image.tobytes()
    stride = width * channels
    rows = (bytes(b for v in raw[y * stride : (y + 1) * stride] for b in (v, v)) for y in range(height))
    return png_of(width, height, b"".join(b"\0" + row for row in rows), depth=16, colour=colour, extra=extra)


def deep_grey() -> Image.Image:
    """The drawing in 16 bits of grey, as scanners write."""
    levels = array("H", (level * 257 for level in corners().convert("L").tobytes()))
    return Image.frombytes("I;16", (96, 64), levels.tobytes())


def linear_grey() -> bytes:
    """55 of 255 in linear light is a middle grey on a screen."""
    return encoded(Image.new("L", (96, 64), 55), "PNG", icc_profile=linear_grey_profile())


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def cmyk_without_adobe() -> bytes:
    """By the standard: ink as it is, and no marker that says otherwise."""
    data = encoded(ImageChops.invert(corners().convert("CMYK")), "JPEG", quality=95)
    return re.sub(rb"\xff\xee\x00\x0eAdobe.{7}", b"", data, count=1, flags=re.DOTALL)


def jpeg(image: Image.Image, **options: object) -> bytes:
    return encoded(image, "JPEG", quality=95, **options)


def png(image: Image.Image, **options: object) -> bytes:
    return encoded(image, "PNG", **options)


DRAWN_GREY = corners().convert("L")
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
GREY_ON_PAPER = (PAPER, *IN_GREY[1:])
ONE_GREY = png_chunk(b"tRNS", bytes([IN_GREY[0][0]] * 2))
ONE_COLOUR = png_chunk(b"tRNS", bytes(value for value in RED for _ in range(2)))
SWAPPED = ((24, 221, 35), (201, 24, 57), (57, 35, 211), (129, 129, 129))

# name: (bytes, colours of the four quarters, tolerance)
PICTURES = {
    "jpeg": (lambda: jpeg(corners()), AS_DRAWN, 4),
    "jpeg, progressive": (lambda: jpeg(corners(), progressive=True), AS_DRAWN, 4),
    "jpeg, grey": (lambda: jpeg(DRAWN_GREY), IN_GREY, 2),
    "jpeg, CMYK of Adobe": (lambda: jpeg(corners().convert("CMYK")), AS_DRAWN, 6),
    "jpeg, CMYK by the standard": (cmyk_without_adobe, AS_DRAWN, 6),
    "jpeg, two pictures": (lambda: encoded(corners(), "MPO", save_all=True, append_images=[corners()]), AS_DRAWN, 8),
    "png": (lambda: png(corners()), AS_DRAWN, 0),
    "png, grey": (lambda: png(DRAWN_GREY), IN_GREY, 1),
    "png, palette": (lambda: png(corners().quantize(8)), AS_DRAWN, 1),
    "png, black and white": (lambda: png(corners().convert("1", dither=0)), (BLACK, WHITE, BLACK, WHITE), 0),
    "png, alpha": (lambda: png(hole()), ON_PAPER, 0),
    "png, grey and alpha": (lambda: png(hole().convert("LA")), GREY_ON_PAPER, 1),
    "png, palette and alpha": (lambda: png(hole().quantize(16)), ON_PAPER, 1),
    "png, one colour transparent": (lambda: png(corners(), transparency=RED), ON_PAPER, 0),
    "png, one grey transparent": (lambda: png(DRAWN_GREY, transparency=IN_GREY[0][0]), GREY_ON_PAPER, 1),
    "png, 16 bits": (lambda: deep_png(2), AS_DRAWN, 0),
    "png, 16 bits, alpha": (lambda: deep_png(6), ON_PAPER, 0),
    "png, 16 bits, grey": (lambda: deep_png(0), IN_GREY, 1),
    "png, 16 bits, one colour transparent": (lambda: deep_png(2, ONE_COLOUR), ON_PAPER, 0),
    "png, 16 bits, one grey transparent": (lambda: deep_png(0, ONE_GREY), GREY_ON_PAPER, 1),
    "webp": (lambda: encoded(corners(), "WEBP", quality=95), AS_DRAWN, 8),
    "webp, lossless": (lambda: encoded(corners(), "WEBP", lossless=True), AS_DRAWN, 0),
    "webp, alpha": (lambda: encoded(hole(), "WEBP", lossless=True), ON_PAPER, 0),
    "heic": (lambda: encoded(corners(), "HEIF", quality=95), AS_DRAWN, 8),
    "heic, grey": (lambda: encoded(DRAWN_GREY, "HEIF", quality=95), IN_GREY, 4),
    "heic, alpha": (lambda: encoded(hole(), "HEIF", quality=95), ON_PAPER, 8),
    "heic, a profile": (lambda: encoded(corners(), "HEIF", quality=95, icc_profile=swapping_profile()), SWAPPED, 12),
    "avif": (lambda: encoded(corners(), "AVIF", quality=95), AS_DRAWN, 8),
    "avif, alpha": (lambda: encoded(hole(), "AVIF", quality=95), ON_PAPER, 8),
    "bmp": (lambda: encoded(corners(), "BMP"), AS_DRAWN, 0),
    "bmp, palette": (lambda: encoded(corners().quantize(8), "BMP"), AS_DRAWN, 1),
    "bmp, grey": (lambda: encoded(DRAWN_GREY, "BMP"), IN_GREY, 1),
    "tiff": (lambda: encoded(corners(), "TIFF"), AS_DRAWN, 0),
    "tiff, compressed": (lambda: encoded(corners(), "TIFF", compression="tiff_lzw"), AS_DRAWN, 0),
    "tiff, grey": (lambda: encoded(DRAWN_GREY, "TIFF"), IN_GREY, 1),
    "tiff, 16 bits of grey": (lambda: encoded(deep_grey(), "TIFF"), IN_GREY, 1),
    "tiff, CMYK": (lambda: encoded(corners().convert("CMYK"), "TIFF"), AS_DRAWN, 6),
    "tiff, alpha": (lambda: encoded(hole(), "TIFF"), ON_PAPER, 0),
    "tiff, two pages": (lambda: encoded(corners(), "TIFF", save_all=True, append_images=[hole()]), AS_DRAWN, 0),
    "gif": (lambda: encoded(corners(), "GIF"), AS_DRAWN, 1),
    "gif, one colour transparent": (lambda: encoded(hole(), "GIF"), ON_PAPER, 1),
    "a profile with red and green swapped": (lambda: png(corners(), icc_profile=swapping_profile()), SWAPPED, 3),
    "a profile of linear grey": (linear_grey, ((128,) * 3,) * 4, 3),
    "a profile for another colour space": (lambda: png(corners(), icc_profile=linear_grey_profile()), AS_DRAWN, 0),
    "a profile that is none": (lambda: png(corners(), icc_profile=b"no profile at all"), AS_DRAWN, 0),
    "a profile of sRGB": (lambda: png(corners(), icc_profile=srgb_profile()), AS_DRAWN, 0),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_comes_out_in_its_colours(decoded_picture, tmp_path, name):
    make, colours, tolerance = PICTURES[name]
    picture, image = decoded_picture(make())
    assert image.size == (96, 64)
    assert alike(quarters(image), colours, tolerance), quarters(image)
    assert picture.file == "picture.rgb"
    assert (tmp_path / picture.file).stat().st_mode & 0o777 == 0o600


STORED_AS = {
    1: [],
    2: [Image.Transpose.FLIP_LEFT_RIGHT],
    3: [Image.Transpose.ROTATE_180],
    4: [Image.Transpose.FLIP_TOP_BOTTOM],
    5: [Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_90],
    6: [Image.Transpose.ROTATE_90],
    7: [Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_270],
    8: [Image.Transpose.ROTATE_270],
}


def turned_by(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
@pytest.mark.parametrize("orientation", STORED_AS)
def test_a_picture_stands_upright(decoded_picture, form, orientation):
    stored = corners()
    for turn in STORED_AS[orientation]:
        stored = stored.transpose(turn)
    exif = turned_by(orientation) if form != "HEIF" else turned_by(orientation).tobytes()

    _, image = decoded_picture(encoded(stored, form, quality=95, exif=exif))

    assert image.size == (96, 64)
    assert alike(quarters(image), AS_DRAWN, 8), quarters(image)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_damaged_exif_costs_no_picture(decoded_picture, exif):
    _, image = decoded_picture(encoded(corners(), "JPEG", exif=exif, quality=95))
    assert alike(quarters(image), AS_DRAWN, 4)


@pytest.mark.parametrize("size", [(64, 64), (65, 67), (64, 3000), (3001, 65), (1500, 1001)])
def test_any_size_is_kept_as_it_is(decoded_picture, size):
    _, image = decoded_picture(encoded(corners(*size), "PNG"))
    assert image.size == size
    assert ImageChops.difference(image, corners(*size)).getbbox() is None


def test_16_bits_of_grey_are_rounded_not_clipped(decoded_picture):
    rows = b"".join(b"\0" + bytes(v for low in range(256) for v in (high, low)) for high in range(256))
    _, image = decoded_picture(png_of(256, 256, rows, depth=16, colour=0))
    assert list(image.getchannel("R").tobytes()) == [round(value / 257) for value in range(65_536)]


def test_half_transparent_is_half_background(decoded_picture):
    picture, image = decoded_picture(encoded(Image.new("RGBA", (300, 300), (210, 0, 90, 51)), "PNG"))
    assert alike([image.getpixel((150, 150))], [(50, 160, 90)], 1)
    assert picture.notes == ("transparent parts show #0ac85a",)


def test_notes_tell_what_was_done(decoded_picture):
    small, _ = decoded_picture(encoded(corners(), "PNG", icc_profile=swapping_profile()))
    large, _ = decoded_picture(encoded(corners(400, 300), "PNG"))
    broken, _ = decoded_picture(encoded(corners(400, 300), "PNG", icc_profile=b"no profile at all"))
    assert small.notes == (
        "colours converted from the profile 'swapped red and green' to sRGB",
        "the picture is small: 96 x 64 pixels, a face wants 256 or more",
    )
    assert large.notes == ()
    assert broken.notes == ("its colour profile cannot be used; colours are taken as sRGB",)


@pytest.mark.parametrize(
    ("form", "width", "height", "most_mb"),
    [
        ("PNG", 8000, 5000, 300),
        ("BMP", 8000, 5000, 300),
        ("GIF", 8000, 5000, 300),
        ("TIFF", 8000, 5000, 300),
        ("JPEG", 8000, 5000, 300),
        ("JPEG", 8192, 6144, 8 * 50.3 + 100),
        ("HEIF", 8064, 6048, 8 * 48.8 + 100),
        ("AVIF", 8064, 6048, 8 * 48.8 + 100),
    ],
)
@pytest.mark.slow
def test_the_largest_picture_takes_bounded_memory(tmp_path, form, width, height, most_mb):
    mode = "RGBA" if form == "PNG" else "P" if form == "GIF" else "RGB"
    options = {"exif": turned_by(6)} if form == "JPEG" else {"speed": 10} if form == "AVIF" else {}
    drawn = Image.new("RGBA", (width, height), (200, 30, 40, 128)).convert(mode)
    (tmp_path / "image").write_bytes(encoded(drawn, form, **options))
    code = f"""
import resource
from pathlib import Path
from lipsyncd.prepare.decode_picture import decode_picture
folder = Path({str(tmp_path)!r})
picture = decode_picture(folder / "image", folder, background=(0, 0, 0))
print(picture.width * picture.height, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    pixels, peak_kib = map(int, ended.stdout.split())
    assert pixels == width * height
    assert peak_kib < most_mb * 1024  # 4 bytes a pixel are the decoded picture itself


def test_a_very_large_jpeg_is_decoded_at_half_its_size_where_that_is_enough(tmp_path):
    (tmp_path / "image").write_bytes(encoded(corners(8192, 6144), "JPEG", exif=turned_by(1)))
    code = f"""
import resource
from pathlib import Path
from lipsyncd.prepare.decode_picture import decode_picture
folder = Path({str(tmp_path)!r})
picture = decode_picture(folder / "image", folder, background=(0, 0, 0), may_reduce=True)
print(picture.width, picture.height, picture.reduced, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
print(*picture.notes)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    facts, notes = ended.stdout.splitlines()
    *size, reduced, peak_kib = facts.split()
    assert (size, reduced) == (["4096", "3072"], "True")
    assert notes == "the picture of 8192 x 6144 pixels was decoded at half its size"
    assert int(peak_kib) < 300 * 1024
    image = Image.frombytes("RGB", (4096, 3072), (tmp_path / "picture.rgb").read_bytes())
    assert alike(quarters(image), AS_DRAWN, 4)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_usual_picture_is_never_reduced(decoded_picture, form):
    picture, image = decoded_picture(encoded(corners(1200, 800), form, quality=95), may_reduce=True)
    assert (image.size, picture.reduced, picture.notes) == ((1200, 800), False, ())


def test_a_picture_that_takes_too_long_is_given_up(decoded_picture, tmp_path):
    with pytest.raises(ImageUndecodable, match=r"within 0\.01 s"):
        decoded_picture(encoded(corners(), "PNG"), timeout_s=0.01)
    assert os.listdir(tmp_path) == ["image"]


@pytest.mark.parametrize(
    ("returncode", "error", "text"),
    [
        (-signal.SIGSEGV, ImageUndecodable, "crashed on it: it was killed by SIGSEGV"),
        (-signal.SIGXFSZ, ImageUndecodable, "crashed on it: it was killed by SIGXFSZ"),
        (-signal.SIGKILL, JailFailed, "killed from outside"),
        (1, JailFailed, "does not run: ImportError: no"),
    ],
)
def test_a_crash_is_the_files_fault_and_a_kill_or_a_broken_installation_is_not(returncode, error, text):
    ended = Completed(returncode, b"", "Traceback\nImportError: no\n\n", landlock=True, timed_out=False)
    verdict = decoder_process.crash(ended, ImageUndecodable, "picture")
    assert isinstance(verdict, error)
    assert text in verdict.message


# -- sounds ------------------------------------------------------------------------------------------------------------

# name: (bytes, channels, seconds). Two formats end with a whole block, Vorbis begins with half of one.
SOUNDS = {
    "wav": (lambda: wav(tone(1)), 1, 1),
    "wav, stereo": (lambda: wav(stereo(tone(1)), channels=2), 2, 1),
    "wav, RF64": (lambda: converted(".wav", "-rf64", "always"), 1, 1),
    "wav, 8 bits": (lambda: converted(".wav", "-c:a", "pcm_u8"), 1, 1),
    "wav, 24 bits": (lambda: converted(".wav", "-c:a", "pcm_s24le"), 1, 1),
    "wav, float": (lambda: converted(".wav", "-c:a", "pcm_f32le"), 1, 1),
    "wav, A-law": (lambda: converted(".wav", "-c:a", "pcm_alaw"), 1, 1),
    "wav, ADPCM": (lambda: converted(".wav", "-c:a", "adpcm_ms"), 1, Fraction(24_377, 24_000)),
    "wav, 96 kHz": (lambda: converted(".wav", "-ar", "96000"), 1, 1),
    "mp3": (lambda: converted(".mp3"), 1, 1),
    "mp3, stereo": (lambda: converted(".mp3", channels=2), 2, 1),
    "mp3, variable rate": (lambda: converted(".mp3", "-q:a", "4"), 1, 1),
    "mp3, with a cover": (lambda: with_cover(converted(".mp3"), ".mp3"), 1, 1),
    "m4a": (lambda: converted(".m4a"), 1, 1),
    "m4a, stereo": (lambda: converted(".m4a", channels=2), 2, 1),
    "m4a, ALAC": (lambda: converted(".m4a", "-c:a", "alac"), 1, 1),
    "m4a, index first": (lambda: converted(".m4a", "-movflags", "+faststart"), 1, 1),
    "m4a, with a cover": (lambda: with_cover(converted(".m4a"), ".m4a"), 1, 1),
    "ogg vorbis": (lambda: converted(".ogg", "-c:a", "libvorbis"), 1, Fraction(47_861, 48_000)),
    "ogg opus": (lambda: converted(".opus"), 1, 1),
    "ogg flac": (lambda: converted(".oga", "-c:a", "flac"), 1, 1),
    "flac": (lambda: converted(".flac"), 1, 1),
    "flac, behind a tag": (lambda: b"ID3\x04\0\0\0\0\0\x0a" + bytes(10) + converted(".flac"), 1, 1),
}


@pytest.mark.parametrize("name", SOUNDS)
def test_a_sound_comes_out_in_its_length_and_pitch(decoded_sound, tmp_path, name):
    make, channels, seconds = SOUNDS[name]
    sound = decoded_sound(make())

    assert (sound.channels, sound.notes) == (channels, ())
    assert sound.duration == pytest.approx(float(seconds), abs=0.001)
    assert sound.duration == Fraction(sound.samples, 48_000)
    assert sound.speech_samples == pytest.approx(sound.samples / 3, abs=1)
    speech, left = samples(tmp_path / sound.speech_file), samples(tmp_path / sound.file)[::channels]
    assert (len(speech), len(left)) == (sound.speech_samples, sound.samples)
    for values, rate in ((speech, 16_000), (left, 48_000)):
        assert hertz(values, rate) == pytest.approx(330, abs=3)
        assert loudness(values) == pytest.approx(16_000 / math.sqrt(2), rel=0.06)


def test_more_channels_than_two_become_two(decoded_sound, tmp_path):
    sound = decoded_sound(converted(".wav", "-ac", "6"))
    assert (sound.channels, sound.duration) == (2, 1)
    assert hertz(samples(tmp_path / sound.file)[1::2], 48_000) == pytest.approx(330, abs=3)


def samples(file: Path) -> array:
    return array("h", file.read_bytes())


def hertz(values: array, rate: int) -> float:
    """By counting rises through zero in the middle half."""
    middle = values[len(values) // 4 : len(values) * 3 // 4]
    return sum(a < 0 <= b for a, b in itertools.pairwise(middle)) / (len(middle) / rate)


def loudness(values: array) -> float:
    middle = values[len(values) // 4 : len(values) * 3 // 4]
    return math.sqrt(sum(v * v for v in middle) / len(middle))


@pytest.mark.parametrize(
    ("samples", "rate", "error", "message"),
    [
        (3200, 16_000, None, ""),
        (3199, 16_000, AudioTooShort, r"0\.200 s, less than 0\.2 s"),
        (1600, 16_000, AudioTooShort, r"0\.100 s"),
        (1, 16_000, AudioTooShort, r"0\.000 s"),
        (0, 16_000, AudioTooShort, r"0\.000 s"),
        (600_000, 1000, None, ""),
        (600_100, 1000, AudioTooLong, "longer than 600 s"),
        (660_000, 1000, AudioTooLong, "longer than 600 s"),
    ],
)
def test_length_is_limited_at_both_ends(decoded_sound, tmp_path, samples, rate, error, message):
    data = wav(b"\1\2" * samples, rate=rate)
    if error is None:
        assert decoded_sound(data).duration == Fraction(samples, rate)
        return
    with pytest.raises(error, match=message):
        decoded_sound(data)
    assert os.listdir(tmp_path) == ["audio"]


def test_a_second_decode_replaces_the_first(decoded_sound):
    assert decoded_sound(wav(tone(2))).samples == 96_000
    assert decoded_sound(wav(tone(1))).samples == 48_000


def test_a_sound_that_takes_too_long_is_given_up(decoded_sound, tmp_path):
    with pytest.raises(AudioUndecodable, match=r"within 0\.01 s"):
        decoded_sound(wav(tone(1)), timeout_s=0.01)
    assert os.listdir(tmp_path) == ["audio"]


def test_a_missing_ffmpeg_is_no_fault_of_the_sound(tmp_path):
    (tmp_path / "audio").write_bytes(wav(tone(1)))
    with pytest.raises(JailFailed, match="no-ffmpeg"):
        decode_sound(tmp_path / "audio", Kind.WAV, tmp_path, ffmpeg=tmp_path / "no-ffmpeg")
    assert os.listdir(tmp_path) == ["audio"]
