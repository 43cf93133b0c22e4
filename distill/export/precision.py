"""Graphs of less precision than float32: half formats with typed steps, weights in bfloat16, and int8.

A graph is typed step by step: a step computes either in the smaller format or in float32, and casts stand between the
two. Inputs and outputs of a file stay float32. Steps that lose too much stay in float32: norms, linear attention, the
positions of prompts (`trace.float32_scopes`), and what the caller adds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from distill.export.trace import Graph, drop_unused, scope_of

Precision: TypeAlias = Literal["fp32", "fp16", "bf16", "int8"]
HALF_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
Half: TypeAlias = Literal["fp16", "bf16"]

# Steps that may compute in a half format. All others (shapes, comparisons, resizing, norms) stay in float32.
ARITHMETIC = frozenset(
    # fmt: off
    [
        "Add",
        "AveragePool",
        "Clip",
        "Concat",
        "Conv",
        "ConvTranspose",
        "Div",
        "Erf",
        "Gather",
        "Gelu",
        "Gemm",
        "GlobalAveragePool",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "MatMul",
        "MaxPool",
        "Mul",
        "Neg",
        "Pad",
        "Relu",
        "Reshape",
        "Sigmoid",
        "Slice",
        "Softmax",
        "Split",
        "Squeeze",
        "Sub",
        "Tanh",
        "Transpose",
        "Unsqueeze",
    ]
    # fmt: on
)
QUANTIZED = ("Conv", "Gemm", "MatMul")  # by int8


def rounded_steps(graph: Graph, keep: Collection[str] = ()) -> list[str]:
    """Return the names of the steps that may leave float32.

    Args:
        keep: layers that stay in float32, with all that they hold.
    """
    types = element_types(graph.model)
    return [
        node.name
        for node in graph.model.graph.node
        if node.op_type in ARITHMETIC
        and types.get(node.output[0]) == TensorProto.FLOAT
        and scope_of(node) not in graph.float32_scopes
        and not is_kept(scope_of(node), keep)
    ]


def is_kept(scope: str, keep: Collection[str]) -> bool:
    """Tell whether a scope is one of the layers `keep`, or lies in one."""
    return any(scope == layer or scope.startswith(f"{layer}.") for layer in keep)


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the element type of each value of a graph."""
    inferred = shape_inference.infer_shapes(model).graph
    values = [*inferred.input, *inferred.value_info, *inferred.output]
    types = {item.name: item.type.tensor_type.elem_type for item in values}
    return {**types, **{item.name: item.data_type for item in model.graph.initializer}}


def to_half(model: onnx.ModelProto, steps: Collection[str], precision: Half) -> onnx.ModelProto:
    """Return a typed graph whose `steps` compute in a half format; weights of those alone are kept in it."""
    return _Typed(model, steps, precision, emulated=False).converted()


def emulate_half(model: onnx.ModelProto, steps: Collection[str], precision: Half) -> onnx.ModelProto:
    """Return a float32 graph that rounds the weights and results of `steps` as an engine in a half format stores them.

    onnxruntime computes such steps in float32 on most CPUs and may keep what would overflow on a GPU. This graph does
    not, once the runtime's optimizations are off.
    """
    return _Typed(model, steps, precision, emulated=True).converted()


