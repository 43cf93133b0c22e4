"""One mask per prompt: the multimask policy, and prompts in batches that fit into memory."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from distill.prompts import Prompts

Policy = Literal["single", "best"]  # token 0, or the best of the three others by predicted IoU

PROMPT_BATCH_SIZE = 32  # at SAM's size (C = 256, E = 64) the decoder keeps some 20 MB per prompt


class Decoder(Protocol):
    """What answers prompts: a PromptableModel or a Teacher."""

    def decode(self, embeddings: Tensor, prompts: Prompts, *, multimask: bool) -> tuple[Tensor, Tensor]: ...


@torch.no_grad()
def answer(
    model: Decoder,
    embeddings: Tensor,
    prompts: Prompts,
    *,
    policy: Policy,
    prompt_batch_size: int = PROMPT_BATCH_SIZE,
) -> tuple[Tensor, Tensor]:
    """The one mask that the policy picks for each of P >= 1 prompts.

    Args:
        embeddings: (B, C, E, E).
    Returns:
        low-res logits (P, 4E, 4E) and the predicted IoU (P,) of the same candidate.
    """
    logits, iou_predictions = [], []
    for rows in torch.arange(len(prompts), device=prompts.image_index.device).split(prompt_batch_size):
        candidates, scores = model.decode(embeddings, take(prompts, rows), multimask=policy == "best")
        best = scores.argmax(1)  # (p,); 0 for the single mask
        chosen = torch.arange(len(best), device=best.device), best
        logits.append(candidates[chosen])  # (p, 4E, 4E)
        iou_predictions.append(scores[chosen])  # (p,)
    return torch.cat(logits), torch.cat(iou_predictions)


def take(prompts: Prompts, rows: Tensor) -> Prompts:
    """The prompts of the given rows (n,) long."""

    def of_rows(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[rows]

    return Prompts(
        prompts.image_index[rows],
        boxes_xyxy=of_rows(prompts.boxes_xyxy),
        points_xy=of_rows(prompts.points_xy),
        point_labels=of_rows(prompts.point_labels),
        mask_logits=of_rows(prompts.mask_logits),
    )
