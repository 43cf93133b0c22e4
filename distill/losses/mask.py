"""Losses between mask logits and target masks, on the valid region only, in float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.config.schema import MaskLossConfig
from distill.prompts.sampling import covered_cells

FOCAL_ALPHA = 0.25  # RetinaNet paper (arXiv:1708.02002), table 1b
FOCAL_GAMMA = 2.0
DICE_SMOOTHING = 1.0  # V-Net's dice as MaskFormer computes it: one added to both sides of the fraction
OVERSAMPLE_RATIO = 3  # PointRend (arXiv:1912.08193), section 4.1: k N candidates, k = 3 ...
UNCERTAIN_SHARE = 0.75  # ... of which the beta N most uncertain are kept, beta = 0.75


@dataclass
class MaskTerms:
    """The terms of one set of prompts, each a weighted sum over them; `best` (P,) is the candidate that counted."""

    mask: Tensor
    dice: Tensor
    iou: Tensor
    best: Tensor

    def total(self, config: MaskLossConfig) -> Tensor:
        """Return the weighted sum of the terms."""
        return config.mask_weight * self.mask + config.dice_weight * self.dice + config.iou_weight * self.iou


@dataclass
class ImitationTerms:
    """The terms of one set of prompts against a teacher's masks, each a weighted sum over the prompts."""

    mask: Tensor
    dice: Tensor
    logit: Tensor
    iou: Tensor

    def total(self, config: MaskLossConfig, target_weight: float) -> Tensor:
        """Return the weighted sum. `target_weight` multiplies mask and dice (TargetConfig.teacher_weight)."""
        masks = config.mask_weight * self.mask + config.dice_weight * self.dice
        return target_weight * masks + config.logit_weight * self.logit + config.teacher_iou_weight * self.iou


