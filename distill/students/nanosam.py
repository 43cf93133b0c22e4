"""NanoSAM's image encoder: timm's ResNet-18, a learned neck that upsamples its coarsest map, a position embedding.

This is written from the published layout (NanoSAM, NVIDIA 2023). Tensor names are those of its training checkpoints,
which hold only the encoder; the mask decoder is MobileSAM's. Unlike SAM's encoder, this one ends without a norm.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn

from distill.students.layers import check_image_size, to_grid

STRIDE = 32
NECK_WIDTH = 256
POSITION_STD = 1e-5  # published code: the position embedding begins near zero


class NanoSamEncoder(nn.Module):
    """A ResNet-18 and a neck: normalised pixels (B, 3, S, S) -> embeddings (B, C, E, E)."""

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
        fine = to_grid(self.up_1(coarse), self.embedding_size)  # (B, c, E, E); E is S/16 in the published model
        embedding: Tensor = self.proj(fine) + self.pos_embedding  # (B, C, E, E)
        return embedding


def build(name: str, *, image_size: int, embedding_dim: int, embedding_size: int) -> NanoSamEncoder:
    """Build NanoSAM's encoder with random weights.

    Args:
        image_size: S, a multiple of 32.
        embedding_dim: C.
        embedding_size: E, any size; the upsampled map of side S/16 is resized to it before the last convolutions.
    Raises:
        DistillError: the image size is not a multiple of the stride.
    """
    check_image_size(name, image_size, STRIDE, "its stride")
    return NanoSamEncoder(image_size=image_size, embedding_dim=embedding_dim, embedding_size=embedding_size)
