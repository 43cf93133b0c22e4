"""The mask stage: encoder and decoder are trained end to end on prompted masks."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import Tensor

from distill.batch import ImageBatch
from distill.config import MaskLossConfig, OptimConfig, PromptConfig
from distill.errors import DistillError
from distill.geometry import valid_masks
from distill.losses.feature import masked_mse
from distill.losses.mask import mask_losses
from distill.optim import build_optimizer, build_schedule, freeze_parts, frozen_parts_to_eval
from distill.prompts import draw_prompts
from distill.sam import PromptableModel
from distill.stages.validation import Validator


class MaskStage(lightning.LightningModule):
    """Draws prompts from ground-truth masks, decodes them, and compares the answers at low resolution.

    Every prompt trains the single mask (token 0); with `prompts.multimask` also the best of the three others.
    """

    def __init__(
        self,
        model: PromptableModel,
        *,
        prompts: PromptConfig,
        loss: MaskLossConfig,
        optim: OptimConfig,
        validator: Validator | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.prompt_config = prompts
        self.loss_config = loss
        self.optim_config = optim
        self.validator = validator
        self.seed = seed
        freeze_parts(model, optim)
        self.train()  # builders return models in eval mode, and Lightning leaves modes as they are

    def train(self, mode: bool = True) -> MaskStage:
        super().train(mode)
        frozen_parts_to_eval(self.model, self.optim_config)
        return self

    def training_step(self, batch: ImageBatch, batch_index: int) -> Tensor:
        terms = self.compute_terms(batch, self._step_generator())
        for name, value in terms.items():
            self.log(f"train/{name}", value, prog_bar=name == "loss", batch_size=len(batch.keys))
        return terms["loss"]

    def compute_terms(self, batch: ImageBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """The named loss terms of a batch, each a mean over its prompts; `loss` is their weighted sum."""
        if batch.masks is None or batch.boxes_xyxy is None or batch.mask_image_index is None:
            raise DistillError("the mask stage needs shards with masks; these have photographs alone")
        embeddings = self.model.encode(batch.pixels)  # (B, C, E, E)
        valid = valid_masks(batch.original_hw, self.model.low_res_size)[batch.mask_image_index]  # (N, 4E, 4E)
        config = self.loss_config
        sums = {name: embeddings.new_zeros((), dtype=torch.float32) for name in ("loss", "mask", "dice", "iou")}
        for rows, prompts in draw_prompts(
            batch.masks,
            batch.boxes_xyxy,
            batch.mask_image_index,
            config=self.prompt_config,
            prompt_size=self.model.prompt_size,
            generator=generator,
        ):
            logits, iou_predictions = self.model.decode_all(embeddings, prompts)  # (P, 4, 4E, 4E), (P, 4)
            share = len(rows) / len(batch.masks)
            for tokens in [slice(0, 1), slice(1, None)] if self.prompt_config.multimask else [slice(0, 1)]:
                terms = mask_losses(
                    logits[:, tokens],
                    iou_predictions[:, tokens],
                    batch.masks[rows],
                    valid[rows],
                    config=config,
                    generator=generator,
                )
                sums["loss"] = sums["loss"] + share * terms.total(config)
                for name in ("mask", "dice", "iou"):
                    sums[name] = sums[name] + share * getattr(terms, name).detach()
        if config.feature_weight and batch.teacher_embeddings is not None:
            feature = masked_mse(embeddings.float(), batch.teacher_embeddings, batch.valid)
            sums["loss"] = sums["loss"] + config.feature_weight * feature
            sums["feature"] = feature.detach()
        sums["loss"] = sums["loss"] + self._touch_all_parameters()
        return sums

    def _touch_all_parameters(self) -> Tensor:
        """Zero, by way of every trainable tensor that some prompts leave out: DDP then never waits for a gradient."""
        parts = (self.model.prompt_encoder, self.model.mask_decoder)
        trainable = [p for part in parts for p in part.parameters() if p.requires_grad]
        return torch.stack([p.sum() for p in trainable]).sum() * 0 if trainable else torch.zeros((), device=self.device)

    def _step_generator(self) -> torch.Generator:
        """Random draws depend on (seed, step, rank) alone, so that a resumed run draws what it would have drawn."""
        return torch.Generator().manual_seed(hash((self.seed, self.global_step, self.global_rank)) % 2**63)

    def validation_step(self, batch: ImageBatch, batch_index: int) -> None:
        if self.validator is not None:
            self.validator.update(self.model, batch)

    def on_validation_epoch_end(self) -> None:
        if self.validator is not None:
            self.log_dict(self.validator.compute(), sync_dist=False)

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.model, self.optim_config)
        schedule = build_schedule(optimizer, self.optim_config, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
