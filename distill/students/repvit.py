"""RepViT with SAM's neck: EdgeSAM's image encoder (M1, last two stages fused) and RepViT-SAM's (M2.3).

This is written from the papers (RepViT, Wang et al. 2024; RepViT-SAM, Wang et al. 2023; EdgeSAM, Zhou et al. 2023).
Tensor names and the computed function are those of the released checkpoints; golden numbers test both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from distill.students.layers import ConvNorm, SamNeck, check_image_size, to_grid

EXPAND = 2  # hidden width of the channel mixers
SQUEEZE = 4  # squeeze-and-excitation's hidden width is a quarter of the width, rounded to a multiple of 8
SQUEEZE_MULTIPLE = 8


@dataclass(frozen=True)
class Architecture:
    """The sizes of one RepViT for SAM.

    depths: blocks of each stage, without the one that takes the stride.
    strides: of each stage; the stem has stride 4.
    fuses_stages: True for EdgeSAM's neck over the last two stages; False for SAM's neck over the last one.
    norm_after_branches: True for RepViT-SAM's mixing block, see RepVGGDW.
    """

    widths: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    strides: tuple[int, int, int, int]
    fuses_stages: bool
    norm_after_branches: bool

    @property
    def stride(self) -> int:
        """The stride of the last stage."""
        return 4 * self.strides[1] * self.strides[2] * self.strides[3]


ARCHITECTURES = {
    "edge_sam": Architecture(
        widths=(48, 96, 192, 384),
        depths=(3, 3, 15, 2),
        strides=(1, 2, 2, 2),
        fuses_stages=True,
        norm_after_branches=False,
    ),
    "repvit_sam": Architecture(
        widths=(80, 160, 320, 640),
        depths=(7, 7, 35, 2),
        strides=(1, 2, 2, 1),
        fuses_stages=False,
        norm_after_branches=True,
    ),
}


class RepVGGDW(nn.Module):
    """Depthwise mixing in three branches, summed: 3x3, 1x1 and identity. One depthwise 3x3 computes the same.

    EdgeSAM has a norm in the 1x1 branch (`conv1.c`, `conv1.bn`). RepViT-SAM's later form has a bias in that branch
    (`conv1`) and a norm after the sum (`bn`).
    """

    def __init__(self, width: int, *, norm_after_branches: bool) -> None:
        super().__init__()
        self.conv = ConvNorm(width, width, 3, groups=width)
        self.conv1: nn.Conv2d | ConvNorm = (
            nn.Conv2d(width, width, 1, groups=width) if norm_after_branches else ConvNorm(width, width, groups=width)
        )
        self.bn = nn.BatchNorm2d(width) if norm_after_branches else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x) + self.conv1(x) + x
        return x if self.bn is None else self.bn(x)

    @torch.no_grad()
    def fused(self) -> nn.Conv2d:
        """Return one depthwise 3x3 convolution that computes the same as the branches in eval mode."""
        conv = fuse_conv_bn_eval(self.conv.c, self.conv.bn)
        point = fuse_conv_bn_eval(self.conv1.c, self.conv1.bn) if isinstance(self.conv1, ConvNorm) else self.conv1
        assert conv.bias is not None and point.bias is not None
        conv.weight += F.pad(point.weight + 1, (1, 1, 1, 1))  # the identity is a 1x1 branch of ones
        conv.bias += point.bias
        return conv if self.bn is None else fuse_conv_bn_eval(conv, self.bn)


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation: each channel is scaled by a function of all channels' means."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = round_to_multiple(width / SQUEEZE, SQUEEZE_MULTIPLE)
        self.fc1 = nn.Conv2d(width, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale: Tensor = self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True))))  # (B, c, 1, 1)
        return x * scale.sigmoid()


def round_to_multiple(value: float, multiple: int) -> int:
    """Round to the nearest positive multiple, halves upwards."""
    return max(multiple, int(value + multiple / 2) // multiple * multiple)


class Residual(nn.Module):
    """A residual block: x + m(x)."""

    def __init__(self, m: nn.Module) -> None:
        super().__init__()
        self.m = m

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.m(x)
        return out


class Block(nn.Module):
    """A token mixer (depthwise), then a channel mixer (1x1, GELU, 1x1, residual)."""

    def __init__(self, token_mixer: nn.Sequential, width: int) -> None:
        super().__init__()
        self.token_mixer = token_mixer
        hidden = EXPAND * width
        self.channel_mixer = Residual(nn.Sequential(ConvNorm(width, hidden), nn.GELU(), ConvNorm(hidden, width)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.channel_mixer(self.token_mixer(x))
        return out


def _mixing_block(width: int, *, squeeze: bool, norm_after_branches: bool) -> Block:
    mixer = RepVGGDW(width, norm_after_branches=norm_after_branches)
    return Block(nn.Sequential(mixer, SqueezeExcite(width) if squeeze else nn.Identity()), width)


def _entry_block(in_channels: int, width: int, stride: int) -> Block:
    """Build the first block of a later stage, which takes the stride and changes the width."""
    depthwise = ConvNorm(in_channels, in_channels, 3, stride=stride, groups=in_channels)
    return Block(nn.Sequential(depthwise, nn.Identity(), ConvNorm(in_channels, width)), width)


class FusedLevels(nn.Module):
    """EdgeSAM's `fuse_stage3`: a 1x1 convolution of the coarse level, resized to the grid."""

    def __init__(self, in_channels: int, embedding_dim: int) -> None:
        super().__init__()
        self.op_list = nn.ModuleList([nn.Conv2d(in_channels, embedding_dim, 1, bias=False)])

    def forward(self, x: Tensor, embedding_size: int) -> Tensor:
        return to_grid(self.op_list[0](x), embedding_size)


