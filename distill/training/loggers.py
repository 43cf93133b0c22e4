"""Where a run's numbers go: its metrics.jsonl, and Lightning's loggers that the recipe chooses by name."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from distill.errors import RunError
from distill.files import write_text
from distill.outside import read_scalars
from distill.secret import conceal
from distill.training.directory import SCALARS_FILE, is_rank_zero


class JsonLinesLogger(Logger):
    """A logger that appends one JSON object for every step that logs: `step` (from 0) and the scalars of that step."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Log nothing: the recipe has its own file."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        line = {"step": step, **{name: float(value) for name, value in metrics.items()}}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def forget_from(self, step: int) -> None:
        """Drop the lines of `step` and later, and a line cut short. A resumed run writes them again."""
        self._keep(lambda line: line["step"] < step)

    def forget_validation(self, step: int) -> None:
        """Drop the scores of a validation that a resumed run repeats."""
        self._keep(lambda line: line["step"] != step or not any(name.startswith("val/") for name in line))

    @rank_zero_only
    def _keep(self, is_kept: Callable[[dict[str, int | float]], bool]) -> None:
        if self.path.exists():
            kept = [line for line in self._lines() if is_kept(line)]
            write_text(self.path, "".join(f"{json.dumps(line)}\n" for line in kept), raises=RunError)

    def has(self, step: int, names: Iterable[str]) -> bool:
        """Return whether the file has all of these scalars for a step."""
        found = {name for line in self._lines() if line["step"] == step for name in line}
        return found.issuperset(names)

    def _lines(self) -> list[dict[str, int | float]]:
        return read_scalars(self.path) if self.path.exists() else []


PROJECT = "distill"  # unless the service's own variable names another


def _wandb(run: Path) -> Logger:
    import wandb

    try:
        if is_rank_zero():
            wandb.login()  # asks nothing if offline or if the key is known
    except wandb.errors.Error as error:
        raise RunError(f"logger wandb: {error} Or keep its files on this machine: WANDB_MODE=offline") from error
    return WandbLogger(name=conceal(run.name), project=os.environ.get("WANDB_PROJECT", PROJECT), save_dir=run)


def _mlflow(run: Path) -> Logger:
    import mlflow

    uri = mlflow.get_tracking_uri()
    try:
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        return MLFlowLogger(experiment, run_name=conceal(run.name), tracking_uri=uri)
    except mlflow.exceptions.MlflowException as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"logger mlflow: {uri} cannot be used: {reason}; set MLFLOW_TRACKING_URI") from error


# The services' own variables choose servers and offline use: WANDB_MODE, MLFLOW_TRACKING_URI ...
BUILDERS: dict[str, Callable[[Path], Logger]] = {
    "tensorboard": lambda run: TensorBoardLogger(run, name=None, version="tensorboard", default_hp_metric=False),
    "csv": lambda run: CSVLogger(run, name="csv"),  # csv/version_0; a resumed run adds another
    "wandb": _wandb,
    "mlflow": _mlflow,
}


def build_loggers(names: Sequence[str], run: Path) -> list[Logger]:
    """Build the loggers of a run directory: the named ones, and always metrics.jsonl.

    Raises:
        RunError: a service refuses the run before its first number.
    """
    return [*(BUILDERS[name](run) for name in names), JsonLinesLogger(run / SCALARS_FILE)]
