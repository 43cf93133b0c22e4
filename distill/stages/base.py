"""The base of the stages: which parts train, how terms are logged, validation and the optimizer."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import lightning
from torch import Tensor
from torch.optim import Optimizer

from distill.batch import ImageBatch
from distill.config.schema import OptimConfig
from distill.models.sam import PromptableModel
from distill.stages.finite_loss import FiniteLoss
from distill.stages.optim import (
    batch_norms_to_eval,
    build_adamw,
    build_schedule,
    freeze_parts,
    frozen_parts_to_eval,
)
from distill.stages.validation import Validator


class TrainingStage(lightning.LightningModule):
    """A student in training; a subclass computes the named loss terms of a batch.

    Args:
        model: the student. Its parts with a learning-rate multiple of 0 are frozen here, before DDP and the optimizer.
        validator: measures the student on held-out batches. None measures nothing.
    """

    def __init__(self, model: PromptableModel, *, optim: OptimConfig, validator: Validator | None) -> None:
        super().__init__()
        self.model = model
        self.optim_config = optim
        self.validator = validator
        self.finite_loss = FiniteLoss()
        freeze_parts(model, optim)
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
        terms = self.compute_terms(batch)
        self.finite_loss.note(terms["loss"], keys=batch.keys, step=self.global_step)
        for name, value in terms.items():
            self.log(f"train/{name}", value, prog_bar=name == "loss", batch_size=len(batch.keys))
        return terms["loss"]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to write a checkpoint after a step without a finite loss, so that the last good one stays."""
        self.finite_loss.check(wait=True)

    def validation_step(self, batch: ImageBatch, batch_index: int) -> None:
        if self.validator is not None:
            self.validator.update(self.model, batch)

    def on_validation_epoch_end(self) -> None:
        if self.validator is not None:
            self.validator.log(self)

    def build_optimizer(self) -> Optimizer:
        """Build the optimizer of the student's parts. A stage with its own parameters overrides this to add them."""
        return build_adamw(self.model, self.optim_config)

    def configure_optimizers(self) -> Any:
        optimizer = self.build_optimizer()
        schedule = build_schedule(optimizer, self.optim_config, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
