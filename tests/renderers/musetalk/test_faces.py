"""The face for MuseTalk: the steps around DWPose against recorded values, then detector, choice, box and refusals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from numpy.typing import NDArray

from lipsyncd.errors import BadOption, FaceTooSmall, NoFaceFound
from lipsyncd.renderers.framing import Box

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from lipsyncd.renderers.musetalk.face import landmarks
from lipsyncd.renderers.musetalk.face.detector import DetectedFace, Detector
from lipsyncd.renderers.musetalk.face.find_face import (
    FaceChoice,
    find_face,
    musetalk_box,
    overlap,
    read_choice,
    unclipped_box,
    yaw_deg,
)
from lipsyncd.renderers.musetalk.face.landmarks import FLIP, HEIGHT, WIDTH, Crop, LandmarkNet
from tests.kits.media.face_kit import TEMPLATE, backdrop, draw_head, write_constant_dwpose, write_dwpose, write_yunet

Arrays = Mapping[str, NDArray[Any]]
BOXES = ("whole", "face", "wide")


# -- what the original computes ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded() -> Arrays:
    """Values of mmpose 1.3.2 with the original's configuration, for the astronaut."""
    return dict(np.load(Path(__file__).parents[2] / "goldens" / "landmarks.npz"))


@pytest.fixture(scope="module")
def simcc(recorded: Arrays) -> dict[str, list[NDArray[np.float32]]]:
    """Synthetic outputs of the network from which the recorded points were computed: x then y."""
    draw = np.random.RandomState(int(recorded["simcc_seed"]))

    def pair() -> list[NDArray[np.float32]]:
        return [draw.standard_normal((1, 133, bins)).astype(np.float32) for bins in (2 * WIDTH, 2 * HEIGHT)]

    return {name: pair() for name in (*BOXES, "straight", "flipped")}


def recorded_box(recorded: Arrays, name: str) -> Box:
    left, top, right, bottom = (int(value) for value in recorded[f"{name}_box"])
    return Box(left, top, right - left, bottom - top)


@pytest.mark.parametrize("name", BOXES)
def test_the_networks_input_is_that_of_mmpose(recorded: Arrays, name: str) -> None:
    crop = Crop.around(recorded_box(recorded, name))
    np.testing.assert_array_equal(crop.center, recorded[f"{name}_center"])
    np.testing.assert_array_equal(crop.size, recorded[f"{name}_scale"])
    shown = crop.of(skimage.data.astronaut())
    difference = np.abs(shown[::4, ::4, ::-1].astype(int) - recorded[f"{name}_warped_bgr_sub"])
    assert difference.max() <= 2
    assert difference.mean() < 0.05
    given = landmarks.network_input(shown)
    expected = recorded[f"{name}_input_sub"]
    assert given.shape == (1, 3, HEIGHT, WIDTH)
    np.testing.assert_allclose(given[0, :, ::8, ::8], expected, rtol=0, atol=1e-3 * expected.std())


@pytest.mark.parametrize("name", BOXES)
def test_points_and_box_are_those_of_the_original(
    recorded: Arrays, simcc: dict[str, list[NDArray[np.float32]]], name: str
) -> None:
    crop = Crop.around(recorded_box(recorded, name))
    found = landmarks.read_simcc(simcc[name][0][0], simcc[name][1][0])
    points = crop.to_picture(found.at)
    np.testing.assert_allclose(points, recorded[f"{name}_keypoints"], rtol=0, atol=1e-3)
    np.testing.assert_array_equal(found.score, recorded[f"{name}_scores"])
    assert unclipped_box(points[landmarks.FACE]) == tuple(recorded[f"{name}_face_box"])


