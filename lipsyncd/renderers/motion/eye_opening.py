"""The opening of each eye: where its lids lie, and how much skin there is above to close it with.

The mesh says where the lids are, within a few pixels; in paintings and cartoons eyes are larger than it thinks. So its
curves are shifted and stretched until they hold most of what differs from the skin below the eye and least of the skin.

Finds also which eyes must not blink: closed ones, eyes without contrast such as a statue's, eyes behind glasses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import cv2
import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers.face import points
from lipsyncd.renderers.face.networks import Mesh
from lipsyncd.renderers.framing import RgbImage
from lipsyncd.renderers.motion.head_pose import HeadPose

Values = NDArray[np.float64]

UPPER_LIDS = (points.RIGHT_UPPER_LID, points.LEFT_UPPER_LID)  # from left to right in an upright picture
LOWER_LIDS = (points.RIGHT_LOWER_LID, points.LEFT_LOWER_LID)
BRIDGE = (points.NOSE_BRIDGE, 6)

# Everything below is in widths of the eye.
SCALE = 64  # cells of the window in which an eye is looked at
SIDEWAYS, UP, DOWN = 0.95, 1.0, 0.9  # what the window holds around the middle of the eye
CHEEK, ABOVE = (0.12, 0.40), (0.10, 0.28)  # the skin below and above the lids, with which everything is compared
LEAST_CLEAR = 7.0  # difference between eye and skin, in Lab, below which it does not blink
MOST_CLEAR = 45.0  # what differs more counts no more: else the white of a dark eye would count as skin
CLOSED = 0.255  # height of an opening below which it counts as closed: the mesh keeps even shut lids apart
MOST_SKIN, LEAST_SKIN = 0.36, 0.13  # above the lid
NOT_SKIN = 0.75  # of the eye's difference from the skin
BELOW, MOST_BELOW = (0.06, 0.16), 0.68  # a strip below the lower lid, and how much of the eye's difference it may have
HIDDEN = 0.35  # an eye less wide than this share of the other one is turned away

SHIFTS_U, SHIFTS_V = (-0.16, -0.08, 0.0, 0.08, 0.16), (-0.18, -0.12, -0.06, 0.0, 0.06, 0.12, 0.18)
MOST_SHIFT_V = 0.17  # an eye that seems to lie farther from the mesh is not where it seems
STRETCHES = (0.9, 1.0, 1.1, 1.2, 1.3)
HEIGHTS = (np.linspace(0.7, 1.4, 8), np.linspace(0.7, 1.7, 11))  # of the upper and of the lower lid
SHIFT_SPREAD, STRETCH_SPREAD, HEIGHT_SPREADS = 0.08, 0.20, (0.25, 0.40)
UNUSUAL = 0.004  # the cost of one squared spread, in square widths of the eye

GLASSES = 8.0  # difference of a bar across the bridge of the nose from the skin around it, in Lab


@dataclass(frozen=True)
class Eye:
    """The opening of one eye, in pixels of the canvas.

    x, y          the middle of the line between its corners
    along         (2,) the unit vector from its left to its right corner
    half_px       half its width
    upper, lower  (3,) the lids' distances below that line: (1 - s^2) (c0 + c1 s + c2 s^2) for s from -1 to 1
    skin_px       the height of the skin above the upper lid
    """

    x: float
    y: float
    along: Values
    half_px: float
    upper: Values
    lower: Values
    skin_px: float = 0.0

    @classmethod
    def from_mesh(cls, mesh: Mesh, side: int) -> Eye:
        """side  0 for the person's right eye, 1 for the left one"""
        upper, lower = (mesh[list(lids[side]), :2].astype(np.float64) for lids in (UPPER_LIDS, LOWER_LIDS))
        middle, across = (upper[0] + upper[-1]) / 2, upper[-1] - upper[0]
        half = max(float(np.linalg.norm(across)) / 2, 0.5)
        along = across / (2 * half)
        down = np.array([-along[1], along[0]])

        def fitted(lid: Values) -> Values:
            s, below = (lid[1:-1] - middle) @ along / half, (lid[1:-1] - middle) @ down
            basis = (1 - s**2)[:, None] * s[:, None] ** np.arange(3)
            solved: Values = np.linalg.solve(basis.T @ basis + 1e-3 * np.eye(3), basis.T @ below)
            return solved

        return cls(float(middle[0]), float(middle[1]), along, half, fitted(upper), fitted(lower))

    @property
    def down(self) -> Values:
        return np.array([-self.along[1], self.along[0]])

    @property
    def width_px(self) -> float:
        return 2 * self.half_px

    @property
    def height_px(self) -> float:
        """Between the lids, in the middle."""
        return float(self.lower[0] - self.upper[0])


