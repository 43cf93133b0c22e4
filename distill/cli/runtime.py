"""The options `--runtime` and `--precision` of the commands that run models."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distill.runtimes.execution import Execution

RUNTIMES, PRECISIONS = ("torch", "onnxruntime", "openvino"), ("fp32", "bf16")  # as distill.runtimes.sessions has them


def add_runtime(parser: argparse.ArgumentParser) -> None:
    """Add both options."""
    parser.add_argument(
        "--runtime",
        choices=RUNTIMES,
        help="what runs the model; the default is torch, and onnxruntime for a folder of exported files. Files that "
        "another runtime needs are exported once, and kept in ~/.cache/distill",
    )
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="fp32", help="of products, in torch and openvino; default: fp32"
    )


def execution_of(arguments: argparse.Namespace, source: str, *, name: str | None = None) -> Execution:
    """Return the way in which a model shall be run, with the files that it needs.

    Raises:
        DistillError: the runtime is not installed, or the model cannot be exported.
    """
    from distill.export.runtime_files import with_files
    from distill.runtimes.execution import Execution

    return with_files(source, Execution(arguments.runtime, arguments.precision), name=name)
