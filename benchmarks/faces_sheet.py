"""Make the picture of four faces that the README shows: `python -m benchmarks.faces_sheet [FILE.jpg]`.

Four portraits say the same sentence with the renderer `preview` and `motion = "lively"`; each row shows one of them, at
the same moments. The photographs are in the public domain, the two painted people are the project's own.
"""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from lipsyncd.renderers import Scene
from lipsyncd.renderers.framing import RgbImage
from lipsyncd.renderers.motion.moving_shot import moving
from lipsyncd.renderers.preview import Preview
from tests.kits.media.portraits import picture
from tests.kits.media.preview_kit import voice

FACES = ("astronaut", "hopper", "ada", "bashir")
SENTENCE = "The quick brown fox jumps over the lazy dog."
SIDE = 256
SHOWN = (1, 7, 14, 19, 22, 27, 35, 62)  # frames: rest, eh, ow, f, o, spread, m, o


def row(name: str) -> RgbImage:
    """(256, 8 x 256, 3) uint8: one face at eight moments of the sentence."""
    speech = voice(SENTENCE)
    frames = -(-len(speech) * 25 // 16_000)
    scene = Scene(picture(name), speech, Fraction(25), frames, False, SIDE, "lively")
    shot = moving(Preview().open(scene), scene)
    return np.hstack([frame.copy() for number, frame in enumerate(shot.frames()) if number in SHOWN])


def main(target: Path) -> None:
    sheet = np.vstack([row(name) for name in FACES])
    cv2.imwrite(str(target), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 88])


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_name("faces.jpg")))
