"""The mask stage: encoder and decoder are trained end to end on prompted masks."""

from __future__ import annotations

import torch
from torch import Tensor

from distill.batch import ImageBatch
from distill.config import MaskLossConfig, OptimConfig, PromptConfig
from distill.errors import DistillError
from distill.geometry import valid_masks
from distill.losses.feature import masked_mse
from distill.losses.mask import mask_losses
from distill.prompts import draw_prompts
from distill.sam import PromptableModel
from distill.stages.base import Stage
from distill.stages.validation import Validator

SINGLE, MULTI = slice(0, 1), slice(1, None)  # the decoder's mask tokens


class MaskStage(Stage):
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
        super().__init__(model, optim=optim, validator=validator)
        self.prompt_config = prompts
        self.loss_config = loss
        self.seed = seed

    def compute_terms(self, batch: ImageBatch) -> dict[str, Tensor]:
        """The named loss terms of a batch, each a mean over its prompts; `loss` is their weighted sum."""
        if batch.masks is None or batch.boxes_xyxy is None or batch.mask_image_index is None:
            raise DistillError("the mask stage needs shards with masks; these have photographs alone")
        config, generator = self.loss_config, self._step_generator()
        embeddings = self.model.encode(batch.pixels)  # (B, C, E, E)
        valid = valid_masks(batch.original_hw, self.model.low_res_size)[batch.mask_image_index]  # (N, 4E, 4E)
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
            for tokens in (SINGLE, MULTI) if self.prompt_config.multimask else (SINGLE,):
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
        for name, (weight, term) in self.embedding_terms(embeddings, batch).items():
            sums["loss"] = sums["loss"] + weight * term
            sums[name] = term.detach()
        sums["loss"] = sums["loss"] + self._touch_all_parameters()
        return sums

    def embedding_terms(self, embeddings: Tensor, batch: ImageBatch) -> dict[str, tuple[float, Tensor]]:
        """Name -> weight and value of terms on the embeddings (B, C, E, E) alone; a subclass may add its own."""
        if not self.loss_config.feature_weight or batch.teacher_embeddings is None:
            return {}
        feature = masked_mse(embeddings.float(), batch.teacher_embeddings, batch.valid)
        return {"feature": (self.loss_config.feature_weight, feature)}

    def _touch_all_parameters(self) -> Tensor:
        """Zero, by way of every trainable tensor that some prompts leave out: DDP then never waits for a gradient."""
        parts = (self.model.prompt_encoder, self.model.mask_decoder)
        trainable = [p for part in parts for p in part.parameters() if p.requires_grad]
        return torch.stack([p.sum() for p in trainable]).sum() * 0 if trainable else torch.zeros((), device=self.device)

    def _step_generator(self) -> torch.Generator:
        """Random draws depend on (seed, step, rank) alone, so that a resumed run draws what it would have drawn."""
        return torch.Generator().manual_seed(hash((self.seed, self.global_step, self.global_rank)) % 2**63)