class RepViTEncoder(nn.Module):
    """RepViT and SAM's neck: normalised pixels (B, 3, S, S) -> embeddings (B, C, E, E), float32."""

    def __init__(self, architecture: Architecture, *, image_size: int, embedding_dim: int, embedding_size: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.embedding_dim = embedding_dim
        self.embedding_size = embedding_size
        widths = architecture.widths
        stem = nn.Sequential(
            ConvNorm(3, widths[0] // 2, 3, stride=2), nn.GELU(), ConvNorm(widths[0] // 2, widths[0], 3, stride=2)
        )
        features: list[nn.Module] = [stem]
        for stage, (width, depth) in enumerate(zip(widths, architecture.depths, strict=True)):
            self.last_entry = len(features)  # index of the block that begins the last stage
            if stage > 0:
                features.append(_entry_block(widths[stage - 1], width, architecture.strides[stage]))
            for i in range(depth):
                # every other block, beginning with the first, but never a stage's last (RepViT, section 3.4)
                squeeze = i % 2 == 0 and i < depth - 1
                features.append(
                    _mixing_block(width, squeeze=squeeze, norm_after_branches=architecture.norm_after_branches)
                )
        self.features = nn.ModuleList(features)
        self.fuse_stage2 = self.fuse_stage3 = None
        if architecture.fuses_stages:
            self.fuse_stage2 = nn.Conv2d(widths[-2], embedding_dim, 1, bias=False)
            self.fuse_stage3 = FusedLevels(widths[-1], embedding_dim)
        self.neck = SamNeck(embedding_dim if architecture.fuses_stages else widths[-1], embedding_dim)

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels
        for block in self.features[: self.last_entry]:
            x = block(x)
        fine = x  # (B, c, S/16, S/16)
        for block in self.features[self.last_entry :]:
            x = block(x)
        if self.fuse_stage2 is None or self.fuse_stage3 is None:
            x = to_grid(x, self.embedding_size)
        else:
            x = to_grid(self.fuse_stage2(fine), self.embedding_size) + self.fuse_stage3(x, self.embedding_size)
        embedding: Tensor = self.neck(x)  # (B, C, E, E)
        return embedding


def build(name: str, *, image_size: int, embedding_dim: int, embedding_size: int) -> RepViTEncoder:
    """Build EdgeSAM's or RepViT-SAM's encoder with random weights.

    Args:
        image_size: S, a multiple of 32 (EdgeSAM) or 16 (RepViT-SAM).
        embedding_dim: C.
        embedding_size: E, any size; the maps are resized to it before the neck.
    Raises:
        DistillError: the image size is not a multiple of the stride.
    """
    architecture = ARCHITECTURES[name]
    check_image_size(name, image_size, architecture.stride, "the stride of its last stage")
    return RepViTEncoder(
        architecture, image_size=image_size, embedding_dim=embedding_dim, embedding_size=embedding_size
    )
