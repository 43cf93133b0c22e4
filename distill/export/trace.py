"""Modules as ONNX graphs: traced, simplified, compared with torch in onnxruntime, and written completely or not at all.

The older of torch's two exporters traces, to opset 17, which every runtime here reads. It folds the attention bias of
TinyViT to one matrix for each block: MobileSAM's encoder takes 28 MB for 24 MB of weights.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from distill.errors import DistillError

OPSET = 17  # the first with layer norm as one operation
MAX_DIFFERENCE = 1e-3  # between onnxruntime's and torch's outputs, as a share of the largest value
SAME = 1e-5  # between a graph and its simplified form, as a share of the largest value
ONE_FILE_BYTES = 2_000_000_000  # protobuf's limit, with room; larger models keep their weights in a file beside
FLOAT32_MARK = "keeps_float32"  # an attribute of modules whose own steps stay in float32 in graphs of less precision
FLOAT32_TYPES = ("LayerNorm", "LayerNorm2d", "GroupNorm")  # statistics over many values


class RefusedGraph(Exception):
    """A graph that onnxruntime does not load."""


@dataclass(frozen=True)
class Signature:
    """The inputs of a module with values to trace it with, its outputs' names, and the names of axes of any length.

    axes: for each input or output, its axes by number. `fixed` axes keep the length of the traced values.
    """

    inputs: Mapping[str, Tensor]
    outputs: Sequence[str]
    axes: Mapping[str, Mapping[int, str]]


@dataclass(frozen=True)
class Graph:
    """A traced module: its ONNX graph, the largest difference from torch, and the scopes that stay in float32.

    difference: as a share of the largest value.
    float32_scopes: paths of modules whose own steps are not rounded to a smaller format.
    simplified: whether onnxslim made it smaller.
    """

    model: onnx.ModelProto
    difference: float
    float32_scopes: frozenset[str]
    simplified: bool


def trace(module: nn.Module, signature: Signature, *, what: str, opset: int = OPSET) -> Graph:
    """Trace a module and compare what the graph answers with what the module answers.

    Args:
        what: names the file in errors.
    Raises:
        DistillError: the opset cannot express the module, or the graph answers otherwise.
    """
    module = module.eval()
    with tempfile.TemporaryDirectory(prefix="distill-export-") as folder, _traced_quietly(what, opset):
        path = Path(folder) / "traced.onnx"
        torch.onnx.export(
            module,
            tuple(signature.inputs.values()),
            str(path),
            input_names=list(signature.inputs),
            output_names=list(signature.outputs),
            dynamic_axes={name: dict(axes) for name, axes in signature.axes.items() if axes},
            opset_version=opset,
            dynamo=False,
        )
        model = onnx.load(path)
    feeds = {name: value.numpy() for name, value in signature.inputs.items()}
    with torch.no_grad():
        expected = [value.numpy() for value in _as_tuple(module(*signature.inputs.values()))]
    plain_reshapes(model)
    _name_axes(model, expected, signature.axes)
    try:
        found = run_graph(model, feeds)
    except RefusedGraph as error:
        raise DistillError(_no_opset(what, opset, error)) from error
    difference = largest_difference(found, expected)
    if not difference <= MAX_DIFFERENCE:
        raise DistillError(
            f"{what}: onnxruntime's answer differs from torch's by {difference:.1e} of its largest value (at most "
            f"{MAX_DIFFERENCE:.0e}); nothing is written"
        )
    simple = simplify(model, feeds, found)
    return Graph(simple or model, difference, float32_scopes(module), simple is not None)


def _no_opset(what: str, opset: int, error: Exception) -> str:
    return f"{what}: ONNX opset {opset} cannot express the model: {error}; try another --opset"


def _name_axes(model: onnx.ModelProto, found: Sequence[np.ndarray], axes: Mapping[str, Mapping[int, str]]) -> None:
    """Give every axis of the outputs its length, or the name of an axis of any length."""
    for item, value in zip(model.graph.output, found, strict=True):
        names = axes.get(item.name, {})
        for axis, (dim, length) in enumerate(zip(item.type.tensor_type.shape.dim, value.shape, strict=True)):
            if axis in names:
                dim.dim_param = names[axis]
            else:
                dim.dim_value = length


def _as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


@contextlib.contextmanager
def _traced_quietly(what: str, opset: int) -> Iterator[None]:
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # tracing warns of sizes that become constants; here they are the model's own
            warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.onnx")
            yield
    except torch.onnx.errors.OnnxExporterError as error:
        raise DistillError(_no_opset(what, opset, error)) from error


def float32_scopes(module: nn.Module) -> frozenset[str]:
    """Return the paths of the parts whose own steps stay in float32: linear attention, norms, positions of prompts."""
    return frozenset(
        path
        for path, part in module.named_modules()
        if getattr(part, FLOAT32_MARK, False) or type(part).__name__ in FLOAT32_TYPES
    )


def scope_of(node: onnx.NodeProto) -> str:
    """Return the path of the module to which a step belongs: "neck.norm" for "/neck/norm/Sqrt"."""
    name: str = node.name
    return ".".join(name.strip("/").split("/")[:-1])


def plain_reshapes(model: onnx.ModelProto) -> None:
    """Let reshapes keep an axis by the 0 that ONNX has for it, where the trace looks the axis's length up.

    A model with dynamic axes is left with no arithmetic on shapes but that of the photo's size.
    """
    graph = model.graph
    made_by = {output: node for node in graph.node for output in node.output}
    values = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            values[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    for index, node in enumerate(graph.node):
        concat = made_by.get(node.input[1]) if node.op_type == "Reshape" else None
        if concat is None or concat.op_type != "Concat":
            continue
        parts = [_kept_or_constant(name, i, node.input[0], made_by, values) for i, name in enumerate(concat.input)]
        if None not in parts:
            name = f"{node.name}_shape_{index}"
            graph.initializer.append(numpy_helper.from_array(np.array(parts, np.int64), name))
            node.input[1] = name
    drop_unused(model)


def _kept_or_constant(
    name: str, axis: int, data: str, made_by: Mapping[str, onnx.NodeProto], values: Mapping[str, np.ndarray]
) -> int | None:
    """Return 0 for the length of the same axis of the reshaped data, or a constant length; None for another length."""
    if name in values:
        return int(values[name].reshape(-1)[0]) if values[name].size == 1 else None
    steps = []
    for op_type in ("Unsqueeze", "Gather", "Shape"):
        node = made_by.get(name)
        if node is None or node.op_type != op_type:
            return None
        steps.append(node)
        name = node.input[0]
    at = values.get(steps[1].input[1])
    return 0 if name == data and at is not None and int(at) == axis else None


def drop_unused(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove the steps and constants whose results nothing takes, and return the graph."""
    graph = model.graph
    while True:
        used = {name for node in graph.node for name in node.input} | {item.name for item in graph.output}
        kept = [node for node in graph.node if used.intersection(node.output)]
        if len(kept) == len(graph.node):
            break
        del graph.node[:]
        graph.node.extend(kept)
    constants = [item for item in graph.initializer if item.name in used]
    del graph.initializer[:]
    graph.initializer.extend(constants)
    return model


