"""What jailed programs may write: the files that were made for them, and no folder, since ours would lie in it too."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lipsyncd.media import Kind
from lipsyncd.media.ffmpeg import Encoding
from lipsyncd.prepare import decode_video, speech
from lipsyncd.prepare.decode_picture import decode_picture
from lipsyncd.prepare.decode_sound import decode_sound
from lipsyncd.renderers.encoder import Encoder
from lipsyncd.sandbox import jail
from tests.kits.installation import picture, sound
from tests.kits.media.footage_kit import H264, film
from tests.kits.media.media_kit import ffmpeg


@pytest.fixture
def writable(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What each jailed program may write, as the launcher gets it. The programs really run."""
    found: list[Path] = []

    class Watched(jail.JailedProcess):
        def __init__(self, command: list[str], **options: Any) -> None:
            found.extend(Path(path) for path in json.loads(command[-1])["writable"])
            super().__init__(command, **options)

    monkeypatch.setattr(jail, "JailedProcess", Watched)
    return found


def test_no_jailed_program_may_write_into_a_folder(tmp_path: Path, writable: list[Path]) -> None:
    job = tmp_path / "job"
    job.mkdir()
    for name, content in (("image", picture()), ("audio", sound()), ("film", film(".mp4", 15, *H264))):
        (job / name).write_bytes(content)
    (job / "job.json").write_text("{}")

    speech.speak("hello", job / "spoken")
    heard = decode_sound(job / "audio", Kind.WAV, job, ffmpeg=ffmpeg())
    decode_picture(job / "image", job, background=(0, 0, 0))
    decode_video.screen(job / "film", Kind.MP4, job, ffmpeg=ffmpeg(), fps=Fraction(25), frames=5)
    with Encoder(ffmpeg(), Encoding(64, 64, Fraction(25), job / heard.file, channels=1), job / "out.mp4") as encoder:
        encoder.write(np.zeros((64, 64, 3), np.uint8))
        encoder.finish()

    names = {path.name for path in writable}
    assert names == {"spoken", "speech.s16", "sound.s16", "picture.rgb", "frames.txt", "out.mp4", "null"}
    assert [path for path in writable if path.is_dir()] == []
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in writable if path.exists() and path.parent == job)


@pytest.mark.parametrize("speaks", [True, False], ids=["spoken", "not spoken"])
def test_a_text_leaves_a_file_only_when_it_was_spoken(tmp_path: Path, speaks: bool) -> None:
    voice = "en-us" if speaks else "no-such-voice"
    if speaks:
        speech.speak("hello", tmp_path / "spoken", voice=voice)
    else:
        with pytest.raises(speech.SpeechFailed):
            speech.speak("hello", tmp_path / "spoken", voice=voice)
    assert (tmp_path / "spoken").exists() is speaks


def test_a_report_with_any_content_is_judged_and_raises_nothing_else(tmp_path: Path) -> None:
    report = tmp_path / "frames.txt"
    report.write_bytes(b"#dimensions 0: " + b"9" * 5000 + b"x" + b"9" * 5000 + b"\n\xff\xfe" + b"\n0" * 100_000)
    text = decode_video._text(report, 5)
    assert len(text) < 10_000
    assert decode_video.video_frames.read_report(text)[:2] == (0, 0)


def test_espeak_ng_has_given_up_files_in_memory_and_programs_before_it_gets_the_text(tmp_path: Path) -> None:
    """Without the jail its own filter is the only one. It is there although no text has come yet."""
    command = [sys.executable, "-m", "lipsyncd.prepare.espeak_child", f"--out={tmp_path / 'a.wav'}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        deadline = time.monotonic() + 30
        while "\nSeccomp:\t2\n" not in Path(f"/proc/{child.pid}/status").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        child.stdin.write(b"hello")
        child.stdin.close()
        assert child.wait(20) == 0
    assert (tmp_path / "a.wav").stat().st_size > 1000
