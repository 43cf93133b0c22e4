"""Refinement rounds: the next click in the error of a mask, and the mask fed back (SAM paper, appendix A)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from distill.config.schema import PromptConfig
from distill.prompts.clicks import next_click
from distill.prompts.sampling import cell_points, draw_cells
from distill.prompts.types import NEGATIVE, PAD, POSITIVE, Prompts


def draw_rounds(config: PromptConfig, generator: torch.Generator) -> list[bool]:
    """Draw for each round after the first whether it has a new click.

    Of the rounds without one, the last comes at the end and the others anywhere. SAM has one of each.
    """
    rounds = [True] * config.refine_clicks
    for _ in range(config.mask_only_rounds - 1):
        rounds.insert(int(torch.randint(0, len(rounds) + 1, (), generator=generator)), False)
    return rounds + [False] * min(config.mask_only_rounds, 1)


def draw_clicks(
    predicted: Tensor,
    wanted: Tensor,
    valid: Tensor,
    noise: Tensor,
    *,
    config: PromptConfig,
    prompts: Prompts,
    prompt_size: int,
) -> tuple[Tensor, Tensor]:
    """Draw one click in the error of each mask: positive where the mask is missing, negative where it is too large.

    Args:
        predicted, wanted, valid: bool (P, 4E, 4E).
        noise: (P, 3) uniform in [0, 1).
        prompts: the earlier prompts. The centre policy clicks no cell twice.
    Returns:
        points (P, 1, 2) XY in the prompt frame, and labels (P, 1). A label is PAD if the error is smaller than
        `min_error_cells`.
    """
    error = (predicted ^ wanted) & valid
    size = error.shape[-1]
    if config.click == "centre":
        points, labels = _centre_clicks(predicted & valid, wanted & valid, prompts, prompt_size)
    else:
        cells = draw_cells(error, noise[:, :1])  # (P, 1)
        points = cell_points(cells, noise[:, None, 1:], size=size, prompt_size=prompt_size)
        labels = torch.where(wanted.flatten(1).gather(1, cells), POSITIVE, NEGATIVE)
    enough = error.flatten(1).sum(1, keepdim=True) >= config.min_error_cells  # (P, 1)
    return points, torch.where(enough, labels, PAD)


def refined(prompts: Prompts, clicks: tuple[Tensor, Tensor] | None, mask_logits: Tensor | None) -> Prompts:
    """Return the prompts with one more click, and with the mask (P, 4E, 4E) predicted before as mask prompt."""
    if mask_logits is not None:
        prompts = replace(prompts, mask_logits=mask_logits[:, None])
    if clicks is None:
        return prompts
    points, labels = clicks
    if prompts.points_xy is not None and prompts.point_labels is not None:
        points = torch.cat([prompts.points_xy, points], 1)
        labels = torch.cat([prompts.point_labels, labels], 1)
    return replace(prompts, points_xy=points, point_labels=labels)


def _centre_clicks(predicted: Tensor, wanted: Tensor, prompts: Prompts, prompt_size: int) -> tuple[Tensor, Tensor]:
    """Click as evaluation does (distill.prompts.clicks), on the host and mask by mask."""
    cell = prompt_size / predicted.shape[-1]
    clicked = None if prompts.points_xy is None else (prompts.points_xy / cell).cpu().numpy()  # (P, K, 2)
    points, labels = np.zeros((len(predicted), 1, 2)), np.full((len(predicted), 1), PAD)
    for row, (answered, truth) in enumerate(zip(predicted.cpu().numpy(), wanted.cpu().numpy(), strict=True)):
        click = next_click(answered, truth, clicked_xy=None if clicked is None else clicked[row])
        if click is not None:
            points[row, 0], labels[row, 0] = click
    device = predicted.device
    return torch.from_numpy(points * cell).float().to(device), torch.from_numpy(labels).to(device)
