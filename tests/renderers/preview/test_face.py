"""Finding the face: its position where there is one, and a refusal with the reason where there is none."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import skimage.data

from lipsyncd.errors import NoFaceFound
from lipsyncd.renderers.preview.find.choose_face import choose_face
from lipsyncd.renderers.preview.find.face_coordinates import PixelBox, Plane, Window
from tests.kits.media.preview_kit import Subject, astronaut, painted, subjects


@pytest.fixture(scope="module", params=subjects(), ids=lambda subject: subject.name)
def found(request):
    """A subject, and the face found in it."""
    return request.param, choose_face(request.param.picture)


def in_truth(subject: Subject, plane: Plane, u: float, v: float) -> tuple[float, float]:
    """A point of the found plane, in the coordinates of the true plane."""
    true_u, true_v = subject.plane.coordinates(*(np.array([place]) for place in plane.pixel(u, v)))
    return float(true_u[0]), float(true_v[0])


def test_eyes_are_found_within_a_twelfth_of_their_distance(found):
    subject, chosen = found
    for side in (-0.5, 0.5):
        u, v = in_truth(subject, chosen.face.plane, side, 0.0)
        assert np.hypot(u - side, v) < 1 / 12


def test_the_line_between_the_lips_is_found(found):
    subject, chosen = found
    mouth = chosen.mouth
    middle = float(np.polyval(mouth.upper, 0.0) + np.polyval(mouth.lower, 0.0)) / 2
    u, v = in_truth(subject, chosen.face.plane, mouth.middle, middle)

    assert abs(u) < 0.07
    assert v == pytest.approx(subject.mouth_v, abs=0.06)
    assert 0.27 <= mouth.half <= 0.46


def test_the_chin_is_found(found):
    subject, chosen = found
    _, v = in_truth(subject, chosen.face.plane, 0.0, chosen.mouth.chin)

    assert v == pytest.approx(subject.chin_v, abs=0.15)


def test_only_the_smile_counts_as_open(found):
    subject, chosen = found

    assert chosen.mouth.open_at_rest == subject.name.startswith("astronaut")


@pytest.mark.parametrize("degrees", [-16, -8, 8, 16])
@pytest.mark.parametrize("name", ["ada", "chen"])
def test_tilted_heads_are_found_with_their_tilt(name, degrees):
    subject = painted(name).turned(degrees)
    plane = choose_face(subject.picture).face.plane

    assert plane.roll_deg == pytest.approx(degrees, abs=4)


def test_the_two_edges_of_a_smile_enclose_the_teeth():
    mouth = choose_face(astronaut().picture).mouth
    height = float(np.polyval(mouth.lower, 0.0) - np.polyval(mouth.upper, 0.0))

    assert 0.10 < height < 0.18
    assert mouth.half > 0.38


@pytest.mark.parametrize("side", [130, 1600])
def test_small_and_large_pictures(side):
    subject = painted("ada").resized(side)
    assert choose_face(subject.picture).face.plane.unit_px == pytest.approx(side / 5, rel=0.08)


def test_a_small_face_in_a_large_picture_is_found():
    """4 % of the height: the first pass does not detect it."""
    picture = np.full((1800, 2400, 3), (90, 110, 130), np.uint8)
    picture[900:1100, 1500:1700] = cv2.resize(painted("chen").picture, (200, 200), interpolation=cv2.INTER_AREA)
    plane = choose_face(picture).face.plane

    assert (plane.x, plane.y) == pytest.approx((1600, 984), abs=6)


def test_the_larger_of_two_people_speaks():
    picture = np.full((600, 1000, 3), (90, 110, 130), np.uint8)
    picture[44:556, :512] = painted("bashir").picture
    picture[200:500, 650:950] = painted("ada", 300).picture

    assert choose_face(picture).face.plane.x < 512


def test_a_grey_and_a_dark_and_a_soft_picture_are_found():
    picture = astronaut().picture
    grey = np.repeat(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    dark = (picture * 0.3).astype(np.uint8)
    soft = cv2.GaussianBlur(picture, (0, 0), 2.0)
    for changed in (grey, dark, soft):
        plane = choose_face(changed).face.plane
        assert (plane.x, plane.y) == pytest.approx((224.6, 102.5), abs=5)


# -- refusals ----------------------------------------------------------------------------------------------------------


def noise(side: int, grain: int) -> np.ndarray:
    small = np.random.default_rng(4).integers(0, 256, (side // grain, side // grain, 3), np.uint8)
    return cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC)


def masked() -> np.ndarray:
    """A face whose mouth is covered by a cloth."""
    picture = painted("ada").picture.copy()
    picture[300:420, 150:362] = (150, 180, 200)
    return picture


UNUSABLE = {
    "one pixel": lambda: np.zeros((1, 1, 3), np.uint8),
    "a line": lambda: np.zeros((2, 300, 3), np.uint8),
    "black": lambda: np.zeros((256, 256, 3), np.uint8),
    "fine noise": lambda: noise(512, 2),
    "coarse noise": lambda: noise(512, 32),
    "a cat": skimage.data.chelsea,
    "coffee": skimage.data.coffee,
    "a rocket": skimage.data.rocket,
    "a mask": masked,
    "upside down": lambda: np.ascontiguousarray(painted("ada").picture[::-1, ::-1]),
    "on the side": lambda: np.ascontiguousarray(np.rot90(astronaut().picture)),
}


@pytest.mark.parametrize("draw", UNUSABLE.values(), ids=UNUSABLE.keys())
def test_pictures_without_a_usable_face_are_refused(draw):
    picture = draw()
    with pytest.raises(NoFaceFound) as caught:
        choose_face(picture)

    height, width = picture.shape[:2]
    assert caught.value.code == "no-face"
    assert f"{width}x{height} pixels" in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize("degrees", [-60, -30, 30, 60])
@pytest.mark.parametrize("name", ["ada", "bashir"])
def test_a_head_tilted_far_is_refused(name, degrees):
    with pytest.raises(NoFaceFound):
        choose_face(painted(name).turned(degrees).picture)


def test_a_head_tilted_a_little_too_far_is_refused_with_its_tilt():
    """The cascades still detect it, but the position of its mouth is unreliable."""
    with pytest.raises(NoFaceFound, match=r"tilted by 2\d degrees; turn the picture"):
        choose_face(painted("chen").turned(-23).picture)


def test_a_face_that_is_too_small_is_refused_with_its_size():
    subject = painted("ada").resized(60)
    with pytest.raises(NoFaceFound, match=r"60x60 pixels is too small: its eyes are 1\d pixels apart"):
        choose_face(subject.picture)


def test_a_face_cut_off_below_the_mouth_is_refused():
    with pytest.raises(NoFaceFound, match="cut off below the mouth; use a picture that shows the chin"):
        choose_face(np.ascontiguousarray(painted("ada").picture[:342]))


# -- the plane ---------------------------------------------------------------------------------------------------------


def test_pixels_and_units_are_inverse():
    plane = Plane.from_eyes((100.0, 80.0), (160.0, 100.0))
    window = Window(-1.0, -0.5, 1.0, 2.0, scale=37.0)
    to_pixels = plane.to_pixels(window)
    for column, row in ((0, 0), (30, 12), (74, 90)):
        x, y = to_pixels @ [column, row, 1]
        u, v = plane.coordinates(np.array([x]), np.array([y]))
        assert (u[0], v[0]) == pytest.approx((-1.0 + column / 37, -0.5 + row / 37), abs=1e-5)


def test_a_box_around_a_part_outside_the_picture_holds_the_nearest_pixels():
    picture = np.zeros((100, 200, 3), np.uint8)
    plane = Plane.from_eyes((50.0, 50.0), (150.0, 50.0))

    assert PixelBox.around(plane, (-0.5, -0.2, 0.5, 0.3), picture) == PixelBox(50, 30, 151, 81)
    assert PixelBox.around(plane, (3.0, 0.0, 4.0, 9.0), picture) == PixelBox(199, 50, 200, 100)
    assert PixelBox.around(plane, (-9.0, -9.0, -8.0, -8.0), picture) == PixelBox(0, 0, 1, 1)


def test_a_cut_is_upright_and_does_not_alias():
    """Stripes of two pixels become an even grey at a tenth of their size."""
    stripes = np.repeat(np.where(np.arange(600) % 2, 255, 0).astype(np.uint8)[None, :, None], 600, axis=0).repeat(
        3, axis=2
    )
    cut = Plane.from_eyes((200.0, 300.0), (400.0, 300.0)).cut(stripes, Window(-0.5, -0.5, 0.5, 0.5, scale=20))

    assert cut.shape == (21, 21, 3)
    assert cut.std() < 8
