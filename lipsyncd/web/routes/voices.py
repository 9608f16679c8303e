"""The voices that can speak text, and which of them replaces a voice that a client names.

D-ID's clients name voices of Microsoft, Amazon or Google. Names are understood as in manifests (`voices.names`): one
that begins with its language gets the voice of that language. Only a name of another service without a language, such
as Amazon's `Joanna`, gets the default voice; a manifest with it fails.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging

from lipsyncd.errors import LipsyncdError, SpeechFailed, VoiceUnusable
from lipsyncd.prepare import speech
from lipsyncd.prepare.voices import piper, piper_files
from lipsyncd.prepare.voices.names import Voice, espeak_for
from lipsyncd.prepare.voices.piper import PiperVoice
from lipsyncd.settings import Speech
from lipsyncd.web.jobs import Jobs
from lipsyncd.web.replies import ApiError, invalid

log = logging.getLogger(__name__)

_OURS = ("piper", "espeak-ng")  # providers, as GET /tts/voices names them
_NO_SPEECH = "text needs a text-to-speech engine and none is configured; send a sound"


class Voices:
    """The voices of espeak-ng, which is asked once, and Piper's, which are looked at when their files change."""

    def __init__(self, settings: Speech, jobs: Jobs) -> None:
        self.jobs = jobs
        self._folder = settings.voices
        self._own_program = bool(settings.command)
        self._known: list[Voice] = []  # until the program was asked
        self._described: tuple[list[tuple[str, int, int]], list[PiperVoice]] = ([], [])
        self._asking = asyncio.Lock()

    def can_speak(self) -> bool:
        """Is a program for speech configured, or the extra `tts` installed?"""
        return self._own_program or importlib.util.find_spec("espeakng_loader") is not None

    async def espeak(self) -> list[Voice]:
        """All voices of the library; none without it, and none if a configured program speaks."""
        if self._own_program:
            return []
        async with self._asking:
            known = self._known or await self.jobs.in_thread(_ask)
            self._known = known
        return known

    async def piper(self) -> list[PiperVoice]:
        """The voices of Piper that can speak, as far as their configurations tell."""
        if self._own_program or importlib.util.find_spec("onnxruntime") is None:
            return []
        async with self._asking:
            return await self.jobs.in_thread(self._look)

    def _look(self) -> list[PiperVoice]:
        try:
            names = piper_files.installed(self._folder)
            state = []
            for name in names:
                seen = (self._folder / f"{name}{piper_files.CONFIG}").stat()
                state.append((name, seen.st_mtime_ns, seen.st_size))
            if state != self._described[0]:
                found = piper.describe(names, self._folder)
                self._described = (state, [voice for voice in found if not voice.fault])
        except (LipsyncdError, OSError) as error:
            log.warning("the voices of Piper cannot be listed: %s", error)
            return []
        return self._described[1]

    def require(self, field: str) -> None:
        """Raise 400 about a field with text if nothing can speak it."""
        if not self.can_speak():
            details = {f"body.{field}": {"message": "only a sound is available on this server"}}
            raise ApiError(400, "ValidationError", _NO_SPEECH, details=details)

    async def match(
        self,
        wanted: str | None,
        provider: str | None = None,
        *,
        field: str = "script.provider.voice_id",
        strict: bool = False,
    ) -> str | None:
        """The voice of the job for one that a client names; None for the default.

        provider  the service that the client names with the voice
        field     of the request that names it
        strict    no name gets the default voice

        A name that means a voice here stays as it is, for the job understands it in the same way; a configured program
        gets every name. Raises `ApiError` for a voice of ours that is not here: nothing else speaks in its place.
        """
        if wanted is None or self._own_program or await self._is_known(wanted, field):
            return wanted
        if strict or provider in _OURS:
            raise _not_here(wanted, field)
        log.info("no voice is called %.80r: the default voice speaks", wanted)
        return None

    async def _is_known(self, wanted: str, field: str) -> bool:
        """Raises `ApiError` for a voice of Piper that is missing."""
        try:
            if await self.jobs.in_thread(speech.find, wanted, self._folder) is not None:
                return True
        except VoiceUnusable:
            raise _not_here(wanted, field) from None
        except SpeechFailed:  # no name at all
            return False
        known = await self.espeak()
        return not known or espeak_for(wanted.partition("+")[0], known) is not None  # unknown: the job will tell


def _not_here(wanted: str, field: str) -> ApiError:
    name = field.rpartition(".")[2]
    return invalid(
        {f"body.{field}": f"{name!r} is {wanted[:80]!r}, which is not here; GET /tts/voices lists the voices"}
    )


def _ask() -> list[Voice]:
    try:
        return speech.voices()
    except LipsyncdError:
        return []
