"""How training draws instances, and prompts from their masks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from distill.config.schema import PromptConfig
from distill.prompts.clicks import first_click
from distill.prompts.seeded_noise import SampleNoise
from distill.prompts.types import NEGATIVE, PAD, POSITIVE, Prompts

# A cell belongs to a mask when it is covered by more than half. Published loaders threshold an antialiased mask at
# zero, which puts 15 to 68 % of the positive clicks outside small objects.
COVERED = 0.5


@dataclass
class Instances:
    """The N instances of a batch that are prompted, in the order of their photos.

    masks: (N, 4E, 4E) share of each low-res cell that the instance covers.
    valid: (N, 4E, 4E) bool, the cells that the photo covers.
    image_index: (N,) the photo of each instance.
    boxes_xyxy: (N, 4), prompt frame.
    """

    masks: Tensor
    valid: Tensor
    image_index: Tensor
    boxes_xyxy: Tensor

    def __len__(self) -> int:
        return len(self.masks)

    def take(self, rows: Tensor) -> Instances:
        """Return the instances of the given rows (n,) long."""
        return Instances(self.masks[rows], self.valid[rows], self.image_index[rows], self.boxes_xyxy[rows])


@dataclass
class PromptGroup:
    """Prompts of one kind for the instances at `rows` (P,)."""

    rows: Tensor
    prompts: Prompts


def draw_instances(
    areas: np.ndarray,
    num: int,
    *,
    odds: Literal["uniform", "area"],
    draw: Literal["distinct", "repeat", "replacement"],
    rng: np.random.Generator,
) -> np.ndarray:
    """Draw which of M instances are prompted.

    Args:
        areas: (M,) above 0, for odds in proportion to them.
        num: how many are wanted. DataConfig.instance_draw says what `draw` does if there are fewer.
    Returns:
        indices in ascending order. There are `num`, or M if M is smaller and `draw` is not `repeat`.
    """
    total = len(areas)
    weights = areas / areas.sum() if odds == "area" and total else None
    if draw == "replacement" and total > num:
        return np.sort(rng.choice(total, num, p=weights))
    copies, rest = divmod(num, total) if draw == "repeat" and total else (0, min(num, total))
    drawn = rng.permutation(total)[:rest] if weights is None else rng.choice(total, rest, replace=False, p=weights)
    return np.sort(np.concatenate([np.tile(np.arange(total), copies), drawn]))


def covered_cells(masks: Tensor) -> Tensor:
    """Return the cells of masks (N, 4E, 4E): those covered by more than half, or else the most covered ones.

    Returns:
        bool (N, 4E, 4E), all False for a mask that covers nothing.
    """
    most = masks.flatten(1).amax(1).clamp(min=torch.finfo(masks.dtype).tiny)
    return (masks > COVERED) | (masks >= most[:, None, None])


def draw_cells(region: Tensor, noise: Tensor) -> Tensor:
    """Draw cells uniformly from regions, with replacement.

    Args:
        region: bool (P, h, w).
        noise: (P, n) uniform in [0, 1).
    Returns:
        flat cell indices (P, n). An empty region gives the first cell.
    """
    counts = region.flatten(1).cumsum(1, dtype=torch.int32)  # (P, h w)
    rank = (noise * counts[:, -1:]).to(torch.int32)  # (P, n), the place of the cell in its region
    return torch.searchsorted(counts, rank.minimum(counts[:, -1:] - 1), right=True)


def cell_points(cells: Tensor, offset: Tensor, *, size: int, prompt_size: int) -> Tensor:
    """Return points (P, n, 2), XY in the prompt frame, in cells (P, n) of maps `size` wide.

    Args:
        offset: (P, n, 2) in [0, 1), the place inside the cell.
    """
    corner = torch.stack([cells % size, cells // size], -1)  # (P, n, 2)
    return (corner + offset) * (prompt_size / size)


def draw_points(masks: Tensor, noise: Tensor, prompt_size: int) -> Tensor:
    """Draw points uniformly over the cells of each mask.

    Args:
        masks: (P, 4E, 4E) coverage in [0, 1].
        noise: (P, n, 3) uniform in [0, 1).
    Returns:
        (P, n, 2) XY in the prompt frame, drawn with replacement, uniform inside each cell.
    """
    cells = draw_cells(covered_cells(masks), noise[..., 0])
    return cell_points(cells, noise[..., 1:], size=masks.shape[-1], prompt_size=prompt_size)


def centre_points(masks: Tensor, prompt_size: int) -> Tensor:
    """Return the first click of evaluation, (P, 1, 2) XY in the prompt frame. It is found on the host, mask by mask."""
    clicks = np.stack([first_click(mask) for mask in covered_cells(masks).cpu().numpy()])  # (P, 2)
    return torch.from_numpy(clicks).to(masks)[:, None] * (prompt_size / masks.shape[-1])


def jitter_boxes(boxes_xyxy: Tensor, normal: Tensor, config: PromptConfig, prompt_size: int) -> Tensor:
    """Add SAM's box noise: each corner coordinate moves by a normal of std `box_jitter` x side, up to a maximum.

    The published maximum is 20 pixels of a 1024-pixel frame (SAM paper, appendix A); it scales with the frame.

    Args:
        boxes_xyxy: (P, 4), prompt frame.
        normal: (P, 4) of mean 0 and deviation 1.
    Returns:
        (P, 4), inside the prompt frame.
    """
    sides = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).repeat(1, 2)  # (P, 4): w, h, w, h
    limit = config.box_jitter_max_pixels * prompt_size / 1024
    return (boxes_xyxy + (normal * sides * config.box_jitter).clamp(-limit, limit)).clamp(0, prompt_size)


def draw_prompts(
    instances: Instances,
    *,
    config: PromptConfig,
    prompt_size: int,
    kinds: Tensor,
    noise: SampleNoise,
    generator: torch.Generator,
) -> list[PromptGroup]:
    """Draw the first prompts: a jittered box for some instances, points for some, both for others.

    Args:
        kinds: (N, 2) uniform in [0, 1), on the host, so that the sizes of the groups are known without waiting.
        generator: the step's, for the number of points.
    Returns:
        One group for each kind that has an instance. Each instance is in one group.
    """
    num_points = int(torch.randint(config.min_points, config.max_points + 1, (), generator=generator))
    num_negative = int(torch.randint(0, config.max_negative_points + 1, (), generator=generator))
    normal, inside, outside = noise.normal(4), noise.uniform(num_points, 3), noise.uniform(num_negative, 3)
    has_box = kinds[:, 0] < config.box_share
    has_both = has_box & (kinds[:, 1] < config.box_points_share)
    groups = []
    for chosen, by_box, by_points in (
        (has_box & ~has_both, True, False),
        (has_both, True, True),
        (~has_box, False, True),
    ):
        rows = chosen.nonzero()[:, 0].to(instances.masks.device)
        if not len(rows):
            continue
        prompts = Prompts(instances.image_index[rows])
        if by_box:
            boxes = jitter_boxes(instances.boxes_xyxy[rows], normal[rows], config, prompt_size)
            prompts = replace(prompts, boxes_xyxy=boxes)
        if by_points:
            points, labels = _points(instances.take(rows), inside[rows], outside[rows], config, prompt_size)
            prompts = replace(prompts, points_xy=points, point_labels=labels)
        groups.append(PromptGroup(rows, prompts))
    return groups


def _points(
    instances: Instances, inside: Tensor, outside: Tensor, config: PromptConfig, prompt_size: int
) -> tuple[Tensor, Tensor]:
    """Draw n points in each mask and m points outside it: points (P, n + m, 2) and labels (P, n + m).

    Args:
        inside: (P, n, 3) uniform in [0, 1), for the points in the mask.
        outside: (P, m, 3) uniform in [0, 1), for the points outside it.
    """
    masks = instances.masks
    points = draw_points(masks, inside, prompt_size)
    if config.points == "centre":
        points = torch.cat([centre_points(masks, prompt_size), points[:, 1:]], 1)
    labels = torch.full(points.shape[:2], POSITIVE, device=masks.device)
    if not outside.shape[1]:
        return points, labels
    free = (masks <= 0) & instances.valid
    cells = draw_cells(free, outside[..., 0])
    away = cell_points(cells, outside[..., 1:], size=masks.shape[-1], prompt_size=prompt_size)
    label = torch.where(free.flatten(1).any(1, keepdim=True), NEGATIVE, PAD)  # (P, 1): PAD if a mask fills its photo
    return torch.cat([points, away], 1), torch.cat([labels, label.expand(-1, away.shape[1])], 1)
