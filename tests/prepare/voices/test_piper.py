"""Voices of Piper really speak in the jail: Joe, and small models that hum."""

from __future__ import annotations

import hashlib
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lipsyncd.errors import SpeechFailed, VoiceUnusable
from lipsyncd.prepare.speech import MAX_SOUND_S, Spoken, find, identity, speak
from lipsyncd.prepare.voices.piper import PiperVoice, describe
from lipsyncd.prepare.voices.process import SpeakingStopped
from tests.kits.media.voice_kit import JOE, PER_SYMBOL, RATE, SPEAKERS, put_joe, put_voice

SENTENCE = "The quick brown fox jumps over the lazy dog."


@dataclass(frozen=True)
class Heard:
    """A spoken WAV, and what was told about it: `samples` (N,) float at `rate`, -1 to 1."""

    samples: np.ndarray
    rate: int
    told: Spoken

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate

    def tone_hz(self) -> float:
        """The loudest frequency."""
        spectrum = np.abs(np.fft.rfft(self.samples))
        return float(np.argmax(spectrum) * self.rate / len(self.samples))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Joe, and a voice with three speakers."""
    folder = tmp_path_factory.mktemp("voices")
    put_joe(folder)
    put_voice(folder, "choir")
    put_voice(folder, "letters", phoneme_type="text")
    put_voice(folder, "slow", phoneme_type="text", inference={"length_scale": 3})
    return folder


@pytest.fixture
def say(tmp_path: Path, folder: Path) -> Any:
    def say(text: str, voice: str = "choir", **options: Any) -> Heard:
        told = speak(text, tmp_path / "spoken.wav", voice=voice, folder=folder, **options)
        with wave.open(str(tmp_path / "spoken.wav")) as file:
            assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
            return Heard(samples, file.getframerate(), told)

    return say


# -- speaking ----------------------------------------------------------------------------------------------------------


def test_joe_speaks_a_sentence_and_twice_the_same_samples(say: Any) -> None:
    first, second = say(SENTENCE, JOE), say(SENTENCE, JOE)

    assert first.rate == 22_050
    assert 2 < first.seconds < 4
    assert np.abs(first.samples).max() == pytest.approx(0.9, abs=0.01)
    assert np.array_equal(first.samples, second.samples)
    assert first.told.voice == JOE
    assert first.told.notes == ()


@pytest.mark.parametrize(("speaker", "tone"), [("", "low"), ("+0", "low"), ("+1", "middle"), ("+high", "high")])
def test_a_speaker_is_chosen_by_number_or_name(say: Any, speaker: str, tone: str) -> None:
    assert say("hello hello hello", f"choir{speaker}").tone_hz() == pytest.approx(SPEAKERS[tone], abs=3)


@pytest.mark.parametrize("speaker", ["3", "-1", "nobody", "1.0", "9" * 30, "²"])
def test_a_speaker_that_is_not_there_is_refused_with_those_that_are(say: Any, speaker: str) -> None:
    with pytest.raises(SpeechFailed, match=r"has no speaker .*0 to 2, by name low, middle, high"):
        say("hello", f"choir+{speaker}")


def test_the_pace_is_words_per_minute_and_165_is_as_the_voice_was_trained(say: Any) -> None:
    plain, slow, fast = (say("hello", words_per_minute=wpm) for wpm in (165, 110, 330))

    assert slow.seconds / plain.seconds == pytest.approx(1.5, abs=0.01)
    assert fast.seconds / plain.seconds == pytest.approx(0.5, abs=0.01)


def test_a_voice_that_reads_letters_speaks_without_phonemes(say: Any) -> None:
    heard = say("abcde", "letters")

    # start, five letters with a pad before each, a pad, end
    assert len(heard.samples) == (1 + 5 * 2 + 2) * PER_SYMBOL


def test_sentences_are_parted_by_a_fifth_of_a_second(say: Any) -> None:
    heard = say("Aaa. Aaa.", "letters")
    one = say("Aaa.", "letters")

    assert heard.seconds == pytest.approx(2 * one.seconds + 0.2, abs=0.001)
    middle = heard.samples[len(one.samples) : len(one.samples) + round(0.2 * RATE)]
    assert not middle.any()


def test_symbols_that_the_voice_does_not_know_are_noted(say: Any) -> None:
    assert say("abc", "letters").told.notes == ()
    assert say("aß日", "letters").told.notes == ("the voice letters has no sound for 日",)  # ß becomes ss
    with pytest.raises(SpeechFailed, match="made no sound; choose a voice of the text's language"):
        say("日本", "letters")


def test_a_text_that_would_last_too_long_is_cut_a_little_later(say: Any) -> None:
    heard = say("ab, " * 2400, "slow", words_per_minute=80)

    assert MAX_SOUND_S < heard.seconds < MAX_SOUND_S + 65  # one run of the voice


def test_ssml_makes_pauses_and_replaces_words(say: Any) -> None:
    plain = say("<speak>ab cd</speak>", "letters", ssml=True)
    paused = say('<speak>ab <break time="1500ms"/>cd</speak>', "letters", ssml=True)
    aliased = say('<speak><sub alias="abcdefgh">x</sub></speak>', "letters", ssml=True)

    assert 1.4 < paused.seconds - plain.seconds < 1.8
    assert len(aliased.samples) == (1 + 8 * 2 + 2) * PER_SYMBOL
    endless = say('ab<break time="600s"/>' * 1500, "letters", ssml=True)
    assert endless.seconds < MAX_SOUND_S + 31  # each pause is 30 s at most, and the whole is cut


def test_ssml_with_tags_that_open_files_is_refused(say: Any) -> None:
    with pytest.raises(SpeechFailed, match="the SSML holds <audio>"):
        say("<speak><audio src='/etc/passwd'/>hello</speak>", "letters", ssml=True)


# -- which voice -------------------------------------------------------------------------------------------------------


def test_a_name_of_another_service_gets_the_voice_of_its_language_and_a_note(say: Any) -> None:
    heard = say("hello", "en-US-JennyNeural")
    german = say("hallo", "de-DE-KatjaNeural")

    assert heard.told == Spoken(JOE, heard.told.identity, (f"the voice en-US-JennyNeural is not here: {JOE} spoke",))
    assert german.told.voice == "de"  # espeak-ng's
    assert german.told.notes == ("the voice de-DE-KatjaNeural is not here: de spoke",)


def test_tags_of_espeak_stay_espeaks(say: Any) -> None:
    told = say("hello", "en-us").told

    assert (told.voice, told.notes) == ("en-us", ())


@pytest.mark.parametrize("name", ["en_US-amy-medium", "de_DE-thorsten-high", "en_US-joe-low", f"{JOE}.onnx"])
def test_a_voice_of_piper_that_is_missing_fails_and_nothing_else_speaks(say: Any, name: str) -> None:
    with pytest.raises(SpeechFailed if name.endswith(".onnx") else VoiceUnusable, match="no voice"):
        say("hello", name)


@pytest.mark.parametrize("missing", [".onnx", ".onnx.json"])
def test_half_a_voice_names_the_file_that_is_missing(tmp_path: Path, missing: str) -> None:
    put_voice(tmp_path, "half")
    (tmp_path / f"half{missing}").unlink()

    with pytest.raises(VoiceUnusable, match=rf"not whole: .*half{missing} is missing; put half{missing} there"):
        find("half", tmp_path)


@pytest.mark.parametrize("name", ["../voices/choir", "/etc/passwd", ".hidden", "", "choir/..", "choir\0"])
def test_a_name_is_no_path(folder: Path, name: str) -> None:
    try:
        assert find(name, folder) is None
    except SpeechFailed as error:
        assert "no voice is called" in error.message


def test_what_makes_two_texts_equal_is_the_content_of_the_voice(tmp_path: Path) -> None:
    put_voice(tmp_path, "choir")
    before = identity("choir", 165, tmp_path)

    assert identity("choir", 165, tmp_path) == before
    assert hashlib.sha256((tmp_path / "choir.onnx").read_bytes()).hexdigest() in before
    assert identity("choir", 170, tmp_path) != before
    assert identity("choir+1", 165, tmp_path) != before
    assert identity("en-us", 165, tmp_path) != identity("de", 165, tmp_path)
    put_voice(tmp_path, "choir", inference={"noise_scale": 0.1, "length_scale": 1, "noise_w": 0.8})
    assert identity("choir", 165, tmp_path) != before


def test_the_list_tells_what_the_configurations_say(folder: Path, tmp_path: Path) -> None:
    joe, choir = describe([JOE, "choir"], folder, speakers=10)

    assert joe == PiperVoice(JOE, "en_US", 1, (), 22_050)
    assert choir == PiperVoice("choir", "en_US", 3, tuple(SPEAKERS), RATE)
    put_voice(tmp_path, "wrong", phoneme_id_map={})
    (tmp_path / "none.onnx.json").symlink_to(tmp_path / "nowhere")
    wrong, none = describe(["wrong", "none"], tmp_path)
    assert "phoneme_id_map in its configuration is 'without ^'" in wrong.fault
    assert none.fault


# -- no longer wanted --------------------------------------------------------------------------------------------------


def test_a_text_that_nobody_wants_any_more_ends_between_sentences(tmp_path: Path, folder: Path) -> None:
    target, sizes = tmp_path / "spoken.wav", [0]

    def long_enough() -> bool:
        sizes.append(target.stat().st_size)
        return sizes[-1] > 100_000

    with pytest.raises(SpeakingStopped):
        speak(
            "This sentence is one of many. " * 300,
            target,
            voice=JOE,
            folder=folder,
            unwanted=long_enough,
        )

    assert not target.exists()
    assert sizes[-1] < 2_000_000  # all of it has 26 MB
