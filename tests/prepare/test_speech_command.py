"""A program of the operator's that speaks: what it gets, what it may do, and how it fails."""

from __future__ import annotations

import os
import sys
import time
import wave
from pathlib import Path

import pytest

from lipsyncd.errors import SpeechFailed, SpeechNotInstalled
from lipsyncd.prepare.speech import speak_with
from lipsyncd.prepare.spoken_text import MAX_CHARS, MAX_SPOKEN_CHARS
from lipsyncd.prepare.voices.process import SpeakingStopped
from tests.kits.installation import Installation, picture, put
from tests.kits.machine.processes import is_gone

# Speaks each letter as a tenth of a second, and writes down what it received.
SPEAKER = """
import os, sys, wave
text = sys.stdin.buffer.read().decode()
variables = {name: os.environ.get(name) for name in ("SPEECH_VOICE", "SPEECH_SSML", "SPEECH_WORDS_PER_MINUTE")}
secrets = sorted(n for n in os.environ if n.startswith(("LIPSYNCD_", "CREDENTIALS_", "NOTIFY_", "WATCHDOG_")))
open("received.txt", "w").write(repr((text, variables, secrets, sys.argv[1:])))
out = wave.open(sys.stdout.buffer, "wb")
out.setparams((1, 2, 16000, 0, "NONE", ""))
out.writeframes(b"\\x00\\x20" * 1600 * len(text))
"""


def program(folder: Path, source: str) -> tuple[str, ...]:
    """A command that runs that Python."""
    path = folder / "speaker.py"
    path.write_text(source)
    return sys.executable, str(path)


def received(folder: Path) -> str:
    return (folder / "received.txt").read_text()


def test_it_gets_the_text_on_stdin_and_the_other_inputs_in_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIPSYNCD_API_KEY", "hunter2")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials/lipsyncd")
    target = tmp_path / "out.wav"
    command = (*program(tmp_path, SPEAKER), "--quiet")
    speak_with(command, "Grüße, Anna", target, voice="de; rm -rf", words_per_minute=120, ssml=False)
    with wave.open(str(target)) as spoken:
        assert spoken.getnframes() == 1600 * len("Grüße, Anna")
    variables = {"SPEECH_VOICE": "de; rm -rf", "SPEECH_SSML": "0", "SPEECH_WORDS_PER_MINUTE": "120"}
    assert received(tmp_path) == repr(("Grüße, Anna", variables, [], ["--quiet"]))


def test_ssml_is_announced_in_a_variable_and_still_checked(tmp_path: Path) -> None:
    command = program(tmp_path, SPEAKER)
    speak_with(command, "<speak>hello</speak>", tmp_path / "out.wav", ssml=True)
    assert "'SPEECH_SSML': '1'" in received(tmp_path)
    with pytest.raises(SpeechFailed, match="<audio>"):
        speak_with(command, "<speak>hello <audio src='/etc/passwd'/></speak>", tmp_path / "out.wav", ssml=True)
    with pytest.raises(SpeechFailed, match="characters"):
        speak_with(command, "a" * (MAX_CHARS + 1), tmp_path / "out.wav")


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("import sys; sys.exit('no model\\x1b[31m here')", r"exited with status 1: no model\\x1b\[31m here"),
        ("import os; os.kill(os.getpid(), 11)", "was killed by SIGSEGV"),
        ("print('hello')", "wrote no WAV to its stdout"),
        ("", "wrote no WAV to its stdout"),
        ("import sys; sys.stdin.close()", "wrote no WAV to its stdout"),
    ],
)
def test_a_program_that_fails_fails_the_text_with_its_last_words(tmp_path: Path, source: str, why: str) -> None:
    with pytest.raises(SpeechFailed, match=why):
        speak_with(program(tmp_path, source), "hello", tmp_path / "out.wav")


def test_a_program_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    source = """
import subprocess, time
child = subprocess.Popen(["sleep", "60"])
open("child", "w").write(str(child.pid))
time.sleep(60)
"""
    began = time.monotonic()
    with pytest.raises(SpeechFailed, match="longer than 1 s"):
        speak_with(program(tmp_path, source), "hello", tmp_path / "out.wav", timeout_s=1.0)
    assert time.monotonic() - began < 30
    assert is_gone(int((tmp_path / "child").read_text()))


def test_a_program_whose_text_nobody_wants_any_more_is_ended_at_once(tmp_path: Path) -> None:
    source = "import sys, time\nsys.stdin.buffer.read()\nopen('begun', 'w').close()\ntime.sleep(60)"
    with pytest.raises(SpeakingStopped):
        speak_with(
            program(tmp_path, source),
            "a" * MAX_SPOKEN_CHARS,
            tmp_path / "out.wav",
            unwanted=(tmp_path / "begun").exists,
            timeout_s=50.0,
        )


def test_a_program_that_writes_without_end_is_stopped_at_a_bound(tmp_path: Path) -> None:
    source = "import sys\nwhile True: sys.stdout.buffer.write(bytes(1 << 20))"
    with pytest.raises(SpeechFailed):
        speak_with(program(tmp_path, source), "hello", tmp_path / "out.wav", timeout_s=30.0)
    assert (tmp_path / "out.wav").stat().st_size <= 256 << 20
    os.truncate(tmp_path / "out.wav", 0)


def test_a_program_that_is_not_there_blocks_and_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(SpeechNotInstalled, match=r"does not start: No such file or directory; correct speech\.command"):
        speak_with((str(tmp_path / "none"),), "hello", tmp_path / "out.wav")


def test_a_job_with_text_is_spoken_by_the_configured_program(installation: Installation) -> None:
    installation.changes["speech"] = {"command": list(program(installation.root, SPEAKER))}
    with installation.running():
        put(installation.path("inbox"), "anna.png", picture())
        installation.drop_manifest("anna", image="anna.png", text="twelve chars", voice="unknown")
        job = installation.until_done("anna")
    assert job.duration_ms == 1200