class _Typed:
    """The conversion of one graph."""

    def __init__(self, model: onnx.ModelProto, steps: Collection[str], precision: Half, *, emulated: bool) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.types = element_types(model)
        self.steps = frozenset(steps)
        self.half = HALF_TYPES[precision]
        self.emulated = emulated
        self.constants = {item.name: item for item in self.model.graph.initializer}
        self.as_half: dict[str, str] = {}  # the value in a half format, by the name of the float32 one
        self.new_nodes: list[onnx.NodeProto] = []
        self.new_constants: list[onnx.TensorProto] = []

    def converted(self) -> onnx.ModelProto:
        """Return the graph, with the casts where steps of both sorts meet."""
        graph = self.model.graph
        for node in list(graph.node):
            if node.name in self.steps:
                self._convert(node)
            else:
                self.new_nodes.append(node)
        del graph.node[:]
        graph.node.extend(self.new_nodes)
        graph.initializer.extend(self.new_constants)
        del graph.value_info[:]  # their types may have changed
        return drop_unused(self.model)

    def _convert(self, node: onnx.NodeProto) -> None:
        for i, name in enumerate(node.input):
            if name and self.types.get(name) == TensorProto.FLOAT:
                node.input[i] = self._half_of(name)
        self.new_nodes.append(node)
        for i, name in enumerate(node.output):
            half = f"{name}_half"
            node.output[i] = half
            if self.emulated:
                rounded = f"{name}_rounded"
                self.new_nodes.append(helper.make_node("Cast", [half], [rounded], f"{half}_round", to=self.half))
                half = rounded
            else:
                self.as_half[name] = half
            back = helper.make_node("Cast", [half], [name], f"{name}_float", to=TensorProto.FLOAT)
            self.new_nodes.append(back)

    def _half_of(self, name: str) -> str:
        if name in self.as_half:
            return self.as_half[name]
        constant = self.constants.get(name)
        if constant is not None:
            half = f"{name}_half"
            self.new_constants.append(half_tensor(numpy_helper.to_array(constant), half, self.half, self.emulated))
        elif self.emulated:
            half = name  # results are rounded where they are made
        else:
            half = f"{name}_to_half"
            self.new_nodes.append(helper.make_node("Cast", [name], [half], f"{half}_cast", to=self.half))
        self.as_half[name] = half
        return half


def half_tensor(values: np.ndarray, name: str, half: int, as_float32: bool = False) -> onnx.TensorProto:
    """Return float32 values rounded to a half format (a TensorProto's), in it or as the float32 that it stands for."""
    if half == TensorProto.FLOAT16:
        with np.errstate(over="ignore"):
            rounded = values.astype(np.float16)
        bits, back = rounded, rounded.astype(np.float32)
    else:
        wide = np.ascontiguousarray(values, np.float32).view(np.uint32)
        upper = (wide + 0x7FFF + ((wide >> 16) & 1)) >> 16  # round to nearest, ties to even
        bits, back = upper.astype(np.uint16), (upper << 16).view(np.float32)
    stored, data_type = (back, TensorProto.FLOAT) if as_float32 else (bits, half)
    return helper.make_tensor(name, data_type, values.shape, np.ascontiguousarray(stored).tobytes(), raw=True)


def weights_in_bfloat16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph that holds its large float32 weights in bfloat16 and computes in float32.

    onnxruntime has no bfloat16 arithmetic on CPUs. The file takes half the space and runs everywhere.
    """
    half = onnx.ModelProto()
    half.CopyFrom(model)
    casts, constants = [], []
    for item in half.graph.initializer:
        if item.data_type != TensorProto.FLOAT or len(item.dims) < 2:
            constants.append(item)
            continue
        name = f"{item.name}_bfloat16"
        constants.append(half_tensor(numpy_helper.to_array(item), name, TensorProto.BFLOAT16))
        casts.append(helper.make_node("Cast", [name], [item.name], f"{name}_cast", to=TensorProto.FLOAT))
    nodes = [*casts, *half.graph.node]
    del half.graph.initializer[:], half.graph.node[:]
    half.graph.initializer.extend(constants)
    half.graph.node.extend(nodes)
    return half


def quantize(
    model: onnx.ModelProto, steps: Collection[str], source: Path, target: Path, calibration: Sequence[np.ndarray]
) -> None:
    """Write a graph whose convolutions and matrix products among `steps` are in int8, statically calibrated.

    Args:
        source: the graph's file. target: the file to write, with QuantizeLinear and DequantizeLinear steps.
        calibration: inputs (1, 3, S, S) of the encoder.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    name = model.graph.input[0].name

    class Reader(CalibrationDataReader):  # type: ignore[misc] # onnxruntime ships no types
        def __init__(self) -> None:
            self.rows: Iterator[dict[str, np.ndarray]] = iter([{name: pixels} for pixels in calibration])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.rows, None)

    chosen = set(steps)
    quantize_static(
        source,
        target,
        Reader(),
        op_types_to_quantize=list(QUANTIZED),
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=[node.name for node in model.graph.node if node.name not in chosen],
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
    )
