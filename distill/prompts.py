"""Prompts: what points at the object, as tensors; and how training draws them from masks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distill.config import PromptConfig

POSITIVE, NEGATIVE, PAD = 1, 0, -1  # point labels of segment_anything's PromptEncoder

# A point drawn in a mask lies in a cell that the mask covers by more than half. Published loaders threshold an
# antialiased mask at zero, which puts 15 to 68 % of the positive clicks outside small objects.
POSITIVE_COVERAGE = 0.5

PAINT_LOGIT = 4.0  # painted prompts: the logit inside a box and at a positive click
PAINT_CLICK_SIGMA = 2.0  # cells of the low-res mask


@dataclass
class Prompts:
    """P prompts of one kind over a batch of B images. All coordinates are in the prompt frame.

    image_index: (P,) long, the image that each prompt asks about.
    boxes_xyxy: (P, 4) or None.
    points_xy, point_labels: (P, K, 2) and (P, K) or None; labels POSITIVE, NEGATIVE or PAD.
    mask_logits: (P, 1, 4E, 4E) logits of an earlier answer, or None.
    """

    image_index: Tensor
    boxes_xyxy: Tensor | None = None
    points_xy: Tensor | None = None
    point_labels: Tensor | None = None
    mask_logits: Tensor | None = None

    def __len__(self) -> int:
        return len(self.image_index)


def paint_prompts(prompts: Prompts, *, prompt_size: int, low_res_size: int) -> Tensor:
    """Boxes and clicks drawn as mask logits (P, 1, 4E, 4E), in SAM's format of an earlier answer.

    A box is PAINT_LOGIT inside and -PAINT_LOGIT outside, in proportion to how much of a cell it covers. A click adds
    a Gaussian blob of its sign. Painted clicks are how interactive segmentation without a prompt encoder takes its
    input (RITM, arXiv:2102.06583).
    """
    device = prompts.image_index.device
    scale = low_res_size / prompt_size
    cells = torch.arange(low_res_size, device=device)
    painted = torch.zeros(len(prompts), low_res_size, low_res_size, device=device)
    if prompts.boxes_xyxy is not None:
        low, high = (prompts.boxes_xyxy.float() * scale).view(-1, 2, 2, 1).unbind(1)  # (P, 2, 1): X, Y
        covered = (torch.minimum(high, cells + 1.0) - torch.maximum(low, cells.float())).clamp(0, 1)  # (P, 2, 4E)
        painted += PAINT_LOGIT * (2 * covered[:, 1, :, None] * covered[:, 0, None, :] - 1)
    if prompts.points_xy is not None and prompts.point_labels is not None:
        offset = cells + 0.5 - prompts.points_xy.float()[..., None] * scale  # (P, K, 2, 4E)
        x, y = torch.exp(-0.5 * (offset / PAINT_CLICK_SIGMA) ** 2).unbind(2)  # (P, K, 4E)
        sign = (prompts.point_labels == POSITIVE).float() - (prompts.point_labels == NEGATIVE).float()  # (P, K)
        painted += PAINT_LOGIT * torch.einsum("pk,pky,pkx->pyx", sign, y, x)
    return painted[:, None]


def jitter_boxes(
    boxes_xyxy: Tensor, config: PromptConfig, prompt_size: int, generator: torch.Generator | None = None
) -> Tensor:
    """SAM's box noise: each corner coordinate moves by a normal of std `box_jitter` x side, cut at a maximum.

    Args:
        boxes_xyxy: (P, 4), prompt frame.
    Returns:
        (P, 4), inside the prompt frame.

    The published maximum is 20 pixels of a 1024-pixel frame (SAM paper, appendix A); it scales with the frame.
    """
    sides = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).repeat(1, 2)  # (P, 4): w, h, w, h
    noise = torch.randn(boxes_xyxy.shape, generator=generator).to(boxes_xyxy) * sides * config.box_jitter
    limit = config.box_jitter_max_pixels * prompt_size / 1024
    return (boxes_xyxy + noise.clamp(-limit, limit)).clamp(0, prompt_size)


def draw_points(masks: Tensor, num_points: int, prompt_size: int, generator: torch.Generator | None = None) -> Tensor:
    """Points uniform over the cells that each mask covers by more than half (else its most covered cells).

    Args:
        masks: (P, 4E, 4E) coverage in [0, 1].
    Returns:
        (P, num_points, 2) XY in the prompt frame, drawn with replacement, uniform inside each cell.
    """
    num_masks, size = masks.shape[0], masks.shape[-1]
    coverage = masks.flatten(1)  # (P, 16 E^2)
    inside = coverage > POSITIVE_COVERAGE
    thin = ~inside.any(1)
    inside[thin] = coverage[thin] >= coverage[thin].amax(1, keepdim=True)
    cells = torch.multinomial(inside.float().cpu(), num_points, replacement=True, generator=generator)  # (P, n)
    corner = torch.stack([cells % size, cells // size], -1)  # (P, n, 2)
    offset = torch.rand(num_masks, num_points, 2, generator=generator)
    return ((corner + offset) * (prompt_size / size)).to(masks)  # (P, n, 2)


def draw_prompts(
    masks: Tensor,
    boxes_xyxy: Tensor,
    image_index: Tensor,
    *,
    config: PromptConfig,
    prompt_size: int,
    generator: torch.Generator | None = None,
) -> list[tuple[Tensor, Prompts]]:
    """Training prompts: a share of the instances is asked about by a jittered box, the others by points.

    Args:
        masks: (N, 4E, 4E) coverage; boxes_xyxy: (N, 4), prompt frame; image_index: (N,).
    Returns:
        (indices into the N instances, prompts) per kind; kinds without an instance are left out.
    """
    num_masks = len(masks)
    by_box = torch.rand(num_masks, generator=generator) < config.box_share
    drawn: list[tuple[Tensor, Prompts]] = []
    rows = by_box.nonzero().squeeze(1).to(masks.device)
    if len(rows):
        boxes = jitter_boxes(boxes_xyxy[rows], config, prompt_size, generator)
        drawn.append((rows, Prompts(image_index[rows], boxes_xyxy=boxes)))
    rows = (~by_box).nonzero().squeeze(1).to(masks.device)
    if len(rows):
        num_points = int(torch.randint(1, config.max_points + 1, (), generator=generator))
        points = draw_points(masks[rows], num_points, prompt_size, generator)
        labels = torch.full(points.shape[:2], POSITIVE, device=masks.device)
        drawn.append((rows, Prompts(image_index[rows], points_xy=points, point_labels=labels)))
    return drawn
