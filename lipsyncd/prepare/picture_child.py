"""Turn one picture of a user into upright, opaque, raw RGB, in the jail, and into a small JPEG for people to look at.

    python -m lipsyncd.prepare.picture_child REQUEST

Pillow, and `picture_codecs` for HEIC and AVIF, decode a closed list of formats, after the size in the header has
passed. What is done to decoded pixels (turning upright, 16 bits to 8, colour profile, alpha) is done in strips, so that
memory holds the picture once, whatever the format.

Owns Pillow. Leaves the process and its limits to `decode_picture`.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import resource
import sys
from collections.abc import Callable, Mapping
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageCms, ImageMath, _webp

from lipsyncd import media
from lipsyncd.errors import ImageAnimated, ImageNotRecognised, ImageTooLarge, ImageUndecodable, InputError
from lipsyncd.media import pictures
from lipsyncd.media.content import Content
from lipsyncd.prepare.picture_codecs import (
    MOST_BYTES,
    PLAIN_BYTES,
    Decoded,
    decoded_avif,
    decoded_heic,
    most_bytes,
    use_few_threads,
)
from lipsyncd.sandbox import seccomp

Flatten = Callable[[Image.Image], Image.Image]  # one strip of the decoded picture -> the same in RGB

_STRIP_PIXELS = 1 << 20
_GOOD_SIDE = 256  # pixels; a face is smaller than its picture
_SMALL_SIDE, _SMALL_QUALITY = 320, 80  # of a thumbnail: pixels of its longer side, and the quality of its JPEG
_SMALL_FROM_SIDE = 2 * _SMALL_SIDE  # averaged down to at least this, and then resampled
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FORMATS = {  # for each kind the one reader of Pillow that may see it
    media.Kind.PNG: "PNG", media.Kind.JPEG: "JPEG", media.Kind.WEBP: "WEBP", media.Kind.AVIF: "AVIF",
    media.Kind.BMP: "BMP", media.Kind.TIFF: "TIFF", media.Kind.GIF: "GIF",
}  # fmt: skip
_ANIMATED = frozenset((media.Kind.PNG, media.Kind.WEBP, media.Kind.AVIF, media.Kind.GIF))
_BY_CODECS = frozenset((media.Kind.HEIC, media.Kind.AVIF))
_BASE_BYTES = 180_000_000  # of data: Python, the libraries, two threads, a small picture
_BYTES_OF_DECODED_PIXEL = 14  # 10 bits in three full planes, as RGB, and as Pillow keeps it
_RESERVED_BYTES = 64_000_000  # of data that nothing is written to: stacks of threads
_TURNED = frozenset((5, 6, 7, 8))  # width and height change places
_PROFILE_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # an ICC profile's colour space -> Pillow's mode


def main(request: Mapping[str, Any]) -> dict[str, object]:
    """Decode `request["source"]` into the file `request["target"]`, and draw its thumbnail into `request["thumbnail"]`.

    Without a source the target is a decoded picture, of `request["width"]` and `request["height"]`: it is only drawn.
    A thumbnail that cannot be drawn is left empty.

    Returns `{"width", "height", "notes", "reduced"}`, or `{"error": reason}` with the reason of an `InputError`.
    """
    notes: list[str] = []
    try:
        if "source" in request:
            width, height, reduced = _decode(request, notes)
        else:
            width, height, reduced = request["width"], request["height"], False
    except InputError as error:
        return {"error": error.reason()}
    except MemoryError:
        return {"error": ImageUndecodable("decoding the picture takes too much memory").reason()}
    except Exception as error:  # a damaged file leads Pillow's readers to whatever Python can raise
        fault = str(error).replace(str(request["source"]), "image")  # our paths stay out of messages
        return {"error": ImageUndecodable(f"the picture cannot be decoded: {fault}").reason()}
    if request["thumbnail"]:
        with contextlib.suppress(Exception):  # the picture can be used without one
            _draw_thumbnail(Path(request["target"]), width, height, Path(request["thumbnail"]))
    return {"width": width, "height": height, "notes": notes, "reduced": reduced}


def _decode(request: Mapping[str, Any], notes: list[str]) -> tuple[int, int, bool]:
    source = Path(request["source"])
    found = _checked_header(source, request)
    large = found.width * found.height > media.MAX_MEGAPIXELS * 1_000_000
    if found.kind in _BY_CODECS:
        _limit_memory(found.width * found.height)
    reduce = large and found.kind is media.Kind.JPEG and request["may_reduce"]
    Image.MAX_IMAGE_PIXELS = None  # we check our own limit, with its own message
    if found.kind is media.Kind.HEIC:
        decoded = decoded_heic(source, lambda size: _check_same_size(size, found))
    else:
        decoded = _opened(source, found, reduce)
    turn = _orientation(decoded.head, notes)
    flatten = _flattening(decoded.head, tuple(request["background"]), notes)
    width, height = decoded.size[::-1] if turn in _TURNED else decoded.size
    if min(width, height) < _GOOD_SIDE:
        notes.append(f"the picture is small: {width} x {height} pixels, a face wants {_GOOD_SIDE} or more")
    _write(decoded, turn, flatten, Path(request["target"]))
    if reduce:
        notes.append(f"the picture of {found.width} x {found.height} pixels was decoded at half its size")
    return width, height, reduce


def _limit_memory(pixels: int) -> None:
    """Keep a decoder of HEIC or AVIF to memory for the size in the header: the coded picture may be a larger one."""
    use_few_threads()
    most = min(_BASE_BYTES + pixels * _BYTES_OF_DECODED_PIXEL, most_bytes(pixels) + _RESERVED_BYTES)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _checked_header(source: Path, request: Mapping[str, Any]) -> media.Structure:
    """Refuse by our own reading of the header: some of Pillow's readers allocate the picture when they open it."""
    with source.open("rb") as file:
        found = media.examine(file.fileno(), source.stat().st_size)
    if found.kind is None or not found.kind.is_image:
        what = (
            found.other or found.note
            if found.kind is None
            else f"a {'video' if found.kind.is_video else 'sound'} ({found.kind})"
        )
        raise ImageNotRecognised(f"the picture has no format that is taken: {what}")
    if found.kind is media.Kind.JPEG:
        _check_scans(source)
    if found.completeness is media.Completeness.INVALID:
        raise ImageUndecodable(f"the picture cannot be decoded: {found.note}")
    most = media.most_megapixels(found.kind, usual=request["max_megapixels"], photo=request["max_photo_megapixels"])
    if found.width and found.height:
        media.check_image_size(found.width, found.height, min_side=request["min_side"], max_megapixels=most)
    elif found.kind in _BY_CODECS:
        raise ImageUndecodable("the picture cannot be decoded: it gives no size")
    if found.kind is media.Kind.JPEG:
        _check_blocks(source, found)
    return found


