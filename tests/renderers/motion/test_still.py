"""A still moves as far as its kind allows, by the mesh on finished frames, and only where it may."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from lipsyncd.renderers.face import points
from lipsyncd.renderers.face.finder import find_faces
from lipsyncd.renderers.framing import Box
from lipsyncd.renderers.motion.head_pose import HeadPose
from lipsyncd.renderers.motion.still import StillMotion
from tests.kits.media.motion_kit import face, hills, looks, motion, times
from tests.kits.media.portraits import NAMES, picture

SOME = range(12, 245, 18)
EVERYBODY = ["astronaut", *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES if name != "astronaut")]


def most_turned(name, kind):
    """The largest yaw, pitch and roll in degrees, and way of the nose's bridge in sizes of the head.

    Without blinks, since the mesh takes shut lids for a lowered head.
    """
    seen, still = looks(motion(name, kind=kind, blink=False), picture(name), SOME), face(name)
    bridge, size = points.NOSE_BRIDGE, HeadPose.of(still.mesh).size_px
    return np.abs(
        [
            (
                one.yaw_deg - still.yaw_deg,
                one.pitch_deg - still.pitch_deg,
                one.roll_deg - still.roll_deg,
                np.linalg.norm(one.mesh[bridge, :2] - still.mesh[bridge, :2]) / size,
            )
            for one in seen
        ]
    ).max(axis=0)


@pytest.mark.parametrize("name", EVERYBODY)
def test_a_head_turns_as_far_as_its_kind_allows_by_the_mesh(name):
    subtle, lively = most_turned(name, "subtle"), most_turned(name, "lively")

    yaw, pitch, roll, way = subtle
    assert 1.0 < yaw < 3.3
    assert 0.5 < pitch < 2.3
    assert 0.5 < roll < 1.7
    assert 0.01 < way < 0.06
    assert 1.5 * yaw < lively[0] < 6.6
    assert lively[1] < 4.6 and lively[2] < 3.4
    assert 1.5 * way < lively[3] < 0.12


@pytest.mark.parametrize("kind", ["subtle", "lively"])
def test_the_background_does_not_move(kind):
    canvas, moving = picture("astronaut"), motion("astronaut", kind=kind)
    y, x = np.mgrid[:512, :512]
    u, v = HeadPose.of(face("astronaut").mesh).own(x, y)
    far = (np.hypot(u, v + 0.12) > 1.45) & ((v < 0.75) | (v > 2.6) | (np.abs(u) > 1.7))
    head = np.hypot(u, v) < 0.5

    for number in SOME:
        moved = moving.apply(canvas, number)
        assert (moved[far] == canvas[far]).all()
        assert (moved[head] != canvas[head]).mean() > 0.2


def test_first_and_last_frame_are_those_of_the_renderer_whatever_the_mouth_does():
    frame = picture("ada").copy()
    frame[320:380, 220:300] = 40
    moving = motion("ada", at_s=times(2))

    assert (moving.apply(frame, 0) == frame).all() and (moving.apply(frame, 49) == frame).all()
    assert all((moving.apply(frame, number) != frame).any() for number in range(5, 45))


def test_the_mouth_that_a_renderer_drew_moves_with_the_head():
    """The frames that come in differ from the canvas in the mouth, which appears, moved, in those that go out."""
    canvas = picture("ada")
    spoken = canvas.copy()
    lips = face("ada").mesh[list(points.OUTER_LOWER_LIP), :2].mean(axis=0).astype(int)
    cv2.circle(spoken, lips.tolist(), 12, (255, 0, 255), -1)
    moving = motion("ada", kind="lively")
    x, y = [], []
    for number in range(0, 250, 5):
        rows, columns = np.nonzero((moving.apply(spoken, number) == (255, 0, 255)).all(axis=2))
        assert len(rows) > 250
        x.append(columns.mean())
        y.append(rows.mean())
        assert not (moving.apply(canvas, number) == (255, 0, 255)).all(axis=2).any()  # nothing stays behind
    assert np.ptp(x) > 3 and np.ptp(y) > 2


def test_equal_inputs_give_equal_frames_on_any_number_of_threads():
    canvas, emphasis = picture("ada"), hills(times(10), 1.5, 3.2, 6.1)
    threads = cv2.getNumThreads()
    runs = []
    for count in (1, 3):
        cv2.setNumThreads(count)
        runs.append([motion("ada", emphasis=emphasis).apply(canvas, number).copy() for number in (40, 90, 200)])
    cv2.setNumThreads(threads)

    assert all((a == b).all() for a, b in zip(*runs, strict=True))
    other = motion("ada", emphasis=emphasis, seed=6)
    assert any((other.apply(canvas, number) != runs[0][i]).any() for i, number in enumerate((40, 90, 200)))


def test_a_frame_does_not_depend_on_those_before_it():
    canvas, moving = picture("ada"), motion("ada")
    spoken = canvas.copy()
    spoken[330:370, 220:290] = (90, 20, 30)
    for number in range(30, 60):
        moving.apply((canvas, spoken)[number % 2], number)
    assert (moving.apply(spoken, 61) == motion("ada").apply(spoken, 61)).all()
    assert (moving.apply(canvas, 62) == motion("ada").apply(canvas, 62)).all()


def test_moved_frames_stay_sharp():
    """Plain linear interpolation between pixels would lose a tenth of the gradients' energy."""
    canvas, moving = picture("hopper"), motion("hopper", kind="lively")
    box = moving.field.box
    part = np.s_[box.y : box.bottom, box.x : box.right]

    def energy(frame):
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32)[part]
        return float((cv2.Sobel(grey, -1, 1, 0) ** 2 + cv2.Sobel(grey, -1, 0, 1) ** 2).mean())

    for number in SOME:
        x, y = moving.field.sources(moving.numbers[number])
        linear = canvas.copy()
        linear[part] = cv2.remap(canvas[part], x, y, cv2.INTER_LINEAR)
        sharp = energy(moving.apply(canvas, number)) / energy(canvas)
        assert sharp > 0.94
        assert sharp > energy(linear) / energy(canvas) + 0.04


