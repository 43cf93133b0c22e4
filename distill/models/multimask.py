"""The multimask policy: which of a model's masks answers a prompt; and prompts in batches that fit into memory."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from distill.prompts.types import Prompts

# token 0; the best of the three others by predicted IoU; or the best of these by the true IoU, an upper bound
Policy = Literal["single", "best", "oracle"]
OnePolicy = Literal["single", "best"]  # those that need no truth

PROMPT_BATCH_SIZE = 32  # at SAM's size (C = 256, E = 64) the decoder keeps some 20 MB per prompt


class Decoder(Protocol):
    """What answers prompts: a PromptableModel or a Teacher."""

    def decode(self, embeddings: Tensor, prompts: Prompts, *, multimask: bool) -> tuple[Tensor, Tensor]: ...


def answer(
    model: Decoder,
    embeddings: Tensor,
    prompts: Prompts,
    *,
    policy: OnePolicy,
    prompt_batch_size: int = PROMPT_BATCH_SIZE,
) -> tuple[Tensor, Tensor]:
    """The one mask that the policy picks for each of P >= 1 prompts.

    Args:
        embeddings: (B, C, E, E).
    Returns:
        low-res logits (P, 4E, 4E) and the predicted IoU (P,) of the same candidate.
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
    """The masks among which the policy leaves the choice: all three for `oracle`, else the one that it picks.

    Args:
        embeddings: (B, C, E, E). prompts: P >= 1.
    Returns:
        low-res logits (P, K, 4E, 4E) and predicted IoU (P, K); K is 3 or 1.
    """
    logits, iou_predictions = [], []
    for rows in torch.arange(len(prompts), device=prompts.image_index.device).split(prompt_batch_size):
        candidates, scores = model.decode(embeddings, prompts.take(rows), multimask=policy != "single")
        if policy == "best":
            best = scores.argmax(1, keepdim=True)  # (p, 1)
            candidates = candidates.take_along_dim(best[..., None, None], 1)  # (p, 1, 4E, 4E)
            scores = scores.take_along_dim(best, 1)
        logits.append(candidates)
        iou_predictions.append(scores)
    return torch.cat(logits), torch.cat(iou_predictions)