def bce_loss(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return the binary cross-entropy (..., N) -> (...), a mean over the valid positions. `target` is in [0, 1]."""
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return _valid_mean(loss, valid)


def focal_loss(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return the sigmoid focal loss (..., N) -> (...), a mean over the valid positions.

    For targets of 0 and 1 this is RetinaNet's loss. Between them the modulating factor is |p - target| ** gamma.
    """
    probability = logits.sigmoid()
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    loss = loss * (probability - target).abs() ** FOCAL_GAMMA
    loss = loss * (FOCAL_ALPHA * target + (1 - FOCAL_ALPHA) * (1 - target))
    return _valid_mean(loss, valid)


def dice_loss(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return 1 - dice (..., N) -> (...) of the probabilities, over the valid positions."""
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
    weight: Tensor | None = None,
    noise: Tensor | None = None,
) -> MaskTerms:
    """Return all terms for P prompts with K candidates each. The candidate with the smallest mask loss counts.

    Args:
        logits: (P, K, h, w).
        iou_predictions: (P, K).
        target: (P, h, w) coverage in [0, 1].
        valid: (P, h, w) bool.
        weight: (P,) of each prompt in the terms. None is 1 / P, which makes the terms means.
        noise: of `sample_points`.
    Returns:
        Terms in float32. The mask loss that chooses the candidate is the weighted sum of mask and dice. The IoU head
        learns the IoU of every candidate, not of the best alone.
    """
    weight = _weights(weight, logits)
    iou = candidate_iou(logits, target, valid)  # (P, K)
    iou_term = (weight[:, None] * (iou_predictions.float() - iou) ** 2).mean(1).sum()
    logits, targets, valid = _positions(logits, target[:, None], valid, config, noise)  # (P, K, N), (P, 1, N), (P, N)
    mask_term, dice_term = _candidate_losses(logits, targets.expand_as(logits), valid, config)  # (P, K) each
    best = (config.mask_weight * mask_term + config.dice_weight * dice_term).argmin(1)  # (P,)
    rows = torch.arange(len(best), device=best.device)
    return MaskTerms((weight * mask_term[rows, best]).sum(), (weight * dice_term[rows, best]).sum(), iou_term, best)


def imitation_losses(
    logits: Tensor,
    iou_predictions: Tensor,
    teacher_logits: Tensor,
    teacher_iou: Tensor,
    valid: Tensor,
    *,
    config: MaskLossConfig,
    labels: Literal["hard", "soft"],
    weight: Tensor | None = None,
    noise: Tensor | None = None,
) -> ImitationTerms:
    """Return the terms of P prompts: K candidates against the teacher's candidates of the same mask tokens.

    Args:
        logits, teacher_logits: (P, K, h, w).
        iou_predictions, teacher_iou: (P, K), what the IoU head of each model predicts.
        valid: (P, h, w) bool.
        labels: "hard" makes the target whether the teacher's logit is above 0, "soft" its probability.
        weight, noise: as in `mask_losses`.
    Returns:
        Terms in float32, means over the K candidates, as in EdgeSAM. `logit` is the mean squared difference of the
        logits, `iou` that of the predicted IoU.
    """
    weight = _weights(weight, logits)
    iou_term = (weight[:, None] * (iou_predictions.float() - teacher_iou.float()) ** 2).mean(1).sum()
    logits, answers, valid = _positions(logits, teacher_logits, valid, config, noise)  # (P, K, N) twice, (P, N)
    targets = (answers > 0).float() if labels == "hard" else answers.sigmoid()
    mask_term, dice_term = _candidate_losses(logits, targets, valid, config)
    logit_term = _valid_mean((logits - answers) ** 2, valid[:, None])  # (P, K)
    mask, dice, logit = ((weight * term.mean(1)).sum() for term in (mask_term, dice_term, logit_term))
    return ImitationTerms(mask, dice, logit, iou_term)


def _weights(weight: Tensor | None, logits: Tensor) -> Tensor:
    if weight is not None:
        return weight
    return torch.full((len(logits),), 1 / max(1, len(logits)), device=logits.device)


def _positions(
    logits: Tensor, targets: Tensor, valid: Tensor, config: MaskLossConfig, noise: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what is compared, sampled points or every cell: logits (P, K, N), targets (P, T, N), valid (P, N)."""
    if config.num_points:
        return sample_points(logits, targets, valid, num_points=config.num_points, noise=noise)
    return logits.flatten(2).float(), targets.flatten(2).float(), valid.flatten(1)


def _candidate_losses(logits: Tensor, targets: Tensor, valid: Tensor, config: MaskLossConfig) -> tuple[Tensor, Tensor]:
    """Compute the mask and the dice term (P, K) of logits and targets (P, K, N) at valid (P, N)."""
    mask_loss = focal_loss if config.mask == "focal" else bce_loss
    return mask_loss(logits, targets, valid[:, None]), dice_loss(logits, targets, valid[:, None])


@torch.no_grad()
def candidate_iou(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return the IoU (P, K) of logits (P, K, h, w) above 0 with the cells of targets (P, h, w), in the valid region."""
    predicted = (logits > 0) & valid[:, None]
    truth = (covered_cells(target) & valid)[:, None]
    intersection = (predicted & truth).sum((-2, -1))
    union = (predicted | truth).sum((-2, -1))
    return intersection / union.clamp(min=1)


def noise_points(num_points: int) -> int:
    """Return how many random points `sample_points` uses: the candidates, and the points that are always kept."""
    return OVERSAMPLE_RATIO * num_points + num_points - int(UNCERTAIN_SHARE * num_points)


def sample_points(
    logits: Tensor, targets: Tensor, valid: Tensor, *, num_points: int, noise: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample logits and targets at points of the valid region, mostly where the candidates are least sure.

    All candidates of a prompt share one set of points.

    Args:
        logits: (P, K, h, w).
        targets: (P, T, h, w).
        valid: (P, h, w) bool; the valid cells are a block at the top left.
        noise: (P, noise_points(N), 2) uniform in [0, 1). None draws it from torch's global generator.
    Returns:
        logits (P, K, N), targets (P, T, N), valid (P, N), N = num_points.
    """
    if noise is None:
        noise = torch.rand(len(logits), noise_points(num_points), 2, device=logits.device)
    extent = torch.stack([valid.any(1).sum(1), valid.any(2).sum(1)], 1)  # (P, 2): columns, rows that are valid
    extent = extent / torch.tensor([valid.shape[2], valid.shape[1]], device=valid.device)
    with torch.no_grad():
        points = noise * extent[:, None]  # (P, 3 N and some, 2), XY in [0, 1]
        candidates, others = points.tensor_split([OVERSAMPLE_RATIO * num_points], 1)
        uncertainty = -_at_points(logits, candidates).abs().amin(1)  # (P, 3 N)
        chosen = uncertainty.topk(num_points - others.shape[1], 1).indices[..., None].expand(-1, -1, 2)
        points = torch.cat([candidates.gather(1, chosen), others], 1)  # (P, N, 2)
    sampled = _at_points(targets, points)
    return _at_points(logits, points), sampled, torch.ones_like(sampled[:, 0], dtype=torch.bool)


def _at_points(maps: Tensor, points_xy: Tensor) -> Tensor:
    """Return the bilinear values (P, K, N) of maps (P, K, h, w) at points (P, N, 2), XY in [0, 1]."""
    values = F.grid_sample(maps.float(), 2 * points_xy[:, :, None] - 1, align_corners=False)  # (P, K, N, 1)
    return values[..., 0]


def _valid_mean(loss: Tensor, valid: Tensor) -> Tensor:
    return (loss * valid).sum(-1) / valid.sum(-1).clamp(min=1)
