"""The renderer without weights: it moves the lips of the photograph itself, by the sound.

It needs no download and no GPU, so it serves for a first try, for continuous integration and on small machines. `mouth`
is the resting mouth of the face, `voice` analyses the sound, `draw` moves and paints, `shot` composes the frames.
"""

from __future__ import annotations

import cv2

from lipsyncd.errors import VideoNotTaken
from lipsyncd.renderers import Scene, Shot
from lipsyncd.renderers.content_seed import content_seed
from lipsyncd.renderers.face.choose import choose_face
from lipsyncd.renderers.preview import options
from lipsyncd.renderers.preview.shot import PreviewShot


class Preview:
    """See `lipsyncd.renderers.Renderer`."""

    opens_aside = True

    def __init__(self, device: str = "cpu") -> None:
        """Runs on the CPU; `device` is ignored."""
        self.device = device
        # The encoder uses the other cores. The pictures are small: a second thread saves a tenth of the time and costs
        # a quarter more of the processor's, since it waits for its next task without sleeping.
        cv2.setNumThreads(1)

    def open(self, scene: Scene) -> Shot:
        """Find the face; raises `NoFaceFound`, `FaceTooSmall`, `BadOption` or `VideoNotTaken`."""
        if scene.video is not None:
            raise VideoNotTaken("the renderer preview cannot animate a video")
        chosen = options.read(scene.options)
        return PreviewShot(scene, choose_face(scene.picture, chosen.face), chosen, content_seed(scene))

    def close(self) -> None:
        """Nothing is held from one scene to the next."""
