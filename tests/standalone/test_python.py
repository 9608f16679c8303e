"""`lipsyncd.render`, `frames` and `check`, called as a Python program calls them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import lipsyncd
from lipsyncd.errors import (
    ImageNotRecognised,
    ImageTooSmall,
    NameTaken,
    NoFaceFound,
    RenderCrashed,
    UnknownRenderer,
    UsageError,
)
from lipsyncd.media.ffmpeg import find
from tests.kits.installation import ROOT, Installation, face, picture, sound
from tests.kits.machine.processes import children_of, command_of


@pytest.fixture
def home(installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installation]:
    """Settings for this process, a pair in the working folder, and a check that nothing is left behind."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for name, value in installation.environment(TMPDIR=str(scratch)).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LIPSYNCD_CONFIG", str(installation.config))
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    monkeypatch.chdir(tmp_path)
    Path("ada.png").write_bytes(picture())
    Path("ada.wav").write_bytes(sound(0.5))
    before = renderers()
    yield installation
    assert list(scratch.iterdir()) == []
    assert renderers() == before


def renderers() -> set[int]:
    """The render children of this process."""
    return {pid for pid in children_of() if b"lipsyncd.renderers\0" in command_of(pid)}


def decoded(video: lipsyncd.Video) -> np.ndarray:
    """Its frames (N, height, width, 3)."""
    command = [str(find()), "-v", "error", "-i", str(video.path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    data = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(data, np.uint8).reshape(-1, video.height, video.width, 3)


def test_render_makes_a_video_and_reports_its_progress(home: Installation) -> None:
    seen: list[lipsyncd.Progress] = []
    video = lipsyncd.render("ada.png", "ada.wav", out="a.mp4", fps=12.5, resolution=96, progress=seen.append)
    assert (video.path, video.frames, video.fps, video.width) == (Path("a.mp4"), 7, Fraction(25, 2), 96)
    assert (video.renderer, video.notes["made_by"]) == ("flat", "flat")
    assert video.size_bytes == os.stat(video).st_size
    stages = list(dict.fromkeys(one.stage for one in seen))
    assert stages == ["preparing", "loading", "analysing", "rendering", "encoding", "checking"]
    assert (seen[-1].done, seen[-1].total, seen[-1].fraction) == (7, 7, 1.0)


def test_a_long_render_tells_the_time_that_is_left(home: Installation) -> None:
    Path("ada.wav").write_bytes(sound(0.6))
    seen: list[lipsyncd.Progress] = []
    lipsyncd.render("ada.png", "ada.wav", renderer="slow", progress=seen.append)
    left = [one.eta_s for one in seen if one.eta_s is not None]
    assert left == sorted(left, reverse=True)
    assert 0 <= left[-1] < left[0] < 60


def test_a_video_shows_itself_in_a_notebook(home: Installation) -> None:
    video = lipsyncd.render("ada.png", "ada.wav")
    assert video.path == Path("ada.mp4")
    html = video._repr_html_()
    assert html.startswith('<video controls loop width="64" src="data:video/mp4;base64,')
    assert "ada.mp4, 0.52 s, 64 x 64" in html
    video.path.unlink()
    assert "is gone" in video._repr_html_()


def test_an_existing_file_is_replaced_only_by_force(home: Installation) -> None:
    Path("a.mp4").write_text("mine")
    with pytest.raises(NameTaken, match="force=True"):
        lipsyncd.render("ada.png", "ada.wav", out="a.mp4")
    assert (Path("a.mp4").read_text(), home.renders) == ("mine", 0)
    assert lipsyncd.render("ada.png", "ada.wav", out="a.mp4", force=True).frames == 13


def test_errors_are_classes_with_codes(home: Installation) -> None:
    with pytest.raises(UnknownRenderer, match="did you mean flat"):
        lipsyncd.render("ada.png", "ada.wav", renderer="flatt")
    with pytest.raises(UsageError, match="either"):
        lipsyncd.render("ada.png")
    with pytest.raises(UsageError, match="resolution is 97"):
        lipsyncd.render("ada.png", "ada.wav", resolution=97)
    with pytest.raises(NoFaceFound):
        lipsyncd.render("ada.png", "ada.wav", renderer="preview")
    with pytest.raises(RenderCrashed) as crashed:
        lipsyncd.render("ada.png", "ada.wav", renderer="abort")
    assert "lipsyncd status" not in str(crashed.value)
    assert crashed.value.code == "render-crashed"
    assert not Path("ada.mp4").exists()


def test_options_of_the_renderer_are_a_mapping(home: Installation) -> None:
    Path("ada.png").write_bytes(face())
    with pytest.raises(lipsyncd.errors.BadOption, match="glow"):
        lipsyncd.render("ada.png", "ada.wav", renderer="preview", options={"glow": 1})
    video = lipsyncd.render("ada.png", "ada.wav", renderer="preview", options={"face": 0}, motion="none")
    assert video.renderer == "preview"


def test_frames_are_those_of_the_video_and_come_as_they_are_rendered(home: Installation) -> None:
    frames = list(lipsyncd.frames("ada.png", "ada.wav"))
    assert {(frame.shape, frame.dtype) for frame in frames} == {((64, 64, 3), np.dtype(np.uint8))}
    assert all(frame.flags.writeable for frame in frames)
    shown = decoded(lipsyncd.render("ada.png", "ada.wav"))
    assert len(frames) == len(shown) == 13
    assert np.abs(np.stack(frames).astype(int) - shown).mean() < 3


def test_closing_the_iterator_ends_the_child(home: Installation) -> None:
    Path("ada.wav").write_bytes(sound(30))
    frames = lipsyncd.frames("ada.png", "ada.wav", resolution=256)
    next(frames)
    assert len(renderers()) == 1
    time.sleep(0.5)  # the pipe is full by now: most of the 750 frames wait for their reader
    closed_s = time.monotonic()
    frames.close()
    assert renderers() == set()
    assert time.monotonic() - closed_s < 5


def test_a_dropped_iterator_ends_the_child_too(home: Installation) -> None:
    Path("ada.wav").write_bytes(sound(30))
    for number, _ in enumerate(lipsyncd.frames("ada.png", "ada.wav", renderer="slow")):
        if number == 2:
            break
    assert renderers() == set()


def test_what_ends_a_render_ends_the_iterator(home: Installation) -> None:
    with pytest.raises(RenderCrashed):
        list(lipsyncd.frames("ada.png", "ada.wav", renderer="abort"))
    with pytest.raises(lipsyncd.errors.BadResult, match="instead of 13"):
        list(lipsyncd.frames("ada.png", "ada.wav", renderer="short"))


def test_an_iterator_may_be_begun_in_a_thread_that_ends(home: Installation) -> None:
    frames = lipsyncd.frames("ada.png", "ada.wav", renderer="slow")
    got = SimpleNamespace(first=None)

    def begin() -> None:
        got.first = next(frames)

    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
    time.sleep(0.2)
    assert got.first is not None
    assert len(list(frames)) == 12


def test_a_program_that_ends_in_the_middle_of_an_iteration_leaves_nothing(home: Installation) -> None:
    Path("ada.wav").write_bytes(sound(30))
    program = "import lipsyncd\nframes = lipsyncd.frames('ada.png', 'ada.wav', renderer='slow')\nnext(frames)\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_check_looks_at_a_picture_and_renders_nothing(home: Installation) -> None:
    Path("ada.png").write_bytes(face())
    seen = lipsyncd.check("ada.png")
    assert (seen.width, seen.height, seen.fault, seen.chosen) == (160, 160, None, 0)
    assert len(seen.faces) == 1
    assert 0.2 < seen.faces[0].width / seen.width < 1
    assert any("256" in warning for warning in seen.warnings)
    assert home.renders == 0


def test_check_tells_why_no_face_can_speak_and_refuses_what_is_no_picture(home: Installation) -> None:
    seen = lipsyncd.check("ada.png")
    assert isinstance(seen.fault, NoFaceFound)
    assert (seen.chosen, seen.fault.code) == (None, "no-face")
    with pytest.raises(ImageNotRecognised):
        lipsyncd.check("ada.wav")
    Path("tiny.png").write_bytes(picture(0, 20, 20))
    with pytest.raises(ImageTooSmall):
        lipsyncd.check("tiny.png")


# -- the package itself ------------------------------------------------------------------------------------------------


def test_every_name_of_the_package_has_its_type_and_its_object() -> None:
    stub = (ROOT / "lipsyncd" / "__init__.pyi").read_text()
    typed = {line.rpartition(" as ")[2] for line in stub.splitlines() if " as " in line} | {"__version__"}
    assert typed == set(lipsyncd.__all__)
    assert set(lipsyncd.__all__) <= set(dir(lipsyncd))
    for name in lipsyncd.__all__:
        assert getattr(lipsyncd, name).__doc__, name
    with pytest.raises(AttributeError, match="rendr"):
        lipsyncd.rendr  # type: ignore[attr-defined]  # noqa: B018


def test_an_import_of_the_package_loads_none_of_its_parts() -> None:
    program = "import sys, lipsyncd; print([name for name in sys.modules if name.startswith('lipsyncd.')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_render_loads_nothing_heavy_into_the_program(home: Installation) -> None:
    """Its child does. Half a second of aiohttp is for addresses, and numpy for those who ask for frames."""
    program = "import sys, lipsyncd; lipsyncd.render('ada.png', 'ada.wav'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "lipsyncd" in loaded
    assert (
        loaded & {"aiohttp", "cv2", "librosa", "numba", "numpy", "pydantic", "sqlmodel", "torch", "watchdog"} == set()
    )


def test_a_file_that_vanishes_under_the_render_is_an_error_of_ours(home: Installation) -> None:
    Path("out").mkdir()

    def vanish(now: lipsyncd.Progress) -> None:
        if now.stage == "checking":
            Path("out").rmdir()

    with pytest.raises(lipsyncd.errors.LipsyncdError, match="No such file or directory"):
        lipsyncd.render("ada.png", "ada.wav", out="out/a.mp4", progress=vanish)
