"""The sounds of public reports, dropped into a folder as a user would: each gives a video of its whole length."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from lipsyncd.media.mp4 import inspect
from tests.kits.installation import Installation, picture, put
from tests.kits.media.media_kit import converted, streamed, tone, wav

FPS = 25
VOICE = tone(1.5)


def opposite_phase() -> bytes:
    mono = np.frombuffer(VOICE, "<i2")
    return wav(np.stack([mono, -mono], axis=1).tobytes(), channels=2)


def bare_mp3() -> bytes:
    return converted(".mp3", "-id3v2_version", "0", "-b:a", "128k", seconds=1.5)


def of(suffix: str, *options: str) -> bytes:
    return converted(suffix, *options, seconds=1.5)


# name: (suffix in the folder, content, seconds)
SOUNDS: dict[str, tuple[str, Callable[[], bytes], float]] = {
    "declares-2e9-bytes": (".wav", lambda: wav(VOICE, data_bytes=2_000_000_000), 1.5),
    "three-wavs-joined": (".wav", lambda: wav(VOICE) * 3, 4.5),
    "three-of-unknown-length-joined": (".wav", lambda: wav(VOICE, data_bytes=0xFFFFFFFF) * 3, 4.5),
    "opposite-phase": (".wav", opposite_phase, 1.5),
    **{
        f"{codec}-in-mp4": (".m4a", lambda codec=codec: of(".mp4", "-c:a", codec, "-strict", "-2", "-f", "mp4"), 1.5)
        for codec in ("libopus", "flac", "libmp3lame", "ac3")
    },
    "pcm-in-mov": (".m4a", lambda: of(".mov", "-c:a", "pcm_s16le", "-f", "mov"), 1.5),
    "sound-only-mp4": (".mp4", lambda: of(".mp4", "-c:a", "aac", "-f", "mp4"), 1.5),
    "sound-only-webm": (".webm", lambda: of(".webm", "-c:a", "libopus", "-f", "webm"), 1.5),
    "begins-in-mid-frame": (".mp3", lambda: bare_mp3()[300:], 1.5),
    "zeros-in-front": (".mp3", lambda: bytes(4096) + bare_mp3(), 1.5),
    "adts-named-m4a": (".m4a", lambda: of(".aac", "-c:a", "aac", "-f", "adts"), 1.5),
    "mp3-in-wav": (".wav", lambda: of(".wav", "-c:a", "libmp3lame"), 1.5),
    "g722-in-wav": (".wav", lambda: of(".wav", "-c:a", "g722", "-ar", "16000"), 1.5),
    "w64": (".w64", lambda: of(".w64"), 1.5),
    **{
        f"{form}-into-a-pipe": (f".{form}", lambda form=form: streamed(form, seconds=1.5), 1.5)
        for form in ("w64", "aiff")
    },
    "rf64-into-a-pipe": (".wav", lambda: streamed("wav", "-rf64", "always", seconds=1.5), 1.5),
    "bw64-named-wav": (".wav", lambda: of(".wav", "-rf64", "always").replace(b"RF64", b"BW64", 1), 1.5),
}


@pytest.fixture(scope="module")
def dropped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """A daemon with its settings as delivered, and all pairs in its inbox."""
    installation = Installation(tmp_path_factory.mktemp("field"))
    installation.folders.initialise()
    for name, (suffix, make, _) in SOUNDS.items():
        put(installation.path("inbox"), f"{name}.png", picture())
        put(installation.path("inbox"), f"{name}{suffix}", make())
    with installation.running():
        yield installation


@pytest.mark.parametrize("name", SOUNDS)
def test_a_sound_of_the_field_gives_a_video_of_its_whole_length(dropped: Installation, name: str) -> None:
    seconds = SOUNDS[name][2]
    job = dropped.until_done(name)
    video = inspect(dropped.path("outbox") / f"{name}.mp4").video
    least = math.ceil(seconds * FPS)
    assert least <= (job.frames or 0) <= least + 2
    assert video.frames == job.frames
