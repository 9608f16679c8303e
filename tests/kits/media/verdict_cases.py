"""What people bring, for `test_one_verdict`: the inputs of many other tests, and some more."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tests.inbox import test_field_names, test_field_sounds, test_inputs
from tests.kits.installation import picture, sound
from tests.kits.media.footage_kit import H264, VP8, film, film_with_voice
from tests.kits.media.media_kit import converted, corners, encoded, tone, wav
from tests.prepare import test_codecs
from tests.system.hostile import test_media

IMAGE, AUDIO = "image", "audio"


@dataclass(frozen=True)
class Case:
    """One input in one role. `suffix`: of its name, which only the folder looks at."""

    what: str
    role: str
    suffix: str
    make: Callable[[], bytes]


def _bytes(content: bytes) -> Callable[[], bytes]:
    return lambda: content


def _cut(make: Callable[[], bytes], tenths: int) -> Callable[[], bytes]:
    return lambda: make()[: len(make()) * tenths // 10]


def _text(text: str) -> Callable[[], bytes]:
    return _bytes(text.format(secret="/etc/passwd").encode())


def _overexposed() -> bytes:
    return encoded(Image.eval(corners(), lambda value: min(255, int(value * 1.9))), "JPEG", quality=75)


def _grey_of_16_bits() -> bytes:
    grey = np.asarray(corners().convert("L")).astype(np.uint16) * 257
    return encoded(Image.fromarray(grey), "PNG")


def _jpeg() -> bytes:
    return encoded(corners(), "JPEG")


RANDOM = random.Random(14).randbytes(20_000)

_SOUNDS: Mapping[str, Callable[[], bytes]] = {
    **{f"field: {what}": make for what, (_, make, _) in test_field_sounds.SOUNDS.items()},
    **{f"people: {what}": _bytes(content) for what, (content, _) in test_inputs.SOUNDS.items()},
    **{f"taken: {what}": make for what, (_, make) in test_codecs.TAKEN.items()},
    **{f"refused: {what}": make for what, (_, make, _) in test_codecs.REFUSED.items()},
    **{f"other: {what}": make for what, make in test_codecs.OTHER.items()},
    **{f"half of a cut one: {what}": _cut(make, 5) for what, (_, make, _) in test_codecs.CUT.items()},
    **{f"lies: {what}": make for what, (make, _) in test_media.LYING_WAVS.items()},
    **{f"broken: {what}": make for what, (_, make, _) in test_media.BROKEN_SOUNDS.items()},
    **{f"claims: {what}": make for what, (_, make) in test_media.CLAIMS.items()},
    **{f"codec: {what}": make for what, (_, make) in test_media.OTHER_CODECS.items()},
    **{f"text: {what}": _text(text) for what, text in test_media.PLAYLISTS.items()},
    **{
        f"{tenths} tenths of a {what}": _cut(make, tenths)
        for what, (kind, make) in test_media.SEEDS.items()
        for tenths in (3, 9)
        if kind
    },
    "declares 0x7FFFFFFF": lambda: wav(tone(1), data_bytes=0x7FFFFFFF),
    "declares 1e9": lambda: wav(tone(1), data_bytes=10**9),
    "a WAV cut at 70 %": _cut(lambda: wav(tone(1.5)), 7),
    "an MP3 cut at 50 %": _cut(lambda: converted(".mp3", seconds=3.0), 5),
    "two joined MP4s": lambda: converted(".m4a") * 2,
    "two joined MP3s": lambda: converted(".mp3") * 2,
    "two joined OGGs": lambda: converted(".opus") * 2,
    "two joined FLACs": lambda: converted(".flac") * 2,
    "two joined CAFs": lambda: converted(".caf") * 2,
    "two joined WebMs": lambda: converted(".webm", "-c:a", "libopus") * 2,
    "two joined OGGs that differ": lambda: converted(".ogg") + converted(".opus"),
    "two joined MP3s that differ": lambda: converted(".mp3") + converted(".mp3", "-ar", "24000"),
    "a tag behind a FLAC": lambda: converted(".flac") + b"TAG" + bytes(125),
    "a WAV without its last byte": lambda: wav(tone(1))[:-1],
    "a line break before a WAV": lambda: b"\r\n" + wav(tone(1)),
    "base64": lambda: base64.b64encode(wav(tone(1))),
    "JSON": _bytes(b'{"error": {"message": "quota exceeded"}}'),
    "junk behind a WAV": lambda: wav(tone(1)) + RANDOM,
    "junk before an ADTS": lambda: RANDOM[:3000] + converted(".aac"),
    "zeros behind an MP3": lambda: converted(".mp3") + bytes(9000),
    "noise": lambda: wav(np.random.default_rng(1).normal(0, 230, 24_000).astype("<i2").tobytes()),
    "random bytes": _bytes(RANDOM),
    "one byte": _bytes(b"R"),
    "a film with sound": lambda: film_with_voice(".mp4", *H264, "-c:a", "aac"),
    "a WebM film with sound": lambda: film_with_voice(".webm", *VP8, "-c:a", "libopus"),
    "a film without sound": lambda: film(".mp4", 30, *H264),
    "a picture": picture,
    "an AVIF": lambda: encoded(corners(), "AVIF"),
}

_PICTURES: Mapping[str, Callable[[], bytes]] = {
    **{f"people: {what}": _bytes(content) for what, (content, _) in test_inputs.PICTURES.items()},
    **{f"phone: {what}": make for what, (_, make) in test_field_names.PHONES.items()},
    **{f"hostile: {what}": make for what, (make, _, _) in test_media.PICTURES.items()},
    **{f"text: {what}": _text(text) for what, text in test_media.PLAYLISTS.items()},
    **{
        f"{tenths} tenths of a {what}": _cut(make, tenths)
        for what, (kind, make) in test_media.SEEDS.items()
        for tenths in (3, 9)
        if not kind
    },
    "overexposed": _overexposed,
    "16-bit grey": _grey_of_16_bits,
    "a JPEG without its end": lambda: _jpeg()[:-2],
    "a PNG without its end": lambda: picture()[:-12],
    "a WebP without its last byte": lambda: encoded(corners(), "WEBP")[:-1],
    "a JPEG with a second one behind it": lambda: _jpeg() + _jpeg(),
    "junk behind a PNG": lambda: picture() + RANDOM,
    "a line break before a PNG": lambda: b"\n" + picture(),
    "a PNG sent as text": lambda: picture().replace(b"\r\n", b"\n"),
    "a web page": _bytes(b"<!DOCTYPE html><html><body>404</body></html>"),
    "junk before a PNG": lambda: RANDOM[:100] + picture(),
    "a TIFF of two pages": lambda: encoded(corners(), "TIFF", save_all=True, append_images=[corners()]),
    "random bytes": _bytes(RANDOM),
    "one byte": _bytes(b"\x89"),
    "a film": lambda: film(".mp4", 30, *H264),
    "a WebM film": lambda: film(".webm", 30, *VP8),
    "half a film": _cut(lambda: film(".mp4", 30, *H264), 5),
    "half a film with its index first": _cut(lambda: film(".mp4", 30, *H264, "-movflags", "+faststart"), 5),
    "half a WebM film": _cut(lambda: film(".webm", 30, *VP8), 5),
    "a film of 62 lines": lambda: film(".mp4", 5, *H264, height=62),
    "a sound": sound,
    "an MP4 with sound alone": lambda: converted(".mp4", "-c:a", "aac"),
    "a WebM with sound alone": lambda: converted(".webm", "-c:a", "libopus"),
}

# Names in the folder for some of them: of the other kinds that are candidates there, and wrong ones.
_SUFFIXES = {"phone: heic": ".heic", "phone: avif": ".avif", "taken: amr": ".amr", "taken: caf": ".caf",
             "taken: w64": ".w64", "field: adts-named-m4a": ".m4a", "a film": ".mp4", "a WebM film": ".webm",
             "taken: opus in matroska": ".mka", "field: sound-only-webm": ".webm"}  # fmt: skip

CASES = [
    *(Case(what, AUDIO, _SUFFIXES.get(what, ".wav"), make) for what, make in _SOUNDS.items()),
    *(Case(what, IMAGE, _SUFFIXES.get(what, ".png"), make) for what, make in _PICTURES.items()),
]

# One of each way to be taken or refused, for the short run.
SHORT = {
    (AUDIO, "field: declares-2e9-bytes"), (AUDIO, "field: three-wavs-joined"), (AUDIO, "a WAV cut at 70 %"),
    (AUDIO, "people: joined-in-two-formats"), (AUDIO, "refused: wma in wav"), (AUDIO, "people: empty"),
    (AUDIO, "a picture"), (AUDIO, "people: short"),
    (IMAGE, "phone: heic"), (IMAGE, "a PNG without its end"), (IMAGE, "people: psd"), (IMAGE, "hostile: one pixel"),
    (IMAGE, "people: animated"), (IMAGE, "a sound"),
}  # fmt: skip