def test_the_frame_of_the_renderer_is_not_changed():
    canvas = picture("ada")
    frame, moving = canvas.copy(), motion("ada")
    for number in range(0, 250, 2):
        moving.apply(frame, number)
    assert (frame == canvas).all()


def test_nods_and_brows_follow_emphasis():
    """The nose sinks at a stressed syllable, and the brows move away from the eyes."""
    at_s = times(8)
    plain, stressed = (motion("ada", kind="lively", at_s=at_s, emphasis=e) for e in (None, hills(at_s, 4.0)))
    canvas, at = picture("ada"), 100
    before, nodding = (find_faces(moving.apply(canvas, at))[0].mesh for moving in (plain, stressed))
    size = HeadPose.of(before).size_px
    nose = points.NOSE_TIP
    assert nodding[nose, 1] - before[nose, 1] > 0.008 * size

    def lift(mesh):
        brows = mesh[list(points.RIGHT_BROW + points.LEFT_BROW), 1].mean()
        return (mesh[list(points.RIGHT_EYE_CORNERS + points.LEFT_EYE_CORNERS), 1].mean() - brows) / size

    assert lift(nodding) > lift(before) + 0.004
    assert (stressed.apply(canvas, 30) == plain.apply(canvas, 30)).all()  # nowhere else


def test_a_pause_is_stiller_than_a_sentence():
    at_s = times(20)
    speaking = (at_s < 10).astype(np.float32)
    numbers = motion("ada", at_s=at_s, speaking=speaking).numbers[:, :3]
    speed = np.abs(np.diff(numbers, axis=0)).sum(axis=1)
    assert speed[300:450].mean() < 0.5 * speed[50:230].mean()


def test_a_short_video_moves_less():
    long, short = (np.abs(motion("ada", at_s=times(seconds)).numbers).max(axis=0) for seconds in (10, 0.4))
    assert (short < 0.2 * long)[:3].all()
    for frames in (0, 1, 2):
        moving = motion("ada", at_s=times(10)[:frames])
        assert all(moving.apply(picture("ada"), number) is picture("ada") for number in range(frames))


# -- where there is little room ----------------------------------------------------------------------------------------


def test_a_head_at_the_edge_of_the_picture_moves_less_and_the_picture_never_opens():
    seen = face("astronaut")
    left = seen.box.x + 4
    cut, mesh = np.ascontiguousarray(picture("astronaut")[:, left:]), seen.mesh.copy()
    mesh[:, 0] -= left
    moving = StillMotion(cut, mesh, kind="lively", at_s=times(10), seed=5)

    assert moving.notes["reduced"]["why"] == ["at the edge of the picture"]
    assert moving.notes["yaw_deg"] < 0.5 * motion("astronaut", kind="lively").notes["yaw_deg"]
    assert moving.notes["yaw_deg"] > 0


def test_a_head_seen_from_its_side_moves_less():
    mesh = face("ada").mesh.astype(np.float64)
    middle = mesh.mean(axis=0)
    shares = []
    for degrees in (0, 30, 60):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        turned = (mesh - middle) @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]) + middle
        moving = StillMotion(picture("ada"), turned.astype(np.float32), kind="subtle", at_s=times(10), seed=5)
        shares.append(moving.notes["yaw_deg"])
    assert shares[0] > shares[1] > shares[2] > 0
    assert shares[2] < 0.5 * shares[0]


def test_a_face_beside_another_one_leaves_it_alone():
    two = np.hstack((picture("ada")[:, 90:400], picture("chen")[:, 110:420]))
    first, second = sorted(find_faces(two), key=lambda one: one.centre)
    moving = StillMotion(two, first.mesh, kind="lively", at_s=times(10), seed=5, other_faces=[second.box])
    alone = StillMotion(two, first.mesh, kind="lively", at_s=times(10), seed=5)
    there = np.s_[second.box.y : second.box.bottom, second.box.x : second.box.right]

    for number in range(20, 230, 30):
        assert (moving.apply(two, number)[there] == two[there]).all()
    assert any((alone.apply(two, number)[there] != two[there]).any() for number in range(20, 230, 30))
    assert moving.notes["yaw_deg"] > 1


def test_a_neighbour_that_covers_the_face_leaves_little_motion_and_no_fold():
    box = face("ada").box
    close = Box(box.x + box.width - 8, box.y, box.width, box.height)
    moving = motion("ada", kind="lively", other_faces=[close])
    assert all(moving.field.jacobian(numbers).min() > 0.5 for numbers in moving.numbers)
