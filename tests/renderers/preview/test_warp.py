"""The movement of the lower face, and the painted inside of the mouth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import product

import cv2
import numpy as np
import pytest

from lipsyncd.renderers.face import points
from lipsyncd.renderers.face.choose import choose_face
from lipsyncd.renderers.face.networks import Mesh
from lipsyncd.renderers.framing import RgbImage
from lipsyncd.renderers.preview.draw.lips import Pose, lip_edges
from lipsyncd.renderers.preview.draw.photo_colours import measure_colours
from lipsyncd.renderers.preview.draw.warp import Warp, moving_area
from lipsyncd.renderers.preview.mouth import Mouth, resting_mouth
from lipsyncd.renderers.preview.plane import Plane, Window
from tests.kits.media import portraits
from tests.kits.media.preview_kit import Subject, openings, painted, render, voice

POSES = [Pose(openness, width) for openness, width in product((0.0, 0.3, 1.0, 1.2), (-1.0, 0.0, 1.0))]
POSES += [Pose(0.0, press=1.0), Pose(0.0, -1.0, press=1.0), Pose(0.0, bite=1.0), Pose(0.3, 1.0, bite=1.0)]
CELLS = 60.0  # for each unit


@dataclass(frozen=True)
class Subjected:
    """A mouth with everything that moves it."""

    picture: RgbImage
    mesh: Mesh

    @cached_property
    def plane(self) -> Plane:
        return Plane.of(self.mesh)

    @cached_property
    def mouth(self) -> Mouth:
        return resting_mouth(self.picture, self.mesh, self.plane)

    @cached_property
    def window(self) -> Window:
        return Window(*moving_area(self.mouth), scale=CELLS)

    def sheets(self, pose: Pose) -> tuple[np.ndarray, np.ndarray]:
        warp = Warp(self.mouth, self.mesh, self.plane, self.window)
        upper, lower = warp.sheets(lip_edges(self.mouth, pose, warp.x))
        return np.dstack(upper), np.dstack(lower)


@cache
def of(name: str) -> Subjected:
    picture = portraits.picture(name)
    return Subjected(picture, choose_face(picture).mesh)


@pytest.fixture(scope="module", params=["astronaut", "hopper", "ada", "bashir", "turned"])
def subject(request):
    if request.param != "turned":
        return of(request.param)
    return Subjected(of("hopper").picture, yawed(of("hopper").mesh, 40.0))


def yawed(mesh: Mesh, degrees: float) -> Mesh:
    """The mesh of a head that is turned to the side; the picture does not matter for the movement."""
    angle, centre = np.radians(degrees), mesh.mean(axis=0)
    cos, sin = np.cos(angle), np.sin(angle)
    return ((mesh - centre) @ np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]]) + centre).astype(np.float32)


# -- the displacement --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pose", POSES, ids=str)
def test_nothing_folds(subject, pose):
    """Along every line across and down the face the pixels keep their order, on both sheets."""
    u, v = subject.window.grid()
    lips = lip_edges(subject.mouth, pose, subject.mouth.frontal(u[0]))
    for sheet, seen in zip(subject.sheets(pose), (v <= lips.upper, v >= lips.lower), strict=True):
        across, down = np.diff(sheet[..., 0], axis=1) * CELLS, np.diff(sheet[..., 1], axis=0) * CELLS
        assert across[seen[:, 1:] & seen[:, :-1]].max() < 0.9
        assert down[seen[1:] & seen[:-1]].max() < 0.9


@pytest.mark.parametrize("pose", POSES, ids=str)
def test_nothing_moves_at_the_border_of_the_window(subject, pose):
    upper, lower = subject.sheets(pose)

    for end in (upper[0], lower[-1], upper[:, [0, -1]], lower[:, [0, -1]]):
        assert not end.any()


@pytest.mark.parametrize("pose", POSES, ids=str)
def test_the_sheets_agree_beyond_the_corners(subject, pose):
    """There is no seam beside the opening: both sides of the line move alike."""
    window, mouth = subject.window, subject.mouth
    upper, lower = subject.sheets(pose)
    u, v = window.grid()
    x = mouth.frontal(u[0])
    lips = lip_edges(mouth, pose, x)
    columns = np.flatnonzero(np.abs(x) > max(lips.half, mouth.half) + 0.02)
    rows = np.rint((lips.upper[columns] - window.top) * CELLS).astype(int)
    inside = (rows >= 0) & (rows < len(v))

    assert inside.any()
    apart = upper[rows[inside], columns[inside]] - lower[rows[inside], columns[inside]]
    assert np.abs(apart).max() < 0.02


def test_a_closed_pose_moves_nothing_where_lips_touch():
    for sheet in of("ada").sheets(Pose(0.0)):
        assert not sheet.any()


def test_a_closed_pose_brings_the_edges_of_a_smile_together():
    lips = lip_edges(of("astronaut").mouth, Pose(0.0), np.linspace(-0.4, 0.4, 81))

    assert np.abs(lips.upper - lips.lower).max() < 1e-6
    assert lips.lift[40] > 0.04
    assert lips.drop[40] < -0.04


def test_an_open_pose_drops_the_lower_lip_more_than_the_chin_and_the_chin_more_than_the_neck(subject):
    window, mouth = subject.window, subject.mouth
    (_, lower), (_, rest) = subject.sheets(Pose(1.0)), subject.sheets(Pose(0.0))

    def drop(u, v):
        row, column = round((v - window.top) * CELLS), round((u - window.left) * CELLS)
        return lower[row, column, 1] - rest[row, column, 1]

    chin_u, chin_v = mouth.chin
    lip, chin, neck = drop(mouth.middle, mouth.line_v + 0.25), drop(chin_u, chin_v), drop(chin_u, chin_v + 0.30)
    assert lip > chin > 0.14 > 0.03 > neck


def test_rounded_lips_are_narrower_and_spread_ones_wider(subject):
    narrow, usual, broad = (lip_edges(subject.mouth, Pose(0.5, width), np.zeros(1)).half for width in (-1.0, 0.0, 1.0))

    assert narrow < 0.85 * usual
    assert broad > 1.05 * usual


def test_pressed_lips_are_thin_and_touch(subject):
    x = np.linspace(-0.2, 0.2, 41)
    rest, pressed = (lip_edges(subject.mouth, Pose(0.0, press=press), x) for press in (0.0, 1.0))

    assert (pressed.upper_lip + pressed.lower_lip).mean() < 0.7 * (rest.upper_lip + rest.lower_lip).mean()
    assert np.array_equal(pressed.upper, pressed.lower)


def test_a_bite_lifts_the_upper_lip_off_the_teeth_and_tucks_the_lower_one_under(subject):
    x = np.linspace(-0.05, 0.05, 11)
    rest, bite = (lip_edges(subject.mouth, Pose(0.0, bite=much), x) for much in (0.0, 1.0))

    assert (rest.upper - bite.upper).min() > 0.03
    assert (bite.lower - rest.lower).max() < 0.015
    assert bite.lower_lip.mean() < 0.65 * rest.lower_lip.mean()


def test_nothing_moves_outside_the_outline_of_a_turned_head_sideways():
    turned = Subjected(of("hopper").picture, yawed(of("hopper").mesh, 40.0))
    window = turned.window
    outline = np.column_stack(turned.plane.coordinates(*turned.mesh[list(points.OVAL), :2].T))
    face = np.zeros((window.rows, window.columns), np.uint8)
    cells = np.rint((outline - (window.left, window.top)) * CELLS).astype(np.int32)
    outside = cv2.fillPoly(face, [cells], 1) == 0

    assert outside.any()
    for sheet in turned.sheets(Pose(0.3, -1.0)):
        assert np.abs(sheet[outside, 0]).max() < 0.01


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
    measured = Subjected(picture, choose_face(picture).mesh)
    colours = measure_colours(picture, measured.plane, measured.mouth)

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
