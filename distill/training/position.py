"""Where a training stands: read from any checkpoint of it, and given to Lightning so that the very next batch comes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import lightning
from torch import Tensor

POSITION_KEY = "distill_position"  # of a checkpoint: what Lightning's counters do not say


@dataclass(frozen=True)
class Position:
    """The place in a training at which a checkpoint was written.

    Lightning counts an epoch as finished when a training ends inside it, and does not say whether a validation that
    was due is done. So the place is read from the loader, which counts the batches that were taken from it.

    step: finished steps of the optimizer.
    batches: batches of all epochs, `step` times trainer.accumulate_grad_batches or more.
    epoch, batch: the epoch, and its batches that are done.
    epoch_is_done: whether `batch` was the last one of the epoch.
    is_validated: whether the validation that is due after these batches, if one is, was finished.
    loader: the loader's state, for EpochLoader.load_state_dict.
    """

    step: int
    batches: int
    epoch: int
    batch: int
    epoch_is_done: bool
    is_validated: bool
    loader: Mapping[str, Any]

    @property
    def finished_epochs(self) -> int:
        return self.epoch + self.epoch_is_done

    def is_inside_step(self, accumulated: int) -> bool:
        """Return whether some batches of a step are done and others not, with `accumulated` batches in a step."""
        return not self.epoch_is_done and self.batch % accumulated != 0


def read_position(checkpoint: Mapping[str, Any]) -> Position:
    """Read the position from a checkpoint, of this version of distill or of an earlier one.

    Raises:
        LookupError, TypeError, ValueError: it is no checkpoint of a training of ours, or its counts contradict each
            other.
    """
    loops = checkpoint["loops"]["fit_loop"]
    progress = loops["epoch_loop.batch_progress"]
    (loader,) = loops["state_dict"]["combined_loader"]
    step = _count(loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]["completed"])
    begun, batches, completed = (_count(progress["total"][name]) for name in ("ready", "processed", "completed"))
    epoch, taken, num_batches = (_count(loader[name]) for name in ("epoch", "position", "num_batches"))
    batch = _count(taken - (begun - batches))  # without a batch that was taken and not finished
    if not (step == _count(checkpoint["global_step"]) and step <= batches <= begun and batch <= taken <= num_batches):
        raise ValueError("its counts of steps and batches contradict each other")
    own = checkpoint.get(POSITION_KEY)
    # Earlier versions wrote one inside of a batch's last hook, before the validation, and otherwise after it.
    is_validated = completed == begun if own is None else _count(own["validated_batches"]) == batches
    return Position(
        step=step,
        batches=batches,
        epoch=epoch,
        batch=batch,
        epoch_is_done=batch == num_batches or (begun == batches and batch > 0 and bool(progress["is_last_batch"])),
        is_validated=is_validated,
        loader={**loader, "position": batch},
    )


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"it counts {value!r} where a whole number from 0 on belongs")
    return value


def loops_at(position: Position, *, validation_is_due: bool, accumulated: int) -> dict[str, Any]:
    """Return the state of Lightning's fit loop with which training goes on at a position.

    Args:
        validation_is_due: whether the trainer validates after the position's batches. A validation that is due and not
            done comes first.
        accumulated: batches of a step.
    """
    validates = validation_is_due and not position.is_validated
    if position.epoch_is_done and not validates:
        position = replace(position, epoch=position.epoch + 1, batch=0, epoch_is_done=False)
    epochs = _progress(position.epoch, ready=1, started=int(position.batch > 0))
    loader = {**position.loader, "epoch": position.epoch, "position": position.batch}
    # Lightning adds 1 after a validation, and after a validation that it leaves out. It does not inside of a step.
    is_counted = validation_is_due and not position.is_inside_step(accumulated)
    steps = _pair({"ready": position.step, "completed": position.step})
    zeroed = _pair({"ready": position.step, "started": position.step, "completed": position.step})
    batches = _progress(position.batches, current=position.batch)
    return {
        "state_dict": {"combined_loader": [loader]},
        "epoch_progress": epochs,
        "epoch_loop.state_dict": {"_batches_that_stepped": position.step - is_counted},
        "epoch_loop.batch_progress": {**batches, "is_last_batch": validates and position.epoch_is_done},
        "epoch_loop.scheduler_progress": steps,
        "epoch_loop.automatic_optimization.optim_progress": {"optimizer": {"step": steps, "zero_grad": zeroed}},
        # A batch of it that was begun makes Lightning validate before it trains.
        "epoch_loop.val_loop.batch_progress": {
            **_progress(0, ready=int(validates), started=int(validates)),
            "is_last_batch": False,
        },
    }


def _progress(done: int, *, current: int | None = None, ready: int = 0, started: int = 0) -> dict[str, dict[str, int]]:
    """Return one of Lightning's counters: `done` in all and `current` of the epoch, `ready` and `started` more."""

    def counts(number: int) -> dict[str, int]:
        return {"ready": number + ready, "started": number + started, "processed": number, "completed": number}

    return {"total": counts(done), "current": counts(done if current is None else current)}


def _pair(counts: dict[str, int]) -> dict[str, dict[str, int]]:
    return {"total": counts, "current": counts}


def validation_is_due(trainer: lightning.Trainer, position: Position) -> bool:
    """Return whether a trainer validates after the batches of a position; Lightning counts them across epochs."""
    return bool(trainer.enable_validation) and position.batches % int(trainer.val_check_interval) == 0


class KeepPosition(lightning.Callback):
    """A callback that writes into checkpoints where the training stands, and makes a resumed training begin there."""

    def __init__(self) -> None:
        self._validated_batches = 0
        self._gradients: dict[str, Tensor] = {}

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._validated_batches = trainer.fit_loop.total_batch_idx + 1

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[POSITION_KEY] = {"validated_batches": self._validated_batches}
        accumulated = trainer.accumulate_grad_batches
        # The gradients of other ranks are not at hand; there, the photos of a step that was begun are lost.
        if accumulated > 1 and trainer.world_size == 1 and read_position(checkpoint).is_inside_step(accumulated):
            gradients = ((name, parameter.grad) for name, parameter in pl_module.named_parameters())
            checkpoint[POSITION_KEY]["gradients"] = {name: value for name, value in gradients if value is not None}

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        position = read_position(checkpoint)
        self._validated_batches = position.batches if position.is_validated else 0
        self._gradients = checkpoint.get(POSITION_KEY, {}).get("gradients", {})
        checkpoint["loops"]["fit_loop"] = loops_at(
            position,
            validation_is_due=validation_is_due(trainer, position),
            accumulated=trainer.accumulate_grad_batches,
        )

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        for name, parameter in pl_module.named_parameters():
            if name in self._gradients:
                parameter.grad = self._gradients[name].to(parameter.device)
        self._gradients = {}
