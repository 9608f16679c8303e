"""Speaking with the real library: a text becomes sound, and text from strangers stays text."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipsyncd.errors import SpeechFailed
from lipsyncd.prepare.speech import MAX_SOUND_S, speak, voices
from lipsyncd.prepare.spoken_text import MAX_CHARS, MAX_SPOKEN_CHARS, check_text
from lipsyncd.prepare.voices.names import Voice

SENTENCE = "The quick brown fox jumps over the lazy dog."


@dataclass(frozen=True)
class Heard:
    """A spoken WAV: `samples` (N,) int16 at `rate`."""

    samples: np.ndarray
    rate: int

    @property
    def duration_s(self) -> float:
        return len(self.samples) / self.rate

    @property
    def loudest(self) -> int:
        return int(np.abs(self.samples.astype(int)).max(initial=0))


@pytest.fixture
def say(tmp_path):
    def say(text: str, **options) -> Heard:
        speak(text, tmp_path / "spoken.wav", **options)
        return read(tmp_path / "spoken.wav")

    return say


def read(path: Path) -> Heard:
    with wave.open(str(path), "rb") as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        return Heard(np.frombuffer(file.readframes(file.getnframes()), "<i2"), file.getframerate())


# -- speaking ----------------------------------------------------------------------------------------------------------


def test_a_sentence_becomes_a_voice_of_the_right_length(say):
    heard = say(SENTENCE)

    assert heard.rate == 22_050
    assert 2 < heard.duration_s < 5
    assert heard.loudest > 5_000


@pytest.mark.parametrize("voice", ["en-us", "en-us+f3"])
def test_the_same_text_gives_the_same_samples(say, voice):
    """Also in another second: espeak-ng seeds the breath of a voice like f3 by the clock."""
    first = say(SENTENCE, voice=voice).samples
    second = time.time() // 1
    while time.time() // 1 == second:
        time.sleep(0.02)
    assert np.array_equal(first, say(SENTENCE, voice=voice).samples)


def test_pace_is_words_per_minute(say):
    slow, fast = say(SENTENCE, words_per_minute=90), say(SENTENCE, words_per_minute=270)

    assert 2 < slow.duration_s / fast.duration_s < 4


@pytest.mark.parametrize("voice", ["en-gb", "EN-GB", "English (Great Britain)", "en-us+f3", "de", "Norwegian Bokmål"])
def test_a_voice_is_named_by_language_or_name_with_a_variant(say, voice):
    assert not np.array_equal(say(SENTENCE, voice=voice).samples, say(SENTENCE, voice="en-us").samples)


@pytest.mark.parametrize(
    "voice",
    [
        "no-such-voice",
        "",
        "en-us+",
        "en-us+no-such-variant",
        "../../voices/!v/f1",
        "en-us+../!v/f1",
        "gmw/en",
        "-v",
        "en\0us",
        "x" * 65,
    ],
)
def test_only_voices_of_the_list_are_accepted(say, voice):
    with pytest.raises(SpeechFailed, match="no voice is called"):
        say("hello", voice=voice)


def test_phonemes_in_brackets_are_sounds_and_not_letters(say):
    assert say("[[a:]]").duration_s < say("a colon").duration_s


def test_other_scripts_are_read_by_their_voice(say):
    assert say("日本語", voice="ja").loudest > 3_000
    assert say("Привет", voice="ru").loudest > 3_000


@pytest.mark.parametrize("words_per_minute", [79, 451, 0, -1])
def test_a_pace_that_the_library_cannot_do_is_refused(say, words_per_minute):
    with pytest.raises(SpeechFailed, match="words per minute"):
        say("hello", words_per_minute=words_per_minute)


def test_a_long_text_stops_a_little_over_the_longest_job(say):
    heard = say("word " * (MAX_SPOKEN_CHARS // 5), words_per_minute=80)

    assert MAX_SOUND_S <= heard.duration_s < MAX_SOUND_S + 2


def test_a_text_that_takes_too_long_is_abandoned(say):
    with pytest.raises(SpeechFailed, match="longer than 0"):
        say("word " * 2000, words_per_minute=80, timeout_s=0.2)


# -- SSML --------------------------------------------------------------------------------------------------------------


def test_ssml_shapes_the_speech(say):
    plain = say("one two")
    paused = say('<speak>one <break time="2s"/> two</speak>', ssml=True)

    assert paused.duration_s > plain.duration_s + 1.5


def test_tags_are_read_out_where_the_text_is_not_ssml(say):
    text = "<speak>one</speak>"

    assert say(text).duration_s > say(text, ssml=True).duration_s + 0.3


@pytest.mark.parametrize(
    "text",
    [
        "<speak>it&#39;s &amp; it is &lt;fine&gt; &#x2019;</speak>",
        '<speak><prosody rate="slow" pitch="+10%">hi</prosody><p><s>a</s></p></speak>',
        "no tags at all",
        '<speak version="1.1" xmlns="http://www.w3.org/2001/10/synthesis" xml:lang="en-US">hi<break/></speak>',
        '<emphasis level="strong">hi</emphasis> <say-as interpret-as="characters">abc</say-as>',
        "<speak xmlns:mstts='urn:mstts'><mstts:express-as style='sad'>hello</mstts:express-as></speak>",
        "hello <mstts:silence type='Sentenceboundary' value='200ms'/> there",
        "<mstts:backgroundaudio src='https://example.org/x.mp3' volume='0.7'/>hello",
        "<mst<mstts:x/>ts:express-as style='sad'>hello</mstts:express-as>",
    ],
)
def test_harmless_ssml_is_spoken(say, text):
    assert say(text, ssml=True).loudest > 3_000


@pytest.mark.parametrize(
    "text",
    [
        '<speak><audio src="/etc/passwd"/>hello</speak>',
        "<AUDIO src='x'>hello</AUDIO>",
        "<audio\nsrc='x'/>hello",
        "</audio>hello",
        "< audio src='x'/>hello",
        "<mstts:x <audio src='/etc/passwd'/>hello",
        "<<mstts:x/>audio src='/etc/passwd'/>hello",
        "<mst<mstts:x/>ts:x <audio src='/etc/passwd'/>>hello",
        "<mstts:backgroundaudio src='<audio src=x/>'/>hello",
        "<!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><speak>&e;</speak>",
        "<?xml version='1.0'?><speak>hello</speak>",
        "<speak>hello<",
        "hello <speak",
        "a < b",
        "hello &#1;12I",
        "hello &#x1;12I",
        "hello &#0000000001;",
        "hello &# 1;",
        "hello &#-1;",
    ],
)
def test_ssml_that_could_open_a_file_or_command_the_library_is_refused(tmp_path, text):
    with pytest.raises(SpeechFailed, match="the SSML holds"):
        speak(text, tmp_path / "spoken.wav", ssml=True)
    assert not (tmp_path / "spoken.wav").exists()


# -- limits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ssml", "reason"),
    [
        ("", False, "no letter"),
        (" \n\t", False, "no letter"),
        ("?!… --", False, "no letter"),
        ("<speak><break time='1s'/></speak>", True, "no letter"),
        ("a" * (MAX_SPOKEN_CHARS + 1), False, "characters to speak"),
        ("a" * (MAX_SPOKEN_CHARS + 1), True, "characters to speak"),
        ("<break/>" * 5001 + "a", True, f"{MAX_CHARS} are allowed"),
        ("\x01120Ihello", False, "control"),
        ("hello\x00", False, "control"),
        ("hello\x1b[2J", False, "control"),
        ("hello \ud800", False, "surrogate"),
    ],
)
def test_a_text_that_cannot_be_spoken_is_refused_with_its_reason(text, ssml, reason):
    with pytest.raises(SpeechFailed, match=reason):
        check_text(text, ssml=ssml)


def test_tags_do_not_count_as_spoken():
    check_text("<break/>" * 4000 + "a" * 8000, ssml=True)


@given(st.text(max_size=200), st.booleans())
def test_any_text_is_either_accepted_or_refused(text, ssml):
    try:
        check_text(text, ssml=ssml)
    except SpeechFailed:
        return
    assert any(char.isalnum() for char in text)


# -- voices ------------------------------------------------------------------------------------------------------------


def test_every_voice_of_the_list_has_a_name_and_a_language():
    listed = voices()

    assert len(listed) > 100
    assert all(voice.name and voice.language for voice in listed)
    assert Voice("English (America)", "en-us", "male") in listed
    assert not any("mbrola" in voice.name for voice in listed)


# -- the child ---------------------------------------------------------------------------------------------------------


def child(*options: str, text: bytes = b"hello", **settings) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "lipsyncd.prepare.espeak_child", *options], input=text, capture_output=True, **settings
    )


def test_the_child_is_a_program_of_its_own(tmp_path):
    assert child("--out", str(tmp_path / "a.wav"), "--voice", "de", "--wpm", "100").returncode == 0
    assert read(tmp_path / "a.wav").loudest > 3_000
    assert {"name", "language", "gender"} == set(json.loads(child("--voices").stdout)[0])


def test_the_child_checks_its_text_itself(tmp_path):
    done = child("--out", str(tmp_path / "a.wav"), "--ssml", text=b"<audio src='/etc/passwd'/>x")

    assert (done.returncode, done.stdout) == (65, b"")
    assert b"<audio>" in done.stderr


def test_text_that_is_not_utf8_is_a_clean_failure(tmp_path):
    done = child("--out", str(tmp_path / "a.wav"), text=b"\xff\xfe")

    assert done.returncode == 65
    assert b"Traceback" not in done.stderr


def test_a_missing_folder_is_a_clean_failure(tmp_path):
    done = child("--out", str(tmp_path / "nowhere" / "a.wav"))

    assert done.returncode == 65
    assert b"No such file" in done.stderr


def test_without_the_package_jobs_wait_and_do_not_fail(tmp_path):
    """A Python that sees this package and nothing else that is installed."""
    script = (
        "import pathlib\n"
        "from lipsyncd.errors import SpeechNotInstalled\n"
        "from lipsyncd.prepare.speech import speak\n"
        "try:\n"
        "    speak('hello', pathlib.Path('spoken.wav'))\n"
        "except SpeechNotInstalled as error:\n"
        "    print(error.code, error.remedy)\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-S", "-c", script], env={"PYTHONPATH": root}, cwd=tmp_path, capture_output=True, text=True
    )

    assert done.stdout.startswith("speech-not-installed install it: ")
