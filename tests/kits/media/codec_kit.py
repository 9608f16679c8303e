"""Sounds in the containers and codecs that phones, telephone systems and recorders write."""

from __future__ import annotations

import random
import struct
import subprocess
import tempfile
from pathlib import Path

from tests.kits.media.media_kit import converted, ffmpeg


def remuxed(data: bytes, demuxer: str, suffix: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in"), Path(folder, "out" + suffix)
        source.write_bytes(data)
        command = [str(ffmpeg()), "-v", "error", "-f", demuxer, "-i", str(source), "-c", "copy", str(target)]
        subprocess.run(command, check=True)
        return target.read_bytes()


def amr(*, wide: bool = False) -> bytes:
    """A second of AMR by hand, since not every ffmpeg has an encoder: frames of arbitrary parameters."""
    chance = random.Random(1)
    magic, head, size = (b"#!AMR-WB\n", 0x04, 17) if wide else (b"#!AMR\n", 0x3C, 31)
    return magic + b"".join(bytes([head]) + chance.randbytes(size) for _ in range(50))


def gsm_in_wav() -> bytes:
    """GSM 06.10 as Microsoft stores it: blocks of 65 bytes for 320 samples."""
    samples = random.Random(2).randbytes(65 * 25)
    form = struct.pack("<HHIIHHHH", 0x31, 1, 8000, 1625, 65, 0, 2, 320)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(samples)) + samples
    return b"RIFF" + struct.pack("<I", len(body)) + body


def bw64() -> bytes:
    return converted(".wav", "-rf64", "always").replace(b"RF64", b"BW64", 1)


def mp4(*options: str) -> bytes:
    return converted(".mp4", *options, "-strict", "-2", "-f", "mp4")


def mov(codec: str) -> bytes:
    return converted(".mov", "-c:a", codec, "-f", "mov")
