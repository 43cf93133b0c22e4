"""Exported files in their own runtimes, behind one call: arrays by name in, arrays by name out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from distill.errors import DistillError

Arrays = dict[str, np.ndarray]


class Runner(Protocol):
    """An opened file."""

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """Return the outputs by name."""
        ...


class OnnxRunner:
    """A file in onnxruntime on the CPU.

    Args:
        exact: True to run every step as it stands in the file, without the runtime's optimizations.
    """

    def __init__(self, path: Path, *, threads: int | None = None, exact: bool = False) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # no warnings of constants that it folds
        if threads:
            options.intra_op_num_threads = threads
        if exact:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._inputs = [item.name for item in self._session.get_inputs()]
        self._outputs = [item.name for item in self._session.get_outputs()]

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        values = self._session.run(None, {name: feeds[name] for name in self._inputs})
        return dict(zip(self._outputs, map(np.asarray, values), strict=True))


class OpenVinoRunner:
    """A file (.xml or .onnx) in OpenVINO on the CPU.

    Args:
        arithmetic: "f32" or "bf16", the format in which the runtime may compute.
    """

    def __init__(self, path: Path, *, threads: int | None = None, arithmetic: str = "f32") -> None:
        openvino = import_openvino()
        config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": arithmetic}
        if threads:
            config["INFERENCE_NUM_THREADS"] = threads
        self._model = openvino.Core().compile_model(path, "CPU", config)
        self._inputs = [item.any_name for item in self._model.inputs]

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        found = self._model({name: feeds[name] for name in self._inputs})
        # an output has the name of the step that makes it beside its own
        return {name: np.array(found[port]) for port in self._model.outputs for name in port.names}


def import_openvino() -> Any:
    """Return the module openvino. Raises DistillError when it is not installed."""
    try:
        import openvino
    except ImportError as error:
        raise DistillError("openvino is not installed: pip install 'distill-sam[openvino]'") from error
    return openvino
