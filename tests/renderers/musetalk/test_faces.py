"""The face for MuseTalk: the steps around DWPose against recorded values, then choice, box and refusals."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from numpy.typing import NDArray

from lipsyncd.errors import FaceTooSmall, NoFaceFound
from lipsyncd.jobs.options import FaceChoice
from lipsyncd.renderers.face.choose import choose_face
from lipsyncd.renderers.face.face import Face
from lipsyncd.renderers.face.finder import overlap
from lipsyncd.renderers.framing import Box

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from lipsyncd.renderers.musetalk.face import landmarks
from lipsyncd.renderers.musetalk.face.find_face import find_face, measure_face, musetalk_box, unclipped_box
from lipsyncd.renderers.musetalk.face.landmarks import FLIP, HEIGHT, WIDTH, Crop, LandmarkNet
from tests.kits.media import portraits
from tests.kits.media.face_kit import TEMPLATE, backdrop, draw_head, write_constant_dwpose, write_dwpose

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


class Watched:
    """A session of onnxruntime, and the size and thread of each of its runs."""

    def __init__(self, net: LandmarkNet) -> None:
        self.session, self.runs = net._session, list[tuple[int, str]]()
        net._session = self

    def run(self, outputs: None, given: dict[str, NDArray[np.float32]]) -> Any:
        [pixels] = given.values()
        self.runs.append((len(pixels), threading.current_thread().name))
        time.sleep(0.05)  # so that one thread cannot take all of them
        return self.session.run(outputs, given)


@pytest.mark.parametrize(
    ("at_once", "fixed", "sizes"),
    [(0, False, [1] * 10), (4, False, [4, 4, 4]), (16, False, [16]), (16, True, [1] * 10)],
    ids=["a CPU", "a GPU of four", "a GPU", "a file for one look"],
)
def test_looks_share_runs_or_threads_and_each_gets_its_own_points(
    tmp_path: Path, at_once: int, fixed: bool, sizes: list[int]
) -> None:
    """Five pictures with their mirror images. The last run of a GPU is filled up, so that every run has one size."""
    file = write_dwpose(tmp_path / "dwpose.onnx", at_once=1 if fixed else None)
    looks = [(draw_head(backdrop(400, 300), 120 + 30 * n, 150, 90 + 5 * n), Box(0, 0, 400, 300)) for n in range(5)]
    alone = LandmarkNet(file, threads=1)
    expected = [alone.find(picture, box) for picture, box in looks]

    net = LandmarkNet(file, threads=3, at_once=at_once)
    watched = Watched(net)
    found = net.find_all(looks)

    assert [size for size, _ in watched.runs] == sizes
    assert len({thread for _, thread in watched.runs}) == min(3, len(sizes))
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(got.at, wanted.at, atol=1e-3)
        np.testing.assert_allclose(got.score, wanted.score, atol=1e-5)
    assert len({tuple(np.round(one.face.at.mean(axis=0))) for one in found}) == 5
    assert net.find_all([]) == []


def test_onnxruntime_is_asked_for_the_gpu_of_the_device_in_true_float32_and_without_trials() -> None:
    cuda, cpu = "CUDAExecutionProvider", "CPUExecutionProvider"
    options = {"device_id": "1", "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
    assert landmarks.providers_for(1, ["TensorrtExecutionProvider", cuda, cpu]) == [(cuda, options), cpu]
    assert landmarks.providers_for(None, [cuda, cpu]) == [cpu]
    assert landmarks.providers_for(0, [cpu]) == [cpu]


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
def landmark_net(tmp_path_factory: pytest.TempPathFactory) -> LandmarkNet:
    return LandmarkNet(write_dwpose(tmp_path_factory.mktemp("networks") / "dwpose.onnx"), threads=1)


def expected_points(x: float, y: float, size: float) -> NDArray[np.float64]:
    return np.array([x, y]) + size * TEMPLATE[landmarks.FACE]


def test_a_face_is_found_with_its_points_and_its_box(landmark_net: LandmarkNet) -> None:
    found = find_face(draw_head(backdrop(), 300, 170, 120), landmark_net)
    np.testing.assert_allclose(found.landmarks, expected_points(300, 170, 120), atol=1.5)
    # As wide as the jaw; the bridge of the nose (0.03 above the middle) halves what lies above the margin.
    middle, chin = 170 - 0.03 * 120, 170 + 0.48 * 120
    assert found.box.x == pytest.approx(300 - 0.48 * 120, abs=2)
    assert found.box.right == pytest.approx(300 + 0.48 * 120, abs=2)
    assert found.box.y == pytest.approx(2 * middle - chin, abs=3)
    assert found.box.bottom == pytest.approx(chin + 10, abs=2)
    assert overlap(found.detected, Box(250, 114, 100, 112)) > 0.9
    assert found.from_landmarks
    assert found.score > 0.7
    assert found.presence > 0.9
    assert abs(found.yaw_deg) < 3


@pytest.mark.parametrize("size", [110, 150])
def test_a_small_face_in_a_wide_picture_gets_exact_points(landmark_net: LandmarkNet, size: int) -> None:
    found = find_face(draw_head(backdrop(1920, 1080), 1500, 300, size), landmark_net)
    np.testing.assert_allclose(found.landmarks, expected_points(1500, 300, size), atol=1.0)


def test_a_face_that_fills_the_picture_is_found(landmark_net: LandmarkNet) -> None:
    found = find_face(draw_head(backdrop(600, 600), 300, 300, 520), landmark_net)
    np.testing.assert_allclose(found.landmarks, expected_points(300, 300, 520), atol=4)


def test_the_box_stays_in_the_picture(landmark_net: LandmarkNet) -> None:
    for x, y in ((40, 170), (600, 170), (300, 40), (300, 320)):
        found = find_face(draw_head(backdrop(), x, y, 120), landmark_net)
        assert found.from_landmarks
        assert found.box.x >= 0
        assert found.box.y >= 0
        assert found.box.right <= 640
        assert found.box.bottom <= 360


def test_the_margin_is_an_option(landmark_net: LandmarkNet) -> None:
    picture = draw_head(backdrop(), 300, 170, 120)
    boxes = [find_face(picture, landmark_net, margin_px=margin).box for margin in (0, 10, 500)]
    assert boxes[1].bottom - boxes[0].bottom == 10
    assert boxes[2].bottom == 360


def test_the_box_of_the_mesh_is_used_where_points_give_none(tmp_path: Path) -> None:
    upside_down = TEMPLATE.copy()
    upside_down[landmarks.FACE.start + 29] = (0, 0.6)
    landmark_net = LandmarkNet(write_dwpose(tmp_path / "odd.onnx", upside_down), threads=1)
    found = find_face(draw_head(backdrop(), 300, 170, 120), landmark_net)
    assert not found.from_landmarks
    detected = found.detected
    assert found.box == Box(detected.x, detected.y, detected.width, detected.height + 10)


def test_the_same_picture_gives_the_same_face(landmark_net: LandmarkNet) -> None:
    picture = draw_head(backdrop(), 310, 180, 130)
    first, second = find_face(picture, landmark_net), find_face(picture, landmark_net)
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
    landmark_net: LandmarkNet, family: NDArray[np.uint8], choose: FaceChoice, x: int
) -> None:
    found = find_face(family, landmark_net, choose=choose)
    assert found.detected.x + found.detected.width / 2 == pytest.approx(x, abs=2)


def test_a_face_that_is_not_there_is_refused_with_those_that_are(
    landmark_net: LandmarkNet, family: NDArray[np.uint8]
) -> None:
    with pytest.raises(NoFaceFound, match=r"no face number 3 in the picture of 1280x720 pixels; .*found.*640,360"):
        find_face(family, landmark_net, choose=3)
    with pytest.raises(NoFaceFound, match=r"no face at 10,20 .* 640,360; 300,360; 1000,360"):
        find_face(family, landmark_net, choose=(10.0, 20.0))


def test_the_points_of_a_clearer_neighbour_are_not_used(landmark_net: LandmarkNet) -> None:
    picture = draw_head(draw_head(backdrop(), 250, 180, 120, red=225), 400, 180, 110)
    found = find_face(picture, landmark_net, choose=(250.0, 180.0))
    np.testing.assert_allclose(found.landmarks, expected_points(250, 180, 120), atol=2)


def test_points_that_only_a_neighbour_has_are_refused(landmark_net: LandmarkNet) -> None:
    picture = draw_head(backdrop(), 290, 180, 60)
    mesh = choose_face(picture).mesh
    beside = Face(((mesh - mesh.mean(axis=0)) * 1.8 + [150, 180, 0]).astype(np.float32), 0.9, 0.9)
    with pytest.raises(NoFaceFound, match=r"of the face at 1[45]\d,1[78]\d are unclear: they lie on another face"):
        measure_face(picture, beside, landmark_net)


# -- as the original does ----------------------------------------------------------------------------------------------


def test_with_parity_the_landmarks_come_from_the_whole_picture(landmark_net: LandmarkNet) -> None:
    """The original does not crop, so a small face gets few pixels: its points are coarse, but not far off."""
    picture = draw_head(backdrop(1600, 900), 1200, 300, 90)
    exact, found = (find_face(picture, landmark_net, parity=parity) for parity in (False, True))
    whole = landmark_net.find(picture, Box(0, 0, 1600, 900)).face
    np.testing.assert_array_equal(found.landmarks, whole.at)
    off = [np.abs(face.landmarks - expected_points(1200, 300, 90)).max() for face in (exact, found)]
    assert off[0] < 1 < off[1] < 8


def test_with_parity_points_count_whatever_their_score_and_face(landmark_net: LandmarkNet) -> None:
    unclear = draw_head(backdrop(), 300, 170, 120, red=60)
    with pytest.raises(NoFaceFound, match=r"unclear: their score is 0\.2\d, below 0\.3"):
        find_face(unclear, landmark_net)
    assert find_face(unclear, landmark_net, parity=True).score < 0.3


def test_with_parity_the_mesh_gives_the_box_where_that_of_the_points_leaves_the_picture(
    landmark_net: LandmarkNet,
) -> None:
    """The original uses its detector's box when its own begins left of the picture; ours is clipped."""
    picture = draw_head(backdrop(), 46, 170, 120)
    assert unclipped_box(expected_points(46, 170, 120).astype(np.float32))[0] < 0
    ours, parity = (find_face(picture, landmark_net, parity=parity) for parity in (False, True))
    assert (ours.from_landmarks, parity.from_landmarks) == (True, False)
    assert parity.box.width == parity.detected.width


