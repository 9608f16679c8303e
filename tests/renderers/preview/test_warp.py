"""The movement of the lower face, and the painted inside of the mouth."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import cv2
import numpy as np
import pytest

from lipsyncd.renderers.preview.draw.photo_colours import measure_colours
from lipsyncd.renderers.preview.draw.warp import Pose, Warp, lip_edges, moving_area
from lipsyncd.renderers.preview.find.choose_face import choose_face
from lipsyncd.renderers.preview.find.face_coordinates import Window
from tests.kits.media.preview_kit import Subject, astronaut, openings, painted, render, voice

POSES = [Pose(openness, width) for openness, width in product((0.0, 0.3, 1.0, 1.2), (-1.0, 0.0, 1.0))]
CELLS = 60.0  # for each unit


@pytest.fixture(scope="module", params=["astronaut", "ada", "bashir"])
def mouth(request):
    subject = astronaut() if request.param == "astronaut" else painted(request.param)
    return choose_face(subject.picture).mouth


def field(mouth) -> Window:
    return Window(*moving_area(mouth), scale=CELLS)


# -- the displacement --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pose", POSES, ids=str)
def test_nothing_folds(mouth, pose):
    """Along every line across and down the face the pixels keep their order, on both sheets."""
    window = field(mouth)
    u, v = window.grid()
    lips = lip_edges(mouth, pose, u[0])
    for sheet, seen in zip(Warp(mouth, window).sheets(pose), (v <= lips.upper, v >= lips.lower), strict=True):
        across, down = np.diff(sheet[..., 0], axis=1) * CELLS, np.diff(sheet[..., 1], axis=0) * CELLS
        assert across[seen[:, 1:] & seen[:, :-1]].max() < 0.9
        assert down[seen[1:] & seen[:-1]].max() < 0.9


@pytest.mark.parametrize("pose", POSES, ids=str)
def test_nothing_moves_at_the_border_of_the_window(mouth, pose):
    upper, lower = Warp(mouth, field(mouth)).sheets(pose)

    for end in (upper[0], lower[-1], upper[:, [0, -1]], lower[:, [0, -1]]):
        assert not end.any()


@pytest.mark.parametrize("pose", POSES, ids=str)
def test_the_sheets_agree_beyond_the_corners(mouth, pose):
    """There is no seam beside the opening: both sides of the line move alike."""
    window = field(mouth)
    upper, lower = Warp(mouth, window).sheets(pose)
    u, v = window.grid()
    lips = lip_edges(mouth, pose, u[0])
    columns = np.flatnonzero(np.abs(u[0] - mouth.middle) > max(lips.half, mouth.half) + 0.02)
    rows = np.rint((lips.upper[columns] - window.top) * CELLS).astype(int)
    inside = (rows >= 0) & (rows < len(v))

    assert inside.any()
    apart = upper[rows[inside], columns[inside]] - lower[rows[inside], columns[inside]]
    assert np.abs(apart).max() < 0.02


def test_a_closed_pose_moves_nothing_where_lips_touch():
    mouth = choose_face(painted("ada").picture).mouth
    for sheet in Warp(mouth, field(mouth)).sheets(Pose(0.0, 0.0)):
        assert not sheet.any()


def test_a_closed_pose_brings_the_edges_of_a_smile_together():
    mouth = choose_face(astronaut().picture).mouth
    lips = lip_edges(mouth, Pose(0.0, 0.0), np.linspace(-0.4, 0.4, 81, dtype=np.float32))

    assert np.abs(lips.upper - lips.lower).max() < 1e-6
    assert lips.lift[40] > 0.04
    assert lips.drop[40] < -0.04


def test_an_open_pose_drops_the_lower_lip_more_than_the_chin_and_the_chin_more_than_the_neck(mouth):
    window = field(mouth)
    _, lower = Warp(mouth, window).sheets(Pose(1.0, 0.0))
    column = round((mouth.middle - window.left) * CELLS)
    rest = Warp(mouth, window).sheets(Pose(0.0, 0.0))[1]

    def drop(v):
        row = round((v - window.top) * CELLS)
        return lower[row, column, 1] - rest[row, column, 1]

    lip, chin, neck = drop(mouth.line_v + 0.25), drop(mouth.chin), drop(mouth.chin + 0.30)
    assert lip > chin > 0.14 > 0.03 > neck


def test_rounded_lips_are_narrower_and_spread_ones_wider(mouth):
    u = np.linspace(-0.5, 0.5, 501, dtype=np.float32)
    narrow, usual, broad = (lip_edges(mouth, Pose(0.5, width), u).half for width in (-1.0, 0.0, 1.0))

    assert narrow < 0.85 * usual
    assert broad > 1.05 * usual


# -- painting ----------------------------------------------------------------------------------------------------------


def widest(subject: Subject) -> tuple[np.ndarray, Window]:
    """The frame with the mouth widest open, and a window inside the opening."""
    frames = render(subject.picture, voice("[[a:a:]]"), options={"blink": False})
    frame = frames[int(np.argmax(openings(frames, subject)[:, 0]))]
    return frame, Window(-0.08, subject.mouth_v + 0.03, 0.08, subject.mouth_v + 0.13, 100)


def changed(subject: Subject, picture: np.ndarray) -> Subject:
    return replace(subject, draw=lambda: picture)


def test_a_grey_photograph_gets_a_grey_mouth():
    subject = painted("ada")
    grey = np.repeat(cv2.cvtColor(subject.picture, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    frame, inside = widest(changed(subject, grey))

    assert np.ptp(subject.plane.cut(frame, inside).astype(int), axis=2).max() <= 3


def test_a_dark_photograph_gets_a_dark_mouth():
    subject = painted("chen")
    dark = changed(subject, (subject.picture * 0.35).astype(np.uint8))
    (lit_frame, inside), (dark_frame, _) = widest(subject), widest(dark)
    lit, dim = (subject.plane.cut(frame, inside).mean() for frame in (lit_frame, dark_frame))

    assert dim == pytest.approx(0.35 * lit, rel=0.25)


def test_a_soft_photograph_gets_a_soft_mouth():
    subject = painted("bashir")
    soft = changed(subject, cv2.GaussianBlur(subject.picture, (0, 0), 3.0))
    sharp_frame, _ = widest(subject)
    soft_frame, _ = widest(soft)
    around = Window(-0.25, subject.mouth_v - 0.05, 0.25, subject.mouth_v + 0.35, 100)

    def steepest(frame):
        grey = cv2.cvtColor(subject.plane.cut(frame, around), cv2.COLOR_RGB2GRAY).astype(np.float32)
        return np.percentile(np.abs(cv2.Sobel(grey, cv2.CV_32F, 0, 1)), 99)

    assert steepest(soft_frame) < 0.65 * steepest(sharp_frame)


@pytest.mark.parametrize("noise", [0.0, 6.0])
def test_blur_and_grain_of_the_photograph_are_measured(noise):
    subject = painted("ada", 800)
    blurred = cv2.GaussianBlur(subject.picture, (0, 0), 4.0).astype(np.float32)
    noisy = blurred + np.random.default_rng(5).normal(0, noise, blurred.shape[:2])[..., None]
    picture = noisy.clip(0, 255).astype(np.uint8)
    chosen = choose_face(picture)
    colours = measure_colours(picture, chosen.face.plane, chosen.mouth)

    assert colours.blur_px == pytest.approx(4.5, abs=1.8)
    assert colours.grain == pytest.approx(noise, abs=1.2)


def test_teeth_are_painted_only_while_the_mouth_is_open():
    """From slightly to wide open, the brightest part inside changes from none to teeth."""
    subject = painted("ada")
    frames = render(subject.picture, voice("[[a:a:]]"), options={"blink": False})
    heights = openings(frames, subject)[:, 0]
    inside = Window(-0.10, subject.mouth_v - 0.03, 0.10, subject.mouth_v + 0.05, 100)

    def palest(frame):
        lab = cv2.cvtColor(subject.plane.cut(frame, inside).astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
        bright = lab[..., 0] > 45
        return np.hypot(lab[..., 1], lab[..., 2])[bright].min() if bright.any() else 99.0

    assert palest(frames[int(heights.argmax())]) < 12 < palest(subject.picture)
