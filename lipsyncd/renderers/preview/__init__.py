"""A renderer without weights: the photograph's own lips, moved by the sound. It runs on any CPU.

It needs no model to be downloaded, so it is what a newcomer, continuous integration and a box without a GPU run.
"""

from __future__ import annotations

import hashlib

import cv2
import numpy as np

from lipsyncd.errors import NoFaceFound
from lipsyncd.renderers import Scene, Shot
from lipsyncd.renderers.audio import Samples, frame_times
from lipsyncd.renderers.preview.blink import lid_closure, lids
from lipsyncd.renderers.preview.face import Face, faces
from lipsyncd.renderers.preview.mouth import WEAKEST, Mouth, find_mouth
from lipsyncd.renderers.preview.plane import Picture, Plane
from lipsyncd.renderers.preview.shot import PreviewShot, SpeakingMouth
from lipsyncd.renderers.preview.voice import Motion, motion
from lipsyncd.renderers.video import crop_square, make_even, square_around


class Preview:
    """The renderer; see `lipsyncd.renderers.Renderer`."""

    def open(self, scene: Scene) -> Shot:
        face, mouth = find_speaker(scene.picture)
        canvas, plane = stage(scene, face)
        seed = content_seed(scene.picture, scene.speech)
        moved = motion(scene.speech, scene.fps, scene.frames)
        eyes = lids(canvas, plane) if face.eyes_seen else []
        closure = lid_closure(frame_times(scene.fps, scene.frames), seed)
        notes = {"face": [face.box.x, face.box.y, face.box.width, face.box.height]}
        return PreviewShot(canvas, SpeakingMouth(canvas, plane, mouth, seed), eyes, moved, closure, notes)

    def close(self) -> None:
        """Nothing is held between scenes."""


def find_speaker(picture: Picture) -> tuple[Face, Mouth]:
    height, width = picture.shape[:2]
    for face in faces(picture):
        mouth = find_mouth(picture, face.plane)
        if mouth.score > WEAKEST:
            return face, mouth
    raise NoFaceFound(f"no face in a picture of {width}x{height} pixels")


def stage(scene: Scene, face: Face) -> tuple[Picture, Plane]:
    """The canvas of the scene and where the face lies on it."""
    if scene.stitch:
        return make_even(scene.picture), face.plane
    height, width = scene.picture.shape[:2]
    square = square_around(face.box, width, height)
    factor = scene.resolution / square.width
    canvas = crop_square(scene.picture, square, scene.resolution)
    dx, dy = ((0.5 - start) * factor - 0.5 for start in (square.x, square.y))
    return canvas, face.plane.rescaled(factor, dx, dy)


def content_seed(picture: Picture, speech: Samples) -> int:
    digest = hashlib.blake2b(digest_size=8)
    digest.update(np.ascontiguousarray(picture))
    digest.update(np.ascontiguousarray(speech))
    return int.from_bytes(digest.digest(), "big")
