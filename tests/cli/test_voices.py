"""`lipsyncd voices`: the list at 80 columns, what a name means, and voices that try a text."""

from __future__ import annotations

import json
import wave
from collections.abc import Iterator
from pathlib import Path

import pytest

from lipsyncd.cli.voices import table
from lipsyncd.prepare.voices.catalogue import ESPEAK, PIPER, Listed
from tests.kits.installation import Installation
from tests.kits.media.voice_kit import JOE, put_joe, put_voice


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """An installation with Joe, a voice with three speakers, one that is damaged, and names that are hard to print."""
    installation = Installation(tmp_path_factory.mktemp("voices"))
    folder = installation.settings.speech.voices
    put_joe(folder)
    put_voice(folder, "choir")
    put_voice(folder, "damaged", phoneme_id_map={})
    put_voice(folder, "de_DE-a_very_long_name_of_a_voice_that_fills_a_line-medium", language={"code": "de_DE"})
    put_voice(folder, "日本語", b"", language={"code": "ja_JP"})
    yield installation


def test_the_list_has_every_voice_in_80_columns_and_tells_what_is_wrong(filled: Installation) -> None:
    done = filled.cli("voices", COLUMNS="80")
    lines = done.stdout.splitlines()

    assert done.returncode == 0, done.stderr
    assert max(map(len, lines)) <= 80
    assert [lines[0].split(), len(lines) > 130] == [["NAME", "LANGUAGE", "ABOUT"], True]
    rows = {line[:30].strip(): line[32:] for line in lines[1:]}
    assert rows[JOE].split() == ["en_US", "Piper"]
    assert "Piper, 3 speakers: low, middle, high"[:20] in rows["choir"]
    assert "Piper, cannot speak" in rows["damaged"]
    assert "Piper, cannot speak" in rows["日本語"]
    assert "damaged cannot speak: phoneme_id_map in its configuration is 'without ^'" in done.stderr
    assert "日本語.onnx has 0 bytes; it is empty" in done.stderr
    assert rows["en-us"].split()[-2:] == ["espeak-ng,", "male"]
    assert any(name.endswith("…") for name in rows)
    assert f"voices of Piper are looked for in {filled.settings.speech.voices}; the default is en-us" in done.stderr


def test_a_name_a_language_and_another_services_name_are_found(filled: Installation) -> None:
    done = filled.cli("voices", "choir", "DE", "en-US-JennyNeural", "fr-FR-DeniseNeural", "Norwegian Bokmål", "--json")
    found = [(one["name"], one["source"]) for one in json.loads(done.stdout)]

    assert found == [
        ("choir", PIPER),
        ("de_DE-a_very_long_name_of_a_voice_that_fills_a_line-medium", PIPER),
        ("de", ESPEAK),
        (JOE, PIPER),
        ("fr-fr", ESPEAK),
        ("nb", ESPEAK),
    ]
    assert "speakers, each used as choir+SPEAKER: low, middle, high" in filled.cli("voices", "choir").stdout


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("nix",), "no voice is called 'nix'; use a language tag"),
        (("en_US-amy-low",), "there is no voice en_US-amy-low in "),
        (("damaged", "--say", "hello"), "the voice damaged: phoneme_id_map in its configuration"),
        (("nix", "--say", "hello"), "no voice is called 'nix'"),
        (("--say", ""), "the text has no letter"),
        (("--say", "x", "--out", "/nowhere"), "'/nowhere' does not exist"),
    ],
)
def test_what_cannot_speak_is_refused_in_one_line(filled: Installation, arguments: tuple[str, ...], why: str) -> None:
    done = filled.cli("voices", *arguments)

    assert done.returncode in (1, 2)
    assert why in done.stderr
    assert "Traceback" not in done.stderr


def test_voices_try_a_text_into_files_of_their_names_and_replace_none(filled: Installation, tmp_path: Path) -> None:
    done = filled.cli("voices", "en-us+f3", "choir+high", "--say", "Good morning to you.", "--out", tmp_path)

    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        str(tmp_path / "en-us+f3.wav"),
        str(tmp_path / "choir+high.wav"),
    ]
    with wave.open(str(tmp_path / "choir+high.wav")) as sound:
        assert sound.getframerate() == 16_000
    again = filled.cli("voices", "choir+high", "--say", "Good morning.", "--out", tmp_path)
    assert again.returncode == 2
    assert "exists already; move it away, or use --force" in again.stderr
    forced = filled.cli("voices", "choir+high", "--say", "Good morning.", "--out", tmp_path, "--force", "--json")
    assert json.loads(forced.stdout)[0]["voice"] == "choir+high"


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_no_line_is_longer_than_the_terminal(columns: int) -> None:
    long = Listed("n" * 90, "l" * 90, PIPER, speakers=9, speaker_names=("s" * 90,) * 4)

    assert max(map(len, table([long, Listed("de", "German", ESPEAK, "male")], columns))) == columns
