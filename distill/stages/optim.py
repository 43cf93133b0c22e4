"""Optimizer and schedule: AdamW by part, warm-up and cosine per step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from distill.config.schema import OptimConfig
from distill.models.sam import PromptableModel


def part_lr_scales(config: OptimConfig) -> dict[str, float]:
    """Return the learning-rate multiple of each part of a promptable model; 0 means frozen."""
    return {
        "image_encoder": config.encoder_lr_scale,
        "prompt_encoder": config.prompt_encoder_lr_scale,
        "mask_decoder": config.mask_decoder_lr_scale,
    }


def freeze_parts(model: PromptableModel, config: OptimConfig) -> None:
    """Switch off the gradients of parts with a multiple of 0. Call before DDP and the optimizer see the model."""
    for part, scale in part_lr_scales(config).items():
        if scale == 0:  # never switched on: an encoder may hold tensors that do not train, such as TinyViT's classifier
            getattr(model, part).requires_grad_(False)


def frozen_parts_to_eval(model: PromptableModel, config: OptimConfig) -> None:
    """Put frozen parts in eval mode, so that they keep their batch statistics. Call it after every `train()`."""
    for part, scale in part_lr_scales(config).items():
        if scale == 0:
            getattr(model, part).eval()


def batch_norms_to_eval(model: nn.Module, config: OptimConfig) -> None:
    """Put frozen batch norms in eval mode, so that they use and keep their running statistics.

    Their weights and biases still train. Call it after every `train()`.
    """
    if config.batch_norm == "frozen":
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


def build_adamw(model: PromptableModel, config: OptimConfig) -> torch.optim.AdamW:
    """Build AdamW over the trainable parts, without weight decay on norms, biases and other one-dimensional tensors."""
    groups = []
    for part, scale in part_lr_scales(config).items():
        module: nn.Module = getattr(model, part)
        trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
        for decayed in (True, False):
            parameters = [parameter for parameter in trainable if (parameter.ndim > 1) == decayed]
            if scale and parameters:
                weight_decay = config.weight_decay if decayed else 0.0
                groups.append({"params": parameters, "lr": config.lr * scale, "weight_decay": weight_decay})
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)


def lr_share(step: int, *, num_steps: int, warmup_steps: int, final_share: float) -> float:
    """Return the share of the base learning rate at a step: linear warm-up, then cosine to `final_share`."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, num_steps - warmup_steps))
    return final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * progress))


def build_schedule(
    optimizer: torch.optim.Optimizer, config: OptimConfig, num_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Build the per-step schedule over a run of `num_steps` optimizer steps."""
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: lr_share(
            step, num_steps=num_steps, warmup_steps=config.warmup_steps, final_share=config.final_lr_share
        ),
    )


def group_options(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Return the options of each group of an optimizer: learning rate, weight decay, betas, and all others."""
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def restore_group_options(schedule: torch.optim.lr_scheduler.LambdaLR, options: list[dict[str, Any]]) -> None:
    """Give the groups of a schedule's optimizer their options again, with the learning rates of the schedule's step.

    Args:
        options: of each group, from `group_options` after the schedule was built.
    """
    base_rates = [asked["initial_lr"] for asked in options]
    shares = [share(schedule.last_epoch) for share in schedule.lr_lambdas]
    rates = [rate * share for rate, share in zip(base_rates, shares, strict=True)]
    for group, asked, rate in zip(schedule.optimizer.param_groups, options, rates, strict=True):
        group.update({**asked, "lr": rate})
    schedule.load_state_dict({**schedule.state_dict(), "base_lrs": base_rates, "_last_lr": rates})
