"""The renderer without weights: the photograph's own lips, moved by the sound.

It needs no download and no GPU, so it is what a newcomer, continuous integration and a small box run. The steps, each
in its module: `face` and `mouth` find, `speaker` decides, `voice` listens, `warp`, `inside`, `blink` and `sway` move,
`shot` puts a frame together.
"""

from __future__ import annotations

import hashlib

import cv2
import numpy as np

from lipsyncd.errors import VideoNotTaken
from lipsyncd.renderers import Scene, Shot
from lipsyncd.renderers.preview import options
from lipsyncd.renderers.preview.find.choose_face import find_speaker
from lipsyncd.renderers.preview.shot import PreviewShot
from lipsyncd.renderers.preview.voice import warm_up


class Preview:
    """See `lipsyncd.renderers.Renderer`."""

    def __init__(self, device: str = "cpu") -> None:
        """Works on the CPU, whatever device it is made for."""
        self.device = device
        # The pictures are small: more threads cost more than they bring, and the encoder wants the other core.
        cv2.setNumThreads(1)
        warm_up()

    def open(self, scene: Scene) -> Shot:
        """Find the face; raises `NoFaceFound` when there is none to animate, `BadOption`, or `VideoNotTaken`."""
        if scene.video is not None:
            raise VideoNotTaken("the renderer preview cannot animate a video")
        chosen = options.read(scene.options)
        return PreviewShot(scene, find_speaker(scene.picture), chosen, content_seed(scene))

    def close(self) -> None:
        """Nothing is held from one scene to the next."""


def content_seed(scene: Scene) -> int:
    """What blinks, sway and grain are drawn from: the same picture and voice give the same video, on every machine."""
    digest = hashlib.blake2b(digest_size=8)
    for part in (scene.picture, scene.speech):
        digest.update(np.ascontiguousarray(part).data)
    return int.from_bytes(digest.digest(), "big")
