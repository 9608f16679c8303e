"""The voices that text can be spoken with, and which of them a client means that knows other ones.

D-ID's clients name voices of Microsoft, Amazon or Google. Such a name begins with its language: that language's voice
is the nearest that there is here; and where there is none, the default voice speaks.
"""

from __future__ import annotations

import asyncio
import importlib.util

from lipsyncd.errors import LipsyncdError
from lipsyncd.prepare import speech
from lipsyncd.prepare.speech import Voice
from lipsyncd.settings import Speech
from lipsyncd.web.jobs import Desk


class Voices:
    """Asks the speech library once, in its child process."""

    def __init__(self, settings: Speech, desk: Desk) -> None:
        self.desk = desk
        self._own_program = bool(settings.command)
        self._known: list[Voice] | None = None
        self._asking = asyncio.Lock()

    def can_speak(self) -> bool:
        """A program that speaks is configured, or the extra `tts` is installed."""
        return self._own_program or importlib.util.find_spec("espeakng_loader") is not None

    async def all(self) -> list[Voice]:
        """Every voice of the library; none without it, and none while another program speaks."""
        if self._own_program:
            return []
        async with self._asking:
            if self._known is None:
                self._known = await self.desk.run(_ask)
        return self._known

    async def meant_by(self, wanted: str | None) -> str | None:
        """The voice to speak with; None for the default one. A program of the operator's gets the name as it came."""
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
