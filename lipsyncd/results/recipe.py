"""What shapes a video besides its inputs and options: the settings that two equal orders must share to be one work."""

from __future__ import annotations

import hashlib
import json

from lipsyncd import __version__
from lipsyncd.settings import Settings


def recipe_of(settings: Settings) -> str:
    """16 hex digits that change when a video made now would differ from one made with other settings or versions.

    The weights count by their lock list: its hashes say which ones they are.
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
