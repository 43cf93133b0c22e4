"""Prompts in rounds: the masks that a student and its teacher predict for the same prompts, and the next prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.config.schema import PromptConfig
from distill.prompts.refinement import draw_clicks, refined
from distill.prompts.sampling import Instances, PromptGroup, covered_cells
from distill.prompts.types import Prompts

SINGLE, MULTI, ALL = slice(0, 1), slice(1, None), slice(None)  # the decoder's mask tokens

# Decodes P prompts: mask logits (P, 4, 4E, 4E) and predicted IoU (P, 4), as PromptableModel.decode_all gives them.
Decode = Callable[[Prompts], tuple[Tensor, Tensor]]


@dataclass
class TokenMasks:
    """The masks that a model predicts for P prompts, one for each of its four mask tokens.

    logits: (P, 4, 4E, 4E). iou_predictions: (P, 4).
    """

    logits: Tensor
    iou_predictions: Tensor

    def select(self, tokens: slice) -> tuple[Tensor, Tensor]:
        """Return the logits (P, K, 4E, 4E) and the predicted IoU (P, K) of K tokens."""
        return self.logits[:, tokens], self.iou_predictions[:, tokens]

    def best(self, tokens: slice) -> Tensor:
        """Return the token (P,) with the highest predicted IoU among `tokens`."""
        return self.iou_predictions[:, tokens].argmax(1) + (tokens.start or 0)

    def mask(self, token: Tensor) -> Tensor:
        """Return the logits (P, 4E, 4E) of one token (P,) for each prompt, in float32 and without a gradient."""
        return self.logits.detach()[torch.arange(len(token), device=token.device), token].float()


class PromptRounds:
    """The rounds of one group of prompts: `decode` predicts the masks of a round, `refine` makes the next prompts.

    Args:
        group: the prompts of the first round.
        instances: all instances of the batch.
        by_truth: measure errors against the instances' masks; if False, against the teacher's masks.
    """

    def __init__(self, group: PromptGroup, instances: Instances, *, config: PromptConfig, by_truth: bool) -> None:
        self.rows = group.rows
        self.instances = instances.take(group.rows)
        self.config = config
        self.by_truth = by_truth
        self.is_multimask = config.multimask and (config.multimask_on_box or group.prompts.boxes_xyxy is None)
        self.prompts = group.prompts  # the student's
        self.teacher_prompts = group.prompts  # the same boxes and clicks, but its own masks are fed back
        self._masks: TokenMasks | None = None
        self.teacher_masks: TokenMasks | None = None  # of the current round; None if no teacher decodes

    @property
    def masks(self) -> TokenMasks:
        """The student's masks of the current round."""
        assert self._masks is not None, "a round is decoded first"
        return self._masks

    def decode(self, student: Decode, teacher: Decode | None = None) -> None:
        """Predict the masks of this round; the teacher's without a gradient."""
        self._masks = TokenMasks(*student(self.prompts))
        if teacher is not None:
            with torch.no_grad():
                self.teacher_masks = TokenMasks(*teacher(self.teacher_prompts))

    def refine(self, noise: Tensor | None, *, prompt_size: int) -> None:
        """Make the prompts of the next round.

        Of the student's masks, the one with the highest IoU by its own prediction is refined (SAM). If errors are
        measured against the teacher's masks, the teacher's predictions choose the token for both (EdgeSAM).

        Args:
            noise: (P, 3) uniform in [0, 1), for a click. None adds no click.
        """
        if self.by_truth or self.teacher_masks is None:
            token = self.masks.best(MULTI if self.is_multimask else SINGLE)
            wanted = covered_cells(self.instances.masks)
        else:
            token = self.teacher_masks.best(ALL if self.is_multimask else SINGLE)
            wanted = self.teacher_masks.mask(token) > 0
        logits = self.masks.mask(token)
        clicks = None
        if noise is not None:
            clicks = draw_clicks(
                logits > 0,
                wanted,
                self.instances.valid,
                noise,
                config=self.config,
                prompts=self.prompts,
                prompt_size=prompt_size,
            )
        fed = self.config.feed_logits
        self.prompts = refined(self.prompts, clicks, logits if fed else None)
        if self.teacher_masks is not None:
            own = self.teacher_masks.mask(token)
            self.teacher_prompts = refined(self.teacher_prompts, clicks, own if fed else None)
        self.is_multimask &= self.config.multimask_refined
