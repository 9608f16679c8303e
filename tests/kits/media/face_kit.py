"""Faces that two small networks find: red discs, for a detector like YuNet and a landmark network like DWPose.

Both are ONNX files made here, with the inputs and outputs of the real ones, run by the real OpenCV and onnxruntime.
They measure: where the disc is, how large, how red (their score), and where its bluish nose is. So what stands
around the networks can be held against geometry that the test knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper, save

from lipsyncd.renderers.framing import RgbImage
from lipsyncd.renderers.musetalk.face.landmarks import FACE, HEIGHT, WIDTH

BACKDROP = (90, 90, 90)
_BLOB = 2 / np.sqrt(np.pi)  # diameter of a disc whose area is 1


def backdrop(width: int = 640, height: int = 360) -> RgbImage:
    return np.full((height, width, 3), BACKDROP, np.uint8)


def draw_head(picture: RgbImage, x: float, y: float, size: float, *, red: int = 255, aside: float = 0.0) -> RgbImage:
    """A head around (x, y), `size` pixels wide, drawn into `picture`, which is returned.

    red    255 is a sure face, 0 is none; the networks' scores follow
    aside  where the tip of the nose is, in widths of the head to the right of its middle
    """
    for middle, width, blue in ((x, size, 0), (x + aside * size, size * 0.12, 32)):
        place = (round(middle * 16), round(y * 16))
        cv2.circle(picture, place, round(width * 8), (red, 0, blue), -1, cv2.LINE_AA, 4)
    return picture


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

    def step(self, value: str, threshold: float, sharp: float = 50.0) -> str:
        """0 below the threshold, 1 above it, with a short ramp: OpenCV does not compare tensors of every shape."""
        return self.op("Clip", self.op("Mul", self.op("Sub", value, threshold), sharp), 0.0, 1.0)

    def model(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> ModelProto:
        graph = helper.make_graph(self.nodes, "toy", inputs, outputs, self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def write_yunet(path: Path) -> Path:
    """A detector of red discs with the twelve outputs of YuNet: three strides with a score, an object score, a box and
    five points for each cell."""
    graph = Graph()
    red = graph.op("Conv", "input", np.array([-0.5, -0.5, 1.0]).reshape(1, 3, 1, 1) / 255)  # BGR
    outputs = []
    for stride in (8, 16, 32):
        mean = graph.op("AveragePool", red, kernel_shape=[stride, stride], strides=[stride, stride])
        score, box = _discs(graph, graph.op("Relu", mean))
        nothing = graph.op("Mul", graph.op("Concat", box, box, graph.op("Concat", score, score, axis=1), axis=1), 0.0)
        for name, value, width in (("cls", score, 1), ("obj", score, 1), ("bbox", box, 4), ("kps", nothing, 10)):
            last = graph.op("Transpose", value, perm=[0, 2, 3, 1])
            shape = graph.constant([1, -1, width], np.int64)
            graph.op("Reshape", last, shape, output=f"{name}_{stride}")
            outputs.append(helper.make_tensor_value_info(f"{name}_{stride}", TensorProto.FLOAT, [1, None, width]))
    shown = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 640, 640])
    save(graph.model([shown], outputs), str(path))
    return path


def _discs(graph: Graph, red: str) -> tuple[str, str]:
    """Score (1, 1, h, w) and box (1, 4, h, w) of each cell: the moments of the red in the 11 x 11 cells around it."""
    across = np.arange(-5, 6, dtype=np.float64)
    x, y = np.meshgrid(across, across)
    ring = (np.maximum(np.abs(x), np.abs(y)) == 5).astype(np.float64)
    kernels = np.stack((np.ones_like(x), x, y, ring))[:, None]
    whole, aside_x, aside_y, edge = (graph.op("Conv", red, kernel[None], pads=[5, 5, 5, 5]) for kernel in kernels)
    peak = graph.op("MaxPool", red, kernel_shape=[11, 11], pads=[5, 5, 5, 5], strides=[1, 1])
    mass = graph.op("Add", whole, 1e-3)
    x_off, y_off = graph.op("Div", aside_x, mass), graph.op("Div", aside_y, mass)
    size = graph.op("Mul", graph.op("Sqrt", graph.op("Div", mass, graph.op("Add", peak, 1e-3))), _BLOB)
    # A cell between two discs is near both; only the middle of a disc is red.
    middle = graph.step(graph.op("Sub", red, graph.op("Mul", peak, 0.8)), 0.0)
    score = graph.op("Mul", graph.op("Clip", peak, 0.0, 1.0), middle)
    for value, least in ((size, 2.9), (graph.op("Neg", size), -8.2), (graph.op("Neg", edge), -0.5)):
        score = graph.op("Mul", score, graph.step(value, least))
    for offset in (x_off, y_off):
        score = graph.op("Mul", score, graph.step(graph.op("Neg", graph.op("Abs", offset)), -0.55))
    log_size = graph.op("Log", size)
    middles = [graph.op("Add", offset, 0.5) for offset in (x_off, y_off)]
    return score, graph.op("Concat", *middles, log_size, log_size, axis=1)


def write_dwpose(path: Path, template: NDArray[np.float64] | None = None) -> Path:
    """A landmark network that places a face on the reddest disc, with the inputs and outputs of DWPose.

    template  (133, 2) as `TEMPLATE`, which is taken when there is none
    """
    template = TEMPLATE if template is None else template
    graph = Graph()
    rgb = graph.op(
        "Add", graph.op("Mul", "input", _column([58.395, 57.12, 57.375])), _column([123.675, 116.28, 103.53])
    )
    red = graph.op("Relu", graph.op("Conv", rgb, np.array([1.0, -0.5, -0.5]).reshape(1, 3, 1, 1) / 255))
    blue = graph.op("Conv", rgb, np.array([0.0, 0.0, 1.0]).reshape(1, 3, 1, 1) / 255)
    peak = graph.op("ReduceMax", red, axes=[1, 2, 3], keepdims=1)
    cover = graph.op("Clip", graph.op("Mul", graph.op("Sub", red, graph.op("Mul", peak, 0.9)), 50.0), 0.0, 1.0)
    mass = graph.op("Add", _sum(graph, cover), 1e-3)
    size = graph.op("Mul", graph.op("Sqrt", mass), _BLOB)
    blue = graph.op("Mul", blue, cover)
    blue_mass = graph.op("Add", _sum(graph, blue), 1e-6)
    outputs = []
    for name, length, places, nose in (("simcc_x", WIDTH, 3, 1.0), ("simcc_y", HEIGHT, 2, 0.0)):
        shape = [1, 1, 1, -1] if places == 3 else [1, 1, -1, 1]
        pixels = np.arange(length, dtype=np.float64).reshape(shape)
        middle = graph.op("Div", _sum(graph, graph.op("Mul", cover, pixels)), mass)
        flat = graph.constant([1, 1, 1], np.int64)
        tip_at = graph.op("Div", _sum(graph, graph.op("Mul", blue, pixels)), blue_mass)
        turned = graph.op("Div", graph.op("Sub", tip_at, middle), size)
        middle, wide, turned, high = (graph.op("Reshape", v, flat) for v in (middle, size, turned, peak))
        usual = template[:, 0 if places == 3 else 1].reshape(1, 133, 1)
        tip = np.zeros((1, 133, 1))
        tip[0, FACE.start + 30] = nose
        offset = graph.op("Add", graph.op("Mul", turned, tip), usual)
        bin_of = graph.op("Mul", graph.op("Add", graph.op("Mul", offset, wide), middle), 2.0)
        far = graph.op("Abs", graph.op("Sub", np.arange(2 * length, dtype=np.float64).reshape(1, 1, -1), bin_of))
        tent = graph.op("Clip", graph.op("Sub", 1.0, graph.op("Mul", far, 0.25)), 0.0, 1.0)
        graph.op("Mul", tent, high, output=name)
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 133, 2 * length]))
    shown = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, HEIGHT, WIDTH])
    save(graph.model([shown], outputs), str(path))
    return path


def write_constant_dwpose(path: Path, straight: Sequence[NDArray[Any]], flipped: Sequence[NDArray[Any]]) -> Path:
    """A landmark network with output `straight` (x, y) for a crop brighter on its left, `flipped` for its mirror."""
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
