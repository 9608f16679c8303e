"""Landmarks of a face, by DWPose: its network in onnxruntime, and the steps before and after it in numpy.

The network was trained on whole people and returns 133 points, of which the 68 of the face are used. The steps around
it follow mmpose 1.3.2 exactly, since MuseTalk's networks were trained on boxes computed from these points.

Owns onnxruntime and the meaning of the points. Leaves the choice of the face to `find_face`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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
Look = tuple[RgbImage, Box]
Simcc = tuple[Array, Array]  # the network's output for one crop: x and y

WIDTH, HEIGHT = 288, 384  # of the network's input, in pixels
FACE = slice(23, 91)  # the 68 points of the face among the 133

_CUDA = "CUDAExecutionProvider"
_AT_ONCE = 16  # looks in one run on a GPU
_MOST_THREADS = 8
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

    def __init__(self, model: Path, *, gpu: int | None = None, threads: int = 0, at_once: int = 0) -> None:
        """Load the file at `model`.

        gpu      its number, for an onnxruntime that was built for CUDA and finds its libraries; any other runs on the
                 CPU. `place` says what came of it
        threads  on a CPU, for all looks together; 0 uses the processors of this process, at most 8
        at_once  looks in each run; 0: 16 on a GPU, and on a CPU one, in each thread its own. A file that takes one look
                 at a time gets them one by one
        """
        count = threads or min(len(os.sched_getaffinity(0)), _MOST_THREADS)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = max(count // 2, 1)  # the two looks of a still fill the processors
        options.log_severity_level = 3  # errors; it warns of every initializer that is also an input
        # Spinning threads would take processor time away from the encoder.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = providers_for(gpu, onnxruntime.get_available_providers())
        self._session = onnxruntime.InferenceSession(os.fspath(model), options, providers=providers)
        self._input = self._session.get_inputs()[0].name
        takes_many = not isinstance(self._session.get_inputs()[0].shape[0], int)
        self._at_once = (at_once or (_AT_ONCE if self.place == "cuda" else 1)) if takes_many else 1
        self._threads = ThreadPoolExecutor(count, "landmarks")

    @property
    def place(self) -> str:
        """Where it runs: "cuda" or "cpu"."""
        return "cuda" if self._session.get_providers()[0] == _CUDA else "cpu"

    def find(self, picture: RgbImage, box: Box, *, flip_test: bool = True) -> Points:
        """The points of one person; see `find_all`."""
        return self.find_all([(picture, box)], flip_test=flip_test)[0]

    def find_all(self, looks: Sequence[Look], *, flip_test: bool = True) -> list[Points]:
        """The 133 points of the person in each box, in pixels of its picture.

        looks      each a picture (H, W, 3) uint8 RGB, of any size, and a box in it
        flip_test  average with the result for the mirrored crop, as the original does: twice the time, steadier points
        """
        crops = [Crop.around(box) for _, box in looks]
        pixels = [crop.of(picture) for crop, (picture, _) in zip(crops, looks, strict=True)]
        mirror_images = [one[:, ::-1] for one in pixels] if flip_test else []
        vectors = self._run_all([*pixels, *mirror_images])
        flipped: Sequence[Simcc | None] = vectors[len(looks) :] or [None] * len(looks)
        return [
            _points_in(crop, straight, mirror)
            for crop, straight, mirror in zip(crops, vectors[: len(looks)], flipped, strict=True)
        ]

    def _run_all(self, crops: Sequence[RgbImage]) -> list[Simcc]:
        """The vectors of each crop, in their order."""
        batches = [crops[first : first + self._at_once] for first in range(0, len(crops), self._at_once)]
        # A GPU runs one batch after the other anyway; a CPU is filled by looks side by side.
        outputs = self._threads.map(self._run, batches)
        return [vectors for batch in outputs for vectors in batch]

    def _run(self, crops: Sequence[RgbImage]) -> list[Simcc]:
        """(133, 2 WIDTH) and (133, 2 HEIGHT) float32 for each crop (HEIGHT, WIDTH, 3)."""
        # Batches of one size: another size would make cuDNN choose its kernels again.
        filled = [*crops, *([crops[-1]] * (self._at_once - len(crops)))]
        given = np.concatenate([network_input(crop) for crop in filled])
        simcc_x, simcc_y = sorted(self._session.run(None, {self._input: given}), key=lambda output: output.shape[-1])
        return [(simcc_x[number], simcc_y[number]) for number in range(len(crops))]


def providers_for(gpu: int | None, offered: Sequence[str]) -> list[str | tuple[str, dict[str, str]]]:
    """What onnxruntime shall try, in this order.

    On a GPU it computes in float32, not in TF32, and takes the kernels that cuDNN recommends: by default it would time
    them, so that equal pictures might get different points.
    """
    if gpu is None or _CUDA not in offered:
        return ["CPUExecutionProvider"]
    options = {"device_id": str(gpu), "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
    return [(_CUDA, options), "CPUExecutionProvider"]


def _points_in(crop: Crop, straight: Simcc, flipped: Simcc | None) -> Points:
    """The points of a crop, in pixels of its picture, from the vectors of both looks at it."""
    simcc_x, simcc_y = straight
    if flipped is not None:
        simcc_x = (simcc_x + mirrored(flipped[0], horizontal=True)) * np.float32(0.5)
        simcc_y = (simcc_y + mirrored(flipped[1], horizontal=False)) * np.float32(0.5)
    found = read_simcc(simcc_x, simcc_y)
    return Points(crop.to_picture(found.at), found.score)
