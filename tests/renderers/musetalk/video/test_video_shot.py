"""Videos through the whole renderer: the face of each frame is painted, and every frame keeps its place."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from lipsyncd.errors import NoFaceFound  # noqa: E402
from lipsyncd.jobs.prepared import Video  # noqa: E402
from lipsyncd.media import Kind  # noqa: E402
from lipsyncd.media.video_frames import BOUNCE, CUT, source_index  # noqa: E402
from lipsyncd.prepare.decode_video import screen  # noqa: E402
from lipsyncd.renderers import Scene  # noqa: E402
from lipsyncd.renderers.framing import RgbImage  # noqa: E402
from lipsyncd.renderers.musetalk.renderer import MuseTalk, RendererSettings  # noqa: E402
from lipsyncd.renderers.video_source import VideoSource  # noqa: E402
from tests.kits.installation import Installation, put, sound  # noqa: E402
from tests.kits.machine.processes import children_of  # noqa: E402
from tests.kits.media.face_kit import backdrop, draw_head  # noqa: E402
from tests.kits.media.footage_kit import written  # noqa: E402
from tests.kits.media.media_kit import ffmpeg  # noqa: E402
from tests.kits.media.musetalk_kit import hum, write_lock, write_weights  # noqa: E402

WIDTH, HEIGHT = 240, 180
# Lossless RGB, so that an unpainted frame comes out unchanged.
LOSSLESS = ("-c:v", "libx264rgb", "-qp", "0", "-preset", "ultrafast", "-g", "10")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def renderer(weights: Path) -> Iterator[MuseTalk]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield MuseTalk("cpu", RendererSettings(weights))
    torch.set_num_threads(before)


def walk(count: int, *, without: tuple[int, ...] = (), width: int = WIDTH, height: int = HEIGHT) -> list[RgbImage]:
    """A head that moves to the right, and the number of each frame in its first pixels."""
    pictures = []
    for number in range(count):
        picture = backdrop(width, height)
        if number not in without:
            draw_head(picture, 90 + 3 * number, 95, 100)
        picture[:8, :8] = number * 8
        pictures.append(picture)
    return pictures


def scene_of(
    folder: Path, pictures: list[RgbImage], seconds: float, *, mode: str = BOUNCE, stitch: bool = True, **options: Any
) -> Scene:
    (folder / "image").write_bytes(written(".mp4", pictures, *LOSSLESS))
    fps, voice = Fraction(25), (hum(seconds) * 24_000).astype(np.int16)
    frames = -(-len(voice) * 25 // 16_000)
    seen = screen(folder / "image", Kind.MP4, folder, ffmpeg=ffmpeg(), fps=fps, frames=frames).picture
    shown = min(frames, len(pictures))
    video = Video("image", "mp4", seen.width, seen.height, "25", shown, mode)
    first = np.fromfile(folder / seen.file, np.uint8).reshape(seen.height, seen.width, 3)
    source = VideoSource(video, folder, ffmpeg())
    return Scene(first, voice, fps, frames, stitch, 96, options=options, video=source)


def render(renderer: MuseTalk, scene: Scene) -> list[RgbImage]:
    return [frame.copy() for frame in renderer.open(scene).frames()]


def changed(frame: RgbImage, source: RgbImage) -> tuple[float, float] | None:
    """The centre of the pixels that differ; None when none does."""
    rows, columns = np.nonzero(np.abs(frame.astype(int) - source).max(axis=2) > 8)
    return (float(columns.mean()), float(rows.mean())) if len(rows) else None


def test_the_mouth_of_each_frame_is_painted(renderer: MuseTalk, tmp_path: Path) -> None:
    pictures = walk(16)
    frames = render(renderer, scene_of(tmp_path, pictures, 0.64))
    assert len(frames) == 16
    for number, (frame, source) in enumerate(zip(frames, pictures, strict=True)):
        place = changed(frame, source)
        assert place is not None, number
        assert place[0] == pytest.approx(90 + 3 * number, abs=8)
        assert place[1] > 95  # the lower half


def test_for_a_longer_voice_the_video_bounces_with_every_frame_in_its_place(renderer: MuseTalk, tmp_path: Path) -> None:
    frames = render(renderer, scene_of(tmp_path, walk(9), 1.0))
    assert [round(float(frame[2, 2].mean()) / 8) for frame in frames] == [source_index(n, 9, BOUNCE) for n in range(25)]


def test_a_frame_without_a_face_is_passed_through_unchanged(renderer: MuseTalk, tmp_path: Path) -> None:
    pictures = walk(16, without=(7, 8))
    scene = scene_of(tmp_path, pictures, 0.64)
    shot = renderer.open(scene)
    frames = [frame.copy() for frame in shot.frames()]
    for number in (7, 8):
        np.testing.assert_array_equal(frames[number], pictures[number])
    for number in (3, 12):
        place = changed(frames[number], pictures[number])
        assert place is not None
        assert place[0] == pytest.approx(90 + 3 * number, abs=8)
    assert shot.notes["frames_without_face"] == 2
    assert shot.notes["painted_frames"] == 14
    assert shot.notes["source_frames"] == 16


def test_in_a_pause_the_video_goes_on_unpainted(renderer: MuseTalk, tmp_path: Path) -> None:
    pictures = walk(20)
    scene = scene_of(tmp_path, pictures, 0.8)
    quiet = Scene(scene.picture, np.zeros_like(scene.speech), scene.fps, 20, True, 96, video=scene.video)
    for frame, source in zip(render(renderer, quiet), pictures, strict=True):
        np.testing.assert_array_equal(frame, source)


def test_the_square_stays_the_same(renderer: MuseTalk, tmp_path: Path) -> None:
    scene = scene_of(tmp_path, walk(10), 0.4, stitch=False)
    shot = renderer.open(scene)
    assert (shot.width, shot.height) == (96, 96)
    frames = [frame.copy() for frame in shot.frames()]
    assert {frame.shape for frame in frames} == {(96, 96, 3)}
    heads = [float(np.nonzero(frame[30, :, 0].astype(int) - frame[30, :, 1] > 80)[0].mean()) for frame in frames]
    assert heads[-1] - heads[0] > 8  # the head moves through it


def test_odd_sides_become_even(renderer: MuseTalk, tmp_path: Path) -> None:
    frames = render(renderer, scene_of(tmp_path, walk(4, width=241, height=181), 0.16))
    assert {frame.shape for frame in frames} == {(182, 242, 3)}


def test_frames_do_not_depend_on_the_batch(renderer: MuseTalk, tmp_path: Path) -> None:
    pictures = walk(18, without=(16,))
    usual = render(renderer, scene_of(tmp_path, pictures, 0.72))
    for frame, other in zip(usual, render(renderer, scene_of(tmp_path, pictures, 0.72, batch=24)), strict=True):
        assert np.abs(frame.astype(int) - other).max() <= 1  # a larger product may be summed in another order


def test_two_renders_give_identical_frames(renderer: MuseTalk, tmp_path: Path) -> None:
    scene = scene_of(tmp_path, walk(6, without=(3,)), 0.4)
    for first, second in zip(render(renderer, scene), render(renderer, scene), strict=True):
        np.testing.assert_array_equal(first, second)


def test_a_video_without_a_face_is_refused(renderer: MuseTalk, tmp_path: Path) -> None:
    with pytest.raises(NoFaceFound, match="none of the 4 frames shows a face"):
        renderer.open(scene_of(tmp_path, walk(4, without=(0, 1, 2, 3)), 0.16))


def test_closing_a_shot_early_ends_its_thread_and_its_decoder(renderer: MuseTalk, tmp_path: Path) -> None:
    before = set(children_of())
    frames = renderer.open(scene_of(tmp_path, walk(30), 1.2)).frames()
    next(frames)
    frames.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetcher"]
    assert set(children_of()) <= before


def test_a_video_in_the_inbox_becomes_a_video_in_the_outbox(installation: Installation, weights: Path) -> None:
    installation.changes = {
        "render": {"renderer": "musetalk"},
        "weights": {"dir": str(weights), "lock": str(write_lock(weights)), "auto_pull": False},
        "output": {"stitch": True},
    }
    with installation.running(OMP_NUM_THREADS="1"):
        put(installation.path("inbox"), "anna.mp4", written(".mp4", walk(8, without=(3, 4)), *LOSSLESS))
        put(installation.path("inbox"), "anna.wav", sound(0.6))
        installation.drop_manifest(
            "job", image="anna.mp4", audio="anna.wav", out_name="job", lipsyncd={"duration_mode": CUT, "face": 0}
        )
        job = installation.until_done("job")
    assert job.frames == 8
    notes = installation.sidecar("job")["notes"]
    assert notes["source_frames"] == 8
    assert notes["frames_without_face"] == 2
    assert notes["painted_frames"] == 6
    assert any("cut from 0.60 to 0.32 s" in note for note in notes["inputs"])