def lid_line(lid: Values, s: Values) -> Values:
    """The distance of a lid below the line between the corners, for s from -1 to 1; the line itself beyond."""
    line: Values = np.maximum(1 - s**2, 0) * (lid[0] + s * (lid[1] + s * lid[2]))
    return line


def blinking_eyes(canvas: RgbImage, mesh: Mesh) -> list[Eye]:
    """The eyes that can blink. One alone only where the other cannot be seen: a wink would be worse than no blink."""
    if _wears_glasses(canvas, mesh):
        return []
    eyes = [Eye.from_mesh(mesh, side) for side in (0, 1)]
    widest = max(eye.width_px for eye in eyes)
    seen = [eye for eye in eyes if eye.width_px >= HIDDEN * widest and _inside(eye, canvas)]
    fitted = [_fitted(canvas, eye) for eye in seen]
    blinking = [eye for eye in fitted if eye is not None]
    return blinking if len(blinking) == len(fitted) else []


def _inside(eye: Eye, canvas: RgbImage) -> bool:
    height, width = canvas.shape[:2]
    return bool(min(eye.x, width - eye.x, eye.y, height - eye.y) > eye.half_px)


def _fitted(canvas: RgbImage, eye: Eye) -> Eye | None:
    """The same eye as the picture has it; None when it must not blink."""
    if eye.height_px < CLOSED * eye.width_px:
        return None
    lab = _window(canvas, eye)
    s, v = _coordinates()
    upper, lower = (lid_line(lid, s) / eye.width_px for lid in (eye.upper, eye.lower))
    cheek = (np.abs(s) < 0.6) & (v > lower + CHEEK[0]) & (v < lower + CHEEK[1])
    above = (np.abs(s) < 0.6) & (v > upper - ABOVE[1]) & (v < upper - ABOVE[0])
    # The skin above may lie in shadow, so there are two kinds of skin.
    difference = np.minimum(*(np.linalg.norm(lab - np.median(lab[skin], axis=0), axis=2) for skin in (cheek, above)))
    core = (np.abs(s) < 0.6) & (v > upper) & (v < lower)
    clear = min(float(np.percentile(difference[core], 80)), MOST_CLEAR) if core.any() else 0.0
    if clear < LEAST_CLEAR:
        return None
    better = _best(eye, np.minimum(difference / clear, 1.0) - 0.5)
    u, v_off = _shift(eye, better)
    below = v - v_off - lid_line(better.lower, (s / 2 - u) * eye.width_px / better.half_px) / eye.width_px
    strip = (np.abs(s / 2 - u) < 0.35) & (below > BELOW[0]) & (below < BELOW[1])
    unlike_skin = float(np.minimum(difference[strip] / clear, 1.5).mean()) > MOST_BELOW
    if unlike_skin or abs(v_off) > MOST_SHIFT_V or better.height_px < CLOSED * better.width_px:
        return None
    skin = _skin_above(eye, better, difference > NOT_SKIN * clear)
    if skin < LEAST_SKIN:
        return None
    return replace(_covering(eye, better), skin_px=min(skin, MOST_SKIN) * eye.width_px)


def _covering(eye: Eye, better: Eye) -> Eye:
    """`better`, as wide and as deep as both: skin drawn over skin is not seen, a slit of an eye is."""
    du, dv = _shift(eye, better)
    half = better.half_px / eye.width_px
    left, right = min(du - half, -0.5), max(du + half, 0.5)
    x, y = np.array([better.x, better.y]) + eye.along * ((left + right) / 2 - du) * eye.width_px
    deeper = max((eye.lower[0] - dv * eye.width_px) / better.lower[0], 1.0)
    wider = (right - left) / 2 * eye.width_px
    return replace(better, x=float(x), y=float(y), half_px=wider, lower=better.lower * deeper)


