"""TensorRT without a GPU: the script that builds engines from the graphs, with the exact commands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx

from distill.errors import DistillError
from distill.files import write_text

BUILD_FILE = "build_engines.sh"
# least, best and most of each axis that the graph leaves open: an engine is fastest at the best
PROFILE = {"batch": (1, 16, 16), "num_prompts": (1, 8, 64), "num_masks": (1, 8, 64), "num_points": (2, 2, 16)}


def write_build_files(folder: Path, graphs: dict[str, onnx.ModelProto], precision: str) -> None:
    """Write the script that builds an engine of each graph with trtexec.

    The graphs say the format of each step, and in int8 the range of each tensor (QuantizeLinear), so TensorRT is told
    to obey them (`--stronglyTyped`): it chooses no format of its own, and needs no calibration cache.
    """
    text = "\n".join(
        [
            "#!/bin/sh",
            f"# Builds TensorRT engines ({precision}) from the graphs beside this script. It needs trtexec of TensorRT",
            "# 10 or later, and the GPU on which the engines will run. The formats are in the graphs.",
            "set -e",
            'cd "$(dirname "$0")"',
            *(_command(part, model) for part, model in graphs.items()),
            "",
        ]
    )
    write_text(folder / BUILD_FILE, text, raises=DistillError)


def _command(part: str, model: onnx.ModelProto) -> str:
    """Return the line that builds one engine."""
    words = ["trtexec", f"--onnx={part}.onnx", f"--saveEngine={part}.engine", "--stronglyTyped"]
    inputs = {item.name: item.type.tensor_type.shape.dim for item in model.graph.input}
    if any(dim.dim_param for dims in inputs.values() for dim in dims):
        for i, profile in enumerate(("min", "opt", "max")):
            shapes = ",".join(f"{name}:{_shape(dims, i)}" for name, dims in inputs.items())
            words.append(f"--{profile}Shapes={shapes}")
    return " \\\n  ".join(words)


def _shape(dims: Sequence[onnx.TensorShapeProto.Dimension], which: int) -> str:
    return "x".join(str(PROFILE[dim.dim_param][which] if dim.dim_param else dim.dim_value) for dim in dims)
