"""The settings and versions that shape a video besides its inputs and options: redrops share a video if they match."""

from __future__ import annotations

import hashlib
import json

from lipsyncd import __version__
from lipsyncd.settings import Settings


def recipe_of(settings: Settings) -> str:
    """16 hex digits that change when a video made now would differ from one made with other settings or versions.

    The weights are represented by their lock list, which holds their hashes.
    """
    output, speech = settings.output, settings.speech
    encoding = [output.crf, output.preset, output.audio_kbps]
    voice = [speech.voice, speech.words_per_minute, *speech.command]
    try:
        lock = hashlib.sha256(settings.weights.lock.read_bytes()).hexdigest()
    except OSError:
        lock = ""
    parts = [__version__, encoding, settings.intake.background, voice, settings.render.renderers, lock]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
