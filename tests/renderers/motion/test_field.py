"""The field of a moving head has no fold, opens no border, and its depth is that of a head."""

from __future__ import annotations

import numpy as np
import pytest

from lipsyncd.renderers.face import points
from lipsyncd.renderers.framing import crop_square, square_around
from lipsyncd.renderers.motion.depth import depth_map
from lipsyncd.renderers.motion.field import LEAST_JACOBIAN, WAYS, Field
from lipsyncd.renderers.motion.head_pose import HeadPose
from lipsyncd.renderers.motion.still import StillMotion
from tests.kits.media.motion_kit import face, hills, times
from tests.kits.media.portraits import NAMES, picture


def canvases(name):
    """The whole picture and the usual square, each with its mesh."""
    whole, seen = picture(name), face(name)
    yield whole, seen.mesh
    height, width = whole.shape[:2]
    square = square_around(seen.box, width, height)
    mesh = seen.mesh * np.float32(256 / square.width)
    mesh[:, :2] = (seen.mesh[:, :2] - (square.x, square.y) + 0.5) * (256 / square.width) - 0.5
    yield crop_square(whole, square, 256), mesh


@pytest.mark.parametrize("kind", ["subtle", "lively"])
@pytest.mark.parametrize("name", NAMES)
def test_no_frame_folds_and_no_border_opens(name, kind):
    """By the sources of the finished frames themselves, pixel for pixel."""
    emphasis = hills(times(8), 1.0, 2.2, 3.1, 4.5, 5.9)
    for canvas, mesh in canvases(name):
        moving = StillMotion(canvas, mesh, kind=kind, at_s=times(8), seed=3, emphasis=emphasis)
        box = moving.field.box
        for numbers in moving.numbers[::9]:
            x, y = moving.field.sources(numbers)
            assert x.shape == y.shape == (box.height, box.width)
            xx, xy = np.diff(x, axis=1)[:-1], np.diff(x, axis=0)[:, :-1]
            yx, yy = np.diff(y, axis=1)[:-1], np.diff(y, axis=0)[:, :-1]
            assert (xx * yy - xy * yx).min() > LEAST_JACOBIAN
            assert min(x.min(), y.min()) >= 0
            assert x.max() <= box.width - 1 and y.max() <= box.height - 1
            assert moving.field.jacobian(numbers).min() >= moving.field.least_jacobian(np.abs(numbers)) - 1e-6


def test_no_place_size_or_tilt_of_a_head_folds_the_picture_or_opens_it():
    """Heads of 10 to 1000 pixels, also half or wholly outside of the picture."""
    random = np.random.default_rng(0)
    mesh, at_s = face("ada").mesh - face("ada").mesh.mean(axis=0), times(6)
    for seed in range(25):
        height, width = (int(side) for side in 2 * random.integers(32, 200, 2))
        canvas = random.integers(0, 255, (height, width, 3), dtype=np.uint8)
        angle, scale = random.uniform(-np.pi, np.pi), 10 ** random.uniform(-1.5, 0.6)
        c, s = np.cos(angle), np.sin(angle)
        placed = scale * mesh @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
        placed[:, :2] += random.uniform(-0.2, 1.2, 2) * (width, height)
        values = {"kind": "lively", "at_s": at_s, "seed": seed, "emphasis": hills(at_s, 1.0, 2.5, 4.0)}
        moving = StillMotion(canvas, placed.astype(np.float32), **values)
        box = moving.field.box
        for number in range(0, 150, 30):
            x, y = moving.field.sources(moving.numbers[number])
            assert min(x.min(), y.min()) > -1e-3 and x.max() < box.width - 0.999 and y.max() < box.height - 0.999
            assert moving.field.jacobian(moving.numbers[number]).min() > LEAST_JACOBIAN
            assert moving.apply(canvas, number).shape == canvas.shape


def test_motion_is_reduced_until_nothing_folds():
    """A head with a relief so deep that the whole movement would pull the picture over itself."""
    seen, canvas = face("ada"), picture("ada")
    deep = seen.mesh * np.float32([1, 1, 3])
    most = np.array([0.105, 0.07, 0.052, 0.02, 0.02, 0.02, 0.0045], np.float32)
    assert Field((512, 512), deep, HeadPose.of(deep)).least_jacobian(most) < LEAST_JACOBIAN

    moving = StillMotion(canvas, deep, kind="lively", at_s=times(10), seed=5, emphasis=hills(times(10), 2, 4, 6))

    assert "little room" in moving.notes["reduced"]["why"]
    assert 0 < moving.notes["reduced"]["share"] < 1
    assert moving.field.least_jacobian(np.abs(moving.numbers).max(axis=0)) >= LEAST_JACOBIAN


def test_each_number_moves_the_head_its_own_way():
    """Content moves right for yaw, down for pitch, clockwise for roll; brows up, chest down."""
    seen = face("astronaut")
    pose = HeadPose.of(seen.mesh)
    field = Field((512, 512), seen.mesh, pose)

    def moved(way, size, u, v):
        """To the right and down, in sizes of the head, at a place in sizes from the middle of the face."""
        numbers = np.zeros(len(WAYS), np.float32)
        numbers[WAYS.index(way)] = size
        x, y = field.sources(numbers)
        at_x, at_y = (round(c + d * pose.size_px) for c, d in ((pose.x, u), (pose.y, v)))
        column, row = at_x - field.box.x, at_y - field.box.y
        return (column - x[row, column]) / pose.size_px, (row - y[row, column]) / pose.size_px

    nose, crown, brow, chest = (0.0, 0.1), (0.0, -0.8), (0.2, -0.3), (0.0, 1.3)
    assert moved("yaw", 0.05, *nose)[0] > 0.025 and abs(moved("yaw", 0.05, *crown)[0]) < 0.012
    assert moved("pitch", 0.05, *nose)[1] > 0.025
    assert moved("roll", 0.03, *crown)[0] > 0.02 and abs(moved("roll", 0.03, *crown)[1]) < 0.005
    assert moved("right", 0.01, *crown)[0] > 0.009 and moved("down", 0.01, *nose)[1] > 0.009
    assert moved("brows", 0.01, *brow)[1] < -0.008 and abs(moved("brows", 0.01, *nose)[1]) < 0.0005
    assert moved("breath", 0.0045, *chest)[1] > 0.004 and abs(moved("breath", 0.0045, *nose)[1]) < 0.0005


@pytest.mark.parametrize("name", NAMES)
def test_the_nose_is_in_front_and_the_background_has_no_depth(name):
    seen = face(name)
    pose = HeadPose.of(seen.mesh)
    x = y = np.arange(0.0, 512.0, 4.0)
    depth = depth_map(seen.mesh, pose, x, y) / pose.size_px

    def at(point):
        return depth[round(point[1] / 4), round(point[0] / 4)]

    nose, cheek = at(seen.mesh[points.NOSE_TIP]), at(seen.mesh[425])
    assert 0.4 < nose < 0.75
    assert cheek < nose - 0.15
    u, v = pose.own(x[None, :], y[:, None])
    assert not depth[np.hypot(u, v) > 1.3].any()
