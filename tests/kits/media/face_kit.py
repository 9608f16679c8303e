"""Heads that both networks find: real faces in red, and a landmark network like DWPose that sees what is red.

The finder of `renderers.face` is the real one. The landmark network is an ONNX file made here, with the inputs and
outputs of DWPose, run by the real onnxruntime: it measures where the red disc is, how large and how red (its score). So
what stands around the networks can be held against geometry that the test knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper, save

from lipsyncd.renderers.face.face import Face
from lipsyncd.renderers.face.finder import find_faces
from lipsyncd.renderers.framing import RgbImage
from lipsyncd.renderers.musetalk.face.landmarks import FACE, HEIGHT, WIDTH
from tests.kits.media import portraits

BACKDROP = (90, 90, 90)
REDDEST = 110  # by how much the red of a sure head is above its green and blue
FACE_HEIGHT = 0.93  # of a face, in widths of its head: as in `TEMPLATE`
_BLOB = 2 / np.sqrt(np.pi)  # diameter of a disc whose area is 1


def backdrop(width: int = 640, height: int = 360) -> RgbImage:
    return np.full((height, width, 3), BACKDROP, np.uint8)


def draw_head(
    picture: RgbImage, x: float, y: float, size: float, *, red: int = 255, who: str = "astronaut"
) -> RgbImage:
    """A head around (x, y), `size` pixels wide, drawn into `picture`, which is returned.

    red  255 is a sure face for the landmark network, 0 is none
    who  one of `portraits.NAMES`
    """
    grey, face = _portrait(who)
    scale = FACE_HEIGHT * size / face.box.height
    height, width = picture.shape[:2]
    small = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    across, down = (round(at - scale * middle) for at, middle in zip((x, y), face.centre, strict=True))
    moved = cv2.warpAffine(
        small, np.array([[1.0, 0, across], [0, 1, down]]), (width, height), borderMode=cv2.BORDER_REPLICATE
    )
    above = round(REDDEST * red / 255)
    light = REDDEST + moved * ((255 - REDDEST) / 255)
    head = np.stack((light, light - above, light - above), axis=-1)
    disc = np.zeros((height, width), np.uint8)
    cv2.circle(disc, (round(x * 16), round(y * 16)), round(size * 8), 255, -1, cv2.LINE_AA, 4)
    share = disc[..., None] / 255
    picture[:] = np.rint(picture * (1 - share) + head * share).astype(np.uint8)
    return picture


@cache
def _portrait(who: str) -> tuple[RgbImage, Face]:
    """A portrait in grey, (H, W) uint8, and its face."""
    image = portraits.picture(who)
    (face,) = find_faces(image)
    return np.ascontiguousarray(portraits.grey(image)[..., 0]), face


# -- networks ----------------------------------------------------------------------------------------------------------


class Graph:
    """An ONNX graph under construction: each method adds one node and returns the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, value: Any, kind: Any = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, kind), name))
        return name

    def op(self, kind: str, *inputs: Any, output: str = "", **attributes: Any) -> str:
        name = output or f"n{len(self.nodes)}"
        given = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        self.nodes.append(helper.make_node(kind, given, [name], **attributes))
        return name

    def model(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> ModelProto:
        graph = helper.make_graph(self.nodes, "toy", inputs, outputs, self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def write_dwpose(path: Path, template: NDArray[np.float64] | None = None, *, at_once: int | None = None) -> Path:
    """A landmark network that places a face on the reddest disc, with the inputs and outputs of DWPose, any number.

    template  (133, 2) as `TEMPLATE`, which is taken when there is none
    at_once   how many looks a run takes; None: any number
    """
    batch = at_once or "batch"
    template = TEMPLATE if template is None else template
    graph = Graph()
    rgb = graph.op(
        "Add", graph.op("Mul", "input", _column([58.395, 57.12, 57.375])), _column([123.675, 116.28, 103.53])
    )
    red = graph.op("Relu", graph.op("Conv", rgb, np.array([1.0, -0.5, -0.5]).reshape(1, 3, 1, 1) / REDDEST))
    peak = graph.op("ReduceMax", red, axes=[1, 2, 3], keepdims=1)
    cover = graph.op("Clip", graph.op("Mul", graph.op("Sub", red, graph.op("Mul", peak, 0.9)), 50.0), 0.0, 1.0)
    mass = graph.op("Add", _sum(graph, cover), 1e-3)
    size = graph.op("Mul", graph.op("Sqrt", mass), _BLOB)
    outputs = []
    for name, length, places in (("simcc_x", WIDTH, 3), ("simcc_y", HEIGHT, 2)):
        shape = [1, 1, 1, -1] if places == 3 else [1, 1, -1, 1]
        pixels = np.arange(length, dtype=np.float64).reshape(shape)
        middle = graph.op("Div", _sum(graph, graph.op("Mul", cover, pixels)), mass)
        flat = graph.constant([-1, 1, 1], np.int64)
        middle, wide, high = (graph.op("Reshape", v, flat) for v in (middle, size, peak))
        offset = graph.constant(template[:, 0 if places == 3 else 1].reshape(1, 133, 1))
        bin_of = graph.op("Mul", graph.op("Add", graph.op("Mul", offset, wide), middle), 2.0)
        far = graph.op("Abs", graph.op("Sub", np.arange(2 * length, dtype=np.float64).reshape(1, 1, -1), bin_of))
        tent = graph.op("Clip", graph.op("Sub", 1.0, graph.op("Mul", far, 0.25)), 0.0, 1.0)
        graph.op("Mul", tent, high, output=name)
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 133, 2 * length]))
    shown = helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, HEIGHT, WIDTH])
    save(graph.model([shown], outputs), str(path))
    return path


