"""Landmarks of a face, by DWPose: its network in onnxruntime, and the steps before and after it in numpy.

The network was trained on whole people and returns 133 points, of which the 68 of the face are used. The steps around
it follow mmpose 1.3.2 exactly, since MuseTalk's networks were trained on boxes computed from these points.

Owns onnxruntime and the meaning of the points. Leaves the choice of the face to `find_face`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from lipsyncd.renderers.framing import Box, RgbImage

Array = NDArray[np.float32]

WIDTH, HEIGHT = 288, 384  # of the network's input, in pixels
FACE = slice(23, 91)  # the 68 points of the face among the 133

_PADDING = np.float32(1.25)  # of a box, for the network's input
_BINS_PER_PIXEL = 2.0
_NO_POINT = -1.0  # position of a point that was not found, in bins
_MEAN = np.array([123.675, 116.28, 103.53], np.float32)  # RGB
_DEVIATION = np.array([58.395, 57.12, 57.375], np.float32)

# The points that correspond in a mirrored picture: body, feet, face and hands of COCO-WholeBody, in its order.
_BODY = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)
_FEET = (20, 21, 22, 17, 18, 19)
_FACE = (
    *range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1),
    45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40,
    *range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), *range(67, 64, -1),
)  # fmt: skip
FLIP = np.array([*_BODY, *_FEET, *(23 + n for n in _FACE), *range(112, 133), *range(91, 112)])


@dataclass(frozen=True)
class Points:
    """Points of one person.

    at     (n, 2) float32: x, y in pixels of the picture
    score  (n,) float32, about 0 to 1; 0 or less: the point was not found
    """

    at: Array
    score: Array

    @property
    def face(self) -> Points:
        """The 68 points of the face among the 133."""
        return Points(self.at[FACE], self.score[FACE])


@dataclass(frozen=True)
class Crop:
    """The network's input from a picture: upright, `size` pixels around `center`, scaled to WIDTH x HEIGHT.

    center, size  (2,) float32: x, y and width, height in pixels of the picture
    """

    center: Array
    size: Array

    @classmethod
    def around(cls, box: Box) -> Crop:
        """The crop of a person's box: an eighth of it more on each side, then widened to the input's aspect ratio."""
        center = np.array([2 * box.x + box.width, 2 * box.y + box.height], np.float32) * np.float32(0.5)
        width, height = np.array([box.width, box.height], np.float32) * _PADDING
        aspect = WIDTH / HEIGHT
        size = (width, width / aspect) if width > height * aspect else (height * aspect, height)
        return cls(center, np.array(size, np.float32))

    @cached_property
    def matrix(self) -> NDArray[np.float64]:
        """(2, 3): maps pixels of the picture to pixels of the crop."""
        factor = WIDTH / float(self.size[0])
        x, y = (float(value) for value in self.center)
        return np.array([[factor, 0, WIDTH / 2 - factor * x], [0, factor, HEIGHT / 2 - factor * y]])

    def of(self, picture: RgbImage) -> RgbImage:
        """(HEIGHT, WIDTH, 3) uint8 from a picture (H, W, 3) uint8; black where it reaches outside."""
        return cast(RgbImage, cv2.warpAffine(picture, self.matrix, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR))

    def to_picture(self, points: Array) -> Array:
        """Points (n, 2) in pixels of the crop, converted to pixels of the picture."""
        scaled = points / np.array([WIDTH, HEIGHT], np.float64) * self.size
        return (scaled + self.center - 0.5 * self.size).astype(np.float32)


def network_input(crop: RgbImage) -> Array:
    """(1, 3, HEIGHT, WIDTH) float32 from a crop (HEIGHT, WIDTH, 3) uint8 RGB."""
    normal = (crop.astype(np.float32) - _MEAN) / _DEVIATION
    return np.ascontiguousarray(normal.transpose(2, 0, 1)[None])


def mirrored(simcc: Array, *, horizontal: bool) -> Array:
    """The network's output for a mirrored crop, converted to that of the crop itself.

    simcc       (133, bins) float32: for each point the likelihood of each position on one axis
    horizontal  the axis is x, which is reversed in a mirrored crop
    """
    exchanged = simcc[FLIP]
    return exchanged[:, ::-1] if horizontal else exchanged


def read_simcc(simcc_x: Array, simcc_y: Array) -> Points:
    """The most likely position of each point, in pixels of the crop.

    simcc_x, simcc_y  (n, 2 WIDTH) and (n, 2 HEIGHT) float32
    returns           points whose score is the smaller of the two maxima

    Source: SimCC, arXiv:2107.03332, with half a pixel for each bin.
    """
    bins = np.stack((simcc_x.argmax(axis=1), simcc_y.argmax(axis=1)), axis=1).astype(np.float32)
    score = np.minimum(simcc_x.max(axis=1), simcc_y.max(axis=1))
    bins[score <= 0] = _NO_POINT
    return Points(bins / np.float32(_BINS_PER_PIXEL), score)


class LandmarkNet:
    """The network `dw-ll_ucoco_384.onnx`. Its output does not depend on the number of threads."""

    def __init__(self, model: Path, *, device: str = "cpu", threads: int = 0) -> None:
        """Load the file at `model`, onto a CUDA `device` if onnxruntime was built for it, else on the CPU.

        threads  for each run; 0 uses the processors of this process, at most 4
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or min(len(os.sched_getaffinity(0)), 4)
        options.log_severity_level = 3  # errors; it warns of every initializer that is also an input
        # Spinning threads would take processor time away from the encoder.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        offered = onnxruntime.get_available_providers()
        wanted = ["CUDAExecutionProvider"] if device.startswith("cuda") else []
        providers = [*(name for name in wanted if name in offered), "CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(os.fspath(model), options, providers=providers)
        self._input = self._session.get_inputs()[0].name

    def find(self, picture: RgbImage, box: Box, *, flip_test: bool = True) -> Points:
        """The 133 points of the person in `box`, in pixels of `picture`.

        picture    (H, W, 3) uint8 RGB
        flip_test  average with the result for the mirrored crop, as the original does: twice the time, steadier points
        """
        crop = Crop.around(box)
        pixels = crop.of(picture)
        simcc_x, simcc_y = self._run(pixels)
        if flip_test:
            flipped_x, flipped_y = self._run(pixels[:, ::-1])
            simcc_x = (simcc_x + mirrored(flipped_x, horizontal=True)) * np.float32(0.5)
            simcc_y = (simcc_y + mirrored(flipped_y, horizontal=False)) * np.float32(0.5)
        found = read_simcc(simcc_x, simcc_y)
        return Points(crop.to_picture(found.at), found.score)

    def _run(self, crop: RgbImage) -> tuple[Array, Array]:
        """(133, 2 WIDTH) and (133, 2 HEIGHT) float32."""
        outputs = self._session.run(None, {self._input: network_input(crop)})
        simcc_x, simcc_y = sorted((output[0] for output in outputs), key=lambda output: int(output.shape[-1]))
        return simcc_x, simcc_y
