"""Pieces that several student encoders share: a convolution with its norm, SAM's neck, and resizing to the grid."""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn

from distill.errors import DistillError

NECK_NORM_EPS = 1e-6  # segment_anything/modeling/common.py


class ConvNorm(nn.Module):
    """A convolution without a bias, then batch norm, under the published names `c` and `bn` (TinyViT, RepViT)."""

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
    """SAM's neck under its published names 0 to 3: 1x1, norm, 3x3, norm. Its output is float32 even under autocast."""

    def __init__(self, in_channels: int, embedding_dim: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, embedding_dim, 1, bias=False),
            LayerNorm2d(embedding_dim, NECK_NORM_EPS),
            nn.Conv2d(embedding_dim, embedding_dim, 3, padding=1, bias=False),
            LayerNorm2d(embedding_dim, NECK_NORM_EPS),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map features (B, c, E, E) to embeddings (B, C, E, E)."""
        project, project_norm, mix, last_norm = self
        x = mix(project_norm(project(x)))
        with without_autocast(x):
            embedding: Tensor = last_norm(x.float())
        return embedding


def to_grid(x: Tensor, embedding_size: int) -> Tensor:
    """Resize maps (B, c, h, w) to the grid (B, c, E, E).

    Smaller maps are enlarged by bicubic interpolation. Larger maps are averaged, because bicubic would alias.
    """
    size = (embedding_size, embedding_size)
    if x.shape[2:] == size:
        return x
    if x.shape[2] > embedding_size:
        return _pool_by_products(x, embedding_size) if _is_traced() else F.adaptive_avg_pool2d(x, size)
    return F.interpolate(x.float(), size, mode="bicubic", align_corners=False).to(x.dtype)


def _is_traced() -> bool:
    return bool(torch.jit.is_tracing() or torch.compiler.is_exporting())  # type: ignore[attr-defined,no-untyped-call]


def _pool_by_products(x: Tensor, size: int) -> Tensor:
    """Average maps (B, c, h, w) to (B, c, E, E) as adaptive pooling does, by two matrix products.

    ONNX has pooling by windows of one size alone, but from 64 cells to 48 the windows differ.
    """
    rows, columns = (_pooling_weights(int(length), size).to(x) for length in x.shape[2:])  # (E, h), (E, w)
    return rows @ x @ columns.T


def _pooling_weights(length: int, size: int) -> Tensor:
    """Return the weights (size, length) with which adaptive pooling averages `length` cells to `size`."""
    weights = torch.zeros(size, length)
    for i in range(size):
        start, end = i * length // size, -(-(i + 1) * length // size)
        weights[i, start:end] = 1 / (end - start)
    return weights


def without_autocast(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Turn autocast off for steps that overflow in half precision: the last norms and linear attention."""
    kind = x.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):  # meta tensors (for counting) have no autocast
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()  # no autocast region in exported graphs


def init_linear(module: nn.Module) -> None:
    """Initialise a linear layer as ViTs do: normal with a standard deviation of 0.02, bias zero. For Module.apply."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def check_image_size(name: str, image_size: int, unit: int, what: str) -> None:
    """Refuse an image size that is not a positive multiple of `unit` pixels; `what` names the unit in the error."""
    if image_size < unit or image_size % unit:
        raise DistillError(f"{name}: image_size {image_size} is not a multiple of {unit}, {what}")
