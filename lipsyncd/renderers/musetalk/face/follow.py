"""Follow one face from frame to frame of a video.

The mesh is laid over the place where the face was in the frame before, which takes 7 ms and is a search only where that
fails. It bends to whatever face is there, so a face has to look like the one that was followed: when two people cross,
or one goes out and another stays, the mouth does not change its owner. After a cut the face is chosen anew.

Owns which face of a frame is the one that speaks. Leaves finding faces to `renderers.face`.
"""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from lipsyncd.errors import FaceTooSmall, NoFaceFound
from lipsyncd.jobs.options import FaceChoice
from lipsyncd.renderers.face.choose import Search, refusal
from lipsyncd.renderers.face.crops import Crop, crop_of, cut, mesh_in
from lipsyncd.renderers.face.face import Face
from lipsyncd.renderers.face.finder import LEAST_PRESENCE, overlap, passes
from lipsyncd.renderers.face.judge import plain_fault
from lipsyncd.renderers.face.networks import FaceNetworks, networks
from lipsyncd.renderers.framing import RgbImage

SAME_PLACE = 0.3  # least overlap of a face's boxes in two consecutive frames of the same camera shot
PATIENCE = 12  # frames for which a face may be lost before another one speaks: about half a second

_PASSES = 3  # of the mesh, at most, until the face stays where it is
_STEADY = 0.9  # overlap of two passes
# Looks of 17 people correlate by 0.27 in the middle and by less than 0.55 in nine of ten pairs; those of one person by
# 0.79 and more, with a mouth opened wide, a head that leans by another 15 degrees, or half the light.
_ALIKE = 0.65
_LOOK = 24  # pixels on each side of a look
_LOOK_CROP = 0.72  # its square, in crops of the mesh
_ADAPTS = 0.1  # weight of each new frame in the look: a head that turns looks different after a second
_THOROUGH = 25  # every so many frames without a face the search tries all sizes and turns, which takes a second
_CUT = 24.0  # mean difference of two frames, in levels of 255
_THUMBNAIL = (32, 18)  # in which it is measured

Look = NDArray[np.float32]  # (3 * _LOOK**2,), each colour of mean 0, the whole of length 1


class Follower:
    """The face that speaks, in each frame of a video."""

    def __init__(self, choice: FaceChoice = None, nets: FaceNetworks | None = None, *, judged: bool = True) -> None:
        """
        choice  used in the first frame with a face, and again after a cut or when the face is lost
        judged  False: take a face with its faults
        """
        self._choice, self._nets, self._judged = choice, nets or networks(), judged
        self._last: Face | None = None
        self._look: Look | None = None
        self._thumbnail: NDArray[np.int16] | None = None
        self._lost = 0  # frames since the face was last seen
        self._searched = 0  # frames without a face since the last thorough search

    def find(self, picture: RgbImage) -> Face | NoFaceFound | FaceTooSmall:
        """The face in the next frame (H, W, 3), or why there is none that can speak."""
        if self._is_cut(picture):
            self._forget()
        if self._last is None:
            return self._chosen(picture)
        face = self._followed(picture, self._last) or self._recognized(picture)
        if face is not None:
            self._keep(picture, face)
            fault = plain_fault(face, picture) if self._judged else None
            return face if fault is None else refusal(face, fault, picture)
        self._lost += 1
        if self._lost <= PATIENCE:
            return NoFaceFound("the face that speaks is turned away or hidden")
        self._forget()
        return self._chosen(picture)

    def _followed(self, picture: RgbImage, last: Face) -> Face | None:
        """The face at its place in the frame before."""
        face = last
        for _ in range(_PASSES):
            before, (mesh, presence) = face, mesh_in(picture, self._nets, crop_of(face.mesh))
            face = Face(mesh, presence, last.score)
            if presence < LEAST_PRESENCE or overlap(face.box, last.box) < SAME_PLACE:
                return None
            if overlap(face.box, before.box) >= _STEADY:
                break
        return face if self._likeness(picture, face) >= _ALIKE else None

    def _recognized(self, picture: RgbImage) -> Face | None:
        """The face anywhere in the frame, by its looks."""
        for faces in passes(picture, self._nets, group=True):
            best = max(faces, key=lambda face: self._likeness(picture, face))
            if self._likeness(picture, best) >= _ALIKE:
                return best
        return None

    def _chosen(self, picture: RgbImage) -> Face | NoFaceFound | FaceTooSmall:
        quick, self._searched = self._searched % _THOROUGH > 0, self._searched + 1
        chosen = Search(picture, self._choice, self._nets, judged=self._judged, quick=quick).run()
        if isinstance(chosen, Face):
            self._keep(picture, chosen)
        return chosen

    def _keep(self, picture: RgbImage, face: Face) -> None:
        seen = look(picture, face)
        self._look = seen if self._look is None else _unit(self._look + _ADAPTS * (seen - self._look))
        self._last, self._lost, self._searched = face, 0, 0

    def _forget(self) -> None:
        self._last, self._look, self._lost, self._searched = None, None, 0, 0

    def _likeness(self, picture: RgbImage, face: Face) -> float:
        assert self._look is not None  # there is a last face
        return float(look(picture, face) @ self._look)

    def _is_cut(self, picture: RgbImage) -> bool:
        """Does another camera shot begin with this frame?"""
        before = self._thumbnail
        grey = cv2.cvtColor(cv2.resize(picture, _THUMBNAIL, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
        self._thumbnail = grey.astype(np.int16)
        return before is not None and float(np.abs(self._thumbnail - before).mean()) > _CUT


def look(picture: RgbImage, face: Face) -> Look:
    """What a face looks like, upright and independent of its place, its size and the light: (3 * 24 * 24,) float32."""
    crop = crop_of(face.mesh)
    upright = Crop(crop.centre, _LOOK_CROP * crop.side, crop.angle)
    values = cut(picture, upright.matrix(_LOOK), _LOOK).astype(np.float32).reshape(-1, 3)
    return _unit((values - values.mean(axis=0)).ravel())


def _unit(values: Look) -> Look:
    return cast(Look, values / max(float(np.linalg.norm(values)), 1e-6))
