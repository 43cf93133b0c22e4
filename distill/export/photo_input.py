"""Photos as they are, as the input of an encoder: resizing, normalising and padding inside the graph."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper

from distill.geometry import PIXEL_MEAN, PIXEL_STD

PixelType: TypeAlias = Literal["uint8", "float32"]
ELEMENTS = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT}
PREFIX = "photo_"
INPUT = "<input>"  # stands for the name of the graph's input


def read_photos(encoder: onnx.ModelProto, image_size: int, name: str, pixels: PixelType) -> onnx.ModelProto:
    """Put the letterbox of `geometry.letterbox` before an encoder of one photo: (H, W, 3) RGB in any size.

    The resizing rounds as Pillow's does. The encoder's opset must be 18 or later, whose Resize can average.

    Args:
        name: of the input. pixels: its type; the values are 0 to 255 in both.
    """
    opsets = list(encoder.opset_import)
    graph = _letterbox(image_size, name, pixels)
    before = helper.make_model(graph, opset_imports=opsets, ir_version=encoder.ir_version)
    merged: onnx.ModelProto = compose.merge_models(before, encoder, io_map=[(f"{PREFIX}pixels", "pixels")])
    return merged


def _letterbox(image_size: int, name: str, pixels: PixelType) -> onnx.GraphProto:
    """Return the graph from (H, W, 3) to normalised pixels (1, 3, S, S); sizes are computed in whole numbers."""
    constants: dict[str, np.ndarray] = {
        "std": np.array(PIXEL_STD, np.float32).reshape(1, 3, 1, 1),
        "mean": np.array(PIXEL_MEAN, np.float32).reshape(1, 3, 1, 1),
        "zero": np.array([0], np.int64),
        "one": np.array([1], np.int64),
        "two": np.array([2], np.int64),
        "side": np.array([image_size], np.int64),
        "twice_side": np.array([2 * image_size], np.int64),
        "sides": np.array([image_size, image_size], np.int64),
        "channels": np.array([1, 3], np.int64),
        "no_pads": np.zeros(6, np.int64),
        "shape": np.array([1, 3, image_size, image_size], np.int64),
        "low": np.array(0, np.float32),
        "high": np.array(255, np.float32),
    }
    steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Shape", [INPUT], "hwc", {}),
        ("Slice", ["hwc", "zero", "two"], "hw", {}),
        ("ReduceMax", ["hw"], "longest", {"keepdims": 1}),
        # the longest side at S, rounded half up, and at least one pixel
        ("Mul", ["hw", "twice_side"], "scaled", {}),
        ("Add", ["scaled", "longest"], "raised", {}),
        ("Mul", ["longest", "two"], "divisor", {}),
        ("Div", ["raised", "divisor"], "rounded", {}),
        ("Max", ["rounded", "one"], "new_hw", {}),
        ("Concat", ["channels", "new_hw"], "sizes", {"axis": 0}),
        *([("Clip", [INPUT, "low", "high"], "clipped", {})] if pixels == "float32" else []),
        ("Cast", ["clipped" if pixels == "float32" else INPUT], "bytes", {"to": TensorProto.UINT8}),
        ("Transpose", ["bytes"], "chw", {"perm": [2, 0, 1]}),
        ("Unsqueeze", ["chw", "zero"], "photo", {}),
        ("Resize", ["photo", "", "", "sizes"], "resized", {"mode": "linear", "antialias": 1, "exclude_outside": 1}),
        ("Cast", ["resized"], "values", {"to": TensorProto.FLOAT}),
        ("Sub", ["values", "mean"], "centred", {}),
        ("Div", ["centred", "std"], "normalised", {}),
        ("Sub", ["sides", "new_hw"], "missing", {}),
        ("Concat", ["no_pads", "missing"], "pads", {"axis": 0}),
        ("Pad", ["normalised", "pads"], "padded", {}),
        ("Reshape", ["padded", "shape"], "pixels", {}),
    ]

    def named(value: str) -> str:
        return name if value == INPUT else value and PREFIX + value

    nodes = [
        helper.make_node(op, [named(value) for value in inputs], [named(output)], f"/photo/{output}", **attributes)
        for op, inputs, output, attributes in steps
    ]
    used = {value for node in nodes for value in node.input}
    initializers = [numpy_helper.from_array(v, named(k)) for k, v in constants.items() if named(k) in used]
    photo = helper.make_tensor_value_info(name, ELEMENTS[pixels], ["height", "width", 3])
    output = helper.make_tensor_value_info(named("pixels"), TensorProto.FLOAT, [1, 3, image_size, image_size])
    return helper.make_graph(nodes, "letterbox", [photo], [output], initializers)
