"""Pictures and sounds for tests, good and hostile. All are made here; no media files are stored in the tests."""

from __future__ import annotations

import functools
import io
import math
import struct
import subprocess
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pillow_heif
from PIL import Image

from lipsyncd.media.ffmpeg import find

_COPY_BOTH = ("-map", "0", "-map", "1", "-c", "copy")
_AS_COVER = ("-disposition:v", "attached_pic")
RATE = 16_000  # samples per second of the sounds here


@functools.cache
def ffmpeg() -> Path:
    return find()


# -- pictures ----------------------------------------------------------------------------------------------------------

RED, GREEN, BLUE, GREY = (220, 30, 40), (30, 200, 60), (40, 60, 210), (128, 128, 128)


def corners(width: int = 96, height: int = 64) -> Image.Image:
    """Four quarters of four colours: red, green over blue, grey. Every turn and flip of it looks different."""
    image = Image.new("RGB", (width, height), GREY)
    image.paste(RED, (0, 0, width // 2, height // 2))
    image.paste(GREEN, (width // 2, 0, width, height // 2))
    image.paste(BLUE, (0, height // 2, width // 2, height))
    return image


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    """The bytes of a file of that format of Pillow; `HEIF` is a HEIC by libheif and x265, as phones write."""
    if form == "HEIF":
        pillow_heif.register_heif_opener()
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def png_of(width: int, height: int, rows: bytes, *, depth: int = 8, colour: int = 2, extra: bytes = b"") -> bytes:
    """A PNG of raw `rows` (each begins with its filter byte), for what Pillow does not write. `extra`: more chunks."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", zlib.compress(rows, 1)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@functools.cache
def bomb() -> bytes:
    """30000 x 30000 pixels in a few kilobytes, whole and valid: 2.7 GB as RGB."""
    return png_of(30_000, 30_000, (b"\0" * 3751) * 30_000, depth=1, colour=0)


# -- sounds ------------------------------------------------------------------------------------------------------------


@functools.cache
def tone(seconds: float, *, rate: int = RATE, hertz: float = 330.0) -> bytes:
    """A sine of half amplitude: (n,) int16 little endian."""
    phase = 2 * math.pi * hertz * np.arange(round(seconds * rate)) / rate
    return np.rint(16_000 * np.sin(phase)).astype("<i2").tobytes()


def stereo(samples: bytes) -> bytes:
    """The same sound on two channels: (2n,) int16, interleaved."""
    return b"".join(samples[n : n + 2] * 2 for n in range(0, len(samples), 2))


def wav(samples: bytes, *, channels: int = 1, rate: int = RATE, bits: int = 16, data_bytes: int | None = None) -> bytes:
    """A WAV whose header may claim anything; `data_bytes` replaces the true number of bytes."""
    frame_bytes = channels * bits // 8
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * frame_bytes & 0xFFFFFFFF, frame_bytes & 0xFFFF, bits)
    declared = len(samples) if data_bytes is None else data_bytes
    body = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", declared) + samples
    return b"RIFF" + struct.pack("<I", len(body)) + body


@functools.cache
def converted(suffix: str, *options: str, seconds: float = 1.0, channels: int = 1) -> bytes:
    """A tone, encoded by ffmpeg into a file of that suffix."""
    samples = tone(seconds, rate=44_100)
    sound = wav(samples if channels == 1 else stereo(samples), rate=44_100, channels=channels)
    return _through_ffmpeg([sound], suffix, *options)


@functools.cache
def streamed(form: str, *options: str, seconds: float = 1.0) -> bytes:
    """A tone that ffmpeg wrote into a pipe in that format, so that no length in its header could be corrected."""
    source = ["-f", "lavfi", "-i", f"sine=d={seconds}:r=44100"]
    command = [str(ffmpeg()), "-v", "error", *source, *options, "-f", form, "-"]
    return subprocess.run(command, check=True, capture_output=True).stdout


def with_cover(sound: bytes, suffix: str) -> bytes:
    """The same sound with a cover picture in it, as in purchased music."""
    cover = encoded(corners(), "JPEG")
    return _through_ffmpeg([sound, cover], suffix, *_COPY_BOTH, *_AS_COVER)


def _through_ffmpeg(inputs: list[bytes], suffix: str, *options: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        command = [str(ffmpeg()), "-nostdin", "-v", "error"]
        for number, data in enumerate(inputs):
            source = Path(folder, f"in{number}")
            source.write_bytes(data)
            command += ["-i", str(source)]
        target = Path(folder, "out" + suffix)
        subprocess.run([*command, *options, str(target)], check=True)
        return target.read_bytes()


# -- colour profiles ---------------------------------------------------------------------------------------------------

_SRGB_PRIMARIES = {b"r": (0.4361, 0.2225, 0.0139), b"g": (0.3851, 0.7169, 0.0971), b"b": (0.1431, 0.0606, 0.7141)}


def swapping_profile() -> bytes:
    """A display with red and green exchanged, otherwise like sRGB with a gamma of 2.2."""
    primaries = {b"r": _SRGB_PRIMARIES[b"g"], b"g": _SRGB_PRIMARIES[b"r"], b"b": _SRGB_PRIMARIES[b"b"]}
    tags = {name + b"XYZ": _xyz(*value) for name, value in primaries.items()}
    tags |= {name + b"TRC": _gamma(2.2) for name in primaries}
    return _profile(b"RGB ", b"swapped red and green", tags)


def linear_grey_profile() -> bytes:
    return _profile(b"GRAY", b"linear grey", {b"kTRC": _gamma(1.0)})


def _profile(space: bytes, name: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile, version 2, with these tags. Source: ICC.1:2001-04."""
    text = b"desc" + bytes(4) + struct.pack(">I", len(name) + 1) + name + bytes(1 + 8 + 3 + 67)
    tags = {b"desc": text, b"wtpt": _xyz(0.9642, 1.0, 0.8249), **tags}
    table, body = struct.pack(">I", len(tags)), b""
    for tag, data in tags.items():
        padded = data + bytes(-len(data) % 4)
        table += tag + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(body), len(data))
        body += padded
    size = 128 + len(table) + len(body)
    header = struct.pack(">I4xI4s4s4s12x4s", size, 0x02100000, b"mntr", space, b"XYZ ", b"acsp").ljust(68, b"\0")
    return header + _xyz(0.9642, 1.0, 0.8249)[8:].ljust(60, b"\0") + table + body


def _xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in values))


def _gamma(value: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(value * 256))