def simplify(
    model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], answers: Sequence[np.ndarray]
) -> onnx.ModelProto | None:
    """Return the graph as onnxslim simplifies it. Return None if it is no smaller, or onnxslim is not installed.

    Args:
        answers: what the graph answers to `feeds`.
    Raises:
        DistillError: the simplified graph answers otherwise.
    """
    try:
        import onnxslim
    except ImportError:
        return None
    if model.ByteSize() > ONE_FILE_BYTES:
        return None
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    logging.getLogger("onnxslim").setLevel(logging.ERROR)
    slim: onnx.ModelProto = onnxslim.slim(copied, verbose=False)
    if len(slim.graph.node) >= len(model.graph.node):
        return None
    for ends, ours in ((slim.graph.input, model.graph.input), (slim.graph.output, model.graph.output)):
        del ends[:]  # onnxslim takes two axes that met in a sum for one, and renames it
        ends.extend(ours)
    if not (worst := largest_difference(run_graph(slim, feeds), answers)) <= SAME:
        raise DistillError(
            f"onnxslim {onnxslim.__version__} changed the answers by {worst:.1e} of their largest value; uninstall "
            "it, and the graph is written as it was traced"
        )
    return slim


def run_graph(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Run a graph once in onnxruntime on the CPU. Raises RefusedGraph."""
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    with tempfile.TemporaryDirectory(prefix="distill-export-") as folder:
        path = Path(folder) / "graph.onnx"
        save_graph(model, path)
        try:
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        except (errors.InvalidGraph, errors.NotImplemented, errors.Fail) as error:
            raise RefusedGraph(str(error)) from error
    return [np.asarray(value) for value in session.run(None, dict(feeds))]


def largest_difference(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """Return the largest difference between arrays, as a share of the largest value of each."""
    pairs = zip(found, expected, strict=True)
    return max(float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30)) for a, b in pairs)


def save_graph(model: onnx.ModelProto, path: Path) -> None:
    """Write a graph. The weights of a large one lie beside it, in PATH.data."""
    if model.ByteSize() < ONE_FILE_BYTES:
        path.write_bytes(model.SerializeToString())
        return
    onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data", all_tensors_to_one_file=True)
