"""A face through a video: tracked, smoothed, lost and found again, with every frame in its place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lipsyncd.errors import FaceTooSmall, NoFaceFound
from lipsyncd.renderers.framing import Box, RgbImage

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from lipsyncd.renderers.musetalk.face.detector import Detector
from lipsyncd.renderers.musetalk.face.find_face import FaceFound
from lipsyncd.renderers.musetalk.face.landmarks import LandmarkNet
from lipsyncd.renderers.musetalk.face.track import smoothed, smoothed_track, strength, track_face
from tests.kits.media.face_kit import backdrop, draw_head, write_dwpose, write_yunet


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Detector, LandmarkNet]:
    folder = tmp_path_factory.mktemp("networks")
    return Detector(write_yunet(folder / "yunet.onnx")), LandmarkNet(write_dwpose(folder / "dwpose.onnx"), threads=1)


Networks = tuple[Detector, LandmarkNet]


def walk(count: int, *, step: float = 4.0, size: float = 100) -> list[RgbImage]:
    """A head that moves to the right."""
    return [draw_head(backdrop(), 150 + step * number, 180, size) for number in range(count)]


def middle(face: FaceFound | None) -> float:
    assert face is not None
    return face.box.x + face.box.width / 2


def test_a_moving_face_is_tracked_without_lag(networks: Networks) -> None:
    track = track_face(walk(20), *networks)
    for number in range(3, 17):
        assert middle(track.faces[number]) == pytest.approx(150 + 4 * number, abs=2)
    assert (track.strength == 1).all()


def test_a_frame_without_a_face_is_passed_through_and_no_frame_shifts(networks: Networks) -> None:
    pictures = walk(21)
    pictures[10] = backdrop()
    track = track_face(pictures, *networks)
    assert [number for number, face in enumerate(track.faces) if face is None] == [10]
    for number in (7, 8, 9, 11, 12, 13):
        assert middle(track.faces[number]) == pytest.approx(150 + 4 * number, abs=4)
    assert track.strength[6:15].tolist() == [1, 0.75, 0.5, 0.25, 0, 0.25, 0.5, 0.75, 1]


def test_a_face_that_turns_away_is_not_exchanged_for_another(networks: Networks) -> None:
    """The other face is larger, and would be chosen in a single picture."""
    pictures = []
    for number in range(9):
        aside = 0.42 if 3 <= number < 6 else 0.0
        picture = draw_head(backdrop(), 180, 180, 90, aside=aside)
        pictures.append(draw_head(picture, 480, 180, 120))
    track = track_face(pictures, *networks, choose=(180.0, 180.0))
    assert [face is None for face in track.faces] == [3 <= number < 6 for number in range(9)]
    assert all(middle(face) == pytest.approx(180, abs=3) for face in track.found)
    largest = track_face(pictures, *networks)
    assert all(middle(face) == pytest.approx(480, abs=3) for face in largest.found)


def test_after_a_cut_the_face_is_chosen_again_without_smoothing(networks: Networks) -> None:
    before = [draw_head(backdrop(), 160, 180, 100) for _ in range(5)]
    after = [draw_head(backdrop(), 470, 170, 140) for _ in range(5)]
    track = track_face([*before, *after], *networks)
    assert [round(middle(face), -1) for face in track.faces] == [*[160] * 5, *[470] * 5]
    assert track.faces[4].box.width < 110 < 125 < track.faces[5].box.width  # type: ignore[union-attr]


def test_a_face_that_appears_later_is_found(networks: Networks) -> None:
    track = track_face([backdrop(), backdrop(), *walk(4)], *networks)
    assert [face is None for face in track.faces] == [True, True, False, False, False, False]


def test_a_video_without_a_face_is_refused_with_the_first_reason(networks: Networks) -> None:
    with pytest.raises(NoFaceFound, match="none of the 3 frames shows a face to animate; in the first one: no face in"):
        track_face([backdrop()] * 3, *networks)
    small = [draw_head(backdrop(), 300, 180, 40)] * 2
    with pytest.raises(FaceTooSmall, match="none of the 2 frames") as caught:
        track_face(small, *networks)
    assert "crop" in caught.value.remedy


def test_the_median_box_is_the_usual_place(networks: Networks) -> None:
    pictures = [draw_head(backdrop(), 300, 180, 100) for _ in range(7)]
    pictures[3] = draw_head(backdrop(), 340, 180, 100)
    usual = track_face(pictures, *networks).median_box
    assert usual.x + usual.width / 2 == pytest.approx(300, abs=2)


def test_jitter_is_removed_and_motion_is_kept() -> None:
    random = np.random.default_rng(2)
    way = np.linspace(0, 100, 60)[:, None]
    trembling = way + random.normal(0, 3, (60, 1))
    calm = smoothed(trembling)
    assert np.abs(calm - way)[3:-3].mean() < np.abs(trembling - way)[3:-3].mean() * 0.6
    assert np.abs(np.diff(calm[:, 0], 2)).mean() < 0.25 * np.abs(np.diff(trembling[:, 0], 2)).mean()
    np.testing.assert_allclose(smoothed(way)[10:-10], way[10:-10], atol=0.05)


def test_a_single_outlier_has_no_effect() -> None:
    steady = np.full((20, 2), 50.0)
    wild = steady.copy()
    wild[9] = (500, -300)
    np.testing.assert_array_equal(smoothed(wild), steady)


def test_smoothing_is_symmetric_in_time() -> None:
    values = np.random.default_rng(3).normal(0, 5, (30, 3))
    np.testing.assert_allclose(smoothed(values[::-1])[::-1], smoothed(values))


def face_at(x: int) -> FaceFound:
    box = Box(x, 100, 80, 90)
    return FaceFound(box, np.full((68, 2), float(x), np.float32), 0.9, 0.0, box, 0.9)


def test_each_camera_shot_is_smoothed_separately() -> None:
    faces = [face_at(10), face_at(12), face_at(10), None, face_at(14), face_at(300), face_at(302)]
    steady = smoothed_track(faces)
    assert steady[3] is None
    assert steady[4] == replace(face_at(14), landmarks=steady[4].landmarks)  # type: ignore[union-attr]
    assert steady[5] is not None
    assert 300 <= steady[5].box.x <= 302
    assert smoothed_track([]) == []
    assert strength([]).tolist() == []
