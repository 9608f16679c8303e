"""Eyes blink as people do, and those that cannot do not."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import pytest

from lipsyncd.renderers.face import points
from lipsyncd.renderers.face.finder import find_faces
from lipsyncd.renderers.motion.blinks import DOUBLE_AFTER_S, blink_starts, lid_closure
from lipsyncd.renderers.motion.head_pose import HeadPose
from lipsyncd.renderers.motion.still import StillMotion
from tests.kits.media.motion_kit import eyes_open, face, hills, motion, times
from tests.kits.media.portraits import picture

EYES = ["astronaut", "bashir", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ada", "chen"))]


def shut_frame(moving):
    """The number of the first frame with shut lids."""
    return int(np.argmax(moving.closure > 0.99))


@pytest.mark.parametrize("name", EYES)
def test_a_blink_shuts_the_eyes_of_the_mesh_and_opens_them_again(name):
    moving, canvas = motion(name), picture(name)
    shut = shut_frame(moving)
    open_, closed, after = (
        eyes_open(find_faces(moving.apply(canvas, number))[0]) for number in (shut - 5, shut, shut + 8)
    )
    assert closed < 0.72 * open_
    assert after > 0.9 * open_


def test_a_blink_changes_the_eyes_and_nothing_else():
    still = {"kind": "subtle", "at_s": times(10), "seed": 5}
    canvas, mesh = picture("ada"), face("ada").mesh
    blinking, staring = (StillMotion(canvas, mesh, blink=blink, **still) for blink in (True, False))
    number = shut_frame(blinking)
    changed = (blinking.apply(canvas, number) != staring.apply(canvas, number)).any(axis=2)
    rows, columns = np.nonzero(changed)
    u, v = HeadPose.of(mesh).own(columns, rows)
    assert len(rows) > 200
    assert v.min() > -0.40 and v.max() < 0.0 and np.abs(u).max() < 0.40  # between brows and cheeks
    assert staring.notes["blinks"] == 0 and blinking.notes["blinks"] > 0


def test_blinks_come_every_two_to_six_seconds_and_sometimes_twice():
    at_s = times(600)
    starts = blink_starts(at_s, np.zeros(len(at_s)), seed=1)
    gaps = np.array([b - a for a, b in pairwise(starts)])
    double = np.isclose(gaps, DOUBLE_AFTER_S)
    assert 0.05 < double.mean() < 0.3
    assert gaps[~double].min() >= 2.0 and gaps[~double].max() <= 6.0
    assert starts != blink_starts(at_s, np.zeros(len(at_s)), seed=2)


def test_lids_fall_in_100_ms_and_rise_in_150():
    at_s = np.arange(0, 1, 0.001)
    closure = lid_closure(at_s, [0.5])
    shut = at_s[closure == 1]
    moving = at_s[closure > 0]
    assert shut[0] - moving[0] == pytest.approx(0.10, abs=0.005)
    assert moving[-1] - shut[-1] == pytest.approx(0.15, abs=0.005)


def test_a_blink_waits_for_the_end_of_a_stressed_vowel():
    at_s = times(300)
    plain = blink_starts(at_s, np.zeros(len(at_s)), seed=4)
    emphasis = hills(at_s, plain[0] + 0.1)
    waited = blink_starts(at_s, emphasis, seed=4)
    assert waited[0] > plain[0]
    assert np.interp(waited[0] + 0.1, at_s, emphasis) < 0.5


def test_a_video_begins_and_ends_with_open_eyes():
    for seed in range(40):
        at_s = times(4)
        closure = lid_closure(at_s, blink_starts(at_s, np.zeros(len(at_s)), seed))
        assert closure[0] == closure[-1] == 0


# -- eyes that do not blink --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", [(20, 20, 20), (170, 130, 40)])
@pytest.mark.parametrize("name", ["astronaut", "ada", "bashir"])
def test_eyes_behind_glasses_do_not_blink(name, colour):
    """Large rims, which leave the lids free: only the bridge over the nose tells that these are glasses."""
    worn, mesh = picture(name).copy(), face(name).mesh
    right, left = (mesh[list(c), :2].mean(axis=0) for c in (points.RIGHT_EYE_CORNERS, points.LEFT_EYE_CORNERS))
    apart = np.linalg.norm(left - right)
    radius, thick = round(0.45 * apart), max(round(0.035 * apart), 2)
    for eye in (right, left):
        middle = np.rint(eye + np.array([0, 0.08 * apart])).astype(int).tolist()
        cv2.circle(worn, middle, radius, colour, thick, cv2.LINE_AA)
    bridge = [np.rint(mesh[point, :2]).astype(int).tolist() for point in (193, 168, 417)]
    cv2.polylines(worn, [np.array(bridge)], False, colour, thick, cv2.LINE_AA)

    values = {"kind": "subtle", "at_s": times(10), "seed": 5}
    assert StillMotion(worn, mesh, **values).notes["blinks"] == 0
    assert StillMotion(picture(name), mesh, **values).notes["blinks"] > 0


def test_the_glasses_of_a_photograph_are_seen():
    assert motion("hopper").notes["blinks"] == 0


@pytest.mark.parametrize("name", EYES)
def test_closed_eyes_do_not_blink(name):
    moving = motion(name)
    asleep = moving.apply(picture(name), shut_frame(moving)).copy()
    (seen,) = find_faces(asleep)
    assert StillMotion(asleep, seen.mesh, kind="subtle", at_s=times(10), seed=5).notes["blinks"] == 0


def test_an_eye_that_is_covered_keeps_the_other_one_open():
    """A wink would be worse than no blink."""
    covered = picture("ada").copy()
    x, y = face("ada").mesh[[33, 133], :2].mean(axis=0).astype(int)
    covered[y - 30 : y + 30, x - 40 : x + 40] = covered[y + 80, x]
    moving = StillMotion(covered, face("ada").mesh, kind="subtle", at_s=times(10), seed=5)
    assert moving.notes["blinks"] == 0


def test_an_eye_outside_of_the_picture_does_not_keep_the_other_one_open():
    left = int(face("ada").mesh[133, 0]) - 10
    cut, mesh = np.ascontiguousarray(picture("ada")[:, left:]), face("ada").mesh.copy()
    mesh[:, 0] -= left
    moving = StillMotion(cut, mesh, kind="subtle", at_s=times(10), seed=5)
    assert moving.notes["blinks"] > 0
    shut = shut_frame(moving)
    assert (moving.apply(cut, shut) != cut).any()
