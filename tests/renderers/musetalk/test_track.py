"""A face through a video: tracked, smoothed, lost and found again, with every frame in its place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lipsyncd.errors import FaceTooSmall, NoFaceFound
from lipsyncd.renderers.face.face import Face
from lipsyncd.renderers.face.networks import Candidate, FaceNetworks, Mesh
from lipsyncd.renderers.framing import Box, RgbImage

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from lipsyncd.renderers.musetalk.face.find_face import FaceFound
from lipsyncd.renderers.musetalk.face.follow import PATIENCE, Follower
from lipsyncd.renderers.musetalk.face.landmarks import LandmarkNet
from lipsyncd.renderers.musetalk.face.track import smoothed, smoothed_track, strength, track_face
from tests.kits.media.face_kit import backdrop, draw_head, write_dwpose


@pytest.fixture(scope="module")
def landmark_net(tmp_path_factory: pytest.TempPathFactory) -> LandmarkNet:
    return LandmarkNet(write_dwpose(tmp_path_factory.mktemp("networks") / "dwpose.onnx"), threads=1)


OTHER = 225  # redness of the one who does not speak: where the landmark network sees both, it prefers the reddest


def walk(count: int, *, step: float = 4.0, size: float = 100) -> list[RgbImage]:
    """A head that moves to the right."""
    return [draw_head(backdrop(), 150 + step * number, 180, size) for number in range(count)]


def middle(face: FaceFound | None) -> float:
    assert face is not None
    return face.box.x + face.box.width / 2


def test_a_moving_face_is_tracked_without_lag(landmark_net: LandmarkNet) -> None:
    track = track_face(walk(20), landmark_net)
    for number in range(3, 17):
        assert middle(track.faces[number]) == pytest.approx(150 + 4 * number, abs=2)
    assert (track.strength == 1).all()


def test_a_frame_without_a_face_is_passed_through_and_no_frame_shifts(landmark_net: LandmarkNet) -> None:
    pictures = walk(21)
    pictures[10] = backdrop()
    track = track_face(pictures, landmark_net)
    assert [number for number, face in enumerate(track.faces) if face is None] == [10]
    for number in (7, 8, 9, 11, 12, 13):
        assert middle(track.faces[number]) == pytest.approx(150 + 4 * number, abs=4)
    assert track.strength[6:15].tolist() == [1, 0.75, 0.5, 0.25, 0, 0.25, 0.5, 0.75, 1]


def test_a_face_that_turns_away_is_not_exchanged_for_another(landmark_net: LandmarkNet) -> None:
    """The other face is larger, and would be chosen in a single picture."""
    pictures = []
    for number in range(9):
        picture = backdrop()
        if not 3 <= number < 6:
            draw_head(picture, 180, 180, 90)
        pictures.append(draw_head(picture, 480, 180, 120, who="hopper", red=OTHER))
    track = track_face(pictures, landmark_net, choose=(180.0, 180.0))
    assert [face is None for face in track.faces] == [3 <= number < 6 for number in range(9)]
    assert all(middle(face) == pytest.approx(180, abs=3) for face in track.found)
    largest = track_face(pictures, landmark_net)
    assert all(middle(face) == pytest.approx(480, abs=3) for face in largest.found)


def test_when_the_face_stays_away_another_one_speaks_after_half_a_second(landmark_net: LandmarkNet) -> None:
    pictures = [draw_head(backdrop(), 480, 180, 90, who="hopper", red=OTHER) for _ in range(PATIENCE + 4)]
    draw_head(pictures[0], 180, 180, 120)
    track = track_face(pictures, landmark_net)
    assert [face is None for face in track.faces] == [1 <= number <= PATIENCE for number in range(PATIENCE + 4)]
    assert middle(track.faces[0]) == pytest.approx(180, abs=3)
    assert middle(track.faces[-1]) == pytest.approx(480, abs=3)


@pytest.mark.parametrize(
    ("speaker", "other"),
    [("astronaut", "hopper"), pytest.param("hopper", "astronaut", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("behind", [True, False])
def test_two_people_who_cross_keep_their_mouths(
    landmark_net: LandmarkNet, speaker: str, other: str, behind: bool
) -> None:
    """The speaker walks to the right, behind or before another one who walks to the left."""
    pictures = []
    for number in range(25):
        heads = [(170 + 12 * number, speaker, 255), (470 - 12 * number, other, OTHER)]
        picture = backdrop()
        for x, who, red in heads if behind else reversed(heads):
            draw_head(picture, x, 180, 110, who=who, red=red)
        pictures.append(picture)
    track = track_face(pictures, landmark_net, choose=(170.0, 180.0))
    there = [number for number, face in enumerate(track.faces) if face is not None]
    for face, number in zip(track.found, there, strict=True):
        assert face.detected.x + face.detected.width / 2 == pytest.approx(170 + 12 * number, abs=14), number
    assert set(range(7)) | set(range(20, 25)) <= set(there)
    if not behind:
        assert len(there) == 25


def test_after_a_cut_the_face_is_chosen_again_without_smoothing(landmark_net: LandmarkNet) -> None:
    """The other shot is brighter, and its larger face is another one in another place."""
    before = [draw_head(backdrop(), 160, 180, 100) for _ in range(5)]
    after = [draw_head(backdrop() + np.uint8(60), 470, 170, 140, who="hopper") for _ in range(5)]
    track = track_face([*before, *after], landmark_net)
    assert [round(middle(face), -1) for face in track.faces] == [*[160] * 5, *[470] * 5]
    assert track.faces[4].box.width < 110 < 125 < track.faces[5].box.width  # type: ignore[union-attr]


def test_after_a_cut_the_face_at_the_same_place_may_be_another_one(landmark_net: LandmarkNet) -> None:
    before = [draw_head(backdrop(), 300, 180, 100) for _ in range(3)]
    after = [draw_head(backdrop() + np.uint8(60), 310, 180, 100, who="hopper") for _ in range(3)]
    track = track_face([*before, *after], landmark_net)
    assert None not in track.faces


def test_a_face_that_jumps_is_found_by_its_looks(landmark_net: LandmarkNet) -> None:
    pictures = [draw_head(backdrop(), x, 180, 100) for x in (160, 160, 460, 460)]
    for picture in pictures:
        draw_head(picture, 300, 180, 120, who="hopper", red=OTHER)
    track = track_face(pictures, landmark_net, choose=(160.0, 180.0))
    assert [round(middle(face), -1) for face in track.faces] == [160, 160, 460, 460]


def test_following_a_face_takes_less_than_looking_for_it() -> None:
    """Counted in runs of the two networks, which do not depend on the machine."""
    nets = Counting()
    follower = Follower(nets=nets)
    pictures = walk(12)
    follower.find(pictures[0])
    searched = nets.runs
    for picture in pictures[1:]:
        assert isinstance(follower.find(picture), Face)
    assert (nets.runs - searched) / 11 <= 2 < searched


class Counting(FaceNetworks):
    """The real networks, and how often they ran."""

    runs = 0

    def detect(self, square: RgbImage, least_score: float) -> list[Candidate]:
        self.runs += 1
        return super().detect(square, least_score)

    def mesh(self, crop: RgbImage) -> tuple[Mesh, float]:
        self.runs += 1
        return super().mesh(crop)


def test_a_face_that_appears_later_is_found(landmark_net: LandmarkNet) -> None:
    track = track_face([backdrop(), backdrop(), *walk(4)], landmark_net)
    assert [face is None for face in track.faces] == [True, True, False, False, False, False]


def test_a_video_without_a_face_is_refused_with_the_first_reason(landmark_net: LandmarkNet) -> None:
    with pytest.raises(NoFaceFound, match="none of the 3 frames shows a face to animate; in the first one: no face in"):
        track_face([backdrop()] * 3, landmark_net)
    small = [draw_head(backdrop(160, 90), 80, 45, 23)] * 2
    with pytest.raises(FaceTooSmall, match="none of the 2 frames") as caught:
        track_face(small, landmark_net)
    assert "crop" in caught.value.remedy


def test_the_median_box_is_the_usual_place(landmark_net: LandmarkNet) -> None:
    pictures = [draw_head(backdrop(), 300, 180, 100) for _ in range(7)]
    pictures[3] = draw_head(backdrop(), 340, 180, 100)
    usual = track_face(pictures, landmark_net).median_box
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
