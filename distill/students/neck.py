"""The neck that maps a backbone's feature levels to an embedding (B, C, E, E)."""

from __future__ import annotations

import torch.nn.functional as F
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn

from distill.students.layers import NECK_NORM_EPS

SLIM_SHARE = 2  # how many times narrower than the embedding the slim neck is


class PyramidNeck(nn.Module):
    """A light feature pyramid: the resized levels are summed and pass two residual 3x3 blocks and a LayerNorm2d.

    A coarser level goes through a 1x1 convolution and is interpolated to the grid. A finer level goes through a
    convolution whose kernel equals its stride. The embedding then keeps the detail inside a cell, which the decoder
    needs for edges. The last norm is affine, as in SAM's own neck, so that a student can match the teacher's scale.

    Args:
        in_channels: channels of each level.
        cells_per_level: how many cells of each level lie along one side of a grid cell. It is 2 for a level with half
            the grid's stride. It is 1, the default, for the grid's own level and for coarser ones.
        slim: True for half the embedding's width, and for depthwise 3x3 and 1x1 convolutions in the place of dense
            ones. On SAM's grid of 64 x 64 cells with 256 channels the two dense blocks alone take 4.8 GMACs, which is
            several times what a small backbone takes. The slim neck takes 0.3 GMACs there.
    """

    def __init__(
        self,
        in_channels: list[int],
        embedding_dim: int,
        embedding_size: int,
        *,
        cells_per_level: list[int] | None = None,
        slim: bool = False,
    ) -> None:
        super().__init__()
        cells_per_level = cells_per_level or [1] * len(in_channels)
        width = max(1, embedding_dim // SLIM_SHARE) if slim else embedding_dim
        self.embedding_size = embedding_size
        self.lateral = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, width, cells, stride=cells, bias=False), nn.BatchNorm2d(width))
            for channels, cells in zip(in_channels, cells_per_level, strict=True)
        )
        self.blocks = nn.ModuleList(_separable_block(width) if slim else _dense_block(width) for _ in range(2))
        self.project = nn.Conv2d(width, embedding_dim, 1)
        self.norm = LayerNorm2d(embedding_dim, NECK_NORM_EPS)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Map feature levels [(B, c_i, h_i, w_i)] to embeddings (B, C, E, E)."""
        size = (self.embedding_size, self.embedding_size)
        levels = [
            F.interpolate(lateral(feature), size, mode="bilinear", align_corners=False)
            for lateral, feature in zip(self.lateral, features, strict=True)
        ]
        fused = sum(levels[1:], levels[0])  # (B, width, E, E)
        for block in self.blocks:
            fused = fused + block(fused)
        embedding: Tensor = self.norm(self.project(fused))
        return embedding


def _dense_block(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.GELU())


def _separable_block(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
        nn.BatchNorm2d(width),
        nn.Conv2d(width, width, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.GELU(),
    )
