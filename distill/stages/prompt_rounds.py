"""Prompts and answers in rounds: what a student and its teacher say to the same prompts, and what is asked next."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distill.config.schema import PromptConfig
from distill.prompts.refinement import draw_clicks, refined
from distill.prompts.sampling import Instances, PromptGroup, covered_cells

SINGLE, MULTI, ALL = slice(0, 1), slice(1, None), slice(None)  # the decoder's mask tokens


@dataclass
class Answer:
    """What a model says to P prompts: mask logits (P, 4, 4E, 4E) and predicted IoU (P, 4), by mask token."""

    logits: Tensor
    iou_predictions: Tensor

    def of(self, tokens: slice) -> tuple[Tensor, Tensor]:
        return self.logits[:, tokens], self.iou_predictions[:, tokens]

    def best(self, tokens: slice) -> Tensor:
        """Of these tokens the one (P,) that the model thinks best."""
        return self.iou_predictions[:, tokens].argmax(1) + (tokens.start or 0)

    def mask(self, token: Tensor) -> Tensor:
        """The logits (P, 4E, 4E) of one token (P,) each, without a gradient and in float32."""
        return self.logits.detach()[torch.arange(len(token), device=token.device), token].float()


class Dialogue:
    """The prompts of one kind, with what was answered to them so far.

    Args:
        group: the first prompts. instances: all of the batch.
        by_truth: whether errors are those against the instances' masks, or against the teacher's answers.
    """

    def __init__(self, group: PromptGroup, instances: Instances, *, config: PromptConfig, by_truth: bool) -> None:
        self.rows = group.rows
        self.instances = instances.take(group.rows)
        self.config = config
        self.by_truth = by_truth
        self.is_multimask = config.multimask and (config.multimask_on_box or group.prompts.boxes_xyxy is None)
        self.prompts = group.prompts  # the student's
        self.teacher_prompts = group.prompts  # the same boxes and clicks; its own masks are fed back
        self.answer: Answer | None = None
        self.teacher_answer: Answer | None = None

    def refine(self, noise: Tensor | None, *, prompt_size: int) -> None:
        """Make the prompts of the next round.

        Args:
            noise: (P, 3) uniform in [0, 1), for a click; None: the round has none.

        The mask that goes on is the one the student thinks best (SAM) or, where errors are those against the teacher's
        answer, the token that the teacher thinks best (EdgeSAM).
        """
        assert self.answer is not None
        if self.by_truth or self.teacher_answer is None:
            token = self.answer.best(MULTI if self.is_multimask else SINGLE)
            wanted = covered_cells(self.instances.masks)
        else:
            token = self.teacher_answer.best(ALL if self.is_multimask else SINGLE)
            wanted = self.teacher_answer.mask(token) > 0
        logits = self.answer.mask(token)
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
        if self.teacher_answer is not None:
            own = self.teacher_answer.mask(token)
            self.teacher_prompts = refined(self.teacher_prompts, clicks, own if fed else None)
        self.is_multimask &= self.config.multimask_refined
