"""How a text becomes sentences of phonemes, what SSML does, and which configurations are voices."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipsyncd.errors import SpeechFailed, VoiceUnusable
from lipsyncd.prepare.voices.espeak import Clause, Library
from lipsyncd.renderers.piper.config import read_config
from lipsyncd.renderers.piper.sentences import MOST_SYMBOLS, Sentence, from_clauses, from_text
from lipsyncd.renderers.piper.ssml import parts
from tests.kits.media.voice_kit import CONFIG, SPEAKERS

# -- sentences ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def library() -> Library:
    return Library()


def read(library: Library, text: str, voice: str = "en-us") -> list[str]:
    library.choose(voice)
    return [sentence.symbols for sentence in from_clauses(library.phonemes(text))]


def test_punctuation_stays_and_ends_sentences(library: Library) -> None:
    assert read(library, "Hello, world! How are you? It costs 3.14; that is all: really.") == [
        "həlˈoʊ, wˈɜːld!",
        "hˈaʊ ɑːɹ juː?",
        "ɪt kˈɔsts θɹˈiː pɔɪnt wˈʌn fˈɔːɹ; ðæt ɪz ˈɔːl: ɹˈiəli.",
    ]


def test_a_title_or_an_initial_ends_no_sentence(library: Library) -> None:
    assert len(read(library, "Dr. Smith met J. R. R. Tolkien, e.g. in Oxford. He left.")) == 2


def test_a_paragraph_ends_a_sentence_without_a_dot(library: Library) -> None:
    assert read(library, "Good morning\n\nDear friends\nof music") == ["ɡˈʊd mˈɔːɹnɪŋ.", "dˈɪɹ fɹˈɛndz ʌv mjˈuːzɪk"]


def test_quotes_hide_no_end(library: Library) -> None:
    assert read(library, '"Yes." (No!) He went.')[:2] == ["jˈɛs.", "nˈoʊ!"]


def test_marks_of_another_language_are_no_sound(library: Library) -> None:
    [sentence] = read(library, "Das ist ein Computer.", "de")

    assert "(" not in sentence


def test_letters_with_accents_are_taken_apart_as_pipers_maps_have_them(library: Library) -> None:
    [sentence] = read(library, "Ich.", "de")

    assert "c\u0327" in sentence


def test_every_script_is_read_to_its_end(library: Library) -> None:
    library.choose("cmn")
    sentences = list(from_clauses(library.phonemes("你好。今天天气很好！")))

    assert [s.ends for s in sentences] == [True, True]
    assert sentences[-1].read == 1.0


def test_a_sentence_without_end_is_cut_between_words(library: Library) -> None:
    library.choose("en-us")
    cut = list(from_clauses(library.phonemes("word " * 1000)))

    assert all(len(sentence.symbols) <= MOST_SYMBOLS for sentence in cut)
    assert "".join(sentence.symbols for sentence in cut).replace(" ", "") == "wˈɜːd" * 1000
    assert [sentence.ends for sentence in cut[:-1]] == [False] * (len(cut) - 1)


@given(st.lists(st.tuples(st.text(alphabet="ab ,", max_size=900), st.sampled_from([". ", ", ", " ", "\n\n"]))))
def test_no_sentence_is_longer_than_one_run_may_be_and_no_sound_is_lost(given_clauses: list[tuple[str, str]]) -> None:
    clauses = [Clause(phonemes, phonemes + mark, 0.5) for phonemes, mark in given_clauses]
    made = list(from_clauses(clauses, 100))

    assert all(0 < len(sentence.symbols) <= 100 + 2 for sentence in made)
    sounds = "".join(sentence.symbols for sentence in made)
    assert sum(map(sounds.count, "ab")) == sum(c.phonemes.count("a") + c.phonemes.count("b") for c in clauses)


def test_a_text_of_letters_is_cut_at_the_same_places() -> None:
    assert [s.symbols for s in from_text("Hello, World! Wie geht es?  Gut.\n\nEnde")] == [
        "hello, world!",
        "wie geht es?",
        "gut.",
        "ende",
    ]
    assert list(from_text("  \n ")) == []
    assert max(len(s.symbols) for s in from_text("x" * 5000)) == MOST_SYMBOLS
    assert [s.symbols for s in from_text("你好。今天！")] == ["你好。", "今天！"]
    assert list(from_text("One.")) == [Sentence("one.", True, 1.0)]


# -- SSML --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no tags &amp; none", ["no tags & none"]),
        ("<speak>one<break time='2s'/>two</speak>", ["one", 2.0, "two"]),
        ("one<break time='250ms'/><break/><break strength='strong'/>", ["one", 0.25, 0.5, 1.0]),
        ("<break time='900s'/>", [30.0]),
        ("<break time='soon' strength='odd'/>", [0.5]),
        ("<p>One</p><p><s>two</s><s>three</s></p>", ["One", "two", "three"]),
        ("a <sub alias='World Wide Web'>WWW</sub> b", ["a  World Wide Web  b"]),
        ("a <sub alias='x'/>b", ["a  x b"]),
        ("<prosody rate='slow'>a</prosody> <emphasis>b</emphasis>", ["a b"]),
        ("&lt;p&gt;", ["<p>"]),
        ("", []),
    ],
)
def test_ssml_becomes_texts_and_pauses(text: str, expected: list[str | float]) -> None:
    assert list(parts(text)) == expected


@given(st.text(alphabet="<>/=psubreak alis'\"0123456789m&;", max_size=80))
def test_any_markup_becomes_texts_and_short_pauses(text: str) -> None:
    assert all(isinstance(part, str) or 0 <= part <= 30 for part in parts(text))


# -- configurations ----------------------------------------------------------------------------------------------------


def config(**changes: Any) -> bytes:
    return json.dumps({**CONFIG, **changes}).encode()


def test_a_configuration_says_how_the_voice_is_used() -> None:
    read = read_config(config())

    assert (read.rate, read.espeak_voice, read.speakers, read.language) == (16_000, "en-us", 3, "en_US")
    assert (read.noise, read.length, read.noise_width) == (0.5, 1, 0.8)
    assert [read.speaker(name) for name in ("", *SPEAKERS, "2")] == [0, 0, 1, 2, 2]
    assert read_config(config(speaker_id_map=None, num_speakers=1)).names == {}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"\xff\xfe\x00", "no JSON"),
        (b"[]", "no JSON object"),
        (config(audio=[]), "audio"),
        (config(audio={}), "audio.sample_rate"),
        (config(audio={"sample_rate": 10**12}), "8000 to 48000"),
        (config(audio={"sample_rate": True}), "audio.sample_rate"),
        (config(inference={"noise_scale": float("nan")}), "inference.noise_scale"),
        (config(inference={"length_scale": 0}), "inference.length_scale"),
        (config(inference={"noise_w": "1"}), "inference.noise_w"),
        (config(phoneme_type="pinyin"), "espeak or text"),
        (config(espeak={"voice": "x" * 41}), "espeak.voice"),
        (config(phoneme_id_map=[]), "phoneme_id_map"),
        (config(phoneme_id_map={"_": [0], "^": [1]}), r"without \$"),
        (config(phoneme_id_map={**CONFIG["phoneme_id_map"], "a": []}), "'a'"),
        (config(phoneme_id_map={**CONFIG["phoneme_id_map"], "a": [-1]}), "'a'"),
        (config(phoneme_id_map={**CONFIG["phoneme_id_map"], "a": "1"}), "'a'"),
        (config(phoneme_id_map={str(number): [1] for number in range(10_001)}), "10000 symbols"),
        (config(num_speakers=0), "num_speakers"),
        (config(speaker_id_map={"x": 3}), "0 to 2"),
        (config(speaker_id_map={"x": "0"}), "speaker_id_map"),
        (config(language={"code": "\x1b[2J"}), "language.code"),
    ],
)
def test_a_wrong_configuration_is_refused_with_the_field(data: bytes, why: str) -> None:
    with pytest.raises(VoiceUnusable, match=why):
        read_config(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*CONFIG, "sample_rate", "_", "^", "$"]), inner),
    max_leaves=20,
)


@given(JSON)
def test_any_json_is_a_voice_or_none(value: Any) -> None:
    try:
        read_config(json.dumps(value).encode())
    except VoiceUnusable as error:
        assert error.message.startswith(("its configuration", *CONFIG, "audio.", "phoneme", "language."))


def test_a_speaker_is_refused_with_those_that_are_there() -> None:
    alone = read_config(config(num_speakers=1, speaker_id_map={}))

    assert alone.speaker("0") == 0
    with pytest.raises(SpeechFailed, match="no speaker '1'; its speakers are none to choose from"):
        alone.speaker("1")
