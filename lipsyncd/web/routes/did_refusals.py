"""D-ID's routes for things that this server lacks: each answer lets a client go on, or names what to use instead.

No answer is 401 (people would search for a wrong key), 429 or 503 (programs would try again), or an invented job.
"""

from __future__ import annotations

from aiohttp import web

from lipsyncd.jobs.did_talk import OWNER
from lipsyncd.jobs.job import now_ms, utc_text
from lipsyncd.prepare.voices.names import Voice
from lipsyncd.prepare.voices.piper import PiperVoice
from lipsyncd.web.replies import ApiError, Handler, json_reply
from lipsyncd.web.routes.voices import Voices

_PLENTY = 1_000_000
_FAMILIES = ("clips", "scenes", "expressives", "translations", "animations")
_EMPTY = {
    "/clips/presenters": "presenters",
    "/scenes/avatars": "avatars",
    "/expressives/avatars": "avatars",
    **{f"/{family}": family for family in _FAMILIES},
}
_STREAMS = "live streaming (WebRTC) is not available on this server; use POST /talks and poll or set a webhook"
_OTHERS = {
    "/tts/voices": "voices are not cloned here; GET /tts/voices lists the voices of this server",
    "/consents": "voices are not cloned here, so there is nothing to consent to",
    "/knowledge": "there are no agents on this server; it renders POST /talks only",
    "/secrets": "there are no agents on this server; it renders POST /talks only",
    "/images/face-detection": "POST /images answers with the faces of the picture that it stores",
}


class PlaceholderRoutes:
    """Credits, voices, settings, empty lists, refusals."""

    def __init__(self, voices: Voices) -> None:
        self.all_voices = voices

    def routes(self) -> list[web.RouteDef]:
        posts = {
            f"/{family}": f"{family} need D-ID presenters; this server renders POST /talks only" for family in _FAMILIES
        }
        return [
            web.get("/credits", self.credits),
            web.get("/tts/voices", self.voices),
            web.get("/settings", _answer({})),
            *(web.get(path, _answer({name: []})) for path, name in _EMPTY.items()),
            *(web.post(path, _refusal(why)) for path, why in {**posts, **_OTHERS}.items()),
            *(web.route("*", path, _refusal(_STREAMS)) for path in _streaming_paths()),
        ]

    async def credits(self, _request: web.Request) -> web.Response:
        """More than enough: programs check their credits before they start."""
        now = utc_text(now_ms())
        credit = {
            "owner_id": OWNER, "created_at": now, "modified_at": now, "valid_from": now,
            "expire_at": "2099-12-31T23:59:59.000Z", "remaining": _PLENTY, "total": _PLENTY, "product_id": "lipsyncd",
        }  # fmt: skip
        return json_reply({"credits": [credit], "remaining": _PLENTY, "total": _PLENTY})

    async def voices(self, _request: web.Request) -> web.Response:
        """The voices of Piper and of espeak-ng; an empty list without any."""
        of_piper, of_espeak = await self.all_voices.piper(), await self.all_voices.espeak()
        return json_reply([*map(_piper_voice, of_piper), *map(_voice, of_espeak)])


def _voice(voice: Voice) -> dict[str, object]:
    return {
        "id": voice.language,
        "name": voice.name,
        "gender": voice.gender or "unknown",
        "access": "public",
        "provider": "espeak-ng",
        "languages": [{"language": voice.name, "locale": voice.language}],
        "styles": [],
    }


def _piper_voice(voice: PiperVoice) -> dict[str, object]:
    """Its files tell no gender."""
    return {
        "id": voice.name,
        "name": voice.name,
        "gender": "unknown",
        "access": "public",
        "provider": "piper",
        "languages": [{"language": voice.language, "locale": voice.language.replace("_", "-")}],
        "styles": [],
    }


def _streaming_paths() -> list[str]:
    families = [f"/{family}/streams" for family in ("talks", "clips")] + ["/agents"]
    return [path for family in families for path in (family, f"{family}/{{rest:.+}}")]


def _answer(body: dict[str, object]) -> Handler:
    async def answer(_request: web.Request) -> web.StreamResponse:
        return json_reply(body)

    return answer


def _refusal(why: str) -> Handler:
    async def refuse(_request: web.Request) -> web.StreamResponse:
        raise ApiError(501, "NotImplementedError", why)

    return refuse
