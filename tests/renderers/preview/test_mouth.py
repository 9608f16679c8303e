"""The mouth lies where the mesh has it, whatever befell the picture; and the mesh sees the drawn poses."""

from __future__ import annotations

import math
import time
from functools import cache, lru_cache

import cv2
import numpy as np
import pytest

from lipsyncd.renderers.face import points
from lipsyncd.renderers.face.face import Face
from lipsyncd.renderers.face.finder import find_faces
from lipsyncd.renderers.framing import RgbImage
from lipsyncd.renderers.preview.draw.lips import Pose
from lipsyncd.renderers.preview.draw.speaking_mouth import SpeakingMouth
from lipsyncd.renderers.preview.mouth import Mouth, monotone, resting_mouth
from lipsyncd.renderers.preview.plane import PixelBox, Plane, Window
from tests.kits.media import portraits
from tests.kits.media.portraits import NAMES, picture

WITHIN = 0.03  # of the face's width
EVERYBODY = ["astronaut", "hopper", *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[2:])]


@cache
def upright(name: str) -> Face:
    (face,) = find_faces(picture(name))
    return face


def found(image: RgbImage) -> tuple[Mouth, Plane, Face]:
    (face,) = find_faces(image)
    plane = Plane.of(face.mesh)
    return resting_mouth(image, face.mesh, plane), plane, face


def off(image: RgbImage, mouth: tuple[float, float]) -> float:
    """How far the middle of the line between the lips lies from `mouth`, in widths of the face."""
    resting, plane, face = found(image)
    return math.dist(plane.pixel(resting.middle, resting.line_v), mouth) / face.width_px


# -- where the mouth is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [-60, -45, -30, -15, 0, 15, 30, 45, 60])
@pytest.mark.parametrize("name", EVERYBODY)
def test_the_mouth_of_a_tilted_head_is_that_of_the_mesh(name, degrees):
    image, mouth = portraits.turned(upright(name), picture(name), degrees)
    assert off(image, mouth) < WITHIN


@pytest.mark.parametrize("share", [0.03, 0.1, 0.3, 0.9])
@pytest.mark.parametrize("name", EVERYBODY)
def test_the_mouth_of_a_face_of_any_size_is_that_of_the_mesh(name, share):
    image, mouth = portraits.placed(upright(name), picture(name), share)
    assert off(image, mouth) < WITHIN


@pytest.mark.parametrize("name", EVERYBODY)
def test_grey_bright_dark_and_mirrored_pictures_have_the_same_mouth(name):
    image, (x, y) = picture(name), upright(name).mouth
    assert off(portraits.grey(image), (x, y)) < WITHIN
    assert off(portraits.brighter(image, 1.9), (x, y)) < WITHIN
    assert off(portraits.brighter(image, 0.35), (x, y)) < WITHIN
    assert off(np.ascontiguousarray(image[:, ::-1]), (image.shape[1] - 1 - x, y)) < WITHIN


@pytest.mark.parametrize("name", NAMES)
def test_only_the_smile_is_open_at_rest(name):
    resting, _, _ = found(picture(name))
    lips = resting.contours(np.linspace(-resting.half, resting.half, 51))
    assert resting.open_at_rest == (name == "astronaut")
    for above, below in ((lips.outer_upper, lips.inner_upper), (lips.inner_lower, lips.outer_lower)):
        assert (above <= below).all()
    assert (lips.inner_lower - lips.inner_upper).max() == pytest.approx(0.16 if name == "astronaut" else 0, abs=0.03)


@pytest.mark.parametrize("name", ["ada", "bashir", "chen"])
def test_the_line_between_touching_lips_is_the_dark_one(name):
    """On the line it is darker than a fiftieth of the eyes' distance above and below it."""
    resting, plane, _ = found(picture(name))
    x = np.linspace(-0.7 * resting.half, 0.7 * resting.half, 41)
    u = monotone(np.array([-resting.half, 0.0, resting.half]), resting.knots[1:4], x)
    grey = cv2.GaussianBlur(cv2.cvtColor(picture(name), cv2.COLOR_RGB2GRAY), (0, 0), 1)

    def lightness(below):
        at = [plane.pixel(one, v) for one, v in zip(u, resting.closed_line(x) + below, strict=True)]
        return np.array([grey[round(row), round(column)] for column, row in at], float)

    assert np.median(lightness(0.0)) < np.median(lightness(-0.03)) - 10
    assert np.median(lightness(0.0)) < np.median(lightness(0.03)) - 10


