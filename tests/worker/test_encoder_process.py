"""The jailed ffmpeg that encodes: x264 works, and the encoder of a GPU is refused where it does not."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

import pytest

from lipsyncd.errors import ConfigError
from lipsyncd.media.ffmpeg import Encoding, encode_arguments, encoder_threads
from lipsyncd.monitor import gpu
from lipsyncd.worker.encoder_process import encode_one_frame, require_encoder
from tests.kits.installation import Installation
from tests.kits.media.video_kit import FFMPEG


def test_one_frame_is_encoded_in_the_jail() -> None:
    encode_one_frame(FFMPEG)
    require_encoder(FFMPEG, "x264")


@pytest.mark.skipif(gpu.find("auto") is not None, reason="there is a GPU, which may have an encoder")
def test_a_daemon_does_not_start_with_an_encoder_that_does_not_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"output.encoder is 'nvenc', but .* made no MP4") as refused:
        require_encoder(FFMPEG, "nvenc")
    assert 'output.encoder = "x264"' in (refused.value.remedy or "")

    done = Installation(tmp_path, {"output": {"encoder": "nvenc"}}).cli("run")

    assert done.returncode == 78
    assert "output.encoder is 'nvenc'" in done.stderr


def test_each_encoder_gets_its_own_measure_of_quality(tmp_path: Path) -> None:
    plain = {"width": 64, "height": 64, "fps": Fraction(25), "sound": tmp_path / "sound", "channels": 1, "crf": 20}

    def options(**changes: object) -> dict[str, str]:
        command = encode_arguments(FFMPEG, Encoding(**plain | changes), tmp_path / "out.mp4")
        return dict(itertools.pairwise(command))

    x264, nvenc = options(threads=5), options(encoder="nvenc")
    assert (x264["-c:v"], x264["-crf"], x264["-threads"]) == ("libx264", "20", "5")
    assert (nvenc["-c:v"], nvenc["-cq"], nvenc["-b:v"]) == ("h264_nvenc", "20", "0")
    assert not {"-crf", "-threads"} & set(nvenc)


def test_the_threads_follow_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    for cores in (1, 2, 6, 64):
        monkeypatch.setattr("lipsyncd.media.ffmpeg.usable_cores", lambda cores=cores: cores)
        counted.append(encoder_threads())
    assert counted == [2, 2, 6, 8]
