"""The renderer without weights: it moves the lips of the photograph itself, by the sound.

It needs no download and no GPU, so it serves for a first try, for continuous integration and on small machines. `find`
locates the face and its mouth, `voice` analyses the sound, `draw` moves and paints, `shot` composes the frames.
"""

from __future__ import annotations

import hashlib

import cv2
import numpy as np

from lipsyncd.errors import VideoNotTaken
from lipsyncd.renderers import Scene, Shot
from lipsyncd.renderers.preview import options
from lipsyncd.renderers.preview.find.choose_face import choose_face
from lipsyncd.renderers.preview.shot import PreviewShot
from lipsyncd.renderers.preview.voice import warm_up


class Preview:
    """See `lipsyncd.renderers.Renderer`."""

    def __init__(self, device: str = "cpu") -> None:
        """Runs on the CPU; `device` is ignored."""
        self.device = device
        # The pictures are small: more threads would gain little and take processor time from the encoder.
        cv2.setNumThreads(1)
        warm_up()

    def open(self, scene: Scene) -> Shot:
        """Find the face; raises `NoFaceFound` when there is none to animate, `BadOption`, or `VideoNotTaken`."""
        if scene.video is not None:
            raise VideoNotTaken("the renderer preview cannot animate a video")
        chosen = options.read(scene.options)
        return PreviewShot(scene, choose_face(scene.picture), chosen, content_seed(scene))

    def close(self) -> None:
        """Nothing is held from one scene to the next."""


def content_seed(scene: Scene) -> int:
    """The seed of blinks, sway and grain: the same picture and voice give the same video, on every machine."""
    digest = hashlib.blake2b(digest_size=8)
    for part in (scene.picture, scene.speech):
        digest.update(np.ascontiguousarray(part).data)
    return int.from_bytes(digest.digest(), "big")
