"""The base of the stages: which parts train, how terms are logged, validation and the optimizer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from distill.batch import ImageBatch
from distill.config.schema import OptimConfig
from distill.models.sam import PromptableModel
from distill.models.spec_header import SPEC_KEY, describe
from distill.prompts.seeded_noise import seed_generators
from distill.stages.finite_loss import FiniteLoss, check_weights
from distill.stages.optim import (
    batch_norms_to_eval,
    build_adamw,
    build_schedule,
    freeze_parts,
    frozen_parts_to_eval,
    group_options,
    restore_group_options,
)
from distill.stages.validation import Validator


class TrainingStage(lightning.LightningModule):
    """A student in training; a subclass computes the named loss terms of a batch.

    Args:
        model: the student. Its parts with a learning-rate multiple of 0 are frozen here, before DDP and the optimizer.
        validator: measures the student on held-out batches. None measures nothing.
        seed: decides, with the step, what is drawn at random in it.
    """

    def __init__(
        self, model: PromptableModel, *, optim: OptimConfig, validator: Validator | None, seed: int = 0
    ) -> None:
        super().__init__()
        self.model = model
        self.seed = seed
        self.optim_config = optim
        self.validator = validator
        self.finite_loss = FiniteLoss()
        self._options_of_groups: list[dict[str, Any]] = []  # of the optimizer, before a checkpoint brings its own
        freeze_parts(model, optim)
        model.image_encoder.to(memory_format=torch.channels_last)  # convolutions are faster, above all in bf16
        self.train()  # models are built and loaded in eval mode, and Lightning leaves modes as they are

    @abstractmethod
    def compute_terms(self, batch: ImageBatch) -> dict[str, Tensor]:
        """Return the named loss terms of a batch; `loss` is their weighted sum."""

    def train(self, mode: bool = True) -> TrainingStage:
        super().train(mode)
        frozen_parts_to_eval(self.model, self.optim_config)
        batch_norms_to_eval(self.model, self.optim_config)
        return self

    def training_step(self, batch: ImageBatch, batch_index: int) -> Tensor:
        self.finite_loss.check()
        # Dropout draws from the global generators: in a resumed run it has to draw what it would have drawn.
        seed_generators(self.seed, self.global_step, batch_index, self.global_rank)
        with float32_by_default():
            terms = self.compute_terms(_with_float32_targets(batch))
        self.finite_loss.note(terms["loss"], keys=batch.keys, step=self.global_step)
        for name, value in terms.items():
            self.log(f"train/{name}", value, prog_bar=name == "loss", batch_size=len(batch.keys))
        return terms["loss"]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say which model the checkpoint holds.

        Raises:
            RunError: the loss of the last step, or a weight after it, is not finite. So the last good checkpoint stays.
        """
        self.finite_loss.check(wait=True)
        check_weights(checkpoint["state_dict"], step=self.global_step - 1)
        checkpoint[SPEC_KEY] = describe(self.model.spec)

    def validation_step(self, batch: ImageBatch, batch_index: int) -> None:
        if self.validator is not None:
            with float32_by_default():
                self.validator.update(self.model, _with_float32_targets(batch))

    def on_validation_epoch_end(self) -> None:
        if self.validator is not None:
            self.validator.log(self)

    def build_optimizer(self) -> Optimizer:
        """Build the optimizer of the student's parts. A stage with its own parameters overrides this to add them."""
        return build_adamw(self.model, self.optim_config)

    def configure_optimizers(self) -> Any:
        optimizer = self.build_optimizer()
        schedule = build_schedule(optimizer, self.optim_config, int(self.trainer.estimated_stepping_batches))
        self._options_of_groups = group_options(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Give the optimizer the options of this run again, because a checkpoint brings those of the run before."""
        schedule = self.lr_schedulers()
        if isinstance(schedule, LambdaLR) and self._options_of_groups:
            restore_group_options(schedule, self._options_of_groups)


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Let new tensors be float32, also where Lightning's precisions bf16-true, 16-true and 64-true say otherwise.

    These precisions are for the networks. Prompts, draws and losses are computed in float32 under each of them.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _with_float32_targets(batch: ImageBatch) -> ImageBatch:
    """Return a batch whose masks, boxes and cached embeddings are float32 again, after Lightning has converted it."""
    names = ("masks", "boxes_xyxy", "teacher_embeddings")
    return replace(batch, **{name: value.float() for name in names if (value := getattr(batch, name)) is not None})
