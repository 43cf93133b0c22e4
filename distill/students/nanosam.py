"""NanoSAM's image encoder: timm's ResNet-18, its coarsest map upsampled by a learned neck, and a position embedding.

Written from the published layout (NanoSAM, NVIDIA 2023). Tensor names are those of its training checkpoints, which hold
the encoder alone: the mask decoder is MobileSAM's. Unlike SAM's, the embedding ends without a norm.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn

from distill.errors import DistillError
from distill.students.layers import to_grid

STRIDE = 32
NECK_WIDTH = 256
POSITION_STD = 1e-5  # published code: the position embedding begins near zero


class NanoSamEncoder(nn.Module):
    """(B, 3, S, S) normalised pixels -> (B, C, E, E)."""

    def __init__(self, *, image_size: int, embedding_dim: int, embedding_size: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.embedding_dim = embedding_dim
        self.embedding_size = embedding_size
        backbone: Any = timm.create_model("resnet18", features_only=True, out_indices=(4,))
        (channels,) = backbone.feature_info.channels()
        self.backbone = backbone
        self.up_1 = nn.Sequential(
            nn.Conv2d(channels, NECK_WIDTH, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(NECK_WIDTH, NECK_WIDTH, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(NECK_WIDTH, NECK_WIDTH, 3, padding=1),
            nn.GELU(),
            nn.ConvTranspose2d(NECK_WIDTH, NECK_WIDTH, 3, stride=2, padding=1, output_padding=1),
            nn.GELU(),
        )
        self.proj = nn.Sequential(
            nn.Conv2d(NECK_WIDTH, NECK_WIDTH, 3, padding=1), nn.GELU(), nn.Conv2d(NECK_WIDTH, embedding_dim, 1)
        )
        self.pos_embedding = nn.Parameter(POSITION_STD * torch.randn(1, embedding_dim, embedding_size, embedding_size))

    def forward(self, pixels: Tensor) -> Tensor:
        (coarse,) = self.backbone(pixels)  # (B, c, S/32, S/32)
        fine = to_grid(self.up_1(coarse), self.embedding_size)  # S/16 is the grid of the published sizes
        embedding: Tensor = self.proj(fine) + self.pos_embedding  # (B, C, E, E)
        return embedding


def build(name: str, *, image_size: int, embedding_dim: int, embedding_size: int) -> NanoSamEncoder:
    """NanoSAM's encoder with random weights.

    Args:
        image_size: S, a multiple of 32. embedding_dim: C.
        embedding_size: E, any; the upsampled map, of side S/16, is resized to it before the last convolutions.
    Raises:
        DistillError: an image size that the strides do not divide.
    """
    if image_size < STRIDE or image_size % STRIDE:
        raise DistillError(f"{name}: image_size {image_size} is not a multiple of {STRIDE}, its stride")
    return NanoSamEncoder(image_size=image_size, embedding_dim=embedding_dim, embedding_size=embedding_size)
