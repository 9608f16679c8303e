"""Which ffmpeg is used, and which encodings are refused."""

from __future__ import annotations

from fractions import Fraction

import pytest

from lipsyncd.errors import ConfigError
from lipsyncd.media import ffmpeg
from tests.kits.media.video_kit import FFMPEG


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_the_one_on_path_is_used_before_the_one_in_the_wheel(tmp_path, monkeypatch):
    found = script(tmp_path / "ffmpeg", f'exec "{FFMPEG}" "$@"')
    monkeypatch.setenv("PATH", str(tmp_path))

    assert ffmpeg.find() == found
    assert ffmpeg.version(found) == ffmpeg.version(FFMPEG)


def test_one_on_path_without_h264_is_passed_over_with_a_warning(tmp_path, monkeypatch, caplog):
    script(tmp_path / "ffmpeg", "echo ' V....D libvpx  VP8'; echo ' A....D aac  AAC'")
    monkeypatch.setenv("PATH", str(tmp_path))

    found = ffmpeg.find()

    assert found.parent != tmp_path
    assert "has no encoder libx264" in caplog.text


@pytest.mark.parametrize("setting", ["nowhere/ffmpeg", "no-such-program", "/etc/hostname", "/bin/false", "/bin/echo"])
def test_a_setting_that_does_not_work_is_never_overruled(setting):
    with pytest.raises(ConfigError, match=setting):
        ffmpeg.find(setting)


def test_a_setting_with_another_program_behind_it_has_no_version(tmp_path):
    with pytest.raises(ConfigError, match="is not ffmpeg"):
        ffmpeg.version(script(tmp_path / "ffmpeg", "echo mplayer 1.5"))


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 255},
        {"height": 0},
        {"channels": 3},
        {"channels": 0},
        {"fps": Fraction(0)},
        {"fps": Fraction(1, 2_000_000)},
    ],
)
def test_an_encoding_that_ffmpeg_would_bend_is_refused(tmp_path, changes):
    plain = {"width": 256, "height": 256, "fps": Fraction(25), "sound": tmp_path / "s", "channels": 1}
    with pytest.raises(ValueError):
        ffmpeg.Encoding(**plain | changes)
