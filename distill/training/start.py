"""Where a training starts: at step 0, or at the checkpoint of a run directory."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning

from distill.config.schema import FeatureRecipe, MaskRecipe
from distill.data.loading.datamodule import DistillDataModule
from distill.stages.base import TrainingStage
from distill.training.changes import RunRecipe
from distill.training.checkpoint_file import check_fits, read_checkpoint
from distill.training.position import Position

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """The start of a training. `checkpoint`, and what it holds, are None at step 0.

    A sharded checkpoint, which is a directory, is left to Lightning: `content` and `position` are None.
    """

    recipe: RunRecipe
    checkpoint: Path | None = None
    content: Mapping[str, Any] | None = None
    position: Position | None = None

    def check(self, stage: TrainingStage, data: DistillDataModule, *, world_size: int) -> None:
        """Raise DistillError if the checkpoint holds another student, or is in the middle of another epoch."""
        if self.checkpoint is None or self.content is None or self.position is None:
            return
        check_fits(self.content, self.checkpoint, stage, stage.build_optimizer())
        data.check_resumable(self.position.loader, world_size=world_size)
        if self.position.loader["images"] == data.fingerprint:
            self.recipe.forget_moved("data.images")

    def is_finished(self, trainer: lightning.Trainer) -> bool:
        """Return whether the run has all of its steps or epochs already."""
        if self.position is None:
            return False
        max_epochs = -1 if trainer.max_epochs is None else trainer.max_epochs
        limits = ((trainer.max_steps, self.position.step), (max_epochs, self.position.finished_epochs))
        return any(limit != -1 and done >= limit for limit, done in limits)

    @property
    def chooses_student(self) -> bool:
        """Whether the student is to be that of another step than before."""
        return any(change.key == "checkpoint.student" for change in self.recipe.changed)

    def log(self) -> None:
        """Log from where the run goes on, and with what."""
        if self.checkpoint is not None:
            logger.info("going on from %s", self.checkpoint)
        for message in self.recipe.messages():
            logger.warning("%s", message)


def read_start(recipe: FeatureRecipe | MaskRecipe, checkpoint: Path | None) -> Start:
    """Read the checkpoint that a run goes on from, and compare its recipe with the one that is asked for now.

    Raises:
        RunError: the checkpoint is damaged or foreign, or what decided the steps so far was changed.
    """
    if checkpoint is None or checkpoint.is_dir():
        return Start(RunRecipe(recipe), checkpoint)
    content, position = read_checkpoint(checkpoint)
    kept = RunRecipe(recipe, checkpoint=content, step=position.step)
    kept.check()
    return Start(kept, checkpoint, content, position)
