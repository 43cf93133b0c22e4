"""ONNX files in the runtimes that execute them on a CPU: onnxruntime and OpenVINO, each imported on its first use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch

from distill.errors import RunError

Runtime = Literal["torch", "onnxruntime", "openvino"]
Precision = Literal["fp32", "bf16"]
RUNTIMES: tuple[Runtime, ...] = ("torch", "onnxruntime", "openvino")
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")

Sizes = tuple[int | None, ...]


class Session(Protocol):
    """A file that is ready to run.

    inputs: the sizes of each input; None for one that may vary.
    """

    inputs: Mapping[str, Sizes]

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """Return the outputs of these names for arrays by the names of the inputs."""
        ...


class OnnxRuntimeSession:
    """A file in onnxruntime, with as many threads as torch."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors alone
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its own classes have no common parent but this one
            raise _unreadable(path, "onnxruntime", error) from error
        self.inputs: Mapping[str, Sizes] = {node.name: _sizes(node.shape) for node in self._session.get_inputs()}

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """Return the outputs of these names."""
        found: list[np.ndarray] = self._session.run(list(outputs), dict(feeds))
        return found


class OpenVinoSession:
    """A file in OpenVINO, with as many threads as torch.

    Args:
        precision: bf16 computes in bfloat16 where that is faster; the weights in the file stay as they are.
        fixed: sizes of inputs that the file leaves open; fixed ones are planned ahead.
    """

    def __init__(self, path: Path, precision: Precision, fixed: Mapping[str, Sequence[int]] | None = None) -> None:
        import openvino

        core = openvino.Core()
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise RunError("--precision bf16: this CPU has no instructions for bfloat16; leave the option out")
        config = {
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        try:
            model = core.read_model(path)
            if fixed:
                model.reshape({name: list(sizes) for name, sizes in fixed.items()})
            compiled = core.compile_model(model, "CPU", config)
        except RuntimeError as error:
            raise _unreadable(path, "OpenVINO", error) from error
        self.inputs: Mapping[str, Sizes] = {
            str(name): tuple(size.get_length() if size.is_static else None for size in port.partial_shape)
            for port in compiled.inputs
            for name in port.get_names()  # optimised graphs give a port further names
        }
        self._request = compiled.create_infer_request()

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """Return the outputs of these names."""
        self._request.infer(dict(feeds), share_inputs=True)
        return [np.array(self._request.get_tensor(name).data) for name in outputs]  # the next run reuses its memory


def open_session(
    path: Path, runtime: Runtime, precision: Precision = "fp32", *, fixed: Mapping[str, Sequence[int]] | None = None
) -> Session:
    """Open a file in a runtime.

    Args:
        fixed: sizes of inputs that the file leaves open, for runtimes that are faster with them.
    Raises:
        RunError: the runtime is not installed, cannot read the file, or has no such precision here.
    """
    check_runtime(runtime, precision)
    if runtime == "openvino":
        return OpenVinoSession(path, precision, fixed)
    assert runtime == "onnxruntime"
    return OnnxRuntimeSession(path)


def check_runtime(runtime: Runtime, precision: Precision) -> None:
    """Check that a runtime is installed and has the precision. Raises RunError."""
    if runtime == "onnxruntime" and precision != "fp32":
        raise RunError(
            f"--precision {precision}: onnxruntime computes a file in the number format that the file has; leave the "
            "option out, or give --runtime openvino"
        )
    if runtime == "openvino":
        try:
            import openvino  # noqa: F401
        except ImportError as error:
            raise RunError(
                "--runtime openvino: OpenVINO is not installed; pip install 'distill-sam[openvino]'"
            ) from error


def _sizes(shape: Sequence[int | str | None]) -> Sizes:
    return tuple(size if isinstance(size, int) else None for size in shape)


def _unreadable(path: Path, runtime: str, error: Exception) -> RunError:
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return RunError(f"{path}: {runtime} cannot load it ({reason.strip()}); export the model again")
