"""The face that speaks is chosen, and a face that cannot is refused with its place and the reason."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import skimage.data

from lipsyncd.errors import BadOption, FaceTooSmall, NoFaceFound
from lipsyncd.jobs.options import read_choice
from lipsyncd.renderers.face.choose import choose_face
from lipsyncd.renderers.face.finder import find_faces
from lipsyncd.renderers.face.judge import lightness
from tests.kits.media import portraits
from tests.kits.media.portraits import NAMES, picture


@pytest.mark.parametrize("name", NAMES)
def test_a_face_that_shows_its_mouth_is_taken(name):
    image = picture(name)
    face = choose_face(image)
    for other in (portraits.grey(image), portraits.brighter(image, 1.9), portraits.turned(face, image, 40)[0]):
        choose_face(other)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_face_that_shows_its_mouth_is_taken_at_every_size_and_in_poor_pictures(name):
    image = picture(name)
    face = choose_face(image)
    for share in (0.03, 0.05, 0.1, 0.9):
        choose_face(portraits.placed(face, image, share)[0])
    noise = np.random.default_rng(3).normal(0, 20, image.shape)
    choose_face(np.clip(image + noise, 0, 255).astype(np.uint8))
    choose_face(portraits.brighter(image, 0.35))
    _, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 15])
    choose_face(cv2.imdecode(jpeg, cv2.IMREAD_COLOR))


def covered(name: str) -> dict[str, np.ndarray]:
    """The mouth of a portrait behind a cloth, a microphone and a bar."""
    image, (face,) = picture(name), find_faces(picture(name))
    (x, y), reach = map(round, face.mouth), round(0.28 * face.width_px)
    pictures = {"mask": portraits.masked(face, image), "dark mask": portraits.masked(face, image, (40, 40, 45))}
    pictures["microphone"] = cv2.circle(image.copy(), (x, y), reach, (30, 30, 32), cv2.FILLED)
    pictures["bar"] = barred(name)
    return pictures


def test_a_covered_mouth_is_refused():
    with pytest.raises(NoFaceFound, match=r"a face at \d+,\d+, \d+ px wide, .*: its mouth is covered"):
        choose_face(barred("astronaut"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_mouths_behind_cloth_bars_and_microphones_are_refused(name):
    for what, image in covered(name).items():
        with pytest.raises(NoFaceFound) as refused:
            choose_face(image)
        message = refused.value.message
        assert "its mouth is covered" in message or "no face" in message, what
    assert "its mouth is covered" in message  # the bar leaves eyes and chin free
    assert "px wide" in message


@pytest.mark.parametrize(("name", "edge"), [("ada", "bottom"), ("hopper", "side")])
def test_a_mouth_that_is_cut_off_is_refused(name, edge):
    image, (face,) = picture(name), find_faces(picture(name))
    x, y = map(round, face.mouth)
    with pytest.raises(NoFaceFound, match=f"its mouth is cut off at the {edge}"):
        choose_face(image[:y] if edge == "bottom" else image[:, :x])


def test_a_chin_may_be_cut_off():
    image, (face,) = picture("ada"), find_faces(picture("ada"))
    lip = face.mesh[17, 1]
    assert choose_face(image[: round(lip + 0.12 * face.width_px)]).width_px == pytest.approx(face.width_px, rel=0.05)


def test_a_face_in_profile_is_refused():
    image = portraits.grey(np.dstack([skimage.data.camera()] * 3))
    with pytest.raises(NoFaceFound, match=r"turned sideways by about 5\d degrees"):
        choose_face(image)
    assert find_faces(image)[0].yaw_deg > 45  # he looks to the right
    assert find_faces(np.ascontiguousarray(image[:, ::-1]))[0].yaw_deg < -45


def test_a_tiny_face_is_refused_with_its_size():
    image, (face,) = picture("ada"), find_faces(picture("ada"))
    small, _ = portraits.placed(face, image, 20 / 240, side=240)
    with pytest.raises(FaceTooSmall, match=r"a face at \d+,\d+, (19|20|21|22) px wide"):
        choose_face(small)


def two() -> np.ndarray:
    """The astronaut at the left, a larger painted face at the right."""
    image = np.full((512, 1024, 3), 96, np.uint8)
    image[:, :512], image[:, 512:] = picture("astronaut"), picture("bashir")
    return image


def test_the_largest_face_speaks_unless_another_one_is_chosen():
    image = two()
    assert choose_face(image).centre[0] > 512
    assert choose_face(image, 0).centre[0] > 512
    assert choose_face(image, 1).centre[0] < 512
    assert math.dist(choose_face(image, (225.0, 120.0)).mouth, (225, 145)) < 6
    with pytest.raises(NoFaceFound, match=r"no face number 2 .* have their centres at \d+,\d+; \d+,\d+"):
        choose_face(image, 2)
    with pytest.raises(NoFaceFound, match="no face at 20,20"):
        choose_face(image, (20.0, 20.0))


def barred(name: str) -> np.ndarray:
    """A portrait with a black bar over its mouth."""
    (face,) = find_faces(picture(name))
    (x, y), reach = map(round, face.mouth), round(0.28 * face.width_px)
    return cv2.rectangle(picture(name).copy(), (x - reach, y - reach // 2), (x + reach, y + reach // 2), 0, cv2.FILLED)


def test_where_the_largest_face_cannot_speak_one_of_its_size_does():
    assert choose_face(np.hstack([barred("ada"), picture("chen")])).centre[0] > 512


def test_a_small_face_in_the_background_does_not_speak_in_place_of_a_large_one():
    beside = np.full((512, 160, 3), 96, np.uint8)
    beside[:160] = cv2.resize(picture("chen"), (160, 160), interpolation=cv2.INTER_AREA)
    with pytest.raises(NoFaceFound, match="covered"):
        choose_face(np.hstack([barred("ada"), beside]))


@pytest.mark.parametrize("bad", [True, -1, 1000, "12", "1;2", "1,2,3", [1, 2], 1.5])
def test_a_choice_that_is_none_is_refused(bad):
    with pytest.raises(BadOption, match="option face is"):
        read_choice(bad)


def test_choices_are_read():
    assert (read_choice(None), read_choice(2), read_choice(" 10.5, 20 ")) == (None, 2, (10.5, 20.0))


def test_lightness_is_that_of_lab():
    """Against OpenCV's own, whose 8-bit form interpolates in a table."""
    colours = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    colours[0] = np.arange(0, 256, 4, np.uint8)[:, None]
    exact = cv2.cvtColor(colours.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)[..., 0] * 2.55

    assert np.abs(lightness(colours) - exact).max() < 0.5
