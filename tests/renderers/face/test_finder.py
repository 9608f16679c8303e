"""Faces are found, and their mouths placed, whatever befell the picture."""

from __future__ import annotations

import hashlib
import math
import time
from functools import cache

import cv2
import numpy as np
import pytest
import skimage.data

from lipsyncd.renderers.face import networks
from lipsyncd.renderers.face.face import Face
from lipsyncd.renderers.face.finder import find_faces, passes
from lipsyncd.renderers.framing import RgbImage
from tests.kits.media import portraits
from tests.kits.media.portraits import NAMES, picture

WITHIN = 0.03  # of the face's width
EVERYBODY = ["astronaut", *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES if name != "astronaut")]


@cache
def upright(name: str) -> Face:
    (face,) = find_faces(picture(name))
    return face


def off(image: RgbImage, mouth: tuple[float, float]) -> float:
    """How far the mouth of the only face lies from `mouth`, in widths of the face."""
    (face,) = find_faces(image)
    return math.dist(face.mouth, mouth) / face.width_px


# Where the mouths are, measured in enlargements of the pictures.
MOUTHS = {"astronaut": (225, 145), "hopper": (262, 278)}


@pytest.mark.parametrize("name", MOUTHS)
def test_the_mouth_of_a_photograph_is_where_people_see_it(name):
    face = upright(name)
    assert math.dist(face.mouth, MOUTHS[name]) < 0.05 * face.width_px
    assert face.presence > 0.99


@pytest.mark.parametrize("degrees", [-60, -45, -30, -15, 15, 30, 45, 60, 90, 135, 180, -90])
@pytest.mark.parametrize("name", EVERYBODY)
def test_a_tilted_face_is_found(name, degrees):
    image, mouth = portraits.turned(upright(name), picture(name), degrees)
    assert off(image, mouth) < WITHIN
    (face,) = find_faces(image)
    turned = (face.roll_deg - upright(name).roll_deg + degrees + 180) % 360 - 180
    assert abs(turned) < 5


@pytest.mark.parametrize("share", [0.03, 0.05, 0.1, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("name", EVERYBODY)
def test_a_face_of_any_size_is_found(name, share):
    image, mouth = portraits.placed(upright(name), picture(name), share)
    assert off(image, mouth) < WITHIN


@pytest.mark.parametrize("name", EVERYBODY)
def test_grey_bright_dark_and_mirrored_pictures_show_the_same_face(name):
    image, (x, y) = picture(name), upright(name).mouth
    assert off(portraits.grey(image), (x, y)) < WITHIN
    assert off(portraits.brighter(image, 1.9), (x, y)) < WITHIN
    assert off(portraits.brighter(image, 0.35), (x, y)) < WITHIN
    assert off(np.ascontiguousarray(image[:, ::-1]), (image.shape[1] - 1 - x, y)) < WITHIN


def test_faces_come_largest_first_and_each_once():
    small, large = (cv2.resize(picture(n), (side, side)) for n, side in (("ada", 300), ("astronaut", 600)))
    image = np.full((600, 900, 3), 96, np.uint8)
    image[:, 300:], image[150:450, :300] = large, small
    first, second = find_faces(image)
    assert first.width_px > second.width_px
    assert (first.centre[0] < 300, second.centre[0] > 300) == (True, True)  # the painted face fills its picture


@pytest.mark.parametrize(
    "name",
    ["cat", "coffee", *(pytest.param(name, marks=pytest.mark.slow) for name in ("rocket", "brick", "text", "moon"))],
)
def test_what_has_no_face_has_none(name):
    image = np.asarray(getattr(skimage.data, name)())
    assert find_faces(portraits.grey(np.dstack([image] * 3)) if image.ndim == 2 else image) == []


def test_noise_and_flat_pictures_have_no_face():
    noise = np.random.default_rng(5).integers(0, 256, (480, 640, 3), np.uint8)
    assert find_faces(noise) == []
    assert find_faces(np.full((480, 640, 3), 180, np.uint8)) == []
    assert find_faces(np.zeros((64, 64, 3), np.uint8)) == []


def test_a_picture_of_64_pixels_and_a_narrow_strip_are_looked_at():
    assert find_faces(cv2.resize(picture("ada"), (64, 64), interpolation=cv2.INTER_AREA))
    assert find_faces(np.full((64, 4000, 3), 128, np.uint8)) == []


def test_the_same_picture_gives_the_same_mesh():
    first, second = (find_faces(picture("hopper"))[0] for _ in range(2))
    assert np.array_equal(first.mesh, second.mesh)


def test_all_places_and_turns_take_at_most_two_seconds():
    cat = skimage.data.cat()
    began = time.process_time()
    assert list(passes(cat)) == []
    assert time.process_time() - began < 2.0


def test_the_networks_are_the_files_of_the_notice():
    notice = (networks.MODELS / "NOTICE").read_text("utf-8")
    for name in (networks.DETECTOR_FILE, networks.MESH_FILE):
        assert f"{hashlib.sha256((networks.MODELS / name).read_bytes()).hexdigest()}  {name}" in notice
    assert "Apache License" in (networks.MODELS / "LICENSE").read_text("utf-8")
