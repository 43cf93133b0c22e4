"""What a run's numbers go to beside its metrics.jsonl: Lightning's loggers, chosen by name in the recipe."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from torch.utils.tensorboard.summary import hparams

from distill.errors import RunError
from distill.training.directory import SCALARS_FILE, JsonLinesLogger, is_rank_zero

PROJECT = "distill"  # where the service's own variable names no other


def _wandb(run: Path) -> Logger:
    import wandb

    try:
        if is_rank_zero():
            wandb.login()  # asks nothing offline, nor where the key is known
    except wandb.errors.Error as error:
        raise RunError(f"logger wandb: {error} Or keep its files here alone: WANDB_MODE=offline") from error
    return WandbLogger(name=run.name, project=os.environ.get("WANDB_PROJECT", PROJECT), save_dir=run)


def _mlflow(run: Path) -> Logger:
    import mlflow

    uri = mlflow.get_tracking_uri()
    try:
        return MLFlowLogger(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT), run_name=run.name, tracking_uri=uri)
    except mlflow.exceptions.MlflowException as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"logger mlflow: {uri} cannot be used: {reason}; set MLFLOW_TRACKING_URI") from error


# Servers and offline use are what the services' own variables say: WANDB_MODE, MLFLOW_TRACKING_URI ...
BUILDERS: dict[str, Callable[[Path], Logger]] = {
    "tensorboard": lambda run: TensorBoardLogger(run, name=None, version="tensorboard", default_hp_metric=False),
    "csv": lambda run: CSVLogger(run, name="csv"),  # csv/version_0; a resumed run adds another
    "wandb": _wandb,
    "mlflow": _mlflow,
}


def build_loggers(names: Sequence[str], run: Path) -> list[Logger]:
    """The loggers of a run directory: metrics.jsonl always, and those named.

    Raises RunError when a service refuses what is known before the first number.
    """
    return [*(BUILDERS[name](run) for name in names), JsonLinesLogger(run / SCALARS_FILE)]


class Hyperparameters(lightning.Callback):
    """Tells every logger what the run was asked for, so that the services' own pages compare runs.

    TensorBoard's HPARAMS page shows them beside the last value of each scalar in `metrics`.
    """

    def __init__(self, values: Mapping[str, Any], metrics: Sequence[str]) -> None:
        simple = (bool, int, float, str)
        self.values = {key: value if isinstance(value, simple) else str(value) for key, value in values.items()}
        self.metrics = metrics

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        for logger in trainer.loggers:
            if not isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(self.values)
            elif trainer.is_global_zero:
                experiment, session_start, _ = self._summaries()
                logger.experiment.file_writer.add_summary(experiment)
                logger.experiment.file_writer.add_summary(session_start)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                logger.experiment.file_writer.add_summary(self._summaries()[2])

    def _summaries(self) -> Any:
        """TensorBoard's records: of the experiment, of the session's start and of its end."""
        return hparams(dict(self.values), dict.fromkeys(self.metrics, 0.0))
