"""Choose the face that is to speak, or say why there is none.

A mouth that moves in a mask, a poster or a shoulder is worse than no video, so a face with a fault is refused with its
place, its size and the reason. Owns the choice and its messages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from lipsyncd.errors import FaceTooSmall, NoFaceFound
from lipsyncd.jobs.options import FaceChoice
from lipsyncd.renderers.face.face import Face
from lipsyncd.renderers.face.finder import SAME_FACE, by_size, overlap, passes
from lipsyncd.renderers.face.judge import Fault, fault
from lipsyncd.renderers.face.networks import FaceNetworks
from lipsyncd.renderers.framing import RgbImage

_AS_LARGE = 0.5  # of the largest face's width: a smaller one in the background does not speak in its place
_MOST_PLACES = 8  # in a message


class Search:
    """The search for the face that is to speak in one picture.

    faces   what was found so far, the largest first
    faults  what is wrong with those that were judged
    """

    def __init__(
        self,
        picture: RgbImage,
        choice: FaceChoice = None,
        nets: FaceNetworks | None = None,
        *,
        judged: bool = True,
        quick: bool = False,
    ) -> None:
        """
        judged  False: take a face with its faults
        quick   look at the whole picture and its halves only
        """
        self.faces: list[Face] = []
        self.faults: dict[Face, Fault | None] = {}
        self._picture, self._choice, self._nets = picture, choice, nets
        self._judged, self._quick = judged, quick

    def run(self) -> Face | NoFaceFound | FaceTooSmall:
        """The face, or why there is none. Later passes cost the most, so the search ends with the first good face."""
        for faces in passes(self._picture, self._nets, group=self._quick):
            self.faces = faces
            for face in wanted(self.faces, self._choice):
                if face not in self.faults:  # it stays the same object from pass to pass
                    self.faults[face] = fault(face, self._picture, self._nets) if self._judged else None
                if self.faults[face] is None:
                    return face
        return self._refusal()

    def add(self, others: Sequence[Face]) -> None:
        """Add faces that the search did not come to see."""
        new = [face for face in others if all(overlap(face.box, known.box) < SAME_FACE for known in self.faces)]
        self.faces = sorted([*self.faces, *new], key=by_size)

    def _refusal(self) -> NoFaceFound | FaceTooSmall:
        size = _size(self._picture)
        if not self.faces:
            return NoFaceFound(f"no face in {size}")
        first = next(iter(wanted(self.faces, self._choice)), None)
        if first is None:
            return _not_there(self.faces, self._choice, size)
        found = self.faults[first]
        assert found is not None
        return refusal(first, found, self._picture)


def refusal(face: Face, found: Fault, picture: RgbImage) -> NoFaceFound | FaceTooSmall:
    """The error for a face that cannot speak."""
    return (FaceTooSmall if found.too_small else NoFaceFound)(
        f"a face at {place(face)}, {face.width_px:.0f} px wide, in {_size(picture)}: {found.what}", remedy=found.remedy
    )


def choose_face(
    picture: RgbImage, choice: FaceChoice = None, nets: FaceNetworks | None = None, *, judged: bool = True
) -> Face:
    """The face that is to speak.

    picture  (H, W, 3) uint8 RGB
    choice   None: the largest that can speak; n: the n-th largest, from 0; (x, y): the one at this point
    judged   False: take it with its faults

    Raises `NoFaceFound` or `FaceTooSmall`, with what was found and what is missing.
    """
    found = Search(picture, choice, nets, judged=judged).run()
    if isinstance(found, Face):
        return found
    raise found


def place(face: Face) -> str:
    """Where a face is, as the option `face` takes it."""
    x, y = face.centre
    return f"{x:.0f},{y:.0f}"


def wanted(faces: Sequence[Face], choice: FaceChoice) -> list[Face]:
    """The faces that may speak, the first choice first; `faces` are sorted by size."""
    if choice is None:
        return [face for face in faces if face.width_px >= _AS_LARGE * faces[0].width_px]
    if isinstance(choice, int):
        return list(faces[choice : choice + 1])
    x, y = choice
    around = [f for f in faces if f.box.x <= x < f.box.right and f.box.y <= y < f.box.bottom]
    # Where boxes overlap: the one whose centre is nearest.
    return sorted(around, key=lambda f: math.hypot(f.centre[0] - x, f.centre[1] - y))[:1]


def _size(picture: RgbImage) -> str:
    return f"the picture of {picture.shape[1]}x{picture.shape[0]} pixels"


def _not_there(faces: Sequence[Face], choice: FaceChoice, size: str) -> NoFaceFound:
    places = "; ".join(map(place, faces[:_MOST_PLACES]))
    found = f"the faces that were found, the largest first, have their centres at {places}"
    if isinstance(choice, tuple):
        x, y = choice
        return NoFaceFound(f"no face at {x:g},{y:g} in {size}; {found}", remedy="use one of these points")
    return NoFaceFound(f"no face number {choice} in {size}; {found}", remedy="number 0 is the largest face")
