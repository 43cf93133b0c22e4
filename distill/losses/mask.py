"""Losses between mask logits and target masks, on the valid region only, in float32."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.config import MaskLossConfig

FOCAL_ALPHA = 0.25  # RetinaNet paper (arXiv:1708.02002), table 1b
FOCAL_GAMMA = 2.0
DICE_SMOOTHING = 1.0  # V-Net's dice as MaskFormer computes it: one added to both sides of the fraction
OVERSAMPLE_RATIO = 3  # PointRend (arXiv:1912.08193), section 4.1: k N candidates, k = 3 ...
UNCERTAIN_SHARE = 0.75  # ... of which the beta N most uncertain are kept, beta = 0.75
TARGET_THRESHOLD = 0.5  # a cell belongs to the mask when it is covered by more than half


@dataclass
class MaskTerms:
    """The terms of one set of prompts, each a mean over the prompts; `best` (P,) is the candidate that counted."""

    mask: Tensor
    dice: Tensor
    iou: Tensor
    best: Tensor

    def total(self, config: MaskLossConfig) -> Tensor:
        """The weighted sum."""
        return config.mask_weight * self.mask + config.dice_weight * self.dice + config.iou_weight * self.iou


def bce_loss(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Binary cross-entropy (..., N) -> (...), mean over the valid positions. `target` in [0, 1]."""
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return _valid_mean(loss, valid)


def focal_loss(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Sigmoid focal loss (..., N) -> (...), mean over the valid positions.

    For targets of 0 and 1 this is RetinaNet's; between them the modulating factor is |p - target| ** gamma.
    """
    probability = logits.sigmoid()
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    loss = loss * (probability - target).abs() ** FOCAL_GAMMA
    loss = loss * (FOCAL_ALPHA * target + (1 - FOCAL_ALPHA) * (1 - target))
    return _valid_mean(loss, valid)


def dice_loss(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """1 - dice (..., N) -> (...) of the probabilities, over the valid positions."""
    probability = logits.sigmoid() * valid
    target = target * valid
    overlap = 2 * (probability * target).sum(-1)
    return 1 - (overlap + DICE_SMOOTHING) / (probability.sum(-1) + target.sum(-1) + DICE_SMOOTHING)


def mask_losses(
    logits: Tensor,
    iou_predictions: Tensor,
    target: Tensor,
    valid: Tensor,
    *,
    config: MaskLossConfig,
    generator: torch.Generator | None = None,
) -> MaskTerms:
    """All terms for P prompts with K candidates each; the candidate of the smallest weighted mask loss counts.

    Args:
        logits: (P, K, h, w). iou_predictions: (P, K).
        target: (P, h, w) coverage in [0, 1]. valid: (P, h, w) bool.
    Returns:
        Terms in float32. The IoU head learns the IoU of every candidate, not of the best alone.
    """
    iou = candidate_iou(logits, target, valid)  # (P, K)
    iou_term = F.mse_loss(iou_predictions.float(), iou)
    if config.num_points:
        logits, target, valid = sample_points(logits, target, valid, num_points=config.num_points, generator=generator)
    else:
        logits, target, valid = logits.flatten(2), target.flatten(1), valid.flatten(1)
    logits = logits.float()  # (P, K, N)
    target, valid = target[:, None].expand_as(logits), valid[:, None]
    mask_term = (focal_loss if config.mask == "focal" else bce_loss)(logits, target, valid)  # (P, K)
    dice_term = dice_loss(logits, target, valid)  # (P, K)
    best = (config.mask_weight * mask_term + config.dice_weight * dice_term).argmin(1)  # (P,)
    rows = torch.arange(len(best), device=best.device)
    return MaskTerms(mask_term[rows, best].mean(), dice_term[rows, best].mean(), iou_term, best)


@torch.no_grad()
def candidate_iou(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """IoU (P, K) of logits (P, K, h, w) above 0 with targets (P, h, w) above one half, in the valid region."""
    predicted = (logits > 0) & valid[:, None]
    truth = ((target > TARGET_THRESHOLD) & valid)[:, None]
    intersection = (predicted & truth).sum((-2, -1))
    union = (predicted | truth).sum((-2, -1))
    return intersection / union.clamp(min=1)


def sample_points(
    logits: Tensor, target: Tensor, valid: Tensor, *, num_points: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Values at points of the valid region where the candidates are least sure; one point set for all candidates.

    Args:
        logits: (P, K, h, w); target, valid: (P, h, w), the valid cells a block at the top left.
    Returns:
        logits (P, K, N), target (P, N), valid (P, N), N = num_points.
    """
    num_prompts = len(logits)
    extent = torch.stack([valid.any(1).sum(1), valid.any(2).sum(1)], 1)  # (P, 2): columns, rows that are valid
    extent = extent / torch.tensor([valid.shape[2], valid.shape[1]], device=valid.device)
    num_uncertain = int(UNCERTAIN_SHARE * num_points)

    def draw(count: int) -> Tensor:
        return torch.rand(num_prompts, count, 2, generator=generator).to(extent) * extent[:, None]  # XY in [0, 1]

    with torch.no_grad():
        candidates = draw(OVERSAMPLE_RATIO * num_points)  # (P, 3 N, 2)
        uncertainty = -_at_points(logits, candidates).abs().amin(1)  # (P, 3 N)
        chosen = uncertainty.topk(num_uncertain, 1).indices[..., None].expand(-1, -1, 2)
        points = torch.cat([candidates.gather(1, chosen), draw(num_points - num_uncertain)], 1)  # (P, N, 2)
    sampled_target = _at_points(target[:, None], points)[:, 0]
    return _at_points(logits, points), sampled_target, torch.ones_like(sampled_target, dtype=torch.bool)


def _at_points(maps: Tensor, points_xy: Tensor) -> Tensor:
    """Bilinear values (P, K, N) of maps (P, K, h, w) at points (P, N, 2), XY in [0, 1]."""
    values = F.grid_sample(maps.float(), 2 * points_xy[:, :, None] - 1, align_corners=False)  # (P, K, N, 1)
    return values[..., 0]


def _valid_mean(loss: Tensor, valid: Tensor) -> Tensor:
    return (loss * valid).sum(-1) / valid.sum(-1).clamp(min=1)
