"""The exported files of a torch model that another runtime shall run, made on the first use and kept."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import distill
from distill.errors import DistillError
from distill.evaluation.predictors import BASELINES
from distill.export.onnx import export_onnx
from distill.export.single_decoder import export_single_decoder
from distill.files import temporary_path
from distill.models.checkpoint import load_model
from distill.models.sam import PromptableModel
from distill.runtimes.execution import Execution
from distill.runtimes.exported import hash_model, is_exported
from distill.runtimes.folder import SINGLE_DECODER_FILE
from distill.text import say

CACHE_VARIABLE = "XDG_CACHE_HOME"  # freedesktop.org's base directories; without it, ~/.cache


def with_files(source: str, execution: Execution, *, name: str | None = None) -> Execution:
    """Return an execution with the files that the model needs, which are exported if they are not there yet.

    They are kept in the user's cache under the hash of the weights, so that each model is exported once.

    Args:
        source: as `evaluate_recipe` takes it.
        name: which published model a third-party .pt or .pth holds.
    Raises:
        DistillError: the model cannot be read or exported, or the files cannot be written.
    """
    if source in BASELINES or is_exported(source) or execution.runtime_of(source) == "torch":
        return execution
    folder = cache_folder() / f"{hash_model(source)[:16]}-{distill.__version__}"
    if not is_exported(folder):
        say(f"exporting {source} to {folder}")
        temporary = temporary_path(folder)
        try:
            export_for_runtimes(load_model(source, name=name), temporary)
            os.rename(temporary, folder)
        except OSError as error:
            if not is_exported(folder):  # else another process was faster
                raise DistillError(f"{folder}: cannot be written ({error}); set {CACHE_VARIABLE}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return replace(execution, folder=folder)


def export_for_runtimes(model: PromptableModel, folder: Path) -> None:
    """Write the files of a model that runtimes execute here: those of `distill export`, and the fast decoder.

    A model that paints its prompts has a mask in each of them, and so no use for that one.
    """
    export_onnx(model, folder)
    if not model.spec.paint_prompts:
        export_single_decoder(model, folder / SINGLE_DECODER_FILE)


def cache_folder() -> Path:
    """Return the folder that keeps exported files."""
    base = os.environ.get(CACHE_VARIABLE)
    return (Path(base) if base else Path.home() / ".cache") / "distill" / "exports"
