"""`POST /speech`: a short text as sound, so that people hear a voice before they make a job of it.

It is spoken as the text of a job is, one at a time for the whole server, and no longer than its client listens.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web

from lipsyncd.errors import SpeechFailed
from lipsyncd.jobs.values import nearest
from lipsyncd.prepare.inputs import speak_as
from lipsyncd.prepare.voices.process import SpeakingStopped
from lipsyncd.storage import disk_space
from lipsyncd.web.orders import Fields, boolean, text_of
from lipsyncd.web.replies import ApiError
from lipsyncd.web.requests import Requests
from lipsyncd.web.routes.did_request import read_json, speakable
from lipsyncd.web.routes.voices import Voices

MOST_CHARS = 500
_MOST_SOUND_BYTES = 16_000_000  # six minutes of espeak-ng
_FIELDS = ("text", "voice", "ssml")
_HEADERS = {
    "Content-Type": "audio/wav",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Server": "lipsyncd",
}


@dataclass(frozen=True)
class Words:
    """What one client wants to hear."""

    text: str
    voice: str | None
    ssml: bool


class SpeechRoutes:
    """The route that speaks, for one server."""

    def __init__(self, requests: Requests, voices: Voices) -> None:
        self.requests = requests
        self.voices = voices
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="web-speech")
        self._speaking = False

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/speech", self.speak)]

    async def speak(self, request: web.Request) -> web.Response:
        """The sound as a WAV. 429 while another text is spoken, for any client."""
        words = read_words(read_json(await self.requests.body(request)))
        self.voices.require("text")
        voice = await self.voices.match(words.voice, field="voice", strict=True)
        if self._speaking:
            raise ApiError(
                429, "TooManyRequestsError", "another text is being spoken, and only one is at a time; try again soon",
                headers={"Retry-After": "2"},
            )  # fmt: skip
        self._speaking, unwanted = True, threading.Event()
        speaking = asyncio.get_running_loop().run_in_executor(
            self._thread, partial(self._spoken, words, voice, unwanted)
        )
        speaking.add_done_callback(self._ended)
        try:
            return web.Response(body=await asyncio.shield(speaking), headers=_HEADERS)
        except asyncio.CancelledError:  # the client has gone, or the server stops
            unwanted.set()
            raise

    def _ended(self, speaking: asyncio.Future[bytes]) -> None:
        self._speaking = False
        if not speaking.cancelled():
            speaking.exception()  # the client that would read it may be gone

    def _spoken(self, words: Words, voice: str | None, unwanted: threading.Event) -> bytes:
        """The WAV. Blocks until it is spoken. Raises `SpeechFailed` and what else `speak_as` raises."""
        settings, jobs = self.requests.settings.now, self.requests.jobs
        root = self.requests.uploads.stored.root
        disk_space.require(root, settings.paths.min_free_mb)
        with tempfile.TemporaryDirectory(prefix=".tmp-speech-", dir=root) as folder:
            target = Path(folder) / "spoken.wav"
            try:
                speak_as(
                    settings.speech,
                    words.text,
                    target,
                    voice=voice,
                    ssml=words.ssml,
                    unwanted=lambda: unwanted.is_set() or jobs.waits.has_ended,
                )
            except SpeakingStopped:
                raise ApiError(503, "ServiceUnavailableError", "the server stops; try again later") from None
            if (size_bytes := target.stat().st_size) > _MOST_SOUND_BYTES:
                raise SpeechFailed(
                    f"the spoken text has {size_bytes / 1e6:.1f} MB; at most {_MOST_SOUND_BYTES / 1e6:.0f} MB are sent",
                    remedy="shorten the text or its pauses, or make a job of it",
                )
            return target.read_bytes()


def read_words(body: Mapping[str, Any]) -> Words:
    """The fields of a request. Raises `ApiError` with every fault."""
    fields = Fields(body)
    for unknown in sorted(body.keys() - {*_FIELDS}):
        near = nearest(unknown, _FIELDS)
        fields.faults[f"body.{unknown[:60]}"] = f"{unknown[:60]!r} is no field here; did you mean {near!r}?"
    ssml = bool(fields.get("ssml", boolean))
    text = fields.get("text", partial(_short, ssml=ssml), required=True)
    voice = fields.get("voice", text_of(256))
    fields.check()
    return Words(text, voice, ssml)


def _short(value: Any, *, ssml: bool) -> str:
    if isinstance(value, str) and len(value) > MOST_CHARS:
        raise ValueError(f"has {len(value)} characters; at most {MOST_CHARS} are spoken here: shorten it")
    return speakable(ssml=ssml)(value)
