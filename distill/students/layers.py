"""What several published encoders share: a convolution with its norm, SAM's neck, and the way to the grid."""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn

NECK_NORM_EPS = 1e-6  # segment_anything/modeling/common.py


class ConvNorm(nn.Module):
    """Convolution without a bias, then batch norm, under the published names `c` and `bn` (TinyViT, RepViT)."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 1, *, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.c = nn.Conv2d(
            in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn(self.c(x))
        return out


class SamNeck(nn.Sequential):
    """SAM's neck under its published names, 0 to 3: 1x1, norm, 3x3, norm. The output is float32, under autocast too."""

    def __init__(self, in_channels: int, embedding_dim: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, embedding_dim, 1, bias=False),
            LayerNorm2d(embedding_dim, NECK_NORM_EPS),
            nn.Conv2d(embedding_dim, embedding_dim, 3, padding=1, bias=False),
            LayerNorm2d(embedding_dim, NECK_NORM_EPS),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, c, E, E) -> (B, C, E, E)."""
        project, project_norm, mix, last_norm = self
        x = mix(project_norm(project(x)))
        with without_autocast(x):
            embedding: Tensor = last_norm(x.float())
        return embedding


def to_grid(x: Tensor, embedding_size: int) -> Tensor:
    """(B, c, h, w) -> (B, c, E, E): bicubic upwards, averages downwards (bicubic would alias), as it is if it fits."""
    size = (embedding_size, embedding_size)
    if x.shape[2:] == size:
        return x
    if x.shape[2] > embedding_size:
        return F.adaptive_avg_pool2d(x, size)
    return F.interpolate(x.float(), size, mode="bicubic", align_corners=False).to(x.dtype)


def without_autocast(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Float32 for what half precision overflows in: the last norms, linear attention."""
    kind = x.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):  # meta tensors (counting without computing) have none
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()  # no autocast region in exported graphs


def init_linear(module: nn.Module) -> None:
    """For Module.apply: linear layers begin as those of ViTs, normal with a standard deviation of 0.02, biases zero."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
