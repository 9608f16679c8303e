"""Voices over REST: the list, names as in manifests, and names that get no other voice."""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kits.installation import Installation, face
from tests.kits.media.voice_kit import JOE, put_joe, put_voice
from tests.kits.web_kit import Api, Reply, serving

KEYS = {"anna": "first-password", "bert": "second-password"}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """Two tenants, and the voices of Piper that all share."""
    root = tmp_path_factory.mktemp("voices")
    folder = Installation(root).settings.speech.voices
    put_joe(folder)
    put_voice(folder, "choir")
    put_voice(folder, "damaged", phoneme_id_map={})
    put_voice(folder, "broken", b"no model")
    keys = root / "keys"
    keys.write_text("".join(f"{name}:{word}\n" for name, word in KEYS.items()))
    keys.chmod(0o600)
    changes = {"web": {"api_key_file": str(keys)}, "render": {"renderer": "preview"}}
    with serving(root, changes=changes) as api:
        yield as_tenant(api, "anna")


def as_tenant(api: Api, name: str) -> Api:
    return Api(api.installation, api.port, {"x-api-key": f"{name}:{KEYS[name]}"})


@pytest.fixture(scope="module")
def source(api: Api) -> str:
    return str(api.form("/images", image=("anna.png", face(1))).json["url"])


def talk(api: Api, source: str, voice: str, provider: str | None = None, text: str = "Good morning to you.") -> Any:
    named = {"voice_id": voice} | ({} if provider is None else {"type": provider})
    return api.post("/talks", {"source_url": source, "script": {"type": "text", "input": text, "provider": named}})


def test_the_list_has_the_voices_that_can_speak(api: Api) -> None:
    listed = {voice["id"]: voice for voice in api.get("/tts/voices").json}

    assert listed[JOE] == {
        "id": JOE,
        "name": JOE,
        "gender": "unknown",
        "access": "public",
        "provider": "piper",
        "languages": [{"language": "en_US", "locale": "en-US"}],
        "styles": [],
    }
    assert listed["en-us"]["provider"] == "espeak-ng"
    assert "damaged" not in listed
    put_voice(api.installation.settings.speech.voices, "new")
    assert "new" in {voice["id"] for voice in api.get("/tts/voices").json}


def test_names_are_understood_as_in_manifests(api: Api, source: str) -> None:
    """Each job has the sound and the note that the same name gives in the folder."""
    made = [talk(api, source, name, kind) for name, kind in ((JOE, "piper"), ("en-US-JennyNeural", "microsoft"))]
    plain, foreign = (api.talk(one.json["id"]) for one in made)
    api.installation.drop_manifest("folder", image="f.png", text="Good morning to you.", voice="en-US-JennyNeural")
    (api.installation.path("inbox") / "f.png").write_bytes(face(1))
    dropped = api.installation.until_done("folder")

    assert plain["duration"] == foreign["duration"] == pytest.approx((dropped.duration_ms or 0) / 1000)
    note = f"the voice en-US-JennyNeural is not here: {JOE} spoke"
    assert note in api.installation.sidecar("folder")["notes"]["inputs"]


@pytest.mark.parametrize(
    ("voice", "provider"),
    [("en_US-amy-medium", None), ("en_US-amy-medium", "microsoft"), ("glados", "piper"), ("nix", "espeak-ng")],
)
def test_a_voice_of_ours_that_is_not_here_is_refused_at_once(
    api: Api, source: str, voice: str, provider: str | None
) -> None:
    answer = talk(api, source, voice, provider)

    assert answer.refused(400, "ValidationError") == "validation failed"
    [(path, detail)] = answer.json["details"].items()
    assert path == "body.script.provider.voice_id"
    assert detail["message"] == f"'voice_id' is {voice!r}, which is not here; GET /tts/voices lists the voices"


@pytest.mark.parametrize(("voice", "provider"), [("Joanna", "amazon"), ("21m00Tcm4TlvDq8ikWAM", "elevenlabs")])
def test_a_name_without_a_language_gets_the_default_voice(api: Api, source: str, voice: str, provider: str) -> None:
    assert api.talk(talk(api, source, voice, provider).json["id"])["duration"] > 0.5


def test_a_damaged_voice_fails_the_talk_and_only_its_tenant_reads_why(api: Api, source: str) -> None:
    made = talk(api, source, "broken", "piper").json["id"]

    failed = api.talk(made, "error")
    assert failed["error"]["kind"] == "AudioError"
    assert "the voice broken: its model does not load" in failed["error"]["description"]
    assert as_tenant(api, "bert").get(f"/talks/{made}").status == 404
    assert JOE in {voice["id"] for voice in as_tenant(api, "bert").get("/tts/voices").json}


# -- POST /speech ------------------------------------------------------------------------------------------------------


def heard_s(reply: Reply) -> float:
    """The length of the WAV in an answer."""
    assert (reply.status, reply.headers["Content-Type"]) == (200, "audio/wav"), reply
    with wave.open(io.BytesIO(reply.body)) as file:
        return file.getnframes() / file.getframerate()


def test_a_voice_is_heard_before_a_job_is_made(api: Api) -> None:
    assert heard_s(api.post("/speech", {"text": "Good morning to you.", "voice": JOE})) > 0.5
    plain = heard_s(api.post("/speech", {"text": "Good morning to you.", "voice": "en-gb"}))
    paused = '<speak>Good morning <break time="2s"/> to you.</speak>'
    assert heard_s(api.post("/speech", {"text": paused, "ssml": True, "voice": "en-gb"})) > plain + 1.5


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ({"text": "a" * 501}, "'text' has 501 characters; at most 500 are spoken here: shorten it"),
        ({"text": "..."}, "'text' cannot be spoken: the text has no letter and no digit to speak"),
        ({"voice": "en-us"}, "'text' is required"),
        ({"text": "Hello", "voice": "en_US-nobody-medium"}, "which is not here; GET /tts/voices lists the voices"),
        ({"text": "Hello", "voise": "en-us"}, "'voise' is no field here; did you mean 'voice'?"),
        ({"text": '<audio src="/etc/passwd"/>Hello', "ssml": True}, "'text' cannot be spoken"),
    ],
)
def test_a_text_that_cannot_be_heard_is_refused_with_the_rule(api: Api, body: dict[str, Any], fault: str) -> None:
    reply = api.post("/speech", body)
    reply.refused(400, "ValidationError")
    assert any(fault in detail["message"] for detail in reply.json["details"].values()), reply.json


def test_speech_needs_a_key(api: Api) -> None:
    Api(api.installation, api.port).post("/speech", {"text": "Hello"}).refused(401, "AuthorizationError")