# -- what the mesh sees in the drawn frames ----------------------------------------------------------------------------


@lru_cache(maxsize=1)
def speaking(name: str, degrees: float = 0.0) -> tuple[RgbImage, SpeakingMouth, Face]:
    image = picture(name) if not degrees else portraits.turned(upright(name), picture(name), degrees)[0]
    (face,) = find_faces(image)
    return image, SpeakingMouth(image, face.mesh, 1), face


def drawn(name: str, pose: Pose, degrees: float = 0.0) -> RgbImage:
    image, mouth, _ = speaking(name, degrees)
    frame = image.copy()
    mouth.draw(frame, pose)
    return frame


def gap(frame: RgbImage) -> float:
    """Between the inner lips in the middle, as the mesh sees it, in widths of the face."""
    (face,) = find_faces(frame)
    middle = len(points.INNER_UPPER_LIP) // 2
    upper, lower = (face.mesh[line[middle], :2] for line in (points.INNER_UPPER_LIP, points.INNER_LOWER_LIP))
    return float(np.linalg.norm(lower - upper)) / face.width_px


@pytest.mark.parametrize(
    ("name", "degrees"),
    [("astronaut", 0), ("hopper", 0), ("hopper", 35), *(pytest.param(n, 0, marks=pytest.mark.slow) for n in NAMES[2:])],
)
def test_the_mesh_sees_the_mouth_open_with_openness(name, degrees):
    gaps = [gap(drawn(name, Pose(openness), degrees)) for openness in (0.0, 0.3, 0.6, 1.0)]
    assert gaps[0] < 0.02
    assert gaps[-1] > 0.07
    assert (np.diff(gaps) > 0.004).all()


@pytest.mark.parametrize("name", EVERYBODY)
def test_the_mesh_sees_pressed_lips_closed(name):
    assert gap(drawn(name, Pose(0.0, press=1.0))) < 0.02


