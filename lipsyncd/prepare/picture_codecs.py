"""Decode AVIF and HEIC so that a large picture is never in memory twice.

Pillow would keep a whole picture beside the decoder's: 4 bytes a pixel more. The decoders' own memory is kept here, and
parts of it become Pillow images when they are asked for. An AVIF stays as it is coded, in planes of luma and chroma.

Owns pi-heif, and libavif through the library that Pillow is linked to. Leaves the pixels to `picture_child`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import AvifImagePlugin, Image, _avif

from lipsyncd import media
from lipsyncd.errors import ImageTooLarge, ImageUndecodable

Size = tuple[int, int]
Box = tuple[int, int, int, int]  # left, top, right, bottom; the last two are outside

MOST_BYTES = 300 << 20  # of memory for a picture up to `media.MAX_MEGAPIXELS`
PLAIN_BYTES = 30_000_000  # of Python and the libraries, before a picture
_THREADS = 2  # each one takes memory for its stack
_MARGIN = 2  # pixels around a part, even: its chroma is mixed from its neighbours'
_LAX = 3  # flags of libavif that Pillow clears: a `pixi` may be missing, and a `clap` be wrong


@dataclass(frozen=True)
class Decoded:
    """A decoded picture as it is stored, not yet turned.

    head  has the mode, the colour profile and the EXIF data of the picture, not always its pixels
    crop  gives a part of its pixels in the mode of `head`
    """

    head: Image.Image
    size: Size
    crop: Callable[[Box], Image.Image]


def most_bytes(pixels: int) -> int:
    """How much memory the process of a picture may take."""
    return MOST_BYTES if pixels <= media.MAX_MEGAPIXELS * 1_000_000 else 8 * pixels + 100_000_000


# -- AVIF --------------------------------------------------------------------------------------------------------------


class _Decoder(ctypes.Structure):
    """`avifDecoder` of libavif 1.x, as far as it is used here. Later versions add fields behind these."""

    _fields_ = (
        ("codec", ctypes.c_int),
        ("threads", ctypes.c_int),
        *((f"unused_{index}", ctypes.c_uint32) for index in range(8)),
        ("strict", ctypes.c_uint32),
        ("image", ctypes.c_void_p),
    )


class _Planes(ctypes.Structure):
    """The first fields of `avifImage`."""

    _fields_ = tuple((name, ctypes.c_uint32) for name in ("width", "height", "depth", "chroma"))


class _Rgb(ctypes.Structure):
    """`avifRGBImage`."""

    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("width", "height", "depth", "format")),
        *((f"unused_{index}", ctypes.c_int) for index in range(7)),
        ("pixels", ctypes.c_void_p),
        ("row_bytes", ctypes.c_uint32),
    )


_SAMPLES = {1: 3, 2: 2, 3: 1.5, 4: 1}  # of a pixel, for each `chroma` of libavif: 4:4:4, 4:2:2, 4:2:0, grey
_NOTES_BYTES = 1  # a pixel, of the decoder's about its blocks
_AVIF_BYTES = 60_000_000  # of Python, the libraries, and one part of the picture
_FORMATS = {"RGB": 0, "RGBA": 1, "L": 7, "LA": 8}  # Pillow's modes for an AVIF -> `avifRGBFormat`


def decoded_avif(source: Path, opened: Image.Image) -> Decoded:
    """The still AVIF whose header Pillow has read into `opened`."""
    head = Image.new(opened.mode, (1, 1))
    head.info = opened.info
    vars(opened).pop("_decoder", None)  # it has the file's bytes once more
    planes = _AvifPlanes(source.read_bytes(), opened.size, opened.mode)
    return Decoded(head, opened.size, planes.crop)


class _AvifPlanes:
    """The decoded planes of an AVIF, kept by libavif until the process ends."""

    def __init__(self, data: bytes, size: Size, mode: str) -> None:
        """mode: what Pillow makes of the header"""
        self._avif = _libavif()
        self._data, self._size, self._mode = data, size, mode
        self._decoder = self._avif.avifDecoderCreate()
        self._decoder.contents.threads = _THREADS
        self._decoder.contents.strict &= ~_LAX
        self._checked(self._avif.avifDecoderSetIOMemory(self._decoder, data, len(data)))
        self._checked(self._avif.avifDecoderParse(self._decoder))
        self._check_memory()
        self._checked(self._avif.avifDecoderNthImage(self._decoder, 0))
        self._check_size()

    def crop(self, box: Box) -> Image.Image:
        left, top = (max(0, edge - _MARGIN) & ~1 for edge in box[:2])
        right, bottom = (min(edge + _MARGIN, side) for edge, side in zip(box[2:], self._size, strict=True))
        pixels = self._converted((left, top, right, bottom))
        return pixels.crop((box[0] - left, box[1] - top, box[2] - left, box[3] - top))

    def _converted(self, box: Box) -> Image.Image:
        left, top, right, bottom = box
        size = right - left, bottom - top
        pixels = bytearray(size[0] * size[1] * len(self._mode))
        view, rgb = self._avif.avifImageCreateEmpty(), _Rgb()
        try:
            rect = (ctypes.c_uint32 * 4)(left, top, *size)
            self._checked(self._avif.avifImageSetViewRect(view, self._decoder.contents.image, rect))
            self._avif.avifRGBImageSetDefaults(ctypes.byref(rgb), view)
            rgb.depth, rgb.format = 8, _FORMATS[self._mode]
            rgb.pixels = ctypes.addressof(ctypes.c_char.from_buffer(pixels))
            rgb.row_bytes = size[0] * len(self._mode)
            self._checked(self._avif.avifImageYUVToRGB(view, ctypes.byref(rgb)))
        finally:
            self._avif.avifImageDestroy(view)
        return Image.frombuffer(self._mode, size, pixels, "raw", self._mode, 0, 1)

    def _check_size(self) -> _Planes:
        planes = _Planes.from_address(self._decoder.contents.image)
        if (planes.width, planes.height) != self._size or planes.chroma not in _SAMPLES:
            seen, claimed = f"{planes.width} x {planes.height}", "{} x {}".format(*self._size)
            raise ImageUndecodable(f"the picture has {seen} pixels, and its header claims {claimed}")
        return planes

    def _check_memory(self) -> None:
        planes = self._check_size()
        samples = _SAMPLES[planes.chroma] + self._mode.endswith("A")
        per_pixel = samples * (2 if planes.depth > 8 else 1) + _NOTES_BYTES
        pixels = self._size[0] * self._size[1]
        needed = len(self._data) + int(pixels * per_pixel) + _AVIF_BYTES
        _check_memory("AVIF", self._size, planes.depth, needed)

    def _checked(self, result: int) -> None:
        if result:
            fault = self._avif.avifResultToString(result).decode()
            raise ImageUndecodable(f"the picture cannot be decoded: {fault}")


def _libavif() -> ctypes.CDLL:
    library = ctypes.CDLL(_avif.__file__)  # Pillow's module; functions are found in the library it is linked to
    pointer, rgb, decoder = ctypes.c_void_p, ctypes.POINTER(_Rgb), ctypes.POINTER(_Decoder)
    for name, result, arguments in (
        ("avifDecoderCreate", decoder, ()),
        ("avifDecoderSetIOMemory", ctypes.c_int, (decoder, ctypes.c_char_p, ctypes.c_size_t)),
        ("avifDecoderParse", ctypes.c_int, (decoder,)),
        ("avifDecoderNthImage", ctypes.c_int, (decoder, ctypes.c_uint32)),
        ("avifImageCreateEmpty", pointer, ()),
        ("avifImageDestroy", None, (pointer,)),
        ("avifImageSetViewRect", ctypes.c_int, (pointer, pointer, ctypes.POINTER(ctypes.c_uint32))),
        ("avifRGBImageSetDefaults", None, (rgb, pointer)),
        ("avifImageYUVToRGB", ctypes.c_int, (pointer, rgb)),
        ("avifResultToString", ctypes.c_char_p, (ctypes.c_int,)),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def use_few_threads() -> None:
    AvifImagePlugin.DEFAULT_MAX_THREADS = _THREADS


# -- HEIC --------------------------------------------------------------------------------------------------------------


class _Fault(ctypes.Structure):
    """`heif_error`."""

    _fields_ = (("code", ctypes.c_int), ("detail", ctypes.c_int), ("message", ctypes.c_char_p))


class _Options(ctypes.Structure):
    """`heif_decoding_options`, as far as it is used here. libheif allocates it."""

    _fields_ = (
        *((f"unused_{index}", ctypes.c_uint8) for index in range(2)),
        *((f"pointer_{index}", ctypes.c_void_p) for index in range(4)),
        ("to_8_bits", ctypes.c_uint8),
    )


# Measured. With 8 bits: the coded planes, and those of RGB or the pixels. More bits go through several planes of RGB.
_HEIC_BYTES_OF_PIXEL = {420: (4.5, 7.5), 422: (5, 12), 444: (6, 15)}
_HEIC_BYTES = 50_000_000  # of Python, the libraries, and one part of the picture
_RGB, _CHROMA_444 = 1, 3  # of `heif_colorspace` and `heif_chroma`
_CHANNELS = (3, 4, 5, 6)  # of `heif_channel`: red, green, blue, alpha


def decoded_heic(source: Path, check_size: Callable[[Size], None]) -> Decoded:
    """The main picture, upright: libheif turns it as the file describes, and its EXIF data no longer count."""
    import pi_heif  # other kinds do without its libraries
    from pi_heif.misc import set_orientation

    pi_heif.options.DECODE_THREADS = _THREADS
    pi_heif.options.THUMBNAILS = pi_heif.options.DEPTH_IMAGES = pi_heif.options.AUX_IMAGES = False
    data = source.read_bytes()
    opened = pi_heif.open_heif(data)
    main = opened[opened.primary_index]
    check_size(main.size)
    _check_heic_memory(main, len(data))
    head = Image.new(main.mode, (1, 1))
    head.info = main.info
    set_orientation(head.info)
    if head.info.get("chroma") in (422, 444) and main.mode in ("RGB", "RGBA", "RGBa"):
        return Decoded(head, main.size, _HeicPlanes(data, main.size, main.mode).crop)
    size, stride = main.size, main.stride  # decoded by this

    def crop(box: Box) -> Image.Image:
        left, top, right, bottom = box
        rows = main.data[top * stride : bottom * stride]  # no copy: `main` has to live as long
        strip = Image.frombytes(head.mode, (size[0], bottom - top), rows, "raw", head.mode, stride)
        return strip.crop((left, 0, right, bottom - top))

    return Decoded(head, size, crop)


class _HeicPlanes:
    """A picture in 4:4:4, in a plane for each of its colours, kept by libheif until the process ends.

    libheif makes these planes on its way to pixels of three or four bytes, and would keep all of them to its end.
    """

    def __init__(self, data: bytes, size: Size, mode: str) -> None:
        self._heif, self._data, self._size, self._mode = _libheif(), data, size, mode
        context, handle, image = self._heif.heif_context_alloc(), ctypes.c_void_p(), ctypes.c_void_p()
        self._heif.heif_context_set_max_decoding_threads(context, _THREADS)
        self._checked(self._heif.heif_context_read_from_memory_without_copy(context, data, len(data), None))
        self._checked(self._heif.heif_context_get_primary_image_handle(context, ctypes.byref(handle)))
        options = self._heif.heif_decoding_options_alloc()
        options.contents.to_8_bits = 1
        self._checked(self._heif.heif_decode_image(handle, ctypes.byref(image), _RGB, _CHROMA_444, options))
        self._image = image
        for channel in _CHANNELS[: len(mode)]:
            seen = tuple(
                get(image, channel) for get in (self._heif.heif_image_get_width, self._heif.heif_image_get_height)
            )
            if seen != size or self._heif.heif_image_get_bits_per_pixel_range(image, channel) != 8:
                raise ImageUndecodable(f"the picture cannot be decoded: a plane has {seen[0]} x {seen[1]} pixels")

    def crop(self, box: Box) -> Image.Image:
        return Image.merge(self._mode, [self._plane(channel, box) for channel in _CHANNELS[: len(self._mode)]])

    def _plane(self, channel: int, box: Box) -> Image.Image:
        left, top, right, bottom = box
        stride = ctypes.c_int()
        address = self._heif.heif_image_get_plane_readonly(self._image, channel, ctypes.byref(stride))
        assert address
        size = self._size[0], bottom - top
        rows = ctypes.string_at(address + top * stride.value, (size[1] - 1) * stride.value + size[0])
        rows += bytes(stride.value - size[0])  # the last row may end before its stride does
        return Image.frombytes("L", size, rows, "raw", "L", stride.value).crop((left, 0, right, size[1]))

    def _checked(self, fault: _Fault) -> None:
        if fault.code:
            raise ImageUndecodable(f"the picture cannot be decoded: {fault.message.decode(errors='replace')}")


def _libheif() -> ctypes.CDLL:
    import _pi_heif

    library = ctypes.CDLL(_pi_heif.__file__)
    pointer, number = ctypes.c_void_p, ctypes.c_int
    reference, options = ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(_Options)
    for name, result, arguments in (
        ("heif_context_alloc", pointer, ()),
        ("heif_context_set_max_decoding_threads", None, (pointer, number)),
        ("heif_context_read_from_memory_without_copy", _Fault, (pointer, ctypes.c_char_p, ctypes.c_size_t, pointer)),
        ("heif_context_get_primary_image_handle", _Fault, (pointer, reference)),
        ("heif_decoding_options_alloc", options, ()),
        ("heif_decode_image", _Fault, (pointer, reference, number, number, options)),
        ("heif_image_get_width", number, (pointer, number)),
        ("heif_image_get_height", number, (pointer, number)),
        ("heif_image_get_bits_per_pixel_range", number, (pointer, number)),
        ("heif_image_get_plane_readonly", pointer, (pointer, number, ctypes.POINTER(number))),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def _check_heic_memory(main: Any, file_bytes: int) -> None:
    """Refuse by the header of `main`, a picture of pi-heif, before it is decoded."""
    chroma, bits = main.info.get("chroma", 420), main.info["bit_depth"]
    plain, deep = _HEIC_BYTES_OF_PIXEL[chroma]
    per_pixel = deep + 5 * main.has_alpha if bits > 8 else plain + 2 * main.has_alpha
    needed = file_bytes + int(main.size[0] * main.size[1] * per_pixel) + _HEIC_BYTES
    _check_memory("HEIC", main.size, bits, needed)


def _check_memory(kind: str, size: Size, bits: int, needed: int) -> None:
    if needed > most_bytes(size[0] * size[1]):
        raise ImageTooLarge(
            f"the picture is a {kind} of {size[0]} x {size[1]} pixels with {bits} bits a colour: it takes "
            f"{needed / 1e6:.0f} MB to decode",
            remedy="save it with 8 bits and 4:2:0, or as a JPEG, or scale it down",
        )