def _window(canvas: RgbImage, eye: Eye) -> NDArray[np.float32]:
    """The surroundings of an eye, upright, in Lab: (rows, columns, 3)."""
    step = eye.width_px / SCALE
    corner = np.array([eye.x, eye.y]) - SIDEWAYS * eye.width_px * eye.along - UP * eye.width_px * eye.down
    matrix = np.column_stack((step * eye.along, step * eye.down, corner))
    size = (round(2 * SIDEWAYS * SCALE) + 1, round((UP + DOWN) * SCALE) + 1)
    soft = canvas if step < 1.5 else cv2.GaussianBlur(canvas, (0, 0), 0.4 * step)
    cut = cv2.warpAffine(
        soft, matrix, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE
    )
    lab = cv2.cvtColor(cut.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
    return np.asarray(cv2.GaussianBlur(lab, (0, 0), 1.5), np.float32)


def _coordinates() -> tuple[Values, Values]:
    """s as (1, columns) and v as (rows, 1) of the window: in half widths and in widths of the eye."""
    u = np.arange(round(2 * SIDEWAYS * SCALE) + 1) / SCALE - SIDEWAYS
    return 2 * u[None, :], (np.arange(round((UP + DOWN) * SCALE) + 1) / SCALE - UP)[:, None]


def _best(eye: Eye, gain: Values) -> Eye:
    """The eye, shifted and stretched to where its opening gains most.

    gain  (rows, columns) of the window: positive on what is not skin
    """
    summed = np.pad(np.cumsum(gain, axis=0), ((1, 0), (0, 0))) / SCALE  # of each column, from the top down
    t = np.linspace(-1.0, 1.0, 33)
    lids = [lid_line(lid, t) / eye.width_px for lid in (eye.upper, eye.lower)]
    best, found = -np.inf, eye
    for du, dv, stretch in product(SHIFTS_U, SHIFTS_V, STRETCHES):
        columns = np.rint((SIDEWAYS + du + 0.5 * stretch * t) * SCALE).astype(int).clip(0, summed.shape[1] - 1)
        gains = []
        for way, lid, heights, spread in zip((-1, 1), lids, HEIGHTS, HEIGHT_SPREADS, strict=True):
            rows = np.rint((UP + dv + heights[:, None] * lid) * SCALE).astype(int).clip(0, len(summed) - 1)
            cost = UNUSUAL * ((heights - 1) / spread) ** 2
            gains.append(way * stretch * summed[rows, columns].mean(axis=1) - cost)
        i, j = int(gains[0].argmax()), int(gains[1].argmax())
        unusual = (du**2 + dv**2) / SHIFT_SPREAD**2 + ((stretch - 1) / STRETCH_SPREAD) ** 2
        score = float(gains[0][i] + gains[1][j]) - UNUSUAL * unusual
        if score > best:
            x, y = np.array([eye.x, eye.y]) + eye.width_px * (du * eye.along + dv * eye.down)
            upper, lower = HEIGHTS[0][i] * eye.upper, HEIGHTS[1][j] * eye.lower
            best, found = score, Eye(float(x), float(y), eye.along, stretch * eye.half_px, upper, lower)
    return found


def _shift(eye: Eye, better: Eye) -> tuple[float, float]:
    """How far `better` lies to the right of `eye` and below it, in widths of `eye`."""
    shift = np.array([better.x - eye.x, better.y - eye.y]) / eye.width_px
    return float(shift @ eye.along), float(shift @ eye.down)


def _skin_above(eye: Eye, better: Eye, other: NDArray[np.bool_]) -> float:
    """The height of the skin above the upper lid, up to a brow, a fringe or glasses, in widths of the eye.

    other  (rows, columns) of the window around `eye`: what is not skin
    """
    s, v = _coordinates()
    du, dv = _shift(eye, better)
    columns = np.abs(s[0] / 2 - du) < 0.3 * better.width_px / eye.width_px
    top = dv + float(better.upper[0]) / eye.width_px - 0.03
    upwards = other[:, columns].mean(axis=1)[v[:, 0] < top][::-1] > 0.5
    return int(np.argmax(np.append(upwards, True))) / SCALE


def _wears_glasses(canvas: RgbImage, mesh: Mesh) -> bool:
    """Is there a bar across the bridge of the nose?"""
    pose = HeadPose.of(mesh)
    eyes = [Eye.from_mesh(mesh, side) for side in (0, 1)]
    apart = float(np.hypot(eyes[1].x - eyes[0].x, eyes[1].y - eyes[0].y))
    middle = mesh[list(BRIDGE), :2].astype(np.float64).mean(axis=0)
    step = max(apart, 1.0) / 100
    along, down = pose.axes
    matrix = np.column_stack((step * along, step * down, middle - step * (8 * along + 40 * down)))
    soft = canvas if step < 1.5 else cv2.GaussianBlur(canvas, (0, 0), 0.4 * step)
    cut = cv2.warpAffine(soft, matrix, (17, 100), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    lab = cv2.GaussianBlur(cv2.cvtColor(cut.astype(np.float32) / 255, cv2.COLOR_RGB2Lab), (0, 0), 1.2)
    rows = lab[:, 2:15].mean(axis=1)
    bar = np.linalg.norm(rows[7:-7] - (rows[:-14] + rows[14:]) / 2, axis=1)
    return bool(bar[5:65].max() > GLASSES)