@pytest.mark.parametrize("name", EVERYBODY)
def test_a_bite_shows_the_teeth_between_lips_that_hardly_part(name):
    """Between the lips it is as pale as teeth are; closed lips are red there."""
    image, _, face = speaking(name)
    plane = Plane.of(face.mesh)
    resting = resting_mouth(image, face.mesh, plane)
    top, bottom = resting.line_v - 0.045, resting.line_v + 0.01
    between = Window(resting.middle - 0.08, top, resting.middle + 0.08, bottom, 100)

    def palest(pose):
        lab = cv2.cvtColor(plane.cut(drawn(name, pose), between).astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
        return float(np.percentile(lab[..., 1], 5))  # the red of Lab

    assert palest(Pose(0.0, bite=1.0)) < palest(Pose(0.0)) - 4
    assert gap(drawn(name, Pose(0.0, bite=1.0))) < 0.035


@pytest.mark.parametrize(("name", "degrees"), [("astronaut", 0), ("hopper", -40), ("ada", 0)])
def test_nothing_changes_outside_the_lower_face(name, degrees):
    image, _, face = speaking(name, degrees)
    plane = Plane.of(face.mesh)
    u, v = plane.coordinates(np.arange(image.shape[1])[None, :], np.arange(image.shape[0])[:, None])
    chin = plane.coordinates(face.mesh[points.CHIN, :1], face.mesh[points.CHIN, 1:2])[1]
    outside = (np.abs(u) > 1.1) | (v < 0.45) | (v > chin + 0.4)
    for pose in (Pose(1.2), Pose(0.4, -1.0), Pose(0.4, 1.0), Pose(0.0, press=1.0), Pose(0.0, bite=1.0)):
        frame = drawn(name, pose, degrees)
        assert np.array_equal(frame[outside], image[outside])
        assert not np.array_equal(frame, image)


def test_the_time_of_a_frame_grows_with_the_face_and_not_with_the_picture():
    image, mouth, face = speaking("astronaut")
    height, width = image.shape[:2]
    large = np.full((4 * height, 4 * width, 3), 96, np.uint8)
    large[height : 2 * height, width : 2 * width] = image
    moved = face.mesh + np.float32([width, height, 0])

    def fastest_s(drawing, frame):
        took = []
        for number in range(60):
            began = time.perf_counter()
            drawing.draw(frame, Pose(0.5 + 0.4 * (number % 2)))
            took.append(time.perf_counter() - began)
        return min(took)

    assert fastest_s(SpeakingMouth(large, moved, 1), large) < 1.5 * fastest_s(mouth, image.copy())


# -- the plane ---------------------------------------------------------------------------------------------------------


def test_the_plane_of_a_turned_head_is_narrower():
    mesh = upright("hopper").mesh
    angle, centre = math.radians(40), mesh.mean(axis=0)
    turn = np.array([[math.cos(angle), 0, -math.sin(angle)], [0, 1, 0], [math.sin(angle), 0, math.cos(angle)]])
    ahead, aside = Plane.of(mesh), Plane.of(((mesh - centre) @ turn + centre).astype(np.float32))

    assert math.hypot(aside.across_x, aside.across_y) == pytest.approx(
        math.cos(angle) * math.hypot(ahead.across_x, ahead.across_y), rel=0.05
    )
    assert aside.unit_px == pytest.approx(ahead.unit_px, rel=0.02)


@pytest.mark.parametrize("plane", [Plane.from_eyes((100.0, 80.0), (160.0, 100.0)), Plane(90, 70, 40, 9, -20, 55)])
def test_pixels_and_units_are_inverse(plane):
    window = Window(-1.0, -0.5, 1.0, 2.0, scale=37.0)
    to_pixels = plane.to_pixels(window)
    for column, row in ((0, 0), (30, 12), (74, 90)):
        x, y = to_pixels @ [column, row, 1]
        u, v = plane.coordinates(np.array([x]), np.array([y]))
        assert (u[0], v[0]) == pytest.approx((-1.0 + column / 37, -0.5 + row / 37), abs=1e-5)


def test_a_box_around_a_part_outside_the_picture_holds_the_nearest_pixels():
    image = np.zeros((100, 200, 3), np.uint8)
    plane = Plane.from_eyes((50.0, 50.0), (150.0, 50.0))

    assert PixelBox.around(plane, (-0.5, -0.2, 0.5, 0.3), image) == PixelBox(50, 30, 151, 81)
    assert PixelBox.around(plane, (3.0, 0.0, 4.0, 9.0), image) == PixelBox(199, 50, 200, 100)
    assert PixelBox.around(plane, (-9.0, -9.0, -8.0, -8.0), image) == PixelBox(0, 0, 1, 1)


def test_a_cut_is_upright_and_does_not_alias():
    """Stripes of two pixels become an even grey at a tenth of their size."""
    stripes = np.repeat(np.where(np.arange(600) % 2, 255, 0).astype(np.uint8)[None, :, None], 600, axis=0).repeat(
        3, axis=2
    )
    cut = Plane.from_eyes((200.0, 300.0), (400.0, 300.0)).cut(stripes, Window(-0.5, -0.5, 0.5, 0.5, scale=20))

    assert cut.shape == (21, 21, 3)
    assert cut.std() < 8


def test_a_monotone_curve_goes_through_its_points_without_overshoot():
    knots, values = np.array([0.0, 1.0, 2.0, 4.0]), np.array([0.0, 1.0, 1.0, 5.0])
    at = np.linspace(-1, 5, 601)
    curve = monotone(knots, values, at)

    assert monotone(knots, values, knots) == pytest.approx(values)
    assert (np.diff(curve) >= -1e-9).all()
    assert curve[(at >= 1) & (at <= 2)] == pytest.approx(1.0)
