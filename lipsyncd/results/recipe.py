"""The settings and versions that shape a video besides its inputs and options: redrops share a video if they match."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path

from lipsyncd import __version__
from lipsyncd.errors import ConfigError
from lipsyncd.media.ffmpeg import encoder_threads
from lipsyncd.processes import usable_cores
from lipsyncd.settings import Settings
from lipsyncd.weights.store import store_of

_FACE_NETWORKS = Path(__file__).resolve().parents[1] / "renderers" / "face" / "models"


def recipe_of(settings: Settings, voice: str = "") -> str:
    """16 hex digits that change when a video made now would differ from one made with other settings or versions.

    voice  that speaks the job's text, with the hashes of its files; "" for a job with a sound

    How frames are encoded and how the networks are computed is in it: the encoder and its threads, the
    settings, what was found about this machine's kernels, and on a CPU the number of threads, among which sums are
    divided.

    The weights are represented by their lock list, which holds their hashes, and those that a render opens only where
    they are there by their names; the networks that find faces are files of the package.
    """
    output = settings.output
    encoding = [output.crf, output.preset, output.audio_kbps, output.encoder, encoder_threads()]
    try:
        lock = hashlib.sha256(settings.weights.lock.read_bytes()).hexdigest()
    except OSError:
        lock = ""
    parts: list[object] = [
        __version__,
        encoding,
        settings.intake.background,
        voice,
        settings.render.renderers,
        lock,
        _extra_weights(settings),
        _face_networks(),
        _arithmetic(settings),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _extra_weights(settings: Settings) -> list[str]:
    try:
        store = store_of(settings)
        return [weight.name for weight in store.weights if weight.extra and store.path(weight.name).exists()]
    except ConfigError:  # the list cannot be read, and `recipe_of` is no place to say so
        return []
    except PermissionError:  # this user's renders cannot open them either
        return []


def kernel_cache(settings: Settings) -> Path:
    """The folder in which render children keep what they found about the kernels of this machine."""
    return settings.paths.state / "cache" / "kernels"


def _arithmetic(settings: Settings) -> list[object]:
    render = settings.render
    threads = (render.threads or usable_cores()) if "cpu" in render.devices else 0
    try:
        found = sorted((file.name, file.read_text("utf-8")) for file in kernel_cache(settings).glob("*.json"))
    except (OSError, ValueError):  # this user's renders cannot read them either
        found = []
    return [render.kernels, render.cpu_precision, threads, found]


@cache
def _face_networks() -> list[str]:
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(_FACE_NETWORKS.glob("*.tflite"))]
