"""The feature stage: the student's embedding is trained to match the teacher's."""

from __future__ import annotations

from dataclasses import astuple, replace

from torch import Tensor

from distill.batch import ImageBatch
from distill.config.schema import FeatureLossConfig, OptimConfig
from distill.errors import DistillError
from distill.losses.feature import feature_losses
from distill.models.sam import PromptableModel
from distill.models.teacher import Teacher
from distill.stages.base import TrainingStage
from distill.stages.teacher_targets import teacher_embeddings
from distill.stages.validation import Validator


class FeatureStage(TrainingStage):
    """Trains the image encoder alone; prompt encoder and mask decoder are the teacher's and stay as they are.

    Args:
        model: the student.
        teacher: embeds batches that carry `teacher_pixels`. None if every batch has embeddings from a cache.
        optim: the learning-rate multiples of prompt encoder and mask decoder have no effect here.
    Raises:
        DistillError: the embeddings differ in width, all losses have weight 0, or the encoder is frozen.
    """

    def __init__(
        self,
        model: PromptableModel,
        teacher: Teacher | None = None,
        *,
        loss: FeatureLossConfig,
        optim: OptimConfig,
        validator: Validator | None = None,
        seed: int = 0,
    ) -> None:
        _check(model, teacher, loss, optim)
        encoder_only = replace(optim, prompt_encoder_lr_scale=0.0, mask_decoder_lr_scale=0.0)
        super().__init__(model, optim=encoder_only, validator=validator, seed=seed)
        self.teacher = teacher
        self.loss_config = loss

    def compute_terms(self, batch: ImageBatch) -> dict[str, Tensor]:
        """Return the named loss terms of a batch, each a mean over its photos; `loss` is their weighted sum."""
        targets = teacher_embeddings(batch, self.teacher)
        if targets is None:
            raise DistillError(
                "the feature stage got photos without teacher embeddings: build them with `distill cache build RECIPE`"
                " and set cache.dir, or set teacher.source=online"
            )
        return feature_losses(self.model.encode(batch.pixels), targets, batch.valid, self.loss_config)


def _check(model: PromptableModel, teacher: Teacher | None, loss: FeatureLossConfig, optim: OptimConfig) -> None:
    if not any(astuple(loss)):
        raise DistillError("loss: every term has weight 0, nothing would be learned; set loss.mse=1")
    if optim.encoder_lr_scale == 0:
        raise DistillError("optim.encoder_lr_scale: 0 freezes the encoder, the only part that the feature stage trains")
    if teacher is not None and model.embedding_dim != teacher.embedding_dim:
        raise DistillError(
            f"the student's embedding has {model.embedding_dim} channels, that of the teacher {teacher.name} has"
            f" {teacher.embedding_dim}: build the student with the teacher's embedding"
        )
