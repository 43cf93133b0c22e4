"""How a model is run: the runtime, its precision, and the files that it needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from distill.errors import RunError
from distill.runtimes.exported import is_exported
from distill.runtimes.sessions import Precision, Runtime, check_runtime


@dataclass(frozen=True)
class Execution:
    """The way in which a model is run.

    runtime: None is torch, and onnxruntime for a folder of exported files.
    folder: the exported files of a torch model that another runtime shall run.
    """

    runtime: Runtime | None = None
    precision: Precision = "fp32"
    folder: Path | None = None

    def runtime_of(self, source: str) -> Runtime:
        """Return the runtime of a model. Raises RunError if it is not installed, or cannot run it so."""
        runtime = self.runtime or ("onnxruntime" if is_exported(source) else "torch")
        if runtime == "torch" and is_exported(source):
            raise RunError(
                f"{source}: exported files do not run in torch; give --runtime onnxruntime or openvino, or the model "
                "that they came from"
            )
        if runtime != "torch":
            check_runtime(runtime, self.precision)
        return runtime

    def describe(self, source: str) -> str | None:
        """Return the runtime and the precision as records name them; None for torch in float32."""
        runtime = self.runtime_of(source)
        return None if (runtime, self.precision) == ("torch", "fp32") else f"{runtime} {self.precision}"
