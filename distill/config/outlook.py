"""What follows from a training's recipe before it starts: photos a step, the learning rate, steps, and cautions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from distill.config.schema import FeatureRecipe, MaskRecipe, OptimConfig
from distill.config.trainer import ENDLESS
from distill.errors import RecipeError

LOG_EVERY = 50  # lightning's own trainer.log_every_n_steps
FEW = 10  # a run that is shorter than an interval is advised a tenth of its steps
POWER = {"linear": 1.0, "sqrt": 0.5}  # of the global batch, by optim.lr_rule


@dataclass(frozen=True)
class Outlook:
    """What a training will do.

    devices: processes over all nodes.
    photos_a_step: the global batch: devices x data.batch_size x trainer.accumulate_grad_batches.
    lr: the highest rate of the schedule, for a part whose multiple is 1.
    steps, epochs: the length of the run; None if the number of photos is not known and decides it.
    """

    devices: int
    photos_a_step: int
    lr: float
    steps: int | None
    epochs: float | None


def foresee(recipe: FeatureRecipe | MaskRecipe, *, devices: int, num_photos: int | None) -> Outlook:
    """Return what a recipe will do on a number of devices with a number of photos (None: not known).

    Raises:
        RecipeError: trainer.limit_train_batches is a share that holds no batch.
    """
    trainer = recipe.trainer
    accumulated = trainer.get("accumulate_grad_batches") or 1
    photos = devices * recipe.data.batch_size * accumulated
    steps, epochs = trainer.get("max_steps"), None
    if num_photos is not None:
        batches = _limited(math.ceil(num_photos / (devices * recipe.data.batch_size)), trainer)
        steps, epochs = num_steps(trainer, math.ceil(batches / accumulated))
    elif steps in (None, ENDLESS) or trainer.get("max_epochs") not in (None, ENDLESS):
        steps = None
    return Outlook(devices, photos, lr_for(recipe.optim, photos), steps, epochs)


def _limited(batches: int, trainer: Mapping[str, Any]) -> int:
    """Return how many batches of an epoch trainer.limit_train_batches leaves."""
    limit = trainer.get("limit_train_batches")
    if limit is None:
        return batches
    left = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    if left == 0:
        message = f"{limit} of {batches} batches an epoch is less than one, so nothing would be trained; give 1"
        raise RecipeError("trainer", [f"trainer.limit_train_batches: {message}"])
    return left


def num_devices(trainer: Mapping[str, Any], num_gpus: int) -> int:
    """Return how many processes lightning starts with these arguments on machines with so many GPUs."""
    devices = trainer.get("devices") or "auto"
    if isinstance(devices, str) and "," in devices:
        devices = [device for device in devices.split(",") if device.strip()]
    if isinstance(devices, list):
        of_one_node = len(devices)
    elif devices in ("auto", -1, "-1"):
        of_one_node = 1 if trainer.get("accelerator") == "cpu" else max(1, num_gpus)
    else:
        of_one_node = int(devices)
    return of_one_node * int(trainer.get("num_nodes") or 1)


def num_steps(trainer: Mapping[str, Any], steps_an_epoch: int) -> tuple[int, float]:
    """Return the length of a run in steps and epochs. The run ends with whichever limit comes first."""
    steps, epochs = trainer.get("max_steps"), trainer.get("max_epochs")
    lengths = [int(trainer["fast_dev_run"])] if trainer.get("fast_dev_run") else []
    lengths += [steps] if steps not in (None, ENDLESS) else []
    lengths += [epochs * steps_an_epoch] if epochs not in (None, ENDLESS) else []
    found = min(lengths)
    return found, found / steps_an_epoch


def lr_for(optim: OptimConfig, photos_a_step: int) -> float:
    """Return the rate for a global batch: `lr` x (photos / lr_for_batch), or its root; `lr` without a lr_for_batch.

    Sources: arXiv:1706.02677 (Goyal et al.) for the linear rule, of SGD; arXiv:2205.10287 (Malladi et al.) for the
    square root, of Adam.
    """
    if optim.lr_for_batch is None:
        return optim.lr
    return optim.lr * float((photos_a_step / optim.lr_for_batch) ** POWER[optim.lr_rule])


def optim_for(optim: OptimConfig, photos_a_step: int) -> OptimConfig:
    """Return the options with the rate for a global batch in place of `lr`."""
    return replace(optim, lr=lr_for(optim, photos_a_step), lr_for_batch=None)


def describe_lr(recipe: FeatureRecipe | MaskRecipe, found: Outlook) -> str:
    """Return the learning rate and where it comes from, as one line for the log."""
    accumulated = recipe.trainer.get("accumulate_grad_batches") or 1
    factors = f"{found.devices} device(s) x {recipe.data.batch_size} photos"
    factors += f" x {accumulated} batches" if accumulated > 1 else ""
    step = f"learning rate {found.lr:.3g}, {found.photos_a_step} photos a step ({factors})"
    optim = recipe.optim
    if optim.lr_for_batch is None:
        return f"{step}: optim.lr as it is"
    return f"{step}: optim.lr={optim.lr:.3g} is for {optim.lr_for_batch}, and follows the {optim.lr_rule} rule"


def cautions(recipe: FeatureRecipe | MaskRecipe, found: Outlook, *, meant_batch: int | None = None) -> list[str]:
    """Return what will surprise a user: a run shorter than its intervals, a rate that is for another global batch.

    Args:
        meant_batch: the global batch that the recipe's files give for `optim.lr`, even where null took it back.
    """
    lines = []
    optim, steps = recipe.optim, found.steps
    if optim.lr_for_batch is None and meant_batch not in (None, found.photos_a_step):
        lines.append(
            f"optim.lr={optim.lr:.3g} is for {meant_batch} photos a step, and a step of this run has "
            f"{found.photos_a_step}; give optim.lr_for_batch={meant_batch}, and the rate follows"
        )
    if steps is None or recipe.trainer.get("fast_dev_run"):
        return lines
    advised = max(1, steps // FEW)
    length = f"the run has {steps} step(s)"
    if steps < optim.warmup_steps:
        lines.append(
            f"{length} and optim.warmup_steps={optim.warmup_steps}: the rate only reaches "
            f"{steps / optim.warmup_steps:.0%} of {found.lr:.3g}; give optim.warmup_steps={steps // FEW}, "
            "or more epochs"
        )
    log_every = recipe.trainer.get("log_every_n_steps") or LOG_EVERY
    if steps < log_every:
        lines.append(
            f"{length} and trainer.log_every_n_steps={log_every}: only the last step is logged; "
            f"give trainer.log_every_n_steps={advised}"
        )
    if recipe.data.val_images is not None and steps < recipe.validation.every_n_steps:
        lines.append(
            f"{length} and validation.every_n_steps={recipe.validation.every_n_steps}: only the last step is "
            f"validated; give validation.every_n_steps={advised}"
        )
    return lines
