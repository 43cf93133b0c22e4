"""EfficientViT-SAM's image encoders: L0, L1, L2, XL0, XL1, and this project's small T.

This is written from the papers (EfficientViT, Cai et al. 2023; EfficientViT-SAM, Zhang et al. 2024). Tensor names and
the computed function are those of the released checkpoints; golden numbers test both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn

from distill.students import EFFICIENTVIT_EPS
from distill.students.layers import check_image_size, to_grid, without_autocast

ATTENTION_EPS = 1e-15  # published code: added to the normaliser of the ReLU attention
NECK_LEVELS = 3  # the neck fuses the last three stages


@dataclass(frozen=True)
class Stage:
    """Blocks at one resolution; the first block halves it.

    block: res (two 3x3), fmb (fused inverted bottleneck), mb (inverted bottleneck), att (linear attention + mb).
    depth: number of blocks after the first.
    expand: hidden width of a bottleneck as a multiple of its input's width.
    """

    block: Literal["res", "fmb", "mb", "att"]
    width: int
    depth: int
    expand: int = 1


@dataclass(frozen=True)
class Architecture:
    """The sizes of one member of the family.

    stages: the stem, then the stages.
    first_expand: how many times more the first bottleneck of a stage expands than the stage's other ones.
    """

    stages: tuple[Stage, ...]
    attention_dim: int  # channels of one head
    attention_kernel: int  # side of the depthwise convolution that gives the second scale of attention
    first_expand: int
    neck_width: int
    neck_depth: int
    neck_expand: int


def _large(depths: Sequence[int], neck_depth: int) -> Architecture:
    return Architecture(
        stages=(
            Stage("res", 32, depths[0]),
            Stage("fmb", 64, depths[1], expand=4),
            Stage("fmb", 128, depths[2], expand=4),
            Stage("mb", 256, depths[3], expand=4),
            Stage("att", 512, depths[4], expand=6),
        ),
        attention_dim=32,
        attention_kernel=5,
        first_expand=4,
        neck_width=256,
        neck_depth=neck_depth,
        neck_expand=1,
    )


def _extra_large(depths: Sequence[int], neck_depth: int) -> Architecture:
    return Architecture(
        stages=(
            Stage("res", 32, depths[0]),
            Stage("fmb", 64, depths[1], expand=4),
            Stage("fmb", 128, depths[2], expand=4),
            Stage("fmb", 256, depths[3], expand=4),
            Stage("att", 512, depths[4], expand=4),
            Stage("att", 1024, depths[5], expand=6),
        ),
        attention_dim=32,
        attention_kernel=3,
        first_expand=4,
        neck_width=256,
        neck_depth=neck_depth,
        neck_expand=4,
    )


# L and XL: EfficientViT-SAM, published code. T is ours. It is narrow where the resolution is high and uses dense 3x3
# convolutions there, because depthwise ones are slow on CPUs for their work. It has attention at stride 32 only.
ARCHITECTURES: dict[str, Architecture] = {
    "efficientvit_sam_t": Architecture(
        stages=(
            Stage("res", 16, 0),
            Stage("fmb", 32, 1, expand=1),
            Stage("fmb", 64, 1, expand=2),
            Stage("mb", 128, 2, expand=4),
            Stage("att", 128, 2, expand=4),
        ),
        attention_dim=16,
        attention_kernel=3,
        first_expand=2,
        neck_width=80,
        neck_depth=2,
        neck_expand=1,
    ),
    "efficientvit_sam_l0": _large((1, 1, 1, 4, 4), neck_depth=4),
    "efficientvit_sam_l1": _large((1, 1, 1, 6, 6), neck_depth=8),
    "efficientvit_sam_l2": _large((1, 2, 2, 8, 8), neck_depth=12),
    "efficientvit_sam_xl0": _extra_large((0, 1, 1, 2, 3, 3), neck_depth=6),
    "efficientvit_sam_xl1": _extra_large((1, 2, 2, 4, 6, 6), neck_depth=12),
}


class ConvLayer(nn.Module):
    """A convolution, then a batch norm if `norm`, then a tanh-GELU if `act`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
        norm: bool = True,
        act: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=bias
        )
        self.norm = nn.BatchNorm2d(out_channels, eps=EFFICIENTVIT_EPS) if norm else None
        self.act = nn.GELU(approximate="tanh") if act else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.act is None else self.act(x)