def test_the_flip_test_is_that_of_the_original(
    recorded: Arrays, simcc: dict[str, list[NDArray[np.float32]]], tmp_path: Path
) -> None:
    """In onnxruntime, with a network that has one output for a crop and another for its mirror image."""
    np.testing.assert_array_equal(FLIP, recorded["flip_indices"])
    model = write_constant_dwpose(tmp_path / "constant.onnx", simcc["straight"], simcc["flipped"])
    picture = backdrop(WIDTH, HEIGHT)
    picture[:, : WIDTH // 2] = 200
    # A box whose crop is the picture itself, so that points come in pixels of the crop.
    box = Box(WIDTH // 10, HEIGHT // 10, round(WIDTH * 0.8), round(HEIGHT * 0.8))
    crop = Crop.around(box)
    found = LandmarkNet(model, threads=1).find(picture, box)
    np.testing.assert_allclose(found.at, crop.to_picture(recorded["flip_keypoints_input"]), rtol=0, atol=1e-3)
    np.testing.assert_allclose(found.score, recorded["flip_scores"], rtol=0, atol=1e-6)
    alone = LandmarkNet(model, threads=1).find(picture, box, flip_test=False)
    plain = landmarks.read_simcc(simcc["straight"][0][0], simcc["straight"][1][0])
    np.testing.assert_allclose(alone.at, crop.to_picture(plain.at), rtol=0, atol=1e-3)


def test_a_point_without_a_score_is_no_point() -> None:
    nothing, something = np.zeros((2, 2 * WIDTH), np.float32), np.zeros((2, 2 * HEIGHT), np.float32)
    something[:, 40] = 1
    nothing[1, 30] = 0.5
    found = landmarks.read_simcc(nothing, something)
    assert found.score.tolist() == [0.0, 0.5]
    assert found.at.tolist() == [[-0.5, -0.5], [15.0, 20.0]]


def test_mirroring_twice_changes_nothing() -> None:
    assert (FLIP[FLIP] == np.arange(133)).all()
    values = np.random.default_rng(1).random((133, 6)).astype(np.float32)
    for horizontal in (True, False):
        twice = landmarks.mirrored(landmarks.mirrored(values, horizontal=horizontal), horizontal=horizontal)
        np.testing.assert_array_equal(twice, values)


# -- finding -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Detector, LandmarkNet]:
    folder = tmp_path_factory.mktemp("networks")
    return Detector(write_yunet(folder / "yunet.onnx")), LandmarkNet(write_dwpose(folder / "dwpose.onnx"), threads=1)


Networks = tuple[Detector, LandmarkNet]


def expected_points(x: float, y: float, size: float) -> NDArray[np.float64]:
    return np.array([x, y]) + size * TEMPLATE[landmarks.FACE]


def test_a_face_is_found_with_its_points_and_its_box(networks: Networks) -> None:
    found = find_face(draw_head(backdrop(), 300, 170, 120), *networks)
    np.testing.assert_allclose(found.landmarks, expected_points(300, 170, 120), atol=1.5)
    # As wide as the jaw; the bridge of the nose (0.03 above the middle) halves what lies above the margin.
    middle, chin = 170 - 0.03 * 120, 170 + 0.48 * 120
    assert found.box.x == pytest.approx(300 - 0.48 * 120, abs=2)
    assert found.box.right == pytest.approx(300 + 0.48 * 120, abs=2)
    assert found.box.y == pytest.approx(2 * middle - chin, abs=3)
    assert found.box.bottom == pytest.approx(chin + 10, abs=2)
    assert overlap(found.detected, Box(240, 110, 120, 120)) > 0.95
    assert found.from_landmarks
    assert found.score > 0.7
    assert found.detector_score > 0.8
    assert abs(found.yaw_deg) < 3


@pytest.mark.parametrize("size", [60, 90])
def test_a_small_face_in_a_wide_picture_gets_exact_points(networks: Networks, size: int) -> None:
    found = find_face(draw_head(backdrop(1920, 1080), 1500, 300, size), *networks)
    np.testing.assert_allclose(found.landmarks, expected_points(1500, 300, size), atol=1.0)


def test_a_face_that_fills_the_picture_is_found(networks: Networks) -> None:
    found = find_face(draw_head(backdrop(600, 600), 300, 300, 520), *networks)
    np.testing.assert_allclose(found.landmarks, expected_points(300, 300, 520), atol=4)


def test_the_box_stays_in_the_picture(networks: Networks) -> None:
    """The original uses the detector's box when its own begins left of the picture; ours is clipped."""
    for x, y in ((40, 170), (600, 170), (300, 40), (300, 320)):
        found = find_face(draw_head(backdrop(), x, y, 120), *networks)
        assert found.from_landmarks
        assert found.box.x >= 0
        assert found.box.y >= 0
        assert found.box.right <= 640
        assert found.box.bottom <= 360


def test_the_margin_is_an_option(networks: Networks) -> None:
    picture = draw_head(backdrop(), 300, 170, 120)
    boxes = [find_face(picture, *networks, margin_px=margin).box for margin in (0, 10, 500)]
    assert boxes[1].bottom - boxes[0].bottom == 10
    assert boxes[2].bottom == 360


def test_the_detectors_box_is_used_where_points_give_none(networks: Networks, tmp_path: Path) -> None:
    upside_down = TEMPLATE.copy()
    upside_down[landmarks.FACE.start + 29] = (0, 0.6)
    landmark_net = LandmarkNet(write_dwpose(tmp_path / "odd.onnx", upside_down), threads=1)
    found = find_face(draw_head(backdrop(), 300, 170, 120), networks[0], landmark_net)
    assert not found.from_landmarks
    detected = found.detected
    assert found.box == Box(detected.x, detected.y, detected.width, detected.height + 10)


def test_the_same_picture_gives_the_same_face(networks: Networks) -> None:
    picture = draw_head(backdrop(), 310, 180, 130)
    first, second = find_face(picture, *networks), find_face(picture, *networks)
    assert first.box == second.box
    np.testing.assert_array_equal(first.landmarks, second.landmarks)


# -- choosing ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def family() -> NDArray[np.uint8]:
    """Three heads: the largest in the middle, the smallest to the right."""
    picture = draw_head(backdrop(1280, 720), 300, 360, 140)
    return draw_head(draw_head(picture, 640, 360, 200), 1000, 360, 100)


@pytest.mark.parametrize(
    ("choose", "x"),
    [(None, 640), (0, 640), (1, 300), (2, 1000), ((1000.0, 330.0), 1000), ((250.0, 400.0), 300)],
    ids=str,
)
def test_the_largest_face_speaks_unless_another_is_chosen(
    networks: Networks, family: NDArray[np.uint8], choose: FaceChoice, x: int
) -> None:
    found = find_face(family, *networks, choose=choose)
    assert found.detected.x + found.detected.width / 2 == pytest.approx(x, abs=2)


def test_the_face_of_the_frame_before_is_found_again(networks: Networks, family: NDArray[np.uint8]) -> None:
    found = find_face(family, *networks, choose=Box(960, 330, 100, 100))
    assert found.detected.x + found.detected.width / 2 == pytest.approx(1000, abs=2)
    with pytest.raises(NoFaceFound, match="no longer where it was"):
        find_face(family, *networks, choose=Box(100, 0, 100, 100))


def test_a_face_that_is_not_there_is_refused_with_those_that_are(networks: Networks, family: NDArray[np.uint8]) -> None:
    with pytest.raises(NoFaceFound, match=r"no face number 3 in the picture of 1280x720 pixels; .*found.*640,360"):
        find_face(family, *networks, choose=3)
    with pytest.raises(NoFaceFound, match=r"no face at 10,20 .* 640,360; 300,360; 1000,360"):
        find_face(family, *networks, choose=(10.0, 20.0))


def test_the_points_of_a_clearer_neighbour_are_not_used(networks: Networks) -> None:
    picture = draw_head(draw_head(backdrop(), 250, 180, 120, red=225), 400, 180, 110)
    found = find_face(picture, *networks, choose=(250.0, 180.0))
    np.testing.assert_allclose(found.landmarks, expected_points(250, 180, 120), atol=2)


def test_points_that_only_a_neighbour_has_are_refused(networks: Networks) -> None:
    picture = draw_head(backdrop(), 290, 180, 60)
    with pytest.raises(NoFaceFound, match="unclear: they lie on another face"):
        find_face(picture, _Mistaken(Box(87, 130, 100, 100)), networks[1])  # type: ignore[arg-type]


class _Mistaken:
    """A detector that reports a face at one place in every picture."""

    def __init__(self, box: Box) -> None:
        self.box = box

    def passes(self, picture: NDArray[np.uint8]) -> list[list[DetectedFace]]:
        return [[DetectedFace(self.box, 0.9)]]


@pytest.mark.parametrize(
    ("option", "choice"), [(None, None), (0, 0), (2, 2), ("12,34", (12.0, 34.0)), (" 1.5 , 2 ", (1.5, 2.0))], ids=repr
)
def test_the_option_face(option: object, choice: FaceChoice) -> None:
    assert read_choice(option) == choice


@pytest.mark.parametrize(
    "option", [True, -1, 1000, 1.5, "left", "1,2,3", "1;2", "-1,2", "1e9,1", "nan,nan", [1, 2], {}]
)
def test_other_values_of_the_option_are_refused(option: object) -> None:
    with pytest.raises(BadOption, match="option face is") as caught:
        read_choice(option)
    assert "largest" in caught.value.remedy


# -- refusing ----------------------------------------------------------------------------------------------------------


def test_a_picture_without_a_face_is_refused_with_its_size(networks: Networks) -> None:
    with pytest.raises(NoFaceFound, match="no face in the picture of 640x360 pixels: there is no candidate") as caught:
        find_face(backdrop(), *networks)
    assert "frontal face" in caught.value.remedy


def test_an_unclear_face_is_refused_with_its_score(networks: Networks) -> None:
    with pytest.raises(NoFaceFound, match=r"the best candidate has a score of 0\.\d\d, a face needs 0\.6"):
        find_face(draw_head(backdrop(), 300, 170, 120, red=140), *networks)


@pytest.mark.parametrize("size", [26, 40])
def test_a_tiny_face_is_refused_with_its_size(networks: Networks, size: int) -> None:
    with pytest.raises(FaceTooSmall, match=rf"{size}x{size + 1}|{size + 1}x{size + 1}|{size}x{size}") as caught:
        find_face(draw_head(backdrop(), 300, 170, size), *networks)
    assert "48" in caught.value.message
    assert "crop the picture closer" in caught.value.remedy


@pytest.mark.parametrize("aside", [-0.42, 0.42])
def test_a_face_in_profile_is_refused_with_the_angle(networks: Networks, aside: float) -> None:
    picture = draw_head(backdrop(), 300, 170, 120, aside=aside)
    with pytest.raises(NoFaceFound, match=r"turned sideways by about 5\d degrees; up to 50"):
        find_face(picture, *networks)
    found = find_face(draw_head(backdrop(), 300, 170, 120, aside=aside / 2), *networks)
    assert found.yaw_deg == pytest.approx(np.degrees(np.arctan(aside / 2 / 0.28)), abs=4)


def test_yaw_does_not_depend_on_the_tilt_and_place_of_a_head() -> None:
    usual = TEMPLATE[landmarks.FACE].astype(np.float32)
    turned = usual.copy()
    turned[30, 0] += 0.28  # the tip of the nose above the outer corner of an eye
    angle = np.radians(30)
    tilt = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], np.float32)
    for points, expected in ((usual, 0), (turned, 45), (turned * [-1, 1], 45)):
        for seen in (points, points @ tilt.T * 200 + 300):
            assert abs(yaw_deg(seen.astype(np.float32))) == pytest.approx(expected, abs=0.1)
    assert yaw_deg(np.zeros((68, 2), np.float32)) == 90


def test_points_outside_the_picture_give_no_box() -> None:
    points = TEMPLATE[landmarks.FACE].astype(np.float32) * 100
    assert musetalk_box(points - 500, 640, 360) is None
    assert musetalk_box(points + np.float32(800), 640, 360) is None
    assert isinstance(musetalk_box(points + np.float32(200), 640, 360), Box)
