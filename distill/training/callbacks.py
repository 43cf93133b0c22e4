"""The callbacks of a training: continued metrics, the last checkpoint, the time spent waiting for data, and options."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams

from distill.training.checkpoint_file import LAST_STEP_KEY
from distill.training.loggers import JsonLinesLogger
from distill.training.position import read_position, validation_is_due


class ContinueMetrics(lightning.Callback):
    """A callback that makes the metrics of a resumed run equal to those of an uninterrupted one.

    It drops the metrics that came after the checkpoint. Lightning writes a checkpoint before it logs the step that the
    checkpoint ends with. So that step's scalars are kept in the checkpoint too, and logged if the run died in between.
    A validation that was due after that step, and was cut short, is repeated, so its scalars are dropped as well.
    """

    def __init__(self) -> None:
        self._last_step: dict[str, float] = {}
        self._repeats_validation = False

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        logged = trainer.logged_metrics.items()
        checkpoint[LAST_STEP_KEY] = {name: float(value) for name, value in logged if name.startswith("train/")}
        epochs = trainer.fit_loop.epoch_progress.current
        checkpoint[LAST_STEP_KEY]["epoch"] = float(epochs.started - 1)  # type: ignore[attr-defined]

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._last_step = checkpoint.get(LAST_STEP_KEY, {})
        position = read_position(checkpoint)
        self._repeats_validation = validation_is_due(trainer, position) and not position.is_validated

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        step = trainer.global_step
        for logger in trainer.loggers:
            if isinstance(logger, JsonLinesLogger):
                logger.forget_from(step)
                if self._repeats_validation:
                    logger.forget_validation(step - 1)
                is_logged_step = step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
                if self._last_step and is_logged_step and not logger.has(step - 1, self._last_step):
                    logger.log_metrics(self._last_step, step - 1)


class LastStep(lightning.Callback):
    """A callback that lets the last step of a run be logged and validated, whatever the intervals are.

    Lightning logs and validates the step in which it is told to stop; here that is the one in which it stops anyway.
    The callback stands before those that log.
    """

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        ends_epoch = batch_idx + 1 == trainer.num_training_batches
        steps = ends_epoch or (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        is_last = trainer.global_step + 1 == trainer.max_steps or (
            ends_epoch and trainer.current_epoch + 1 == trainer.max_epochs
        )
        if steps and is_last:
            trainer.should_stop = True


class CheckpointAtEnd(lightning.Callback):
    """A callback that writes the last checkpoint when training ends, so that a longer run can go on from it.

    It stands before weight averaging in the list of callbacks, because that then replaces the model by the average.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        trainer.save_checkpoint(self.path)


class DataWait(lightning.Callback):
    """A callback that logs `train/data_wait`: the share of time that was spent waiting for batches."""

    def __init__(self) -> None:
        self._mark: float | None = None
        self._waited = 0.0
        self._worked = 0.0

    def on_train_batch_start(self, *args: Any) -> None:
        self._waited += self._lap()

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *args: Any) -> None:
        self._worked += self._lap()
        total = self._waited + self._worked
        is_logged = trainer.should_stop or trainer.global_step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if is_logged and total:
            pl_module.log("train/data_wait", self._waited / total)
            self._waited = self._worked = 0.0

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._mark = None

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._mark = None

    def _lap(self) -> float:
        """Return the seconds since the last call, or 0 after a pause."""
        now = time.perf_counter()
        seconds = 0.0 if self._mark is None else now - self._mark
        self._mark = now
        return seconds


class Hyperparameters(lightning.Callback):
    """A callback that tells every logger the recipe's options, so that the services' own pages compare runs.

    TensorBoard's HPARAMS page shows them with the last value of each scalar in `metrics`.
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
        """Return TensorBoard's records of the experiment, of the session's start and of its end."""
        return hparams(dict(self.values), dict.fromkeys(self.metrics, 0.0))  # type: ignore[no-untyped-call]
