"""Find the faces of a picture, in any size from 3 to 100 % of it and at any angle.

The detector sees a square of 128 pixels and finds faces that cover 10 to 80 % of it, tilted by up to 60 degrees. So
the whole picture comes first, then the same on its sides and on its head, then smaller and smaller tiles. Each hit is
judged by the mesh: what has no presence in its second pass is no face.

Owns where to look and in which order. Leaves the networks to `networks` and the choice among faces to `choose`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from lipsyncd.renderers.face import points
from lipsyncd.renderers.face.crops import Crop, angle_of, crop_of, cut, mesh_in
from lipsyncd.renderers.face.face import Face
from lipsyncd.renderers.face.networks import DETECTOR_SIDE, Candidate, FaceNetworks, Mesh, networks
from lipsyncd.renderers.framing import Box, RgbImage

LEAST_PRESENCE = 0.5  # of a face, in the second pass of its mesh
_LEAST_SCORE = 0.4  # of a candidate that the mesh shall judge
# Small tiles are many, and each is a chance of a false hit.
_LEAST_SCORES = {1: _LEAST_SCORE, 2: 0.5, 4: 0.7}
_LONG_SIDE = 1024  # pixels of the copy in which the detector looks: a tile of a quarter is twice what it needs
_FIRST_CROP = 1.5  # side of the mesh's first crop, in sizes of the detector's box
SAME_FACE = 0.3  # overlap of boxes
_MOST_FACES = 32  # in one pass

_PASSES = 4  # of the mesh, at most, until its lips stay where they are
_STEADY = 0.005  # of the face's width
_LOOK = 1.3  # the square of `_upright`, in crops of the mesh
_BETTER = 0.05  # by how much another angle has to be better
_SURE = 0.87  # a score that no face reaches on its side or its head: those end at 0.84

_LIPS = list(points.INNER_UPPER_LIP + points.INNER_LOWER_LIP)


@dataclass(frozen=True)
class _Square:
    """A square in which the detector looks; turned by so many quarter turns, counter-clockwise."""

    box: Box
    turns: int
    least_score: float


@dataclass(frozen=True)
class _Place:
    """A candidate in pixels of the picture: the middle and the side of its box, and its eyes."""

    centre: NDArray[np.float64]
    side: float
    eyes: tuple[NDArray[np.float64], NDArray[np.float64]]

    @classmethod
    def of(cls, candidate: Candidate, square: _Square, scale: float) -> _Place:
        """`scale` is that of the copy in which the detector looked."""
        right, left, centre = (_unturned(at, square) / scale for at in (*candidate.eyes, candidate.centre))
        return cls(centre, candidate.side * square.box.width / scale, (right, left))

    @property
    def box(self) -> Box:
        left, top = np.floor(self.centre - self.side / 2).astype(int).tolist()
        return Box(left, top, max(round(self.side), 1), max(round(self.side), 1))


def find_faces(picture: RgbImage, nets: FaceNetworks | None = None) -> list[Face]:
    """The faces of the first pass that finds any, the largest first; empty where no pass does.

    picture  (H, W, 3) uint8 RGB
    """
    return next(passes(picture, nets), [])


def faces_of_group(picture: RgbImage, nets: FaceNetworks | None = None) -> list[Face]:
    """The faces of a group, too: the smaller ones that cover a twentieth of the picture, beside the large ones."""
    found = list(passes(picture, nets, group=True))
    return found[-1] if found else find_faces(picture, nets)


def passes(picture: RgbImage, nets: FaceNetworks | None = None, *, group: bool = False) -> Iterator[list[Face]]:
    """All faces that were found up to each pass that found another one, the largest first.

    group  only the passes of `faces_of_group`

    A caller that has the face that it wants stops the iteration; the later passes cost the most.
    """
    nets = nets or networks()
    scale = min(1.0, _LONG_SIDE / max(picture.shape[:2]))
    small = picture
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in picture.shape[1::-1])
        small = cast(RgbImage, cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA))
    found: list[Face] = []
    squares_of = _squares_for_groups if group else _squares
    for squares in squares_of(small.shape[1], small.shape[0]):
        before = len(found)
        for square in squares:
            for candidate in nets.detect(_view(small, square), square.least_score):
                place = _Place.of(candidate, square, small.shape[1] / picture.shape[1])
                if not any(overlap(place.box, face.box) >= SAME_FACE for face in found):
                    _add(found, _face(picture, nets, place))
        if len(found) > before:
            found.sort(key=by_size)
            yield list(found)


def _squares(width: int, height: int) -> Iterator[list[_Square]]:
    """The passes: squares over a picture of this size. A turned one serves only where the upright one found nothing."""
    whole, wide = _around_all(width, height)
    yield [_Square(box, 0, _LEAST_SCORE) for box in (whole, wide)]
    yield [_Square(box, turns, _LEAST_SCORES[2]) for turns in (1, 3, 2) for box in (whole, wide)]
    for parts in (2, 4):
        yield [_Square(tile, 0, _LEAST_SCORES[parts]) for tile in _tiles(width, height, parts)]
    yield [_Square(tile, turns, _LEAST_SCORES[4]) for turns in (1, 3, 2) for tile in _tiles(width, height, 2)]


def _squares_for_groups(width: int, height: int) -> Iterator[list[_Square]]:
    yield [_Square(box, 0, _LEAST_SCORE) for box in _around_all(width, height)]
    yield [_Square(tile, 0, _LEAST_SCORES[2]) for tile in _tiles(width, height, 2)]


def _around_all(width: int, height: int) -> tuple[Box, Box]:
    """The square around the picture, and a wider one for a face that fills it."""
    side, margin = max(width, height), max(width, height) // 3
    whole = Box((width - side) // 2, (height - side) // 2, side, side)
    return whole, Box(whole.x - margin, whole.y - margin, side + 2 * margin, side + 2 * margin)


def _tiles(width: int, height: int, parts: int) -> list[Box]:
    """Squares of a part of the longer side, each overlapping the next one by half or more."""
    side = min(max(-(-max(width, height) // parts), DETECTOR_SIDE // 2), min(width, height))
    return [Box(x, y, side, side) for y in _starts(height, side) for x in _starts(width, side)]


def _starts(length: int, side: int) -> list[int]:
    count = max(0, math.ceil(2 * (length - side) / side)) + 1
    return [round(n * (length - side) / max(count - 1, 1)) for n in range(count)]


def _view(picture: RgbImage, square: _Square) -> RgbImage:
    """What the detector sees: (128, 128, 3), black beyond the picture."""
    box = square.box
    cut = picture[max(box.y, 0) : box.bottom, max(box.x, 0) : box.right]
    scale = DETECTOR_SIDE / box.width
    width, height = max(1, round(cut.shape[1] * scale)), max(1, round(cut.shape[0] * scale))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    view = np.zeros((DETECTOR_SIDE, DETECTOR_SIDE, 3), np.uint8)
    left, top = (min(max(0, round(-start * scale)), DETECTOR_SIDE - 1) for start in (box.x, box.y))
    view[top : top + height, left : left + width] = cv2.resize(cut, (width, height), interpolation=method)[
        : DETECTOR_SIDE - top, : DETECTOR_SIDE - left
    ]
    return cast(RgbImage, np.ascontiguousarray(np.rot90(view, square.turns)))


def _face(picture: RgbImage, nets: FaceNetworks, place: _Place) -> Face | None:
    """The face at the place of a candidate; None when there is none."""
    mesh, _ = mesh_in(picture, nets, Crop(place.centre, _FIRST_CROP * place.side, angle_of(*place.eyes)))
    upright = _upright(picture, nets, mesh)
    if upright is None:
        return None
    mesh, score = upright
    for _ in range(_PASSES):
        before, (mesh, presence) = mesh, mesh_in(picture, nets, crop_of(mesh))
        moved = np.abs(mesh[_LIPS, :2] - before[_LIPS, :2]).mean()
        if presence < LEAST_PRESENCE or moved < _STEADY * np.ptp(mesh[:, 0]):
            break
    return Face(mesh, presence, score) if presence >= LEAST_PRESENCE else None


def _upright(picture: RgbImage, nets: FaceNetworks, mesh: Mesh) -> tuple[Mesh, float] | None:
    """Look at a face again, upright and as large as the detector likes it; and on its head and its sides.

    The mesh bends to whatever it is given: a chin with a beard makes a forehead with hair. Which side is up, the
    detector knows better.

    returns  the mesh of the first pass at the best angle, and the detector's score there
    """
    crop = crop_of(mesh)
    best: tuple[float, Crop] | None = None
    for quarter in range(4):
        turned = Crop(crop.centre, _LOOK * crop.side, crop.angle + quarter * math.pi / 2)
        matrix = turned.matrix(DETECTOR_SIDE)
        for candidate in nets.detect(cut(picture, matrix, DETECTOR_SIDE), _LEAST_SCORE)[:1]:
            if best is None or candidate.score > best[0] + _BETTER:
                centre, *eyes = (
                    matrix[:, :2] @ (point * DETECTOR_SIDE) + matrix[:, 2]
                    for point in (candidate.centre, *candidate.eyes)
                )
                side = _FIRST_CROP * candidate.side * turned.side
                best = candidate.score, Crop(centre, side, angle_of(*eyes))
        if best is not None and best[0] >= _SURE:
            break
    return None if best is None else (mesh_in(picture, nets, best[1])[0], best[0])


def _unturned(point: NDArray[np.float32], square: _Square) -> NDArray[np.float64]:
    """A point of the turned square, 0 to 1, in pixels of the picture."""
    x, y = float(point[0]), float(point[1])
    for _ in range(square.turns):
        x, y = 1 - y, x
    return np.array([square.box.x + x * square.box.width, square.box.y + y * square.box.height])


def _add(found: list[Face], face: Face | None) -> None:
    """Add a face, unless it is one of those already found; of the same face the surer one stays."""
    if face is None:
        return
    for number, other in enumerate(found):
        if overlap(face.box, other.box) >= SAME_FACE:
            if face.presence * face.score > other.presence * other.score:
                found[number] = face
            return
    if len(found) < _MOST_FACES:
        found.append(face)


def by_size(face: Face) -> tuple[float, int, int]:
    """A key to sort faces by: the widest first, and always in the same order."""
    return -face.width_px, face.box.x, face.box.y


def overlap(one: Box, other: Box) -> float:
    """Area that both share for each area that one of them covers: 0 to 1."""
    across = min(one.right, other.right) - max(one.x, other.x)
    down = min(one.bottom, other.bottom) - max(one.y, other.y)
    shared = max(across, 0) * max(down, 0)
    return shared / (one.width * one.height + other.width * other.height - shared)
