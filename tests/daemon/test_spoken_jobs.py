"""Jobs with a text and a voice of Piper, through a real daemon."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lipsyncd.jobs.job import JobState
from tests.kits.installation import Installation, picture, put
from tests.kits.media.voice_kit import put_joe, put_voice


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """A running daemon with Joe and a voice that hums; renders of nothing but the picture."""
    installation = Installation(tmp_path_factory.mktemp("daemon"))
    put_joe(voices_of(installation))
    put_voice(voices_of(installation), "choir")
    with installation.running():
        yield installation


def voices_of(installation: Installation) -> Path:
    return installation.settings.speech.voices


def drop(daemon: Installation, name: str, seed: int, **fields: object) -> None:
    put(daemon.path("inbox"), f"{name}.png", picture(seed))
    daemon.drop_manifest(name, image=f"{name}.png", **fields)


def test_a_text_is_spoken_by_the_voice_that_its_manifest_names(daemon: Installation) -> None:
    drop(daemon, "anna", 1, text="Good morning to you.", voice="en_US-joe-medium")
    drop(daemon, "bert", 1, text="Good morning to you.", voice="en-US-JennyNeural")

    anna, bert = daemon.until_done("anna"), daemon.until_done("bert")

    assert anna.duration_ms == bert.duration_ms
    note = "the voice en-US-JennyNeural is not here: en_US-joe-medium spoke"
    assert note in daemon.sidecar("bert")["notes"]["inputs"]
    assert note not in daemon.sidecar("anna")["notes"]["inputs"]


def test_the_same_text_is_rendered_anew_when_the_file_of_its_voice_is_another(daemon: Installation) -> None:
    for name in ("one", "two"):
        drop(daemon, name, 2, text="la la la la la la la", voice="choir")
        daemon.until_done(name)
    assert daemon.job("two").duplicate_of == daemon.job("one").id  # type: ignore[union-attr]

    put_voice(voices_of(daemon), "choir", inference={"noise_scale": 0.1, "length_scale": 2, "noise_w": 0.8})
    drop(daemon, "three", 2, text="la la la la la la la", voice="choir")
    three = daemon.until_done("three")

    assert three.duplicate_of is None
    assert three.duration_ms > 1.5 * daemon.job("one").duration_ms  # type: ignore[union-attr, operator]


@pytest.mark.parametrize(
    ("name", "voice", "code", "why"),
    [
        ("gone", "en_US-amy-medium", "voice-unusable", "there is no voice en_US-amy-medium"),
        ("unknown", "no-such-voice", "speech-failed", "no voice is called 'no-such-voice'"),
        ("broken", "broken", "voice-unusable", "the voice broken: its model does not load"),
        ("nobody", "choir+nobody", "speech-failed", "the voice choir: the voice has no speaker 'nobody'"),
    ],
)
def test_a_job_fails_with_the_reason_and_no_other_voice_speaks(
    daemon: Installation, name: str, voice: str, code: str, why: str
) -> None:
    put_voice(voices_of(daemon), "broken", b"none")
    drop(daemon, name, 3, text="Good morning.", voice=voice)

    reason = daemon.reason(daemon.until_failed(name))

    assert reason["code"] == code
    assert reason["message"].startswith(why)


def test_a_cancelled_job_stops_speaking_and_the_next_one_is_prepared(daemon: Installation) -> None:
    """All of the text takes minutes, and one thread prepares the jobs of all."""
    drop(daemon, "long", 4, text="This sentence is one of very many. " * 250, voice="en_US-joe-medium")
    job = daemon.until(lambda: daemon.job("long"), "the job")
    part = daemon.settings.paths.spool / job.id / "audio.part"
    daemon.until(lambda: part.exists() and part.stat().st_size > 50_000, "a sentence")

    assert daemon.cli("cancel", job.id).returncode == 0
    begun = time.monotonic()
    drop(daemon, "next", 5, text="la la la la la la la", voice="choir")

    daemon.until_done("next")
    assert daemon.job("long").state is JobState.CANCELLED  # type: ignore[union-attr]
    assert not part.parent.exists()
    assert time.monotonic() - begun < 60


def test_a_daemon_that_stops_waits_for_no_text_and_the_next_one_speaks_it(installation: Installation) -> None:
    put_joe(voices_of(installation))
    text = "One sentence of some. " * 60
    with installation.running():
        drop(installation, "long", 6, text=text, voice="en_US-joe-medium")
        job = installation.until(lambda: installation.job("long"), "the job")
        part = installation.settings.paths.spool / job.id / "audio.part"
        installation.until(lambda: part.exists() and part.stat().st_size > 50_000, "a sentence")
    now = installation.job("long")
    assert now is not None
    assert now.state is JobState.QUEUED
    assert not part.exists()
    with installation.running():
        installation.until(part.exists, "the sound once more")
        assert installation.cli("cancel", job.id).returncode == 0