def _opened(source: Path, found: media.Structure, reduce: bool) -> Decoded:
    """The decoded picture, of the size that its header gave, or with `reduce` of half of it."""
    assert found.kind is not None
    if found.kind is media.Kind.WEBP:
        _check_canvas(source, found)
    opened = Image.open(source, formats=(_FORMATS[found.kind],))
    _check_same_size(opened.size, found)
    # Phones put a second picture behind a JPEG's first. That is no animation, nor are the pages of a TIFF.
    frames = getattr(opened, "n_frames", 1) if found.kind in _ANIMATED else 1
    if frames != 1:
        raise ImageAnimated(f"the picture is animated: {frames} frames")
    if found.kind is media.Kind.AVIF:
        return decoded_avif(source, opened)
    image = _decoded_webp(source, opened) if found.kind is media.Kind.WEBP else opened
    if reduce:
        image.draft(None, ((found.width + 1) // 2, (found.height + 1) // 2))
    image.load()
    return Decoded(image, image.size, image.crop)


def _check_canvas(source: Path, found: media.Structure) -> None:
    """Refuse a WebP whose canvas is larger than its picture, before anything fills the canvas."""
    with source.open("rb") as file:
        frame = next(pictures.webp_frames(Content(file.fileno(), source.stat().st_size)), None)
    if frame is not None and frame.size != (found.width, found.height):
        seen = f"{frame.size[0]} x {frame.size[1]} pixels on a canvas of {found.width} x {found.height}"
        raise ImageUndecodable(f"the picture cannot be decoded: the WebP shows {seen}")


def _decoded_webp(source: Path, opened: Image.Image) -> Image.Image:
    """The pixels of a still WebP, decoded by libwebp into memory that the picture keeps.

    Pillow treats each WebP as an animation, which takes 16 bytes for each pixel. This takes 4, and 4 more while a
    lossless one is decoded.
    """
    with source.open("rb") as file:
        data = file.read()
        frame = next(pictures.webp_frames(Content(file.fileno(), len(data))), None)
    if frame is None:
        raise ImageUndecodable("the picture cannot be decoded: the WebP holds no picture")
    width, height = opened.size
    needed = len(data) + width * height * (16 if frame.animated else 8 if frame.lossless else 4)
    if needed > MOST_BYTES - PLAIN_BYTES:
        what = "an animation of one frame" if frame.animated else "lossless"
        raise ImageTooLarge(
            f"the picture is a WebP of {width} x {height} pixels that is {what}: it takes {needed / 1e6:.0f} MB to "
            "decode",
            remedy="save it as a PNG, or scale it down",
        )
    if frame.animated:
        opened.load()
        return opened
    pixels = bytearray(4 * width * height)
    decode = ctypes.CDLL(_webp.__file__).WebPDecodeRGBAInto  # found in the library that Pillow's module is linked to
    decode.restype = ctypes.c_void_p
    decode.argtypes = ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    address = ctypes.addressof(ctypes.c_char.from_buffer(pixels))
    if not decode(data, len(data), address, len(pixels), 4 * width):
        raise ImageUndecodable("the picture cannot be decoded: the data of the WebP are damaged")
    mode = "RGBA" if opened.mode == "RGBA" else "RGBX"
    image = Image.frombuffer(mode, opened.size, pixels, "raw", mode, 0, 1)
    image.info = opened.info
    return image


def _check_same_size(size: tuple[int, int], found: media.Structure) -> None:
    if found.width and found.height and size[0] * size[1] > found.width * found.height:
        seen, claimed = f"{size[0]} x {size[1]}", f"{found.width} x {found.height}"
        raise ImageUndecodable(f"the picture has {seen} pixels, and its header claims {claimed}")


def _check_scans(source: Path) -> None:
    with source.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        if fault := pictures.scan_fault(data):
            raise ImageUndecodable(f"the JPEG has {fault}", remedy="save it again as a baseline JPEG")


def _check_blocks(source: Path, found: media.Structure) -> None:
    """Refuse a JPEG that has too few bytes for its size, and one whose scans take too much memory together.

    The answer does not depend on whether the job may reduce the picture: a reduced one has the same coefficients.
    """
    size_bytes = source.stat().st_size
    with source.open("rb") as file:
        blocks = pictures.jpeg_blocks(Content(file.fileno(), size_bytes))
    pixels = found.width * found.height
    if blocks is None or not pixels:
        return  # the decoder tells what is wrong
    if blocks.count > 8 * size_bytes:  # a block takes a bit at least
        raise ImageUndecodable(
            f"the picture cannot be decoded: {size_bytes} bytes are too few for a JPEG of {found.width} x "
            f"{found.height} pixels"
        )
    costs = [(blocks.kept_bytes + pixels * (1 if blocks.grey else 4), MOST_BYTES)]
    if pixels > media.MAX_MEGAPIXELS * 1_000_000:  # the whole one, and the reduced one
        costs = [(costs[0][0], most_bytes(pixels)), (blocks.kept_bytes + pixels, MOST_BYTES)]
    for needed, most in costs:
        if blocks.kept and needed > most - PLAIN_BYTES:
            raise ImageTooLarge(
                f"the picture is a progressive JPEG of {found.width} x {found.height} pixels: it takes "
                f"{needed / 1e6:.0f} MB to decode",
                remedy="save it as a baseline JPEG, or scale it down",
            )


def _orientation(image: Image.Image, notes: list[str]) -> int:
    """How the picture has to be turned, as EXIF counts: 1 for not at all."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # as above: EXIF is a format of its own, and damage in it is no reason to refuse the picture
        notes.append("its EXIF data are damaged; the picture is taken as it is stored")
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _write(decoded: Decoded, turn: int, flatten: Flatten, target: Path) -> None:
    """Write the rows of the upright picture, each strip cut out of the stored one and turned."""
    width, height = decoded.size[::-1] if turn in _TURNED else decoded.size
    rows = max(1, _STRIP_PIXELS // width)
    with target.open("wb") as file:
        for top in range(0, height, rows):
            strip = flatten(decoded.crop(_stored(decoded.size, turn, top, min(top + rows, height))))
            file.write((strip.transpose(_UPRIGHT[turn]) if turn in _UPRIGHT else strip).tobytes())


def _stored(size: tuple[int, int], turn: int, top: int, bottom: int) -> tuple[int, int, int, int]:
    """The part of the stored picture that shows the rows from `top` to `bottom` when it is upright."""
    width, height = size
    if turn in (5, 6):  # the first row is the first column
        return top, 0, bottom, height
    if turn in (7, 8):  # the first row is the last column
        return width - bottom, 0, width - top, height
    if turn in (3, 4):  # the first row is the last row
        return 0, height - bottom, width, height - top
    return 0, top, width, bottom


def _draw_thumbnail(raw: Path, width: int, height: int, target: Path) -> None:
    """Write a small JPEG of a decoded picture, without metadata. Only a strip of the picture is in memory."""
    factor = max(1, min(max(width, height) // _SMALL_FROM_SIDE, width, height))
    small = Image.new("RGB", (-(-width // factor), -(-height // factor)))
    rows = factor * max(1, _STRIP_PIXELS // (width * factor))
    with raw.open("rb") as file:
        for top in range(0, height, rows):
            size = width, min(rows, height - top)
            strip = Image.frombytes("RGB", size, file.read(3 * width * size[1]))
            small.paste(strip.reduce(factor), (0, top // factor))
    small.thumbnail((_SMALL_SIDE, _SMALL_SIDE), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    small.save(encoded, "JPEG", quality=_SMALL_QUALITY)
    target.write_bytes(encoded.getvalue())


# -- pixels ------------------------------------------------------------------------------------------------------------


def _flattening(image: Image.Image, background: tuple[int, ...], notes: list[str]) -> Flatten:
    """What has to be done to each strip of `image`, decided once."""
    to_srgb = _colour_conversion(image, notes)
    deep = image.mode.startswith("I")
    transparency = image.info.get("transparency")
    if not image.has_transparency_data:
        return lambda strip: to_srgb(_eight_bits(strip) if deep else strip)

    notes.append("transparent parts show #{:02x}{:02x}{:02x}".format(*background))

    def flatten(strip: Image.Image) -> Image.Image:
        if deep:
            alpha, strip = _alpha_of_grey(strip, transparency), _eight_bits(strip)
        else:
            strip = strip.convert("RGBA")
            alpha = strip.getchannel("A")
        colour = to_srgb(strip.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
        return Image.composite(colour, Image.new("RGB", strip.size, background), alpha)

    return flatten


def _eight_bits(strip: Image.Image) -> Image.Image:
    """16 bits of grey, rounded to 8. Pillow's own conversion would clip everything over 255 to white."""
    scaled = strip.convert("I").convert("F").point(lambda value: value * (1 / 257) + 0.5)
    return scaled.convert("L")


def _alpha_of_grey(strip: Image.Image, transparent: object) -> Image.Image:
    """0 where a 16-bit picture has the one grey value that its PNG header calls transparent, 255 elsewhere."""
    grey = strip.convert("I")
    mask: Image.Image = ImageMath.lambda_eval(
        lambda given: given["convert"]((given["grey"] != transparent) * 255, "L"), grey=grey
    )
    return mask


def _colour_conversion(image: Image.Image, notes: list[str]) -> Flatten:
    """How colours without alpha become sRGB: by the embedded profile, or by Pillow's arithmetic where there is none."""
    # The standard stores ink as it is. Adobe inverts it and marks the file; Pillow expects inverted ink in every file.
    inverted = image.mode == "CMYK" and image.format in ("JPEG", "MPO") and "adobe" not in image.info

    def plainly(strip: Image.Image) -> Image.Image:
        return (ImageChops.invert(strip) if inverted else strip).convert("RGB")

    profile = image.info.get("icc_profile")
    if not profile:
        return plainly
    try:
        return _by_profile(profile, image.mode, inverted, notes) or plainly
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        notes.append("its colour profile cannot be used; colours are taken as sRGB")
        return plainly


def _by_profile(icc: bytes, mode: str, inverted: bool, notes: list[str]) -> Flatten | None:
    """The conversion of `icc`, an ICC profile, to sRGB; None when it is sRGB. Raises what ImageCms does."""
    profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    name = " ".join(ImageCms.getProfileDescription(profile).split())[:80]
    stored = "CMYK" if mode == "CMYK" else "L" if mode in ("1", "L", "LA") or mode.startswith("I") else "RGB"
    expected = _PROFILE_MODES.get(profile.profile.xcolor_space.strip(), "")
    if "srgb" in name.lower():
        return None
    if expected != stored and (expected, stored) != ("RGB", "L"):
        raise ValueError(f"a profile for {profile.profile.xcolor_space} on a picture in {stored}")
    transform = ImageCms.buildTransform(
        profile,
        ImageCms.createProfile("sRGB"),
        expected,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    notes.append(f"colours converted from the profile {name!r} to sRGB")

    def convert(strip: Image.Image) -> Image.Image:
        colour = (ImageChops.invert(strip) if inverted else strip).convert(expected)
        converted = ImageCms.applyTransform(colour, transform)
        assert converted is not None  # only a conversion in place returns nothing
        return converted

    return convert


if __name__ == "__main__":
    with contextlib.suppress(OSError):  # a kernel without seccomp filters
        seccomp.give_up("execve")
    print(json.dumps(main(json.loads(sys.argv[1]))))