def write_constant_dwpose(path: Path, straight: Sequence[NDArray[Any]], flipped: Sequence[NDArray[Any]]) -> Path:
    """A landmark network for one look at a time.

    Its output is `straight` (x, y) for a crop brighter on its left, `flipped` for its mirror.
    """
    graph = Graph()
    weights = np.where(np.arange(WIDTH) < WIDTH / 2, 1.0, -1.0).reshape(1, 1, 1, -1)
    left = graph.op("ReduceSum", graph.op("Mul", "input", weights), keepdims=0)
    straight_wins = graph.op("Greater", left, 0.0)
    outputs = []
    for name, yes, no in zip(("simcc_x", "simcc_y"), straight, flipped, strict=True):
        graph.op("Where", straight_wins, yes, no, output=name)
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(yes.shape)))
    shown = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, HEIGHT, WIDTH])
    save(graph.model([shown], outputs), str(path))
    return path


def _column(values: Sequence[float]) -> NDArray[np.float64]:
    return np.array(values).reshape(1, 3, 1, 1)


def _sum(graph: Graph, value: str) -> str:
    return graph.op("ReduceSum", value, graph.constant([1, 2, 3], np.int64), keepdims=1)


def _template() -> NDArray[np.float64]:
    """(133, 2): the points of a usual face relative to its middle, in widths of the head; y points down."""
    points = np.zeros((133, 2))
    turn = np.linspace(np.pi, 0, 17)
    jaw = np.stack((0.48 * np.cos(turn), 0.05 + 0.43 * np.sin(turn)), axis=1)
    brows = [(x, -0.28) for x in (-0.40, -0.34, -0.28, -0.20, -0.10, 0.10, 0.20, 0.28, 0.34, 0.40)]
    nose = [(0, -0.15), (0, -0.09), (0, -0.03), (0, 0.03), *((x, 0.08) for x in (-0.08, -0.04, 0, 0.04, 0.08))]
    eye = [(-0.08, 0), (-0.03, -0.03), (0.03, -0.03), (0.08, 0), (0.03, 0.03), (-0.03, 0.03)]
    eyes = [(middle + x, -0.15 + y) for middle in (-0.2, 0.2) for x, y in eye]
    lips = [(0.16 * half, 0.25 + high * 0.06 * np.sqrt(1 - half**2)) for half, high in _around_lips(3)]
    gap = [(0.12 * half, 0.25 + high * 0.02 * np.sqrt(1 - half**2)) for half, high in _around_lips(2)]
    points[FACE] = np.array([*jaw.tolist(), *brows, *nose, *eyes, *lips, *gap])
    return points


def _around_lips(steps: int) -> list[tuple[float, int]]:
    """Points on a closed line: from one corner over the upper lip to the other, and back. Half width, up or down."""
    across = np.linspace(-1, 1, 2 * steps + 1).tolist()
    return [*((x, -1) for x in across), *((x, 1) for x in across[-2:0:-1])]


TEMPLATE = _template()
