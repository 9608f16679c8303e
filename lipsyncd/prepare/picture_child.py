"""Turn one picture of a user into upright, opaque, raw RGB, in the jail.

    python -m lipsyncd.prepare.picture_child REQUEST

Pillow decodes a closed list of three formats, after the size in the header has passed. What is applied to pixels alone
(16 bits to 8, colour profile, alpha) is done in strips, so that memory holds the decoded picture and one turned copy,
whatever the format.

Owns Pillow. Leaves the process and its limits to `decode_picture`.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable, Mapping
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageCms, ImageMath

from lipsyncd import media
from lipsyncd.errors import ImageAnimated, ImageNotRecognised, ImageUndecodable, InputError
from lipsyncd.media import pictures
from lipsyncd.sandbox import seccomp

Flatten = Callable[[Image.Image], Image.Image]  # one strip of the decoded picture -> the same in RGB

_STRIP_PIXELS = 1 << 20
_GOOD_SIDE = 256  # pixels; a face is smaller than its picture
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
_PROFILE_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # an ICC profile's colour space -> Pillow's mode


def main(request: Mapping[str, Any]) -> dict[str, object]:
    """Decode `request["source"]` into the file `request["target"]`.

    Returns `{"width", "height", "notes"}`, or `{"error": reason}` with the reason of an `InputError`.
    """
    notes: list[str] = []
    try:
        width, height = _decode(request, notes)
    except InputError as error:
        return {"error": error.reason()}
    except MemoryError:
        return {"error": ImageUndecodable("decoding the picture takes too much memory").reason()}
    except Exception as error:  # a damaged file leads Pillow's readers to whatever Python can raise
        fault = str(error).replace(str(request["source"]), "image")  # our paths stay out of messages
        return {"error": ImageUndecodable(f"the picture cannot be decoded: {fault}").reason()}
    return {"width": width, "height": height, "notes": notes}


def _decode(request: Mapping[str, Any], notes: list[str]) -> tuple[int, int]:
    limits = {"min_side": request["min_side"], "max_megapixels": request["max_megapixels"]}
    source = Path(request["source"])
    _check_header(source, limits)
    Image.MAX_IMAGE_PIXELS = None  # we check our own limit, with its own message
    with Image.open(source, formats=("PNG", "JPEG", "WEBP")) as opened:
        media.check_image_size(*opened.size, **limits)
        # Phones put a second picture behind a JPEG's first. That is no animation.
        frames = getattr(opened, "n_frames", 1) if opened.format in ("PNG", "WEBP") else 1
        if frames != 1:
            raise ImageAnimated(f"the picture is animated: {frames} frames")
        opened.load()
        image = _upright(opened, notes)
    flatten = _flattening(image, tuple(request["background"]), notes)
    if min(image.size) < _GOOD_SIDE:
        notes.append(f"the picture is small: {image.width} x {image.height} pixels, a face wants {_GOOD_SIDE} or more")
    _write(image, flatten, Path(request["target"]))
    return image.size


def _check_header(source: Path, limits: Mapping[str, Any]) -> None:
    """Refuse by our own reading of the header: some of Pillow's readers allocate the picture when they open it."""
    with source.open("rb") as file:
        found = media.examine(file.fileno(), source.stat().st_size)
    if found.kind is None or not found.kind.is_image:
        what = found.note if found.kind is None else f"a {'video' if found.kind.is_video else 'sound'} ({found.kind})"
        raise ImageNotRecognised(f"the picture is no JPEG, PNG or WebP: {what}")
    if found.width and found.height:
        media.check_image_size(found.width, found.height, **limits)
    if found.kind is media.Kind.JPEG:
        _check_scans(source)


def _check_scans(source: Path) -> None:
    with source.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        if fault := pictures.scan_fault(data):
            raise ImageUndecodable(f"the JPEG has {fault}", remedy="save it again as a baseline JPEG")


def _upright(image: Image.Image, notes: list[str]) -> Image.Image:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # as above: EXIF is a format of its own, and damage in it is no reason to refuse the picture
        notes.append("its EXIF data are damaged; the picture is taken as it is stored")
        return image
    turn = _UPRIGHT.get(orientation)
    return image if turn is None else image.transpose(turn)


def _write(image: Image.Image, flatten: Flatten, target: Path) -> None:
    rows = max(1, _STRIP_PIXELS // image.width)
    with target.open("wb") as file:
        for top in range(0, image.height, rows):
            strip = image.crop((0, top, image.width, min(top + rows, image.height)))
            file.write(flatten(strip).tobytes())


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
    inverted = image.mode == "CMYK" and "adobe" not in image.info

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