class ResBlock(nn.Module):
    """Two 3x3 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvLayer(channels, channels, kernel=3, act=True)
        self.conv2 = ConvLayer(channels, channels, kernel=3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(self.conv1(x))
        return out


class FusedMBConv(nn.Module):
    """A fused inverted bottleneck: a 3x3 convolution expands, a 1x1 projects."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, expand: int) -> None:
        super().__init__()
        hidden = in_channels * expand
        self.spatial_conv = ConvLayer(in_channels, hidden, kernel=3, stride=stride, act=True)
        self.point_conv = ConvLayer(hidden, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.point_conv(self.spatial_conv(x))
        return out


class MBConv(nn.Module):
    """An inverted bottleneck: a 1x1 expands, a depthwise 3x3 mixes, a 1x1 projects. Only the last one has a norm."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, expand: int) -> None:
        super().__init__()
        hidden = in_channels * expand
        self.inverted_conv = ConvLayer(in_channels, hidden, bias=True, norm=False, act=True)
        self.depth_conv = ConvLayer(
            hidden, hidden, kernel=3, stride=stride, groups=hidden, bias=True, norm=False, act=True
        )
        self.point_conv = ConvLayer(hidden, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.point_conv(self.depth_conv(self.inverted_conv(x)))
        return out


class LiteMLA(nn.Module):
    """Multi-scale ReLU attention: heads of a 1x1 qkv, and as many heads of that qkv after a small convolution."""

    keeps_float32 = True  # in typed graphs: sums over all positions leave the range of half precision

    def __init__(self, channels: int, head_dim: int, kernel: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        qkv = 3 * channels
        self.qkv = ConvLayer(channels, qkv, norm=False)
        self.aggreg = nn.ModuleList(
            [
                nn.Sequential(
                    nn.Conv2d(qkv, qkv, kernel, padding=kernel // 2, groups=qkv, bias=False),
                    nn.Conv2d(qkv, qkv, 1, groups=qkv // head_dim, bias=False),
                )
            ]
        )
        self.proj = ConvLayer((1 + len(self.aggreg)) * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x)  # (B, 3c, h, w)
        scales = torch.cat([qkv, *(scale(qkv) for scale in self.aggreg)], 1)  # (B, 6c, h, w)
        with without_autocast(x):
            heads = torch.unflatten(scales.float().flatten(2), 1, (-1, 3 * self.head_dim))  # (B, heads, 3d, hw)
            query, key, value = heads.chunk(3, 2)  # (B, heads, d, hw) each
            out = relu_attention(F.relu(query), F.relu(key), value)
        out = torch.unflatten(out.flatten(1, 2), 2, x.shape[2:])  # (B, 2c, h, w)
        projected: Tensor = self.proj(out.to(scales.dtype))
        return projected


def relu_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend with products of non-negative features as similarity, multiplied in the cheaper of the two orders.

    Args:
        query, key: (B, heads, d, n), not negative.
        value: (B, heads, d, n).
    Returns:
        the attended values (B, heads, d, n).
    """
    head_dim, num_positions = query.shape[2:]
    if num_positions > head_dim:
        normaliser = key.sum(-1, keepdim=True).transpose(2, 3) @ query  # (B, heads, 1, n)
        return (value @ key.transpose(2, 3)) @ query / (normaliser + ATTENTION_EPS)
    similarity = key.transpose(2, 3) @ query  # (B, heads, n, n)
    return value @ (similarity / (similarity.sum(2, keepdim=True) + ATTENTION_EPS))


class Residual(nn.Module):
    """A residual block: x + main(x), or only main(x) if the block changes the shape."""

    def __init__(self, main: nn.Module, *, shortcut: bool = True) -> None:
        super().__init__()
        self.main = main
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.main(x)
        return x + out if self.shortcut else out


class AttentionBlock(nn.Module):
    """Attention for context, then an inverted bottleneck for local mixing."""

    def __init__(self, channels: int, head_dim: int, kernel: int, *, expand: int) -> None:
        super().__init__()
        self.context_module = Residual(LiteMLA(channels, head_dim, kernel))
        self.local_module = Residual(MBConv(channels, channels, expand=expand))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.local_module(self.context_module(x))
        return out


class OpList(nn.Module):
    """A sequence of operations under the published name."""

    def __init__(self, *ops: nn.Module) -> None:
        super().__init__()
        self.op_list = nn.Sequential(*ops)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.op_list(x)
        return out


class Backbone(nn.Module):
    """The stages, at strides 2, 4, 8, ..."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        stem, *rest = architecture.stages
        ops: list[nn.Module] = [ConvLayer(3, stem.width, kernel=3, stride=2, act=True)]
        ops += [Residual(ResBlock(stem.width)) for _ in range(stem.depth)]
        stages = [OpList(*ops)]
        in_channels = stem.width
        for stage in rest:
            first = FusedMBConv if stage.block == "fmb" else MBConv
            expand = architecture.first_expand * stage.expand
            ops = [Residual(first(in_channels, stage.width, stride=2, expand=expand), shortcut=False)]
            ops += [_block(stage, architecture) for _ in range(stage.depth)]
            stages.append(OpList(*ops))
            in_channels = stage.width
        self.stages = nn.ModuleList(stages)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Map normalised pixels (B, 3, S, S) to one map per stage, (B, width, S / stride, S / stride)."""
        features = []
        x = pixels
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


def _block(stage: Stage, architecture: Architecture) -> nn.Module:
    if stage.block == "att":
        return AttentionBlock(
            stage.width, architecture.attention_dim, architecture.attention_kernel, expand=stage.expand
        )
    block = FusedMBConv if stage.block == "fmb" else MBConv
    return Residual(block(stage.width, stage.width, expand=stage.expand))


class Neck(nn.Module):
    """The neck: the last stages, deepest first, are projected by 1x1, resized to the grid, summed and mixed."""

    def __init__(self, architecture: Architecture, embedding_dim: int, embedding_size: int) -> None:
        super().__init__()
        self.embedding_size = embedding_size
        width = architecture.neck_width
        levels = architecture.stages[: -NECK_LEVELS - 1 : -1]
        self.input_ops = nn.ModuleList(OpList(ConvLayer(level.width, width)) for level in levels)
        self.middle = OpList(
            *(
                Residual(FusedMBConv(width, width, expand=architecture.neck_expand))
                for _ in range(architecture.neck_depth)
            )
        )
        self.output_ops = nn.ModuleList([OpList(ConvLayer(width, embedding_dim, bias=True, norm=False))])

    def forward(self, features: list[Tensor]) -> Tensor:
        """Map the backbone's features, one map per stage, to embeddings (B, C, E, E)."""
        levels = features[: -NECK_LEVELS - 1 : -1]
        maps = [to_grid(op(level), self.embedding_size) for op, level in zip(self.input_ops, levels, strict=True)]
        fused = torch.stack(maps).sum(0)  # (B, width, E, E)
        embedding: Tensor = self.output_ops[0](self.middle(fused))
        return embedding


class EfficientViTEncoder(nn.Module):
    """Backbone, neck and a last norm: normalised pixels (B, 3, S, S) -> embeddings (B, C, E, E), float32."""

    def __init__(self, architecture: Architecture, *, image_size: int, embedding_dim: int, embedding_size: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.embedding_dim = embedding_dim
        self.embedding_size = embedding_size
        self.backbone = Backbone(architecture)
        self.neck = Neck(architecture, embedding_dim, embedding_size)
        self.norm = LayerNorm2d(embedding_dim, EFFICIENTVIT_EPS)

    def forward(self, pixels: Tensor) -> Tensor:
        embedding = self.neck(self.backbone(pixels))  # (B, C, E, E)
        with without_autocast(pixels):
            normalised: Tensor = self.norm(embedding.float())
        return normalised


def build(name: str, *, image_size: int, embedding_dim: int, embedding_size: int) -> EfficientViTEncoder:
    """Build a member of the family with random weights.

    Args:
        image_size: S, a multiple of the last stage's stride (32; 64 for XL).
        embedding_dim: C.
        embedding_size: E, any size; the neck resizes its maps to it.
    Raises:
        DistillError: the image size is not a multiple of the stride.
    """
    architecture = ARCHITECTURES[name]
    stride = 2 ** len(architecture.stages)
    check_image_size(name, image_size, stride, "the stride of its last stage")
    return EfficientViTEncoder(
        architecture, image_size=image_size, embedding_dim=embedding_dim, embedding_size=embedding_size
    )
