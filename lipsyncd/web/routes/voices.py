"""The voices that can speak text, and which of them replaces a voice that a client names.

D-ID's clients name voices of Microsoft, Amazon or Google. Such a name begins with its language, so the voice of that
language replaces it; without one, the default voice speaks.
"""

from __future__ import annotations

import asyncio
import importlib.util

from lipsyncd.errors import LipsyncdError
from lipsyncd.prepare import speech
from lipsyncd.prepare.speech import Voice
from lipsyncd.settings import Speech
from lipsyncd.web.jobs import Jobs


class Voices:
    """The voices of the speech library; it is asked once, in its child process."""

    def __init__(self, settings: Speech, jobs: Jobs) -> None:
        self.jobs = jobs
        self._own_program = bool(settings.command)
        self._known: list[Voice] | None = None
        self._asking = asyncio.Lock()

    def can_speak(self) -> bool:
        """Is a program for speech configured, or the extra `tts` installed?"""
        return self._own_program or importlib.util.find_spec("espeakng_loader") is not None

    async def all(self) -> list[Voice]:
        """All voices of the library; none without it, and none if a configured program speaks."""
        if self._own_program:
            return []
        async with self._asking:
            if self._known is None:
                self._known = await self.jobs.in_thread(_ask)
        return self._known

    async def match(self, wanted: str | None) -> str | None:
        """The voice that replaces a named one; None for the default. A configured program gets the name unchanged."""
        if wanted is None or self._own_program:
            return wanted
        voices, low = await self.all(), wanted.lower()
        exact = next((v for v in voices if low in (v.language.lower(), v.name.lower())), None)
        found = exact or speech.nearest(wanted, voices)
        return None if found is None else found.language


def _ask() -> list[Voice]:
    try:
        return speech.voices()
    except LipsyncdError:
        return []
