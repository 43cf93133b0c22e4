"""The multimask policy, which selects one of a model's masks for a prompt, and batches of prompts that fit memory."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from distill.prompts.types import Prompts

# single: token 0. best: the best of the three others by predicted IoU. oracle: the best by true IoU, an upper bound.
Policy = Literal["single", "best", "oracle"]
OnePolicy = Literal["single", "best"]  # the policies that need no truth

PROMPT_BATCH_SIZE = 32  # at SAM's size (C = 256, E = 64) the decoder keeps about 20 MB per prompt


class Decoder(Protocol):
    """A model that answers prompts: a PromptableModel or a Teacher."""

    def decode(self, embeddings: Tensor, prompts: Prompts, *, multimask: bool) -> tuple[Tensor, Tensor]:
        """Return low-res mask logits (P, K, 4E, 4E) and predicted IoU (P, K); see PromptableModel.decode."""
        ...


def answer(
    model: Decoder,
    embeddings: Tensor,
    prompts: Prompts,
    *,
    policy: OnePolicy,
    prompt_batch_size: int = PROMPT_BATCH_SIZE,
) -> tuple[Tensor, Tensor]:
    """Select one mask for each prompt by a policy.

    Args:
        embeddings: (B, C, E, E).
        prompts: P >= 1 prompts that name their image.
    Returns:
        low-res logits (P, 4E, 4E) and predicted IoU (P,) of the selected masks.
    """
    logits, iou_predictions = answer_candidates(
        model, embeddings, prompts, policy=policy, prompt_batch_size=prompt_batch_size
    )
    return logits[:, 0], iou_predictions[:, 0]


@torch.no_grad()
def answer_candidates(
    model: Decoder,
    embeddings: Tensor,
    prompts: Prompts,
    *,
    policy: Policy,
    prompt_batch_size: int = PROMPT_BATCH_SIZE,
) -> tuple[Tensor, Tensor]:
    """Return the masks that a policy allows: all three for `oracle`, otherwise the one that it selects.

    Args:
        embeddings: (B, C, E, E).
        prompts: P >= 1 prompts that name their image.
    Returns:
        low-res logits (P, K, 4E, 4E) and predicted IoU (P, K); K is 3 for `oracle`, otherwise 1.
    """
    logits, iou_predictions = [], []
    for rows in torch.split(torch.arange(len(prompts), device=prompts.image_index.device), prompt_batch_size):
        candidates, scores = model.decode(embeddings, prompts.take(rows), multimask=policy != "single")
        if policy == "best":
            best = scores.argmax(1, keepdim=True)  # (p, 1)
            candidates = candidates.take_along_dim(best[..., None, None], 1)  # (p, 1, 4E, 4E)
            scores = scores.take_along_dim(best, 1)
        logits.append(candidates)
        iou_predictions.append(scores)
    return torch.cat(logits), torch.cat(iou_predictions)