# -- refusing ----------------------------------------------------------------------------------------------------------


def test_a_picture_without_a_face_is_refused_with_its_size(landmark_net: LandmarkNet) -> None:
    with pytest.raises(NoFaceFound, match="no face in the picture of 640x360 pixels") as caught:
        find_face(backdrop(), landmark_net)
    assert "frontal face" in caught.value.remedy


def test_a_tiny_face_is_refused_with_its_size(landmark_net: LandmarkNet) -> None:
    with pytest.raises(FaceTooSmall, match=r"1\d px wide") as caught:
        find_face(draw_head(backdrop(160, 90), 80, 45, 23), landmark_net)
    assert "a face needs 24 px" in caught.value.message
    assert "crop it to the face" in caught.value.remedy


def test_a_face_in_profile_is_refused_unless_with_parity(landmark_net: LandmarkNet) -> None:
    picture = portraits.grey(np.dstack([skimage.data.camera()] * 3))
    with pytest.raises(NoFaceFound, match=r"turned sideways by about \d\d degrees"):
        find_face(picture, landmark_net)
    assert abs(find_face(picture, landmark_net, parity=True).yaw_deg) > 45


def test_points_outside_the_picture_give_no_box() -> None:
    points = TEMPLATE[landmarks.FACE].astype(np.float32) * 100
    assert musetalk_box(points - 500, 640, 360) is None
    assert musetalk_box(points + np.float32(800), 640, 360) is None
    assert isinstance(musetalk_box(points + np.float32(200), 640, 360), Box)
