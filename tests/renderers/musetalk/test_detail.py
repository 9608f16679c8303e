"""The fine texture of a face that is larger than the painted patch: lost with scaling, given back where it belongs."""

from __future__ import annotations

import time

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")

from lipsyncd.renderers.framing import Box, RgbImage  # noqa: E402
from lipsyncd.renderers.musetalk.painting.blend import PasteBack  # noqa: E402
from lipsyncd.renderers.musetalk.painting.detail import Detail  # noqa: E402
from lipsyncd.renderers.musetalk.painting.prepared_face import PreparedFace  # noqa: E402
from tests.kits.media import portraits  # noqa: E402

BOX = Box(160, 120, 600, 640)
LIPS = (455, 590)  # their middle


def source() -> RgbImage:
    """The astronaut's face, 600 pixels wide, with film grain."""
    enlarged = cv2.resize(portraits.picture("astronaut")[40:176, 150:296], (912, 850), interpolation=cv2.INTER_CUBIC)
    grain = np.random.default_rng(1).normal(0, 8, (850, 912, 1))
    return np.clip(enlarged + grain, 0, 255).astype(np.uint8)


def points() -> NDArray[np.float32]:
    """68 points, of which those of the outer lips lie on an ellipse."""
    found = np.zeros((68, 2), np.float32)
    turn = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    found[48:60] = np.stack((LIPS[0] + 110 * np.cos(turn), LIPS[1] + 45 * np.sin(turn)), axis=1)
    return found


def paste() -> PasteBack:
    area = Box(BOX.x + 50, BOX.y + 320, 500, 300)
    return PasteBack(BOX, area, np.full((area.height, area.width, 1), 255, np.uint16))


def painted_from(picture: RgbImage) -> RgbImage:
    """What is left of a face after 256 pixels, for the area."""
    face = picture[BOX.y : BOX.bottom, BOX.x : BOX.right]
    patch = cv2.resize(face, (256, 256), interpolation=cv2.INTER_AREA)
    return cv2.resize(patch, (BOX.width, BOX.height))[paste().area_in_face]


def detail_of(picture: RgbImage, strength: float) -> Detail:
    found = Detail.of(picture, paste(), points(), strength)
    assert found is not None
    return found


def energy(picture: RgbImage, where: NDArray[np.bool_]) -> float:
    """The mean of the squared gradients."""
    grey = picture.astype(np.float32).mean(axis=2)
    across, down = np.diff(grey, axis=1)[:-1], np.diff(grey, axis=0)[:, :-1]
    return float((across**2 + down**2)[where[:-1, :-1]].mean())


def around_lips() -> NDArray[np.bool_]:
    """Outside the lips by 30 pixels and more, in the area."""
    area = paste().area
    lips = np.zeros((area.height, area.width), np.uint8)
    cv2.ellipse(lips, (LIPS[0] - area.x, LIPS[1] - area.y), (165, 100), 0, 0, 360, 1, -1)
    return lips == 0


def test_the_texture_that_a_patch_loses_comes_back_around_the_lips() -> None:
    picture = source()
    area = paste().area
    given = energy(picture[area.y : area.bottom, area.x : area.right], around_lips())
    soft = painted_from(picture)
    half, whole = (detail_of(picture, strength).add(soft) for strength in (0.5, 1.0))
    assert energy(soft, around_lips()) < 0.15 * given
    assert 0.2 * given < energy(half, around_lips()) < 0.5 * given
    assert energy(whole, around_lips()) == pytest.approx(given, rel=0.1)


def test_it_is_part_of_a_prepared_face() -> None:
    picture, area = source(), paste().area
    prepared = PreparedFace(torch.zeros(1), paste(), detail_of(picture, 1.0))
    target, soft = picture.copy(), painted_from(picture)
    prepared.blend(picture, soft, target, weight=1.0)
    np.testing.assert_array_equal(target[area.y : area.bottom, area.x : area.right], detail_of(picture, 1.0).add(soft))
    assert prepared.nbytes > area.width * area.height * 12


def test_lips_and_teeth_stay_as_they_are_painted() -> None:
    picture = source()
    soft = painted_from(picture)
    sharp = detail_of(picture, 1.0).add(soft)
    area = paste().area
    lips = np.zeros((area.height, area.width), np.uint8)
    cv2.ellipse(lips, (LIPS[0] - area.x, LIPS[1] - area.y), (105, 40), 0, 0, 360, 1, -1)
    np.testing.assert_array_equal(sharp[lips > 0], soft[lips > 0])


def test_where_picture_and_patch_differ_nothing_is_added() -> None:
    """A jaw that has moved: the skin of the source lies elsewhere."""
    picture = source()
    other = painted_from(picture)
    other[200:, :250] = np.clip(other[200:, :250].astype(int) - 60, 0, 255).astype(np.uint8)
    sharp = detail_of(picture, 1.0).add(other)
    np.testing.assert_array_equal(sharp[225:, :225], other[225:, :225])
    assert (sharp[225:, 275:] != other[225:, 275:]).mean() > 0.5


def test_a_face_that_the_patch_can_show_gets_nothing() -> None:
    small = PasteBack(Box(0, 0, 256, 200), Box(20, 100, 200, 90), np.full((90, 200, 1), 255, np.uint16))
    picture = source()
    assert Detail.of(picture, small, points(), 1.0) is None
    assert Detail.of(picture, paste(), points(), 0.0) is None


def test_a_frame_costs_little() -> None:
    picture = source()
    detail, soft = detail_of(picture, 1.0), painted_from(picture)
    times = []
    for _ in range(9):
        began = time.process_time()
        detail.add(soft)
        times.append(time.process_time() - began)
    assert min(times) < 0.02  # of the 40 ms that a frame lasts
