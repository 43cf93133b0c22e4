"""The checkpoints of a run: when they are written, and how, so that each is complete or absent."""

from __future__ import annotations

import contextlib
import io
import math
import os
import shutil
import time
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import lightning
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from distill.config.schema import CheckpointConfig
from distill.errors import Interrupted, RunError
from distill.files import TEMPORARY_SUFFIX, temporary_path, write_errors, write_whole
from distill.leases import Lease
from distill.lock import check_held
from distill.training.checkpoint_file import EARLIER
from distill.training.directory import BEST_CHECKPOINT
from distill.training.interrupts import Signals

SECONDS_PER_MINUTE = 60


class WholeFiles(TorchCheckpointIO):
    """Checkpoint files that are written beside their target and renamed, by the process that holds the run."""

    def __init__(self, lease: Lease | None) -> None:
        super().__init__()
        self.lease = lease

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint, or leave the one that was there.

        Raises:
            RunError: the disk is full or not writable, or another process took the run over.
        """
        if self.lease is not None:
            check_held(self.lease)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        path = Path(path)
        with write_errors(path.parent, RunError):
            path.parent.mkdir(parents=True, exist_ok=True)
        note = "the checkpoint before it is kept, so give resume=true"
        write_whole(path, buffer.getbuffer(), raises=RunError, elsewhere="another run=DIR", note=note)


def remove_unfinished(folder: Path) -> None:
    """Remove the checkpoints that a killed process left half written. Only the holder of the run calls it."""
    for path in folder.glob(f"*.ckpt.*{TEMPORARY_SUFFIX}"):
        path.unlink(missing_ok=True)


class LastCheckpoint(Checkpoint):
    """A callback that keeps last.ckpt up to date, and ends the run when a signal asks for it.

    It writes between steps: after every so many steps and minutes, before a validation, which may take long, and after
    a signal to any of the ranks. The last step is left to `CheckpointAtEnd`, which comes after its validation: a run
    with all of its steps counts as finished, and would not be validated when it goes on.
    """

    def __init__(self, path: Path, config: CheckpointConfig, signals: Signals) -> None:
        self.path = path
        self.config = config
        self.signals = signals
        self._step = self._saved_step = 0
        self._saved_at = time.monotonic()
        self._group: Any = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._step = self._saved_step = trainer.global_step
        self._saved_at = time.monotonic()
        if trainer.world_size > 1 and torch.distributed.is_initialized():
            # Of CPUs, so that asking the others does not wait for the GPU's queue.
            self._group = torch.distributed.new_group(backend="gloo")
        self.signals.deferring = True

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *batch: Any) -> None:
        step = trainer.global_step
        if step == self._step or _ends(trainer):  # gradients are accumulated; it is the last step
            return
        self._step = step
        signum, is_time = self._agree(self.signals.received, self._is_time())
        is_due = self.config.every_n_steps and step % self.config.every_n_steps == 0
        if (is_due or is_time or signum or _validates_next(trainer)) and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(self.path)
            self._saved_step, self._saved_at = step, time.monotonic()
        if signum:
            raise Interrupted(signum, step=step)

    def on_validation_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *batch: Any
    ) -> None:
        if trainer.sanity_checking or self._saved_step != trainer.global_step:
            return
        signum, _ = self._agree(self.signals.received, False)
        if signum:
            raise Interrupted(signum, step=self._saved_step)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.signals.deferring = False

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        self.signals.deferring = False

    def _is_time(self) -> bool:
        seconds = self.config.every_n_minutes * SECONDS_PER_MINUTE
        return seconds > 0 and time.monotonic() - self._saved_at >= seconds

    def _agree(self, signum: int, is_time: bool) -> tuple[int, bool]:
        """Return what any of the ranks has been told, the same on all of them."""
        if self._group is None:
            return signum, is_time
        told = torch.tensor([signum, int(is_time)])
        torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX, group=self._group)
        return int(told[0]), bool(told[1])


def _ends(trainer: lightning.Trainer) -> bool:
    return trainer.should_stop and trainer.fit_loop._can_stop_early


def _validates_next(trainer: lightning.Trainer) -> bool:
    fit_loop = trainer.fit_loop
    assert fit_loop._data_fetcher is not None
    return fit_loop.epoch_loop._should_check_val_fx(fit_loop._data_fetcher)


class BestCheckpoints(Checkpoint):
    """A callback that keeps the checkpoints of the best validated steps; best.ckpt is the best of them.

    If more than one is kept, each is best-stepN.ckpt, and best.ckpt is another name of the best one.

    scores: of the kept checkpoints, by step; more is better.
    """

    def __init__(self, folder: Path, metric: str, keep: int) -> None:
        self.folder = folder
        self.metric = metric
        self.keep = keep
        self.scores: dict[int, float] = {}

    @property
    def best(self) -> Path:
        return self.folder / f"{BEST_CHECKPOINT}.ckpt"

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        step = trainer.global_step
        if trainer.sanity_checking or trainer.fast_dev_run or step in self.scores:  # type: ignore[attr-defined]
            return
        score = float(trainer.callback_metrics.get(self.metric, math.nan))
        score = -math.inf if math.isnan(score) else score
        ranked = sorted(self.scores, key=self.scores.__getitem__)
        is_best = not ranked or score > self.scores[ranked[-1]]
        if len(ranked) >= self.keep and score <= self.scores[ranked[0]]:
            return
        self.scores[step] = score
        dropped = ranked[0] if len(self.scores) > self.keep else None
        if dropped is not None:
            del self.scores[dropped]
        trainer.save_checkpoint(self._path(step))
        if trainer.is_global_zero and self.keep > 1:
            if dropped is not None:
                self._path(dropped).unlink(missing_ok=True)
            if is_best:
                _name_also(self._path(step), self.best)

    def state_dict(self) -> dict[str, Any]:
        return {"metric": self.metric, "scores": dict(self.scores)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["metric"] == self.metric:
            self.scores = dict(state_dict["scores"])

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take over the score that an earlier version kept."""
        for key, state in checkpoint["callbacks"].items():
            if key.startswith(EARLIER) and state.get("monitor") == self.metric:
                step, score = _step_of(self.best), state.get("best_model_score")
                self.scores = {} if step is None or score is None else {step: float(score)}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Bring scores and files together: a killed run may have written further than its last checkpoint."""
        if trainer.is_global_zero:
            self._settle_files()
        self.scores = trainer.strategy.broadcast(self.scores)

    def _settle_files(self) -> None:
        for_best = max(self.scores, key=self.scores.__getitem__, default=None)
        if for_best is not None and not self._path(for_best).exists() and _step_of(self.best) == for_best:
            _name_also(self.best, self._path(for_best))  # more are kept than before
        self.scores = {step: score for step, score in self.scores.items() if _step_of(self._path(step)) == step}
        while len(self.scores) > self.keep:  # fewer are kept than before
            del self.scores[min(self.scores, key=self.scores.__getitem__)]
        kept = {self._path(step) for step in self.scores}
        for path in self.folder.glob(f"{BEST_CHECKPOINT}-step*.ckpt"):
            if path not in kept:
                path.unlink(missing_ok=True)
        if self.keep > 1 and self.scores:
            _name_also(self._path(max(self.scores, key=self.scores.__getitem__)), self.best)

    def _path(self, step: int) -> Path:
        return self.best if self.keep == 1 else self.folder / f"{BEST_CHECKPOINT}-step{step}.ckpt"


def forget_best(states: dict[str, Any]) -> None:
    """Drop the scores of the best checkpoints from the states of a checkpoint's callbacks, as if none was measured."""
    for key in [key for key in states if key == BestCheckpoints.__qualname__ or key.startswith(EARLIER)]:
        del states[key]


def _step_of(path: Path) -> int | None:
    """Return the steps of a checkpoint. Return None if there is none that can be read."""
    with contextlib.suppress(OSError, RuntimeError, LookupError, TypeError, EOFError, ValueError, UnpicklingError):
        return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"])
    return None


def _name_also(path: Path, other: Path) -> None:
    """Give a file another name, in place of the file that had it."""
    temporary = temporary_path(other)
    with write_errors(other, RunError):
        try:
            os.link(path, temporary)
        except OSError:  # the file system has no links
            shutil.copyfile(path, temporary)
        os.replace(temporary, other)
        temporary.unlink(missing_ok=True)  # renaming leaves it where both are names of one file already
