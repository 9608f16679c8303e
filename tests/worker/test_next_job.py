"""A hint at the next job makes it begin sooner, and changes no video: not if it comes, nor if another one comes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lipsyncd.jobs.prepared import Picture, Sound
from lipsyncd.media.ffmpeg import find
from lipsyncd.worker.child_process import LocalChild, RenderCancelled, Timeouts
from lipsyncd.worker.protocol import Next, Render, from_line, to_line
from tests.kits.media.portraits import picture
from tests.kits.media.preview_kit import voice

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalChild]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TEST_OPENS", str(tmp_path / "opens"))
    timeouts = Timeouts(60.0, 60.0, 60.0)
    renderers = ["counted=tests.kits.media.counted_preview:CountedPreview"]
    one = LocalChild("cpu", lambda: timeouts, renderers=renderers, environment=["TEST_OPENS"])
    yield one
    one.close()


def request(folder: Path, frames: int) -> Render:
    folder.mkdir()
    pixels = picture("ada")
    pixels.tofile(folder / "picture.rgb")
    speech = np.resize(voice("How do you do?"), frames * 640)
    speech.tofile(folder / "speech.s16")
    np.repeat(speech, 3).tofile(folder / "sound.s16")
    return Render(
        job_id=folder.name,
        renderer="counted",
        folder=str(folder),
        out_file="out.mp4",
        picture=Picture("picture.rgb", pixels.shape[1], pixels.shape[0]),
        sound=Sound("speech.s16", len(speech), "sound.s16", 3 * len(speech), 48_000, 1),
        fps="25",
        frames=frames,
        stitch=True,
        resolution=64,
        motion="none",
        encode={"ffmpeg": str(find()), "crf": 30, "preset": "ultrafast", "audio_kbps": 64},
    )


def rendered(child: LocalChild, order: Render, hint: Render | None = None) -> str:
    """The digest of the video; a job of the hint that can be opened is open before all frames are drawn."""
    target, awaited = Path(order.folder) / order.out_file, Path(order.folder).parent / "opens.awaited"
    target.unlink(missing_ok=True)
    upcoming = None if hint is None else Next(**{**vars(hint), "out_file": ".not-yet.mp4"})
    if hint is not None and Path(hint.folder, hint.picture.file).exists():
        awaited.write_text(f"open {hint.frames}")
    child.render(order, progress=lambda _: None, stop=lambda: False, upcoming=lambda: upcoming)
    awaited.unlink(missing_ok=True)
    return hashlib.sha256(target.read_bytes()).hexdigest()


def noted(tmp_path: Path) -> list[str]:
    """What was noted since the last call, without times."""
    file = tmp_path / "opens"
    lines = [line.rpartition(" ")[0] for line in file.read_text().splitlines()]
    file.unlink()
    return lines


def test_the_next_job_is_opened_and_begun_early_and_has_the_same_bytes(child: LocalChild, tmp_path: Path) -> None:
    long, short, other = (request(tmp_path / name, frames) for name, frames in (("a", 60), ("b", 5), ("c", 55)))
    plain = [rendered(child, order) for order in (long, short, other)]
    assert noted(tmp_path) == [f"{what} {frames}" for frames in (60, 5, 55) for what in ("open", "first", "last")]

    assert rendered(child, long, hint=other) == plain[0]
    assert rendered(child, other) == plain[2]
    # More frames than are drawn before they are requested.
    assert noted(tmp_path) == ["open 60", "first 60", "open 55", "last 60", "first 55", "last 55"]

    # Another job comes, then the one of the hint.
    assert rendered(child, long, hint=other) == plain[0]
    assert rendered(child, short) == plain[1]
    assert rendered(child, other) == plain[2]
    assert [line for line in noted(tmp_path) if line.startswith("open")] == ["open 60", "open 55", "open 5", "open 55"]

    # The job of the hint comes with other wishes.
    larger = replace(short, stitch=False, resolution=96)
    wanted = rendered(child, larger)
    assert rendered(child, long, hint=short) == plain[0]
    assert rendered(child, larger) == wanted != plain[1]


def test_a_job_that_cannot_be_opened_fails_only_when_it_is_requested(child: LocalChild, tmp_path: Path) -> None:
    long, bad = request(tmp_path / "a", 60), request(tmp_path / "b", 5)
    Path(bad.folder, "picture.rgb").unlink()
    plain = rendered(child, long)

    assert rendered(child, long, hint=bad) == plain
    with pytest.raises(Exception, match="No such file"):
        rendered(child, bad)
    assert child.starts == 1


def test_a_cancel_ends_the_present_job_whatever_comes_next(child: LocalChild, tmp_path: Path) -> None:
    long, other = request(tmp_path / "a", 300), request(tmp_path / "b", 5)
    plain, seen = rendered(child, other), []
    hint = Next(**{**vars(other), "out_file": ".not-yet.mp4"})

    with pytest.raises(RenderCancelled):
        child.render(
            long,
            progress=seen.append,
            stop=lambda: bool(seen) and seen[-1].done > 155,
            upcoming=lambda: hint,
        )

    assert rendered(child, other) == plain


def test_a_hint_is_no_request_and_survives_the_line(tmp_path: Path) -> None:
    order = request(tmp_path / "a", 4)
    hint = Next(**{**vars(order), "out_file": "x.mp4"})

    assert from_line(to_line(hint)) == hint
    assert hint.is_meant_by(order)
    assert not hint.is_meant_by(replace(order, most=3))
    assert type(from_line(to_line(order))) is Render
